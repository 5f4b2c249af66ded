//! The shared memory that a container offers to others (`--ipc shareable`): a tmpfs of the machine's below the container's
//! directory, which it and they see as /dev/shm. It lasts for one run of the container that offers it.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, Result};

/// Size of /dev/shm when none is asked for. Units: bytes.
const BYTES: i64 = 64 << 20;

/// Where it lies, below the directory of the container that offers it.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("shm")
}

/// Makes it.
pub fn offer(directory: &Path, size_bytes: i64) -> Result<PathBuf> {
    let path = path(directory);
    // What an earlier run left belongs to nobody.
    withdraw(directory)?;
    std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={}", if size_bytes > 0 { size_bytes } else { BYTES });
    mount(Some("shm"), &path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| Error::io("mount", &path)(error.into()))?;
    Ok(path)
}

/// Takes it away; whoever has it mounted keeps it. Nothing there is no error.
pub fn withdraw(directory: &Path) -> Result<()> {
    let path = path(directory);
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|data| data.st_dev());
    match (device(&path), device(directory)) {
        (Ok(own), Ok(parent)) if own != parent => umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|error| Error::io("unmount", &path)(error.into())),
        _ => Ok(()),
    }
}
