//! Shims by fork: one small process that the daemon starts once and that forks a shim for each container. It saves what a
//! program of this size pays at each start (mapping, relocating, hundreds of page faults), and the shims share its pages.
//! It ends with the daemon, whose end of the socket closes then; its shims stay. Single-threaded, so that a fork is safe.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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

/// How long the server may take for a fork, the first time with its start. It takes milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server that was killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
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
    server: Mutex<Option<Server>>,
}

/// The server as the daemon has it.
#[derive(Debug)]
struct Server {
    /// Our end of the socket.
    socket: OwnedFd,
    /// Its process; kernels before 5.3 have no such descriptors.
    process: Option<OwnedFd>,
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
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut output, mut input) = pipe()?;
        if let Some(running) = server.take() {
            let error = match ask(&running.socket, directory, &input) {
                Ok(pid) => {
                    *server = Some(running);
                    return Ok((pid, output));
                }
                Err(error) => error,
            };
            // It was killed, or hangs. A hung one that goes on would fork a second shim for the same directory.
            if !running.kill() {
                *server = Some(running);
                return Err(error);
            }
            drop((running, input));
            // Whoever has the other end is the shim that was asked for: then it is not known how it is.
            if !is_let_go(&output) {
                return Err(error);
            }
            (output, input) = pipe()?;
        }
        let fresh = self.start()?;
        match ask(&fresh.socket, directory, &input) {
            Ok(pid) => {
                *server = Some(fresh);
                Ok((pid, output))
            }
            Err(error) => {
                fresh.kill();
                Err(error)
            }
        }
    }

    /// Starts the server. It ends when our end of the socket is closed.
    fn start(&self) -> std::io::Result<Server> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(ANSWER_TIMEOUT))?;
        }
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
        // Before somebody collects it: until then the number is its own.
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok());
        // Collects it when it ends.
        std::thread::Builder::new().name("shim-server".into()).stack_size(WAIT_STACK_BYTES).spawn(move || {
            let _ = child.wait();
        })?;
        Ok(Server { socket, process })
    }
}

impl Server {
    /// Ends it, whatever it is at. False where that cannot be.
    fn kill(&self) -> bool {
        let Some(process) = &self.process else { return false };
        // One that has ended is fine.
        matches!(pidfd_send_signal(process, Signal::KILL), Ok(()) | Err(rustix::io::Errno::SRCH))
    }
}

/// Whether nobody has the other end of a pipe any more, after a moment for who was killed to end.
fn is_let_go(output: &OwnedFd) -> bool {
    let patience = Timespec::try_from(END_TIMEOUT).ok();
    let mut ends = [PollFd::new(output, PollFlags::empty())];
    poll(&mut ends, patience.as_ref()).is_ok() && ends[0].revents().contains(PollFlags::HUP)
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
