//! One more process in a running container, without the OCI runtime: the shim forks, its child joins the namespaces and groups
//! of the container's main process, takes the identity that the process is to have, and forks the process itself, which is
//! born into the container's process namespace as a child of the shim.
//!
//! ```text
//! shim --fork--> joiner: groups, namespaces, directory, user, capabilities --fork, as its sibling--> filter, program
//! ```
//! Starting the OCI runtime for that takes several times as long as all of this. What it does beyond it (profiles of security
//! modules, schedulers, user namespaces) is not done here: [`crate::exec`] says which requests are plain enough.
//!
//! The joiner is outside of the container's process namespace, so that nobody in there sees it; what is born inside has
//! no descriptor of the machine, cannot be traced by others without `CAP_SYS_PTRACE`, holds no more capabilities than the container
//! but the one that a filter takes, and its program cannot be written through `/proc/PID/exe` ([`crate::detached`]).
//!
//! `Source:` setns(2), capabilities(7), seccomp(2); runc, libcontainer/nsenter; CVE-2016-9962, CVE-2019-5736, CVE-2024-21626

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use nix::sys::resource::Resource;
use oci_spec::runtime::{Capabilities, PosixRlimitType, Process};
use rustix::fs::OFlags;
use rustix::process::{DumpableBehavior, PidfdFlags};
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use crate::config::ShimConfig;
use crate::filters;
use crate::protocol::{ExecStart, Joining};
use crate::sys;

/// Longest message about what failed; it goes through a pipe that nobody reads meanwhile. Units: bytes.
const MESSAGE_MAX_BYTES: usize = 2048;
/// More than all that is told.
const TOLD_MAX_BYTES: u64 = 4096;
/// `DEVPTS_SUPER_MAGIC`. Source: linux/magic.h
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Major and minor number of `/dev/null`. Source: admin-guide/devices.txt
const NULL_DEVICE: (u32, u32) = (1, 3);
/// Capabilities beyond this number do not exist.
const CAPABILITIES_MAX: u32 = 64;
/// First byte of what is told first: the process' number follows.
const BORN: u8 = 0;
/// First byte of what is told then: nothing follows, or a message.
const STARTED: u8 = 1;
const FAILED: u8 = 2;

/// What the joiner has said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The process is there, and may not have executed its program.
    pub born: Option<u32>,
    /// It has, or not: why, in the OCI runtime's words. `None` when the joiner ended before it knew.
    pub outcome: Option<Result<(), String>>,
}

impl Told {
    /// Reads it when the joiner has ended.
    pub fn read(pipe: &OwnedFd) -> Self {
        let mut bytes = Vec::new();
        // A process that was left behind may still have the other end.
        let ready = rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).map_err(io::Error::from);
        let file = ready.and_then(|()| Ok(std::fs::File::from(pipe.try_clone()?)));
        // What came before an error counts.
        let _ = file.and_then(|file| file.take(TOLD_MAX_BYTES).read_to_end(&mut bytes));
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let (born, rest) = match bytes {
            [BORN, a, b, c, d, rest @ ..] => (Some(u32::from_le_bytes([*a, *b, *c, *d])), rest),
            rest => (None, rest),
        };
        let outcome = match rest {
            [STARTED, ..] => Some(Ok(())),
            [FAILED, message @ ..] => Some(Err(String::from_utf8_lossy(message).into_owned())),
            _ => None,
        };
        Self { born, outcome }
    }
}

/// One write, shorter than what a pipe takes at once.
fn tell(pipe: &OwnedFd, kind: u8, what: &[u8]) {
    let what = what.get(..MESSAGE_MAX_BYTES).unwrap_or(what);
    // When the shim is gone, nobody asks.
    let _ = rustix::io::write(pipe, &[&[kind][..], what].concat());
}

/// A request and what it is about.
pub(super) struct Join<'a> {
    pub config: &'a ShimConfig,
    pub main_pid: u32,
    pub request: &'a ExecStart,
    pub joining: Joining,
    /// Where the master of its terminal is waited for.
    pub console: Option<PathBuf>,
}

