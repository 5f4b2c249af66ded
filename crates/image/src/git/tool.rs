//! git, which reads what a stranger packed: as a user that no account has, without a network, with a `/tmp` that is the repository's own
//! directory, with no settings and hooks but ours, and with bounds on time and memory. It never speaks to a server: `server.rs` does.
//!
//! This is no container. It sees the machine's files and processes as any user does: it may read what all may read, connect to
//! sockets that have a path and let all in, and write where all may write outside of `/tmp`. All its processes are one user.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};

/// The program.
const PROGRAM: &str = "git";
/// User and group that it runs as. No account has it; the next ones are `qemu-img`'s (1,900,000,000) and those of guests, from
/// 1,900,000,001 on (`hypervisor`, `agent`).
pub(super) const USER: u32 = 1_899_999_999;
/// Processes of it at once; others wait. Each may take [`MEMORY_BYTES_MAX`].
const AT_ONCE: usize = 3;
/// Time until another one has ended.
const TURN_TIME_MAX: Duration = Duration::from_secs(1800);
/// What makes the kernel end it before anything else when memory runs out. `Source:` proc_pid_oom_score_adj(5).
const OOM_SCORE_ADJUSTMENT: &[u8] = b"1000";
/// Where it sees the repository: a directory that every system has, covered in a mount namespace of its own.
const PLACE: &str = "/tmp";
/// Bound on its address space. Units: bytes.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Bound on its processor time. Units: seconds.
const PROCESSOR_SECONDS_MAX: u64 = 900;
/// Largest file that it writes. Units: bytes.
const FILE_BYTES_MAX: u64 = 16 << 30;
/// Longest message that is passed on. Units: bytes.
const MESSAGE_BYTES_MAX: usize = 500;

/// Longest list that is read. Units: bytes.
const LISTING_BYTES_MAX: u64 = 64 << 20;

/// No hooks, no transports, modes as those of a checkout, and what keeps its memory far below the bound whatever is in a pack.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "tar.umask=0022",
    "core.packedGitWindowSize=16m",
    "core.packedGitLimit=256m",
    "core.deltaBaseCacheLimit=64m",
    "core.bigFileThreshold=64m",
    "pack.threads=1",
    "gc.auto=0",
    "protocol.allow=never",
];

/// What [`AT_ONCE`] counts.
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

/// git, at work on a bare repository, with all its streams piped. Dropping it ends it. Whoever holds one must not wait for another.
pub(super) struct Git {
    child: Child,
    /// What it says of its failure.
    said: JoinHandle<Vec<u8>>,
    _turn: SemaphorePermit<'static>,
}

impl Git {
    /// Starts it in a repository's directory, once fewer than [`AT_ONCE`] run.
    ///
    /// Errors: `NotSupported` when it is not installed; `Unavailable` when no other ends in time.
    pub(super) async fn start(repository: &Path, arguments: &[&str]) -> Result<Self> {
        let busy = || Error::Unavailable("other builds from git repositories take too long".to_owned());
        let turn = tokio::time::timeout(TURN_TIME_MAX, TURNS.acquire()).await.map_err(|_| busy())?;
        let turn = turn.map_err(|_| busy())?;
        let mut child = spawn(repository, arguments)?;
        let said = tokio::spawn(drain(child.stderr.take()));
        Ok(Self { child, said, _turn: turn })
    }

    /// Runs it to its end and gives what it writes.
    ///
    /// Errors: `Invalid` with its last line when it fails; as for [`Git::start`].
    pub(super) async fn run(repository: &Path, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let mut git = Self::start(repository, arguments).await?;
        let (stdin, stdout) = (git.child.stdin.take(), git.child.stdout.take());
        let feeding = async {
            if let Some(mut stdin) = stdin {
                // Whether it took all shows in how it ends.
                let _ = stdin.write_all(input).await;
            }
        };
        let mut written = Vec::new();
        let reading = async {
            match stdout {
                Some(stdout) => stdout.take(LISTING_BYTES_MAX + 1).read_to_end(&mut written).await,
                None => Ok(0),
            }
        };
        let ((), read) = tokio::join!(feeding, reading);
        let read = read.map_err(Error::io("cannot read what git writes"))?;
        if read as u64 > LISTING_BYTES_MAX {
            return Err(Error::Invalid("the git repository has too many files".to_owned()));
        }
        git.end().await?;
        Ok(written)
    }

    /// Where it reads from; only the first call gives it.
    pub(super) fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it writes; only the first call gives it.
    pub(super) fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for its end; then another one may run.
    ///
    /// Errors: `Invalid` with its last line when it fails.
    pub(super) async fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait().await.map_err(Error::io("cannot wait for git"))?;
        if status.success() {
            return Ok(());
        }
        let said = self.said.await.unwrap_or_default();
        let text = String::from_utf8_lossy(&said);
        let last = text.lines().last().filter(|line| !line.is_empty()).unwrap_or("git was ended");
        let last: String = last.chars().filter(|c| !c.is_control()).collect();
        Err(Error::Invalid(format!("the git repository cannot be read: {last}")))
    }
}

/// Reads a stream to its end and keeps what came last.
async fn drain(stderr: Option<ChildStderr>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stderr) = stderr else { return kept };
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut piece).await {
        kept.extend_from_slice(&piece[..count]);
        kept.drain(..kept.len().saturating_sub(MESSAGE_BYTES_MAX));
    }
    kept
}

#[allow(unsafe_code)]
fn spawn(repository: &Path, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(PROGRAM);
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
    command.env("GIT_DIR", PLACE).env("HOME", "/nonexistent").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for name in ["GIT_CONFIG_NOSYSTEM", "GIT_ATTR_NOSYSTEM", "GIT_NO_REPLACE_OBJECTS", "GIT_NO_LAZY_FETCH"] {
        command.env(name, "1");
    }
    command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ALLOW_PROTOCOL", "");
    let source = repository.to_owned();
    // SAFETY: between fork and exec only system calls are made; the paths are short enough for nix to keep them on the stack.
    unsafe {
        command.pre_exec(move || {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let adjustment = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
            rustix::io::write(&adjustment, OOM_SCORE_ADJUSTMENT)?;
            setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX)?;
            setrlimit(Resource::RLIMIT_CPU, PROCESSOR_SECONDS_MAX, PROCESSOR_SECONDS_MAX)?;
            setrlimit(Resource::RLIMIT_FSIZE, FILE_BYTES_MAX, FILE_BYTES_MAX)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(&source), PLACE, none, MsFlags::MS_BIND, none)?;
            nix::unistd::chdir(PLACE)?;
            nix::sys::prctl::set_no_new_privs()?;
            setgroups(&[])?;
            setgid(Gid::from_raw(USER))?;
            setuid(Uid::from_raw(USER))?;
            Ok(())
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotSupported(
            "a git repository needs the program git on this machine: install the package git".to_owned(),
        ),
        _ => Error::Io { doing: "cannot run git".to_owned(), source: error },
    })
}
