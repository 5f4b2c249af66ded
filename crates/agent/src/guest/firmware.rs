//! UEFI: the firmware that is installed on the machine, and what the firmware of each guest remembers (boot entries, say). That stays beside the guest's
//! other files over its runs, moves with them, and is in its memory while it runs, so sleeps with that. A new disk begins with nothing remembered, and
//! so does each rescue: its system is not to change what the machine's own remembers.

use std::path::{Path, PathBuf};

use api::virtual_machine::MachineBoot;
use hypervisor::Boot;

use crate::context::Context;
use crate::directories::remove_file;
use crate::error::{Error, Result};
use crate::guest::shared::write_bytes_durably;

/// Where firmware is, and beside it what one remembers that has never run. `Source:` Debian's package ovmf, Fedora's edk2-ovmf, Arch's edk2-ovmf
const PLACES: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Firmware, and what it remembers at first.
#[derive(Debug, PartialEq, Eq)]
struct Firmware {
    code: PathBuf,
    variables: PathBuf,
}

/// The first of these places that has both files.
fn find(places: &[(&str, &str)]) -> Result<Firmware> {
    // Whoever opens them follows no links, which packages may have put there.
    let real = |path: &str| Path::new(path).canonicalize().ok();
    let mut found = places.iter().filter_map(|(code, variables)| Some((real(code)?, real(variables)?)));
    let (code, variables) = found
        .next()
        .ok_or_else(|| Error::Invalid("there is no UEFI firmware on this machine (Debian: ovmf)".into()))?;
    Ok(Firmware { code, variables })
}

/// The most that a firmware remembers; it is 528 KiB for those of 4 MiB. Units: bytes.
const VARIABLES_BYTES_MAX: u64 = 1 << 20;
/// Mode of a file of what it remembers: keys may be among that.
const MODE: u32 = 0o600;

fn variables(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("uefi-variables.fd")
}

fn rescue_variables(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("uefi-rescue-variables.fd")
}

/// How a guest boots by UEFI.
///
/// Errors: [`Error::Invalid`] when no firmware is installed.
pub fn boot(context: &Context, uid: &str, is_rescued: bool) -> Result<Boot> {
    let variables = if is_rescued { rescue_variables(context, uid) } else { variables(context, uid) };
    Ok(Boot::Uefi { code: find(PLACES)?.code, variables })
}

/// The file of what a guest's firmware remembers that was launched so; `None` means that it has no such.
pub fn remembered(context: &Context, uid: &str, way: Option<MachineBoot>) -> Option<PathBuf> {
    (way == Some(MachineBoot::Uefi)).then(|| variables(context, uid)).filter(|file| file.exists())
}

/// Whether a guest whose firmware remembers so many bytes can be taken in: a firmware reads what another of its size wrote.
///
/// Errors: [`Error::Invalid`] when the firmware here is another one, or there is none.
pub fn check(bytes: u64) -> Result<()> {
    fits(bytes, size(&find(PLACES)?.variables)?)
}

fn fits(bytes: u64, here: u64) -> Result<()> {
    match bytes {
        _ if bytes > VARIABLES_BYTES_MAX => {
            Err(Error::Invalid(format!("its UEFI firmware remembers {bytes} bytes, more than is taken along")))
        }
        _ if bytes == here => Ok(()),
        _ => Err(Error::Invalid(format!(
            "its UEFI firmware remembers {bytes} bytes, the one of this machine {here}; install the same one (Debian: ovmf)"
        ))),
    }
}

/// Writes down what the firmware of a guest that comes from another machine remembers.
pub fn remember(context: &Context, uid: &str, content: &[u8]) -> Result<()> {
    write_bytes_durably(&variables(context, uid), content, MODE)
}

/// Makes the file of what a guest's firmware remembers, unless it is there.
///
/// Errors: [`Error::Invalid`] when it is another firmware's, and the guest `goes_on` with that in its memory.
pub fn make_variables(file: &Path, goes_on: bool) -> Result<()> {
    make_variables_like(&find(PLACES)?.variables, file, goes_on)
}

fn make_variables_like(template: &Path, file: &Path, goes_on: bool) -> Result<()> {
    let here = size(template)?;
    match std::fs::metadata(file) {
        Ok(found) if found.len() == here => return Ok(()),
        Ok(found) if goes_on => return fits(found.len(), here),
        // Firmware finds them by its own size alone: those of another one cannot be read any more.
        Ok(found) => tracing::warn!(
            file = %file.display(),
            before = found.len(),
            here,
            "the UEFI firmware of this machine is another one: what it remembered of the guest is forgotten"
        ),
        Err(_) => {}
    }
    let content = std::fs::read(template).map_err(Error::io("read", template))?;
    write_bytes_durably(file, &content, MODE)
}

fn size(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file).map_err(Error::io("read", file))?.len())
}

/// Forgets what a guest's firmware remembers; no guest runs with it.
pub fn forget(context: &Context, uid: &str) -> Result<()> {
    remove_file(&variables(context, uid))
}

/// The same of a rescue.
pub fn forget_rescue(context: &Context, uid: &str) -> Result<()> {
    remove_file(&rescue_variables(context, uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_where_both_files_are_and_its_lack_says_what_to_install() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in ["lonely", "code", "variables"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink("code", path("link")).unwrap();
        let (lonely, missing, link, variables) = (path("lonely"), path("missing"), path("link"), path("variables"));
        let found = find(&[(&lonely, &missing), (&link, &variables)]).unwrap();
        assert_eq!(found, Firmware { code: path("code").into(), variables: variables.clone().into() });
        let error = find(&[(&lonely, &missing)]).unwrap_err().to_string();
        assert!(error.contains("ovmf"), "{error}");
    }

    #[test]
    fn what_is_remembered_stays_unless_it_is_another_firmwares() {
        let directory = tempfile::tempdir().unwrap();
        let (template, file) = (directory.path().join("template"), directory.path().join("file.fd"));
        std::fs::write(&template, "new").unwrap();
        let read = || std::fs::read_to_string(&file).unwrap();
        make_variables_like(&template, &file, false).unwrap();
        assert_eq!(read(), "new");
        std::fs::write(&file, "old").unwrap();
        make_variables_like(&template, &file, true).unwrap();
        assert_eq!(read(), "old");
        std::fs::write(&file, "of another").unwrap();
        // A guest that goes on has that in its memory.
        assert!(make_variables_like(&template, &file, true).unwrap_err().to_string().contains("10 bytes"));
        assert_eq!(read(), "of another");
        make_variables_like(&template, &file, false).unwrap();
        assert_eq!(read(), "new");
    }
}