impl Join<'_> {
    /// Forks the joiner: its process id, and the pipe on which it tells how it went, before it ends.
    ///
    /// Only for a process with a single thread. `streams` are those of the new process, without a terminal.
    pub fn spawn(&self, streams: [Option<OwnedFd>; 3]) -> io::Result<(u32, OwnedFd)> {
        let pid = i32::try_from(self.main_pid).ok().and_then(rustix::process::Pid::from_raw);
        // Here, where the number is still its own: this process is its parent and has not reaped it.
        let main = rustix::process::pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
        let (told, tell) = io::pipe()?;
        if let Some(joiner) = self.fork()? {
            return Ok((joiner, told.into()));
        }
        // Whatever happens, what follows in the shim is not run twice.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.run(streams, [&tell.into(), &main])));
        sys::end_at_once(1)
    }

    /// The joiner is born in the container's group, or in that of its main process: one whose processes have made groups
    /// of their own in it may hold none itself.
    fn fork(&self) -> io::Result<Option<u32>> {
        let open = |group: PathBuf| std::fs::File::open(group).map(OwnedFd::from);
        let Some(group) = self.config.oci.birth_group(&self.config.cgroup) else { return sys::fork() };
        match sys::fork_into(&open(group)?) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let main = self.config.cgroup.unified_directory_of(self.main_pid);
                sys::fork_into(&open(main.ok_or(error)?)?)
            }
            forked => forked,
        }
    }

    /// The joiner. Ends with it.
    fn run(&self, streams: [Option<OwnedFd>; 3], kept: [&OwnedFd; 2]) {
        let taken = take_streams(streams).and_then(|()| sys::close_all_but(kept));
        let Ok([pipe, main]) = taken else { return };
        let done = self.join(&pipe, main);
        match &done {
            Ok(()) => tell(&pipe, STARTED, b""),
            Err(message) => tell(&pipe, FAILED, message.as_bytes()),
        }
        sys::end_at_once(i32::from(done.is_err()))
    }

    /// `pipe` is told when the process is born; `main` is the container's main process.
    fn join(&self, pipe: &OwnedFd, main: OwnedFd) -> Result<(), String> {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(about("be hidden"))?;
        for file in self.config.cgroup.thread_files() {
            std::fs::write(file, "0").map_err(about("enter the control groups"))?;
        }
        // All that is the machine's is opened before the container's names are there in its place.
        let process: Process = serde_json::from_value(self.request.process.clone())
            .map_err(|error| format!("cannot read the process: {error}"))?;
        if let Some(adjustment) = process.oom_score_adj() {
            let file = std::fs::write("/proc/self/oom_score_adj", adjustment.to_string());
            file.map_err(about("set the order of killing"))?;
        }
        let filter = match self.joining.filtered {
            true => {
                let read = filters::of_container(&self.config.oci, &self.config.id);
                Some(read.map_err(about("read the system-call filter"))?)
            }
            false => None,
        };
        let console = self.console.as_ref().map(UnixStream::connect).transpose();
        let console = console.map_err(about("hand the terminal over"))?;
        let failures = io::pipe().map_err(about("make a pipe"))?;
        if let Ok(name) = CString::new(self.config.id.as_str()) {
            // As the OCI runtime calls the one of the main process.
            sys::join_session_keyring(&name);
        }
        let all = ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::MOUNT;
        rustix::thread::move_into_thread_name_spaces(main.as_fd(), all).map_err(about("enter the namespaces"))?;
        drop(main);

        let mut program = Program::new(&process, filter)?;
        let is_there = change_directory(process.cwd()).is_ok();
        if let Some(console) = console {
            program.terminal = Some(self.make_terminal(&console).map_err(about("make a terminal"))?);
        } else if !self.request.stdin {
            use_own_null_device();
        }
        let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
        let streams = match &program.terminal {
            Some(terminal) => vec![terminal.as_fd()],
            None => vec![input.as_fd(), output.as_fd(), error.as_fd()],
        };
        give_streams(&streams, process.user().uid()).map_err(about("give the streams to the user"))?;
        set_limits(&process).map_err(about("set the limits"))?;
        let mask = process.user().umask().unwrap_or(0o022);
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
        program.take_identity(&process).map_err(about("take the user's identity"))?;
        if !is_there {
            // Some file systems refuse root what they allow to others.
            let cwd = process.cwd();
            change_directory(cwd).map_err(|error| format!("chdir `{}`: {}", cwd.display(), reason(&error)))?;
        }
        program.find()?;
        program.start(failures, pipe)
    }

    /// A terminal of the container's, whose master goes to the shim.
    fn make_terminal(&self, console: &UnixStream) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open("/dev/pts/ptmx", flags, rustix::fs::Mode::empty());
        let master = opened.or_else(|_| rustix::fs::open("/dev/ptmx", flags, rustix::fs::Mode::empty()))?;
        // The container may have put anything there.
        if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_MAGIC {
            return Err(io::Error::other("the container's /dev/ptmx is none"));
        }
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        if (self.request.columns, self.request.rows) != (0, 0) {
            sys::set_terminal_size(master.as_fd(), self.request.columns, self.request.rows)?;
        }
        let rights = [master.as_raw_fd()];
        let control = [nix::sys::socket::ControlMessage::ScmRights(&rights)];
        let parts = [io::IoSlice::new(b"/dev/pts")];
        nix::sys::socket::sendmsg::<()>(
            console.as_raw_fd(),
            &parts,
            &control,
            nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(terminal)
    }
}

