//! What the OCI runtime and its shim tell each other for a moment: a file in memory, since one on a disk costs more than what is in it.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::oci::OciKind;
use crate::{Error, Result};

/// A file that goes with this.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    memory: Option<OwnedFd>,
}

impl Scratch {
    /// An empty one that the OCI runtime of this kind can open by its path and write to. `name` tells those of a directory apart.
    pub fn new(kind: OciKind, directory: &Path, name: &str) -> Self {
        // The other kinds write beside it and rename, which only a directory takes.
        let memory = (kind == OciKind::Crun).then(|| memfd_create(name, MemfdFlags::CLOEXEC).ok()).flatten();
        let path = match &memory {
            // Nobody inherits it: it is there as long as this process has it.
            Some(memory) => PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd())),
            None => directory.join(name),
        };
        Self { path, memory }
    }

    /// One with this in it.
    pub fn with(kind: OciKind, directory: &Path, name: &str, content: &[u8]) -> Result<Self> {
        let scratch = Self::new(kind, directory, name);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(scratch.memory.is_none()).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&scratch.path).map_err(Error::io("open", &scratch.path))?;
        file.write_all(content).map_err(Error::io("write", &scratch.path))?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.memory.is_none() {
            // One that stays behind does no harm; the directory goes with the container.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_read_and_gone() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [OciKind::Crun, OciKind::Runc] {
            let scratch = Scratch::with(kind, directory.path(), "one", b"first").unwrap();
            assert_eq!(std::fs::read(scratch.path()).unwrap(), b"first");
            std::fs::write(scratch.path(), b"2").unwrap();
            assert_eq!(std::fs::read(scratch.path()).unwrap(), b"2", "{kind:?}");
            drop(scratch);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{kind:?}");
        }
    }
}
