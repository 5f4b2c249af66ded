//! From an empty process to a container that waits for its start: streams, socket, the OCI runtime's `create`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::OCI_TIMEOUT;
use super::events::Shim;
use super::join::{Join, Told};
use super::log_writer::LogWriter;
use super::process::{Process, Streams, pipes, terminal};
use super::scratch::Scratch;
use crate::config::ShimConfig;
use crate::oci::{self, OciKind};
use crate::protocol::{ExecStart, Joining};
use crate::state::{ShimDir, ShimState, now_ns, read_json, write_json};
use crate::{Error, Result};

/// Where clients connect.
const LISTEN_NAME: &str = "shim.sock";

/// Creates the container of `directory`.
pub(super) fn create(directory: ShimDir) -> Result<Shim> {
    let config: ShimConfig =
        read_json(&directory.config())?.ok_or_else(|| Error::NotFound(directory.0.display().to_string()))?;
    let io = |what: &'static str| {
        let path = directory.0.clone();
        move |source: std::io::Error| Error::Io { action: what, path, source }
    };
    crate::sys::close_on_exec_from(3).map_err(io("close descriptors for"))?;
    // A session of our own: no terminal's or daemon's signal reaches us. Fails only for one who leads a group already.
    let _ = nix::unistd::setsid();
    crate::sys::become_subreaper().map_err(io("become the parent of orphans for"))?;
    let signals = block_signals().map_err(io("take signals for"))?;
    let directory_fd = std::fs::File::open(&directory.0).map_err(Error::io("open", &directory.0))?;
    let short = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), directory_fd.as_raw_fd()));
    let listener = listen(&short.join(LISTEN_NAME)).map_err(io("listen in"))?;
    let log = match config.log.path.as_os_str().is_empty() {
        true => None,
        false => Some(LogWriter::open(config.log.clone()).map_err(Error::io("open", &config.log.path))?),
    };

    let mut launched = Launch::main(&config, &directory.0, &short)?.spawn(log)?;
    let status = wait_for(launched.child, &signals, Instant::now() + OCI_TIMEOUT);
    let created = launched.finish(status, || program_of(&config.bundle_dir));
    let mut main = launched.process;
    main.pid = match created {
        Ok(pid) => pid,
        Err(failure) => {
            clean_up(&config);
            return Err(failure);
        }
    };
    let state = ShimState {
        shim_pid: std::process::id(),
        shim_start_ticks: crate::processes::start_ticks(std::process::id()).unwrap_or(0),
        pid: main.pid,
        pid_start_ticks: crate::processes::start_ticks(main.pid).unwrap_or(0),
        created_at_ns: now_ns(),
        started_at_ns: 0,
    };
    write_json(&directory.state(), &state, false)?;
    Ok(Shim::new(config, directory, Short { path: short, _descriptor: directory_fd }, state, signals, listener, main))
}

/// A name for the shim's directory that is short enough for socket addresses: through a descriptor that stays open.
pub(super) struct Short {
    pub path: PathBuf,
    _descriptor: std::fs::File,
}

/// What stays of a container that could not be created.
fn clean_up(config: &ShimConfig) {
    // Nothing here can be reported better than the failure that led here; the daemon's `delete` tries again.
    let _ = config.cgroup.kill_all();
    if config.oci.kind == OciKind::Crun {
        let _ = std::fs::remove_dir_all(config.oci.state_dir(&config.id));
    }
}

/// A failure of the OCI runtime's `create` or `exec` as an error.
fn launch_failure(outcome: Option<i32>, message: Option<String>, program: &str) -> Error {
    match (outcome, message) {
        (None, _) => Error::Timeout("the OCI runtime did not answer".to_owned()),
        (_, Some(message)) => {
            let (code, message) = oci::start_failure(&message, program);
            Error::CannotStart { code, message }
        }
        (Some(status), None) => {
            Error::CannotStart { code: 126, message: format!("the OCI runtime failed with status {status}") }
        }
    }
}

/// First word of the main process, for messages.
fn program_of(bundle_dir: &Path) -> String {
    let spec: Option<serde_json::Value> = read_json(&bundle_dir.join("config.json")).ok().flatten();
    spec.and_then(|spec| spec.pointer("/process/args/0").and_then(|word| word.as_str()).map(str::to_owned))
        .unwrap_or_default()
}

/// One call of the OCI runtime that starts a process.
pub(super) struct Launch {
    command: Command,
    /// What the command runs, for messages.
    program: PathBuf,
    birth_group: Option<PathBuf>,
    number: u32,
    terminal: bool,
    stdin: bool,
    input_once: bool,
    console: Option<Console>,
    pid_file: Scratch,
    message_log: Scratch,
}

