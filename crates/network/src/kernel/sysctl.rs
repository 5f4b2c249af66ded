//! Kernel settings under `/proc/sys`, of the calling thread's network namespace.

use std::path::Path;
use std::{fs, io};

use crate::types::KernelSetting;

/// Whether the machine forwards IPv6.
const FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// Sets a value unless it is there already, and tells how it was found.
pub(crate) fn ensure(path: &str, wanted: &'static str) -> KernelSetting {
    let before = read(path).ok();
    let problem = match &before {
        Some(value) if value == wanted => None,
        _ => write(path, wanted).err().map(|e| e.to_string()),
    };
    KernelSetting { path: path.to_owned(), wanted, before, problem }
}

/// Reads a value.
pub(crate) fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys").join(path))?.trim().to_owned())
}

/// Writes a value.
pub(crate) fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(path), value)
}

/// Lets the machine forward IPv6, as a network with IPv6 needs it. A machine that forwards heeds no router advertisements
/// unless it is told to, so interfaces that do now go on doing so.
///
/// `Source:` Linux, Documentation/networking/ip-sysctl.rst, `accept_ra`.
pub(crate) fn forward_ipv6() {
    if read(FORWARDING).is_ok_and(|value| value == "1") {
        return;
    }
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for name in interfaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        let path = format!("net/ipv6/conf/{name}/accept_ra");
        if name != "all" && read(&path).is_ok_and(|value| value == "1") && write(&path, "2").is_err() {
            tracing::warn!(name, "this interface will heed no router advertisements while the machine forwards IPv6");
        }
    }
    if let Err(error) = write(FORWARDING, "1") {
        tracing::warn!(%error, "cannot let the machine forward IPv6");
    }
}
