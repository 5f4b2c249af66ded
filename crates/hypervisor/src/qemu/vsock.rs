//! The machine's device by which programs on it reach guests without a network (`AF_VSOCK`). Each guest has one of its own, open, with an
//! id that no other guest of the machine has, whoever runs that; the kernel sees to it.
//!
//! `Source:` Linux, drivers/vhost/vsock.c; vsock(7)

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where it is. The launcher opens it: the hypervisor's own root does not have it.
pub const DEVICE: &str = "/dev/vhost-vsock";
/// Gives the guest of an open device its id. `Source:` linux/vhost.h, `VHOST_VSOCK_SET_GUEST_CID`
const SET_GUEST_CID: libc::Ioctl = 0x4008_af60;

/// The device, open for a look.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Opens it, since a name alone proves nothing: it may be there before the kernel has its driver.
    ///
    /// Errors: [`Error::NotSupported`], with what to do about it.
    pub fn open(path: &Path) -> Result<Self> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Self { file, path: path.to_owned() }),
            Err(error) => Err(Error::NotSupported(format!(
                "vsock needs {}, which cannot be opened: {error}; modprobe vhost_vsock",
                path.display()
            ))),
        }
    }

    /// Whether no guest of this machine has an id. The device keeps one that is free until it is asked for another, or closed.
    #[allow(unsafe_code)]
    pub fn is_free(&self, id: u32) -> Result<bool> {
        let number = u64::from(id);
        // SAFETY: the number is live and of the type that this call reads.
        let set = unsafe { libc::ioctl(self.file.as_raw_fd(), SET_GUEST_CID, &raw const number) };
        if set >= 0 {
            return Ok(true);
        }
        match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EADDRINUSE) => Ok(false),
            error => Err(Error::io("ask for a guest's id of", &self.path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_such_device_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vhost-vsock");
        let text = Device::open(&path).unwrap_err().to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.ends_with("modprobe vhost_vsock"), "{text}");
        // Something else of that name gives no ids.
        std::fs::write(&path, "").unwrap();
        assert!(Device::open(&path).unwrap().is_free(1 << 30).is_err());
    }
}
