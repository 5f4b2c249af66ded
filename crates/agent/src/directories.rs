//! Directories and files that go.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use image::mounts::detach;

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
        let list = std::fs::read("/proc/thread-self/mountinfo")?;
        Ok::<_, io::Error>(mounts_below(&list, &directory))
    };
    let mut there = mounted()?;
    // What others are mounted on comes first and takes them along: by themselves they would go from its original too.
    there.sort();
    for path in &there {
        let _ = detach(path);
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
pub(crate) mod tests {
    use nix::mount::{MsFlags, mount};

    use super::*;

    /// Runs a test on a file system whose mounts are shared, as systemd makes those of a machine, in a mount namespace of its own.
    /// In `original/sub/nested` another is mounted, with `data` in it. Only root may do so.
    pub(crate) fn on_a_shared_disk(test: impl FnOnce(&Path) + Send) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = std::fs::canonicalize(directory.path()).unwrap();
        std::thread::scope(|scope| {
            let run = || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), none).unwrap();
                mount(none, &disk, none, MsFlags::MS_SHARED, none).unwrap();
                let nested = disk.join("original/sub/nested");
                std::fs::create_dir_all(&nested).unwrap();
                mount(Some("tmpfs"), &nested, Some("tmpfs"), MsFlags::empty(), none).unwrap();
                std::fs::write(nested.join("data"), "kept").unwrap();
                test(&disk);
            };
            scope.spawn(run).join().unwrap();
        });
    }

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
            let none = None::<&str>;
            mount(Some(&kept), &gone.join("in it"), none, MsFlags::MS_BIND, none).unwrap();
        }
        remove_with_mounts(&gone).unwrap();
        assert!(!gone.exists());
        assert_eq!(std::fs::read_to_string(kept.join("data")).unwrap(), "kept");
        assert_eq!(remove_with_mounts(&gone).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_mounted_within_a_shared_original_stays_there() {
        on_a_shared_disk(|disk| {
            let (none, gone) = (None::<&str>, disk.join("gone"));
            for propagation in [MsFlags::MS_SHARED, MsFlags::MS_SLAVE] {
                let (pin, bind) = (gone.join("pin"), MsFlags::MS_BIND | MsFlags::MS_REC);
                std::fs::create_dir_all(&pin).unwrap();
                mount(Some(&disk.join("original")), &pin, none, bind, none).unwrap();
                mount(none, &pin, none, MsFlags::MS_REC | propagation, none).unwrap();
                assert!(gone.join("pin/sub/nested/data").exists());
                remove_with_mounts(&gone).unwrap();
                assert!(!gone.exists());
                assert_eq!(std::fs::read_to_string(disk.join("original/sub/nested/data")).unwrap(), "kept");
            }
            // A link to a mount is none.
            let link = disk.join("link");
            std::os::unix::fs::symlink(disk.join("original/sub/nested"), &link).unwrap();
            detach(&link).unwrap();
            assert!(link.join("data").exists());
        });
    }
}