impl Launch {
    /// `create` of the main process.
    fn main(config: &ShimConfig, directory: &Path, short: &Path) -> Result<Self> {
        let message_log = Scratch::new(config.oci.kind, directory, "oci.log");
        let mut command = config.oci.command(message_log.path(), Some(&config.cgroup), &config.apart)?;
        command.arg("create").arg("--bundle").arg(&config.bundle_dir);
        let (stdin, once) = (config.open_stdin, config.stdin_once);
        Self::new(config, command, 0, config.terminal, stdin, once, directory, short, message_log)
    }

    /// `exec` of one more process, whose description is in `process_file`.
    pub fn exec(
        config: &ShimConfig,
        directory: &Path,
        short: &Path,
        number: u32,
        request: &ExecStart,
        process_file: &Path,
    ) -> Result<Self> {
        let message_log = Scratch::new(config.oci.kind, directory, &format!("exec-{number}.log"));
        let mut command = config.oci.command(message_log.path(), Some(&config.cgroup), &[])?;
        command.args(["exec", "--detach", "--process"]).arg(process_file);
        if let Some(adjustment) = request.process.pointer("/oomScoreAdj").and_then(serde_json::Value::as_i64) {
            // It leaves that to who calls it.
            crate::sys::set_oom_score_before_exec(&mut command, adjustment);
        }
        Self::new(config, command, number, request.terminal, request.stdin, true, directory, short, message_log)
    }

    #[expect(clippy::too_many_arguments, reason = "private, called from the two functions above only")]
    fn new(
        config: &ShimConfig,
        mut command: Command,
        number: u32,
        terminal: bool,
        stdin: bool,
        input_once: bool,
        directory: &Path,
        short: &Path,
        message_log: Scratch,
    ) -> Result<Self> {
        let pid_file = Scratch::new(config.oci.kind, directory, &format!("pid-{number}"));
        command.arg("--pid-file").arg(pid_file.path());
        let console = terminal.then(|| Console::listen(short, number)).transpose();
        let console = console.map_err(Error::io("listen in", directory))?;
        if let Some(console) = &console {
            command.arg("--console-socket").arg(&console.path);
        }
        command.arg(&config.id);
        let birth_group = config.oci.birth_group(&config.cgroup);
        let program = config.oci.program.clone();
        Ok(Self { command, program, birth_group, number, terminal, stdin, input_once, console, pid_file, message_log })
    }

    /// Starts the OCI runtime. A terminal's master arrives before the runtime ends, and is taken by [`Launched::finish`].
    pub fn spawn(mut self, log: Option<LogWriter>) -> Result<Launched> {
        let program = self.program;
        let (streams, [stdin, stdout, stderr]) =
            streams(self.terminal, self.stdin).map_err(Error::io("start", &program))?;
        self.command.stdin(match stdin {
            Some(stdin) => Stdio::from(stdin),
            // crun gives the streams of an exec to its user, who must not own the machine's `/dev/null`.
            None if self.number != 0 => Stdio::from(ended_input().map_err(Error::io("start", &program))?),
            None => Stdio::null(),
        });
        self.command.stdout(stdout.map_or_else(Stdio::null, Stdio::from));
        self.command.stderr(stderr.map_or_else(Stdio::null, Stdio::from));
        let child = crate::sys::spawn_into(&mut self.command, self.birth_group.as_deref())
            .map_err(Error::io("start", &program))?;
        // The child's ends of the pipes are in the command, and closed with it here.
        drop(self.command);
        let process = Process::new(self.number, streams, log, self.input_once);
        let said = Said::InFiles { pid: self.pid_file, messages: self.message_log };
        Ok(Launched { process, child, console: self.console, stdin: self.stdin, said, left_behind: None })
    }
}

/// An input that has ended.
fn ended_input() -> std::io::Result<std::io::PipeReader> {
    std::io::pipe().map(|(reader, _)| reader)
}

/// The streams of a new process, and the ends of them that are its own: none yet, with a terminal.
fn streams(terminal: bool, stdin: bool) -> std::io::Result<(Streams, [Option<OwnedFd>; 3])> {
    match terminal {
        true => Ok((Streams { output: [None, None], input: None, terminal: true }, [None, None, None])),
        false => pipes(stdin),
    }
}

