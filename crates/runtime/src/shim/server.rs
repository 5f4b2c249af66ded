//! Shims by fork: one small process that the daemon starts once and that forks a shim for each container. It saves what a
//! program of this size pays at each start (mapping, relocating, hundreds of page faults), and the shims share its pages.
//! It ends with the daemon, whose end of the socket closes then; its shims stay. Single-threaded, so that a fork is safe.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair};

use crate::detached;
use crate::oci::{OciKind, OciRuntime};
use crate::state::ShimDir;
use crate::sys;

/// The word that makes `shim` this server.
pub(super) const SERVE: &str = "--serve";
/// The variable that names the program which shims run from a mount of its own.
const DETACHED: &str = "NUEE_DETACHED_PROGRAM";
/// The name of its process, and of those that it forks.
const NAME: &std::ffi::CStr = c"nuee";
/// Room that the server's command line leaves for those of its shims. Units: bytes.
const COMMAND_LINE_BYTES: usize = 512;
/// Longest path of a shim's directory. Source: PATH_MAX.
const PATH_MAX_BYTES: usize = 4096;

/// Stack of the thread that waits for the server to end.
const WAIT_STACK_BYTES: usize = 64 << 10;

/// The daemon's side: starts the server with the first container, and anew when it is gone.
#[derive(Debug)]
pub(crate) struct Forker {
    program: PathBuf,
    /// Shown in the server's command line: whose shims it forks.
    owner: PathBuf,
    /// A program that its shims run from a mount of its own.
    detached: Option<PathBuf>,
    /// Our end of the socket.
    server: Mutex<Option<OwnedFd>>,
}

impl Forker {
    /// One that starts `program` as its server, for the containers in the directory `owner`.
    pub fn new(program: PathBuf, owner: PathBuf, oci: &OciRuntime) -> Self {
        let detached = (oci.kind == OciKind::Crun).then(|| oci.program.clone());
        Self { program, owner, detached, server: Mutex::new(None) }
    }

    /// Has a shim forked: its process id, and the pipe on which it reports. Blocks for the length of a fork.
    pub fn fork(&self, directory: &ShimDir) -> crate::Result<(u32, OwnedFd)> {
        self.try_fork(&directory.0).map_err(crate::Error::io("start", &self.program))
    }

    fn try_fork(&self, directory: &Path) -> std::io::Result<(u32, OwnedFd)> {
        let (output, input) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = server.as_ref()
            && let Ok(pid) = ask(running, directory, &input)
        {
            return Ok((pid, output));
        }
        // None yet, or it was killed: nothing of the request has happened.
        *server = None;
        let fresh = self.start()?;
        let pid = ask(&fresh, directory, &input)?;
        *server = Some(fresh);
        Ok((pid, output))
    }

    /// Starts the server. It ends when our end of the socket is closed.
    fn start(&self) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut child = Command::new(&self.program)
            .arg("shim")
            .arg(SERVE)
            // Its shims show their own command lines in this room.
            .arg(format!("{:COMMAND_LINE_BYTES$}", self.owner.display().to_string()))
            .env_clear()
            .envs(self.detached.as_ref().map(|program| (DETACHED, program)))
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Collects it when it ends.
        std::thread::Builder::new().name("shim-server".into()).stack_size(WAIT_STACK_BYTES).spawn(move || {
            let _ = child.wait();
        })?;
        Ok(ours)
    }
}

/// One request: a directory, and where its shim reports.
fn ask(server: &OwnedFd, directory: &Path, output: &OwnedFd) -> std::io::Result<u32> {
    let descriptors = [output.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let parts = [IoSlice::new(directory.as_os_str().as_bytes())];
    sendmsg::<()>(server.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut answer = [0; 4];
    match recv(server.as_raw_fd(), &mut answer, MsgFlags::empty())? {
        4 => match u32::from_le_bytes(answer) {
            0 => Err(std::io::Error::other("the server could not fork")),
            pid => Ok(pid),
        },
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Serves on standard input until the daemon is gone. Also returns in each child, when its container has ended.
pub(super) fn serve() -> ExitCode {
    // No terminal's signal is meant for us or for what we fork.
    let _ = nix::unistd::setsid();
    sys::keep_memory_small();
    detached::run_own_program();
    // Without, each shim keeps some megabytes mapped that are the same in all.
    let _ = crate::memory::file_relocated_constants();
    // For people: it was executed by a number.
    let _ = rustix::thread::set_name(NAME);
    if let Some(program) = std::env::var_os(DETACHED) {
        // Without a mount of its own the program protects itself.
        let _ = detached::detach(Path::new(&program));
    }
    if sys::reap_children_by_itself(true).is_err() || sys::close_on_exec_from(0).is_err() {
        return ExitCode::FAILURE;
    }
    while let Some((directory, output)) = receive() {
        let pid = match sys::fork() {
            Ok(None) => return child(directory, output),
            Ok(Some(pid)) => pid,
            Err(_) => 0,
        };
        drop(output);
        if send(libc::STDIN_FILENO, &pid.to_le_bytes(), MsgFlags::MSG_NOSIGNAL).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// The next request; `None` when the daemon has gone.
fn receive() -> Option<(PathBuf, OwnedFd)> {
    loop {
        let mut bytes = [0; PATH_MAX_BYTES];
        let (length, output) = match super::descriptors::receive(std::io::stdin(), &mut bytes) {
            Ok((length, descriptors)) => (length, descriptors.into_iter().next()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return None,
        };
        if length == 0 {
            return None;
        }
        let directory = PathBuf::from(std::ffi::OsString::from_vec(bytes.get(..length)?.to_vec()));
        return Some((directory, output?));
    }
}

/// In the forked child: becomes the shim that a program of its own would have been.
fn child(directory: PathBuf, output: OwnedFd) -> ExitCode {
    let prepared = || -> std::io::Result<()> {
        sys::reap_children_by_itself(false)?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&output)?;
        nix::unistd::dup2_stderr(&null)?;
        Ok(())
    };
    if prepared().is_err() {
        return ExitCode::FAILURE;
    }
    drop(output);
    sys::set_command_line(&[b"nuee", b"shim", directory.as_os_str().as_bytes()]);
    super::run(ShimDir(directory))
}