fn about<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> String {
    move |error| format!("cannot {action}: {}", reason(&error.into()))
}

/// The system's words for an error, without its number.
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().to_owned())
}

/// Puts the streams of the process where it looks for them.
fn take_streams(streams: [Option<OwnedFd>; 3]) -> io::Result<()> {
    let [input, output, error] = streams;
    // Nothing of the machine's: who owns a file may change it. With a terminal, this is what it has until then.
    let (ended, nobody) = io::pipe()?;
    nix::unistd::dup2_stdin(input.as_ref().map_or(ended.as_fd(), AsFd::as_fd))?;
    nix::unistd::dup2_stdout(output.as_ref().map_or(nobody.as_fd(), AsFd::as_fd))?;
    nix::unistd::dup2_stderr(error.as_ref().map_or(nobody.as_fd(), AsFd::as_fd))?;
    drop(nobody);
    // Closed with all the others.
    std::mem::forget((input, output, error));
    Ok(())
}

/// Reads from the container's `/dev/null`. One that has none reads from a pipe that has ended.
fn use_own_null_device() {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(own) = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()) else { return };
    let is_null = rustix::fs::fstat(&own).is_ok_and(|found| {
        rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::CharacterDevice
            && found.st_rdev == rustix::fs::makedev(NULL_DEVICE.0, NULL_DEVICE.1)
    });
    if is_null && rustix::fs::fcntl_setfl(&own, OFlags::RDWR).is_ok() {
        // Without it the pipe stays.
        let _ = nix::unistd::dup2_stdin(&own);
    }
}

/// Goes to a directory of the container, which a link through a descriptor must not lead out of.
fn change_directory(directory: &Path) -> io::Result<()> {
    std::env::set_current_dir(directory)?;
    // The kernel says of a directory that is not below the root that it cannot be reached. The C library would look for a way.
    match rustix::process::getcwd(Vec::new())?.as_bytes() {
        [b'/', ..] => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

/// Lets the user open `/dev/stdout` and its like. Devices are the machine's, and stay as they are.
fn give_streams(streams: &[BorrowedFd], user: u32) -> io::Result<()> {
    for stream in streams {
        let found = rustix::fs::fstat(stream)?;
        let kind = rustix::fs::FileType::from_raw_mode(found.st_mode);
        let ours = kind == rustix::fs::FileType::Fifo || rustix::termios::isatty(stream);
        if ours && found.st_uid != user {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(user)), None)?;
        }
    }
    Ok(())
}

fn set_limits(process: &Process) -> io::Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
        };
        nix::sys::resource::setrlimit(resource, limit.soft(), limit.hard())?;
    }
    Ok(())
}

/// What the process does on the last steps of its way, inside of the container.
struct Program {
    words: Vec<CString>,
    environment: Vec<CString>,
    path: CString,
    terminal: Option<OwnedFd>,
    filter: Option<Vec<u8>>,
    /// No more privileges than now: the filter is the last step then.
    sealed: bool,
    capabilities: CapabilitySets,
    ambient: CapabilitySet,
}

/// Which step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session = 1,
    Signals = 2,
    Filter = 3,
    Capabilities = 4,
    Program = 5,
}

const STEPS: [Step; 5] = [Step::Session, Step::Signals, Step::Filter, Step::Capabilities, Step::Program];

impl Program {
    fn new(process: &Process, filter: Option<Vec<u8>>) -> Result<Self, String> {
        let strings = |list: &Option<Vec<String>>| -> Result<Vec<CString>, String> {
            let list = list.iter().flatten().map(|word| CString::new(word.as_str()));
            list.collect::<Result<_, _>>().map_err(|_| "a word of the command line has a zero byte".to_owned())
        };
        let words = strings(process.args())?;
        if words.is_empty() {
            return Err("no command to run".to_owned());
        }
        let capabilities = process.capabilities().clone().unwrap_or_default();
        Ok(Self {
            words,
            environment: strings(process.env())?,
            path: CString::default(),
            terminal: None,
            filter,
            sealed: process.no_new_privileges().unwrap_or(false),
            capabilities: CapabilitySets {
                effective: capability_set(capabilities.effective()),
                permitted: capability_set(capabilities.permitted()),
                inheritable: capability_set(capabilities.inheritable()),
            },
            ambient: capability_set(capabilities.ambient()),
        })
    }

