//! Programs on mounts of their own that nobody can write through.
//!
//! A process that enters a container is seen by those in it, and through its `/proc/PID/exe` they reach the file that it
//! executes: they could overwrite a program of the machine (CVE-2019-5736). What is executed from a mount for reading alone,
//! which is in no tree of mounts, cannot be opened for writing through that link. crun makes such a copy or mount of itself
//! whenever it starts, and starts a second time from it; one that lies there already it runs as it is.
//!
//! `Source:` open_tree(2), mount_setattr(2); crun, src/libcrun/cloned_binary.c

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::OpenTreeFlags;

use crate::sys;

/// The link to the program of this process.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// By which crun is told that what it runs from is a copy or a mount made for it.
pub(crate) const CLONED_VARIABLE: (&str, &str) = ("_LIBCONTAINER_CLONED_BINARY", "1");

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

/// A program on a mount of its own.
#[derive(Debug)]
struct Detached {
    original: PathBuf,
    stamp: Stamp,
    mount: OwnedFd,
}

/// That of this process and of those that it forks.
static DETACHED: OnceLock<Detached> = OnceLock::new();

/// Mounts `program` once more, for this process and those that it forks from now on.
///
/// Errors: it cannot be mounted so (kernels before 5.12), or does not run from there.
pub(crate) fn detach(program: &Path) -> io::Result<()> {
    let detached = mount(program)?;
    let mut trial = Command::new(path(&detached.mount));
    trial.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !trial.status()?.success() {
        return Err(io::Error::other("the program does not run from a mount of its own"));
    }
    // Whoever comes second finds one that is as good.
    let _ = DETACHED.set(detached);
    Ok(())
}

fn mount(program: &Path) -> io::Result<Detached> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, program, flags)?;
    sys::make_mount_read_only(mount.as_fd())?;
    let stamp = Stamp::of(&std::fs::metadata(path(&mount))?);
    Ok(Detached { original: program.to_owned(), stamp, mount })
}

/// By which a child executes it: it has the descriptor until then.
fn path(mount: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// Where children of this process find `program` on its mount; `None` when there is none, or the program is another one since.
pub(crate) fn path_of(program: &Path) -> Option<PathBuf> {
    let detached = DETACHED.get().filter(|detached| is_current(detached, program))?;
    Some(path(&detached.mount))
}

fn is_current(detached: &Detached, program: &Path) -> bool {
    detached.original == program && std::fs::metadata(program).is_ok_and(|found| Stamp::of(&found) == detached.stamp)
}

/// Whether the program of this process lies where nobody can write to it through its link.
pub(crate) fn own_program_is_read_only() -> bool {
    rustix::fs::statvfs(OWN_PROGRAM).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A path by which this process can execute its own program anew, from a mount for reading alone. The descriptor behind it
/// must live until then.
pub(crate) fn own_program() -> io::Result<(OwnedFd, PathBuf)> {
    let detached = mount(Path::new(OWN_PROGRAM))?;
    let path = path(&detached.mount);
    Ok((detached.mount, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_from_its_mount_cannot_be_written_there_and_is_told_from_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("true");
        std::fs::copy("/bin/true", &program).unwrap();
        let detached = mount(&program).unwrap();
        assert!(Command::new(path(&detached.mount)).status().unwrap().success());
        let write = |path: &Path| std::fs::OpenOptions::new().write(true).open(path);
        let refused = write(&path(&detached.mount)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{refused}");
        write(&program).expect("the control: the file itself can be written");
        assert!(is_current(&detached, &program));
        assert!(!is_current(&detached, Path::new("/bin/true")), "another program");
        // As a package's update does it.
        std::fs::copy("/bin/false", directory.path().join("new")).unwrap();
        std::fs::rename(directory.path().join("new"), &program).unwrap();
        assert!(!is_current(&detached, &program), "the program was replaced");
        assert!(Command::new(path(&detached.mount)).status().unwrap().success(), "the old one is still there");
    }
}
