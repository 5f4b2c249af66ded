//! The OCI runtime's program in memory that nobody can write to any more.
//!
//! So that no container can overwrite it (CVE-2019-5736), crun copies itself there, or mounts itself once more for reading alone, whenever it
//! starts, and starts again from that. What is sealed already it runs as it is. One copy for all containers of a daemon is as safe as one
//! for each, and saves loading it and its libraries twice, a third of the time of an exec.
//!
//! `Source:` crun, src/libcrun/cloned_binary.c; memfd_create(2), fcntl(2)

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Largest program that is copied. Units: bytes.
const PROGRAM_BYTES_MAX: u64 = 64 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

#[derive(Debug)]
struct Sealed {
    original: PathBuf,
    stamp: Stamp,
    copy: OwnedFd,
}

/// The copy of this process and of those that it forks.
static SEALED: OnceLock<Sealed> = OnceLock::new();

/// Copies a program, for this process and those that it forks from now on.
///
/// Errors: the copy cannot be made, or does not run from there: some machines forbid that.
pub(crate) fn seal(program: &Path) -> io::Result<()> {
    let sealed = copy(program)?;
    let mut trial = Command::new(path(&sealed));
    trial.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !trial.status()?.success() {
        return Err(io::Error::other("the copy does not run"));
    }
    // Whoever comes second finds one that is as good.
    let _ = SEALED.set(sealed);
    Ok(())
}

fn copy(program: &Path) -> io::Result<Sealed> {
    let mut original = File::open(program)?;
    let found = original.metadata()?;
    if found.len() > PROGRAM_BYTES_MAX {
        return Err(io::Error::other("the program is too large to be copied"));
    }
    let mut memory = File::from(memfd_create("oci-runtime", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    io::copy(&mut original, &mut memory)?;
    fcntl_add_seals(&memory, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(Sealed { original: program.to_owned(), stamp: Stamp::of(&found), copy: memory.into() })
}

/// By which a child executes it: it has the descriptor until then.
fn path(sealed: &Sealed) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", sealed.copy.as_raw_fd()))
}

/// Where children of this process find the copy of `program`; `None` when there is none, or the program is another one since.
pub(crate) fn copy_of(program: &Path) -> Option<PathBuf> {
    let sealed = SEALED.get().filter(|sealed| is_current(sealed, program))?;
    Some(path(sealed))
}

fn is_current(sealed: &Sealed, program: &Path) -> bool {
    sealed.original == program && std::fs::metadata(program).is_ok_and(|found| Stamp::of(&found) == sealed.stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_runs_cannot_be_written_and_ends_with_its_original() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("true");
        std::fs::copy("/bin/true", &program).unwrap();
        let sealed = copy(&program).unwrap();
        assert!(Command::new(path(&sealed)).status().unwrap().success());
        // Neither through the descriptor nor by its path.
        let by_path = std::fs::OpenOptions::new().write(true).open(path(&sealed));
        for mut file in [Some(File::from(sealed.copy.try_clone().unwrap())), by_path.ok()].into_iter().flatten() {
            assert!(io::Write::write(&mut file, b"x").is_err() && file.set_len(0).is_err());
        }
        assert!(is_current(&sealed, &program));
        assert!(!is_current(&sealed, Path::new("/bin/true")), "another program");
        // As a package's update does it.
        std::fs::copy("/bin/false", directory.path().join("new")).unwrap();
        std::fs::rename(directory.path().join("new"), &program).unwrap();
        assert!(!is_current(&sealed, &program), "the program was replaced");
    }
}