    /// Gives up what the process is not to have. What it needs for its last steps alone goes with them.
    fn take_identity(&self, process: &Process) -> io::Result<()> {
        let user = process.user();
        let groups: Vec<_> =
            user.additional_gids().iter().flatten().map(|gid| rustix::fs::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        let bounding =
            process.capabilities().as_ref().map(|all| capability_set(all.bounding())).unwrap_or(CapabilitySet::empty());
        for number in 0..CAPABILITIES_MAX {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if bounding.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // The kernel has no more of them.
                Err(rustix::io::Errno::INVAL) => break,
                done => done?,
            }
        }
        rustix::thread::set_keep_capabilities(true)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid()), rustix::fs::Gid::from_raw(user.gid()));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        // A change of user may have made it visible again.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let mut capabilities = self.capabilities;
        if self.filter.is_some() && !self.sealed {
            capabilities.permitted |= CapabilitySet::SYS_ADMIN;
            capabilities.effective |= CapabilitySet::SYS_ADMIN;
        }
        rustix::thread::set_capabilities(None, capabilities)?;
        if self.sealed {
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    }

    /// Finds the program as this user, along the PATH of its environment.
    fn find(&mut self) -> Result<(), String> {
        let name = self.words.first().cloned().unwrap_or_default();
        if name.as_bytes().contains(&b'/') {
            self.path = name;
            return Ok(());
        }
        let path = self.environment.iter().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
        let found = find_in(path.unwrap_or_default(), name.as_bytes()).and_then(|path| CString::new(path).ok());
        let missing =
            || format!("executable file `{}` not found in $PATH: No such file or directory", name.to_string_lossy());
        self.path = found.ok_or_else(missing)?;
        Ok(())
    }

    /// Starts it. `pipe` is told its process id, as the machine counts, before it does anything.
    fn start(&self, (mut told, tell): (io::PipeReader, io::PipeWriter), pipe: &OwnedFd) -> Result<(), String> {
        let (mut may_go, go) = io::pipe().map_err(about("make a pipe"))?;
        let Some(pid) = sys::fork_sibling().map_err(about("start a process"))? else {
            // What this one says is not to be taken for the joiner's word.
            sys::close_for_good(pipe.as_fd());
            drop(go);
            // When the joiner has gone, nobody knows of this process.
            if may_go.read_exact(&mut [0]).is_err() {
                sys::end_at_once(1);
            }
            let (step, error) = self.become_it();
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            let mut tell = tell;
            let _ = tell.write_all(&[&[step as u8][..], &code.to_ne_bytes()].concat());
            sys::end_at_once(1)
        };
        self::tell(pipe, BORN, &pid.to_le_bytes());
        drop((tell, may_go));
        // One that has ended already waits for nothing.
        let _ = rustix::io::write(&go, b"0");
        drop(go);
        // Closed when it executes its program.
        let mut failure = [0; 1 + size_of::<i32>()];
        match told.read_exact(&mut failure) {
            Err(_) => Ok(()),
            Ok(()) => {
                let [step, code @ ..] = failure;
                Err(self.failure(step, &io::Error::from_raw_os_error(i32::from_ne_bytes(code))))
            }
        }
    }

    fn failure(&self, step: u8, error: &io::Error) -> String {
        let what = reason(error);
        match STEPS.into_iter().find(|known| *known as u8 == step) {
            Some(Step::Program) if error.raw_os_error() == Some(libc::ENOEXEC) => what,
            Some(Step::Program) => format!("open executable: {what}"),
            step => format!("cannot start the process ({step:?}): {what}"),
        }
    }

    /// The last steps. Returns only when one fails.
    fn become_it(&self) -> (Step, io::Error) {
        let step = |step: Step| move |error: rustix::io::Errno| (step, io::Error::from(error));
        let system = |step: Step| move |error: nix::errno::Errno| (step, io::Error::from(error));
        let prepared = || -> Result<(), (Step, io::Error)> {
            rustix::process::setsid().map_err(step(Step::Session))?;
            if let Some(terminal) = &self.terminal {
                rustix::process::ioctl_tiocsctty(terminal).map_err(step(Step::Session))?;
                nix::unistd::dup2_stdin(terminal).map_err(system(Step::Session))?;
                nix::unistd::dup2_stdout(terminal).map_err(system(Step::Session))?;
                nix::unistd::dup2_stderr(terminal).map_err(system(Step::Session))?;
            }
            sys::reset_signals().map_err(|error| (Step::Signals, error))?;
            let filter = || match &self.filter {
                Some(filter) => sys::filter_system_calls(filter).map_err(|error| (Step::Filter, error)),
                None => Ok(()),
            };
            if !self.sealed {
                filter()?;
            }
            rustix::thread::set_capabilities(None, self.capabilities).map_err(step(Step::Capabilities))?;
            for one in self.ambient.iter() {
                rustix::thread::configure_capability_in_ambient_set(one, true).map_err(step(Step::Capabilities))?;
            }
            if self.sealed {
                filter()?;
            }
            Ok(())
        };
        if let Err(failed) = prepared() {
            return failed;
        }
        match nix::unistd::execve(&self.path, &self.words, &self.environment) {
            Ok(never) => match never {},
            Err(error) => (Step::Program, error.into()),
        }
    }
}

