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
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::{children, sys};

/// The link to the program of this process.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// The variable, and its value, of a process that was executed from a mount of its own.
const SECOND_TIME: (&str, &str) = ("NUEE_OWN_MOUNT", "1");
/// Longest time that a program may take to say its version.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after it was killed it is collected, if it ends.
const TRIAL_END: Duration = Duration::from_millis(100);
/// Exit code of a trial that could not be executed. Source: POSIX, command not found.
const TRIAL_FAILED: i32 = 127;
/// Pause between two looks at it.
const TRIAL_PAUSE: Duration = Duration::from_millis(1);
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

/// Mounts `program` once more, for this process and those that it forks from now on. Only for a process with a single thread.
///
/// Errors: it cannot be mounted so (kernels before 5.12), or does not run from there.
pub(crate) fn detach(program: &Path) -> io::Result<()> {
    let detached = mount(program)?;
    let mut trial = Command::new(path(&detached.mount));
    trial.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !succeeds_alone_in_time(&mut trial)? {
        return Err(io::Error::other("the program does not run from a mount of its own"));
    }
    // Whoever comes second finds one that is as good.
    let _ = DETACHED.set(detached);
    Ok(())
}

/// Whether it ends well within [`TRIAL_TIMEOUT`], after which it is killed. It has a thread of its own: a program on a dead file system
/// keeps whoever starts it and whoever waits for its end.
pub(crate) fn succeeds_in_time(mut trial: Command) -> io::Result<bool> {
    let deadline = Instant::now() + TRIAL_TIMEOUT;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("trial".into()).spawn(move || {
        let outcome = trial.spawn().and_then(|child| ends_well(child, deadline));
        // After the deadline nobody listens.
        let _ = tell.send(outcome);
    })?;
    told.recv_timeout(TRIAL_TIMEOUT).unwrap_or(Ok(false))
}

fn ends_well(mut child: Child, deadline: Instant) -> io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(TRIAL_PAUSE);
    }
}

/// The same in a process with a single thread, which keeps it so: it forks, and waits neither for the start nor for the end.
fn succeeds_alone_in_time(trial: &mut Command) -> io::Result<bool> {
    let Some(pid) = sys::fork()? else {
        // Returns only when it fails.
        let _ = trial.exec();
        sys::end_at_once(TRIAL_FAILED);
    };
    let ended = children::wait_for_end(pid, TRIAL_TIMEOUT);
    if !ended {
        sys::kill(pid, libc::SIGKILL);
        children::wait_for_end(pid, TRIAL_END);
    }
    let child = Pid::from_raw(pid.cast_signed());
    Ok(waitpid(child, Some(WaitPidFlag::WNOHANG))? == WaitStatus::Exited(child, 0) && ended)
}

fn mount(program: &Path) -> io::Result<Detached> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, program, flags)?;
    sys::make_mount_read_only(tree.as_fd())?;
    // As long as the first descriptor is open, the mount is a tree of its own, which who may mount anything could make writable
    // again. When it is closed there is no tree any more, and the mount stays as it is for who has it open.
    let mount = rustix::fs::open(path(&tree), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    drop(tree);
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

/// Executes this program anew, with the same words, from a mount of its own. Returns where that cannot be, or is so already.
pub(crate) fn run_own_program() {
    if is_second_time() {
        return;
    }
    let Ok(detached) = mount(Path::new(OWN_PROGRAM)) else { return };
    let mut words = std::env::args_os();
    let mut command = Command::new(path(&detached.mount));
    command.arg0(words.next().unwrap_or_default()).args(words).env(SECOND_TIME.0, SECOND_TIME.1);
    // Returns only when it fails.
    let _ = command.exec();
}

/// Whether [`run_own_program`] has started this process, or the one that it was forked from.
fn is_second_time() -> bool {
    std::env::var_os(SECOND_TIME.0).is_some_and(|value| value == SECOND_TIME.1)
}

/// Whether the program of this process lies on a mount of its own, where nobody can write to it through its link. A machine that
/// mounts its programs for reading alone may change its mind, so that does not count.
pub(crate) fn own_program_is_detached() -> bool {
    let read_only =
        || rustix::fs::statvfs(OWN_PROGRAM).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    is_second_time() && read_only()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As who may mount may do it.
    fn make_writable(path: &Path) -> io::Result<()> {
        let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::change_mount(opened.as_fd(), 0, libc::MOUNT_ATTR_RDONLY)
    }

    /// A file system of which nobody ever answers a question: who asks waits until it is dropped.
    struct Dead {
        _server: std::fs::File,
        place: tempfile::TempDir,
    }

    impl Dead {
        fn mount() -> Self {
            let server = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let place = tempfile::tempdir().unwrap();
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let (name, flags) = (Some("dead"), nix::mount::MsFlags::empty());
            nix::mount::mount(name, place.path(), Some("fuse"), flags, Some(options.as_str())).unwrap();
            Self { _server: server, place }
        }
    }

    impl Drop for Dead {
        fn drop(&mut self) {
            // Forked children have the server's descriptor, too: by force all of them are let go.
            for flags in [nix::mount::MntFlags::MNT_FORCE, nix::mount::MntFlags::MNT_DETACH] {
                let _ = nix::mount::umount2(self.place.path(), flags);
            }
        }
    }

    #[test]
    fn a_program_on_a_dead_file_system_is_not_waited_for() {
        // In a process of its own: children that hang before they execute anything hold what other tests have open.
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--ignored", "--exact", "detached::tests::trials_on_a_dead_file_system"]);
        assert!(alone.status().unwrap().success());
    }

    #[test]
    #[ignore = "run by the test before it"]
    fn trials_on_a_dead_file_system() {
        let dead = Dead::mount();
        let program = dead.place.path().join("program");
        assert!(!succeeds_alone_in_time(&mut Command::new(&program)).unwrap());
        assert!(!succeeds_in_time(Command::new(&program)).unwrap());
        drop(dead);
        for (program, expected) in [("/bin/true", true), ("/bin/false", false)] {
            assert_eq!(succeeds_in_time(Command::new(program)).unwrap(), expected);
            assert_eq!(succeeds_alone_in_time(&mut Command::new(program)).unwrap(), expected);
        }
        assert!(succeeds_in_time(Command::new("/none")).is_err());
        assert!(!succeeds_alone_in_time(&mut Command::new("/none")).unwrap());
    }

    #[test]
    fn its_mount_stays_as_it_is() {
        let program = Path::new("/bin/true");
        let refused = make_writable(&path(&mount(program).unwrap().mount)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
        // The control: what is still a tree of mounts can be changed.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, program, flags).unwrap();
        sys::make_mount_read_only(tree.as_fd()).unwrap();
        make_writable(&path(&tree)).unwrap();
    }

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
