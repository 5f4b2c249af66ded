//! Directories and files that go.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};

/// Removes a directory with all that is in it; one that is not there is no error.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file; one that is not there is no error.
pub fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory in which something may be mounted: takes that off first. While anything stays mounted, all stays, since
/// what is mounted is somebody else's.
pub fn remove_with_mounts(directory: &Path) -> io::Result<()> {
    // The kernel's list has paths without links.
    let directory = std::fs::canonicalize(directory)?;
    let mounted = || {
        let list = std::fs::read("/proc/self/mountinfo")?;
        Ok::<_, io::Error>(mounts_below(&list, &directory))
    };
    let there = mounted()?;
    for path in there.iter().rev() {
        let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    if !there.is_empty()
        && let Some(left) = mounted()?.first()
    {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    std::fs::remove_dir_all(directory)
}

/// The mount points in a list of mounts that are a directory or lie below it, in order of their mounting. `Source:` proc(5),
/// mountinfo.
fn mounts_below(list: &[u8], directory: &Path) -> Vec<PathBuf> {
    let points = list.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescaped).filter(|path| path.starts_with(directory)).collect()
}

/// A path out of a list of mounts, in which some bytes stand as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|text| u8::from_str_radix(text, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_directory_are_found_whatever_their_names_hold() {
        let line = |path: &str| format!("36 35 98:0 / {path} rw,noatime master:1 - ext4 /dev/root rw\n");
        let list: String = ["/", "/d", "/d/a\\040b", "/d/c\\134d\\012", "/dd", "/d/broken\\09"].map(line).concat();
        let found = mounts_below(list.as_bytes(), Path::new("/d"));
        assert_eq!(found, ["/d", "/d/a b", "/d/c\\d\n", "/d/broken\\09"].map(PathBuf::from));
    }

    #[test]
    fn what_is_mounted_in_a_directory_outlives_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        std::fs::create_dir_all(gone.join("in it")).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("data"), "kept").unwrap();
        for _ in 0..2 {
            let (bind, none) = (nix::mount::MsFlags::MS_BIND, None::<&str>);
            nix::mount::mount(Some(&kept), &gone.join("in it"), none, bind, none).unwrap();
        }
        remove_with_mounts(&gone).unwrap();
        assert!(!gone.exists());
        assert_eq!(std::fs::read_to_string(kept.join("data")).unwrap(), "kept");
        assert_eq!(remove_with_mounts(&gone).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