/// The first file of this name that may be executed in the directories of a PATH.
fn find_in(path: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    if name.is_empty() {
        return None;
    }
    // What is in the current directory is not a program because of that.
    path.split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/")).find_map(|directory| {
        let candidate = Path::new(std::ffi::OsStr::from_bytes(directory)).join(std::ffi::OsStr::from_bytes(name));
        let may = rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok();
        let is_program =
            std::fs::metadata(&candidate).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        (may && is_program).then(|| candidate.into_os_string().into_encoded_bytes())
    })
}

/// A set as the kernel takes it. Names that this library does not know do not come here: the daemon has checked them.
fn capability_set(names: &Option<Capabilities>) -> CapabilitySet {
    let bits = names.iter().flatten().map(|capability| {
        let name = serde_json::to_value(capability).unwrap_or_default();
        let name = name.as_str().and_then(|name| name.strip_prefix("CAP_"));
        name.and_then(CapabilitySet::from_name).unwrap_or(CapabilitySet::empty())
    });
    bits.fold(CapabilitySet::empty(), |all, one| all | one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_specification_is_known() {
        for capability in crate::spec::all_capabilities() {
            let set = capability_set(&Some([capability].into()));
            assert_eq!(set.bits().count_ones(), 1, "{capability}");
        }
    }

    #[test]
    fn programs_are_found_along_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        std::fs::create_dir(place("dir")).unwrap();
        std::fs::create_dir(place("dir/tool")).unwrap();
        std::fs::write(place("tool"), "").unwrap();
        let path = format!("/nowhere:{}:{}", place("dir").display(), directory.path().display());
        assert_eq!(find_in(path.as_bytes(), b"tool"), None, "neither a directory nor what may not be executed");
        std::fs::set_permissions(place("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in(path.as_bytes(), b"tool").unwrap(), place("tool").into_os_string().into_encoded_bytes());
        assert_eq!(find_in(path.as_bytes(), b""), None);
        assert_eq!(find_in(b"", b"tool"), None);
    }

    #[test]
    fn what_is_told_is_read() {
        let said = |words: &[(u8, &[u8])]| {
            let (reader, writer) = io::pipe().unwrap();
            let writer = writer.into();
            words.iter().for_each(|(kind, what)| tell(&writer, *kind, what));
            // Who was left behind keeps his end.
            let told = Told::read(&reader.into());
            drop::<OwnedFd>(writer);
            told
        };
        let pid = 4711_u32.to_le_bytes();
        assert_eq!(said(&[]), Told::default());
        assert_eq!(said(&[(BORN, &pid)]), Told { born: Some(4711), outcome: None });
        assert_eq!(said(&[(BORN, &pid), (STARTED, b"")]), Told { born: Some(4711), outcome: Some(Ok(())) });
        assert_eq!(said(&[(FAILED, b"no")]), Told { born: None, outcome: Some(Err("no".to_owned())) });
        let failed = Told { born: Some(4711), outcome: Some(Err("no".to_owned())) };
        assert_eq!(said(&[(BORN, &pid), (FAILED, b"no")]), failed);
        let long = said(&[(FAILED, &[b'x'; 100_000])]);
        assert!(matches!(long.outcome, Some(Err(text)) if text.len() == MESSAGE_MAX_BYTES));
    }
}