/// Has `request` joined by a process that this one forks (see [`join`](super::join)) in place of the OCI runtime.
pub(super) fn join(
    config: &ShimConfig,
    short: &Path,
    number: u32,
    main_pid: u32,
    request: &ExecStart,
    joining: Joining,
) -> std::io::Result<Launched> {
    let console = request.terminal.then(|| Console::listen(short, number)).transpose()?;
    let (streams, theirs) = streams(request.terminal, request.stdin)?;
    let path = console.as_ref().map(|console| console.path.clone());
    let (child, told) = Join { config, main_pid, request, joining, console: path }.spawn(theirs)?;
    let process = Process::new(number, streams, None, true);
    let said = Said::OverPipe(told);
    Ok(Launched { process, child, console, stdin: request.stdin, said, left_behind: None })
}

/// How the one who starts a process says how that went.
enum Said {
    /// The OCI runtime.
    InFiles { pid: Scratch, messages: Scratch },
    /// A [`Join`].
    OverPipe(OwnedFd),
}

/// A process that is being started.
pub(super) struct Launched {
    pub process: Process,
    /// Who starts it, and ends when it is there.
    pub child: u32,
    said: Said,
    console: Option<Console>,
    stdin: bool,
    left_behind: Option<u32>,
}

/// Where the master of a terminal is waited for. Its name goes with it.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(short: &Path, number: u32) -> std::io::Result<Self> {
        let path = short.join(format!("console-{number}"));
        Ok(Self { listener: listen(&path)?, path })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // One that stays is in nobody's way, and goes with the container.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Launched {
    /// The process' id, and its terminal in its place, once who starts it has ended with `status` (`None`: was given up).
    /// `program` is for messages.
    pub fn finish(&mut self, status: Option<i32>, program: impl FnOnce() -> String) -> Result<u32> {
        let born;
        let (pid, message) = match &self.said {
            Said::InFiles { pid, messages } => {
                let pid: Option<u32> =
                    std::fs::read_to_string(pid.path()).ok().and_then(|text| text.trim().parse().ok());
                born = pid;
                (pid, oci::message(messages.path()))
            }
            Said::OverPipe(pipe) => {
                let told = Told::read(pipe);
                born = told.born;
                match told.outcome {
                    Some(Ok(())) => (told.born, None),
                    Some(Err(message)) => (None, Some(message)),
                    None => (None, None),
                }
            }
        };
        self.left_behind = born;
        match (status, pid) {
            (Some(0), Some(pid)) => {
                self.take_terminal()?;
                self.left_behind = None;
                Ok(pid)
            }
            (Some(0), None) => {
                Err(Error::CannotStart { code: 126, message: "the OCI runtime named no process".to_owned() })
            }
            (failed, _) => Err(launch_failure(failed, message, &program())),
        }
    }

    /// A process that was born, although [`Self::finish`] failed.
    pub fn left_behind(&self) -> Option<u32> {
        self.left_behind
    }

    /// Takes the master of the terminal. Nothing to do without one.
    fn take_terminal(&mut self) -> Result<()> {
        let Some(console) = self.console.take() else { return Ok(()) };
        let failed = |source: std::io::Error| Error::Io {
            action: "take the terminal over",
            path: PathBuf::from("console socket"),
            source,
        };
        console.listener.set_nonblocking(true).map_err(failed)?;
        let (stream, _) = console.listener.accept().map_err(failed)?;
        let master = receive_descriptor(&stream).map_err(failed)?;
        self.process.streams = terminal(master, self.stdin).map_err(failed)?;
        Ok(())
    }
}

/// Receives one descriptor over a socket.
fn receive_descriptor(stream: &UnixStream) -> std::io::Result<OwnedFd> {
    let (_, descriptors) = super::descriptors::receive(stream, &mut [0; 256])?;
    let none = || std::io::Error::new(std::io::ErrorKind::InvalidData, "no terminal in the message");
    descriptors.into_iter().next().ok_or_else(none)
}

/// Signals come through a descriptor; none ends us.
fn block_signals() -> std::io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Waits for one child; `None` when it does not end in time, after which it is killed.
fn wait_for(child: u32, signals: &SignalFd, deadline: Instant) -> Option<i32> {
    use std::os::fd::AsFd;
    let pid = Pid::from_raw(i32::try_from(child).ok()?);
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(128 + signal as i32),
            Ok(_) => {}
            Err(_) => return Some(-1),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            crate::sys::kill(child, libc::SIGKILL);
            return None;
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut set = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        // A failing poll is an interrupted one; the loop looks again.
        let _ = poll(&mut set, timeout);
        while let Ok(Some(_)) = signals.read_signal() {}
    }
}

/// Gives up the streams that came from the daemon.
pub(super) fn close_standard_streams() -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
