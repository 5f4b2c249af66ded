//! The loop of a shim: what is readable, writable, ended or late, and what follows from it.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::carrier::Carrier;
use super::client::{Client, Role};
use super::create::{Launched, Short};
use super::process::Process;
use super::scratch::Scratch;
use super::{
    CLIENTS_MAX, DRAIN_TIMEOUT, EXECS_MAX, LINGER_TIMEOUT, OCI_TIMEOUT, READ_BYTES, STALL_TIMEOUT,
    STDIN_QUEUE_MAX_BYTES,
};
use crate::children;
use crate::config::ShimConfig;
use crate::oci::{self, OciKind};
use crate::protocol::{DATA_MAX_BYTES, FrameKind, Refusal, json_frame};
use crate::state::{ExitRecord, ShimDir, ShimState, now_ns, write_json};

/// After what time without an event a shim is small: most wait for days.
const QUIET: Duration = Duration::from_secs(10);
/// Ends of processes that nobody has claimed yet, kept while an exec is on its way. As many as may be on their way.
const UNCLAIMED_MAX: usize = EXECS_MAX;

/// How long one that was killed may take to end. It can be stuck in the kernel.
const KILL_PATIENCE: Duration = Duration::from_millis(100);

/// How long to wait when nothing happens: until something is due, or until the shim may be small. `None`: as long as it takes. Pure.
fn patience(due: Option<Duration>, small: bool) -> Option<Duration> {
    due.or((!small).then_some(QUIET))
}

/// Whether a shim is small after a wait in which nothing happened, or something did, and whether it has to let go of the program for that.
/// A wait for something that was due says nothing of how long it has been quiet. Pure.
fn after_wait(quiet: bool, was_due: bool, small: bool) -> (bool, bool) {
    let lets_go = quiet && !was_due && !small;
    (lets_go || (quiet && small), lets_go)
}

/// A call of the OCI runtime that has not ended.
pub(super) struct Task {
    pub kind: TaskKind,
    pub child: u32,
    pub deadline: Instant,
    /// The client that waits for it.
    pub client: u64,
}

pub(super) enum TaskKind {
    Exec { launched: Box<Launched>, program: String, process_file: Option<Scratch>, size: (u16, u16) },
    Start { message_log: Scratch },
}

/// What a place in the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Output(usize, usize),
    Input(usize),
    Client(usize),
    Carried,
}

pub(super) struct Shim {
    pub config: ShimConfig,
    pub directory: ShimDir,
    /// The same directory under a name short enough for socket addresses.
    pub short: Short,
    pub state: ShimState,
    signals: SignalFd,
    listener: UnixListener,
    /// The main process first.
    pub processes: Vec<Process>,
    pub clients: Vec<(u64, Client)>,
    /// Ports that lead to the container's other family.
    pub carrier: Carrier,
    next_client: u64,
    pub next_exec: u32,
    pub tasks: Vec<Task>,
    unclaimed: Vec<(u32, i32)>,
    buffer: Vec<u8>,
    linger_deadline: Option<Instant>,
    /// Whether the program is out of this process' map, and nothing has happened since.
    small: bool,
}

impl Shim {
    pub fn new(
        config: ShimConfig,
        directory: ShimDir,
        short: Short,
        state: ShimState,
        signals: SignalFd,
        listener: UnixListener,
        main: Process,
    ) -> Self {
        Self {
            config,
            directory,
            short,
            state,
            signals,
            listener,
            processes: vec![main],
            clients: Vec::new(),
            carrier: Carrier::default(),
            next_client: 1,
            next_exec: 1,
            tasks: Vec::new(),
            unclaimed: Vec::new(),
            buffer: vec![0; READ_BYTES],
            linger_deadline: None,
            small: false,
        }
    }

    pub fn main_pid(&self) -> u32 {
        self.processes.first().map_or(0, |main| main.pid)
    }

    /// Until the container has ended and its clients have read the rest.
    pub fn run(&mut self) -> ExitCode {
        if self.listener.set_nonblocking(true).is_err() {
            return ExitCode::FAILURE;
        }
        loop {
            let now = Instant::now();
            self.wait_and_handle(now);
            self.reap();
            let now = Instant::now();
            self.handle_deadlines(now);
            self.announce_ends(now);
            self.clients.retain(|(_, client)| !client.closed);
            self.processes.retain(|process| process.number == 0 || !process.announced);
            if let Some(deadline) = self.linger_deadline
                && (self.clients.is_empty() || now >= deadline)
            {
                let _ = std::fs::remove_file(self.directory.socket());
                return ExitCode::SUCCESS;
            }
        }
    }

    /// Whether a process' output must wait for one of its clients.
    fn held_back(&self, number: u32) -> bool {
        self.clients.iter().any(|(_, client)| {
            matches!(client.role, Role::Attached { process, .. } if process == number) && client.holds_back()
        })
    }

    fn wait_and_handle(&mut self, now: Instant) {
        let due = self.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
        let timeout = patience(due, self.small);
        let mut sources = vec![Source::Signals];
        let mut set = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.clients.len() < CLIENTS_MAX {
            sources.push(Source::Listener);
            set.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        for (index, process) in self.processes.iter().enumerate() {
            let held_back = self.held_back(process.number);
            for (side, output) in process.streams.output.iter().enumerate() {
                if let Some(output) = output.as_ref().filter(|_| !held_back) {
                    sources.push(Source::Output(index, side));
                    set.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
                }
            }
            if let Some(input) = process.streams.input.as_ref().filter(|_| !process.input_queue.is_empty()) {
                sources.push(Source::Input(index));
                set.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
            }
        }
        for (index, (_, client)) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if self.takes_input(client) {
                flags |= PollFlags::POLLIN;
            }
            if client.wants_to_write() {
                flags |= PollFlags::POLLOUT;
            }
            // A connection with no flag would still report a hang-up, over and over.
            if !flags.is_empty() {
                sources.push(Source::Client(index));
                set.push(PollFd::new(client.stream.as_fd(), flags));
            }
        }
        for socket in self.carrier.awaited() {
            sources.push(Source::Carried);
            set.push(PollFd::new(socket, PollFlags::POLLIN));
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |left| {
            // Rounded up, so that a deadline has passed when poll returns.
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let Ok(count) = poll(&mut set, timeout) else { return };
        let (small, lets_go) = after_wait(count == 0, due.is_some(), self.small);
        self.small = small;
        if lets_go {
            crate::memory::let_go_of_constants();
        }
        if count == 0 {
            return;
        }
        let ready: Vec<(Source, PollFlags)> = sources
            .into_iter()
            .zip(set.iter().map(|entry| entry.revents().unwrap_or(PollFlags::empty())))
            .filter(|(_, flags)| !flags.is_empty())
            .collect();
        drop(set);
        for (source, flags) in ready {
            self.handle(source, flags);
        }
    }

    fn takes_input(&self, client: &Client) -> bool {
        match client.role {
            Role::Attached { process, .. } => self
                .processes
                .iter()
                .find(|candidate| candidate.number == process)
                .is_none_or(|process| process.input_queue.len() < STDIN_QUEUE_MAX_BYTES),
            _ => true,
        }
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Signals => while let Ok(Some(_)) = self.signals.read_signal() {},
            Source::Listener => self.accept(),
            Source::Output(index, side) => self.read_output(index, side),
            Source::Input(index) => {
                if let Some(process) = self.processes.get_mut(index) {
                    process.write_input();
                }
            }
            Source::Carried => self.carrier.begin(Instant::now()),
            Source::Client(index) => {
                if flags.contains(PollFlags::POLLOUT)
                    && let Some((_, client)) = self.clients.get_mut(index)
                {
                    client.write(Instant::now());
                }
                if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                    self.read_client(index);
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push((self.next_client, Client::new(stream, Instant::now())));
                self.next_client += 1;
            }
        }
    }

    /// One read of an output, to the log and to the clients. Returns at its end too.
    fn read_output(&mut self, index: usize, side: usize) {
        let Some(process) = self.processes.get_mut(index) else { return };
        let Some(output) = process.streams.output.get_mut(side) else { return };
        let Some(file) = output.as_mut() else { return };
        let count = match file.read(&mut self.buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {
                return;
            }
            // A terminal whose last user has gone says EIO.
            Err(_) => 0,
        };
        if count == 0 {
            *output = None;
            return;
        }
        let stream = Process::stream_of(side);
        let number = process.number;
        let data = &self.buffer[..count];
        if let Some(log) = &mut process.log {
            log.feed(stream, data, now_ns());
        }
        let kind = if side == 0 { FrameKind::Stdout } else { FrameKind::Stderr };
        for (_, client) in &mut self.clients {
            if matches!(client.role, Role::Attached { process, .. } if process == number) {
                for piece in data.chunks(DATA_MAX_BYTES) {
                    client.send(kind, piece, &self.directory.0);
                }
                client.write(Instant::now());
            }
        }
    }

    fn read_client(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some((_, client)) = self.clients.get_mut(index) {
            client.read(&mut buffer);
        }
        self.buffer = buffer;
        while let Some((kind, payload)) = self.clients.get_mut(index).and_then(|(_, client)| client.next_frame()) {
            self.handle_frame(index, kind, &payload);
        }
        let Some((_, client)) = self.clients.get_mut(index) else { return };
        if client.closed {
            if let Role::Attached { process, stdin: true } = client.role {
                self.end_input(process);
            }
        } else {
            client.write(Instant::now());
        }
    }

    /// A client's input has ended: the process' ends as well if it was promised one input only. A terminal's never does:
    /// whoever leaves it may come back, as with Docker.
    pub fn end_input(&mut self, number: u32) {
        if let Some(process) = self.processes.iter_mut().find(|process| process.number == number)
            && process.input_once
            && !process.streams.terminal
        {
            process.input_ends = true;
            process.write_input();
        }
    }

    /// Collects ended children.
    fn reap(&mut self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let Ok(pid) = u32::try_from(pid.as_raw()) else { continue };
            if self.carrier.ended(pid, Instant::now()) {
                continue;
            }
            if let Some(at) = self.tasks.iter().position(|task| task.child == pid) {
                let task = self.tasks.remove(at);
                self.finish_task(task, Some(status));
            } else if !self.end_process(pid, status) && !self.tasks.is_empty() {
                if self.unclaimed.len() >= UNCLAIMED_MAX {
                    self.unclaimed.remove(0);
                }
                self.unclaimed.push((pid, status));
            }
            if self.tasks.is_empty() {
                self.unclaimed.clear();
            }
        }
    }

    /// Notes the end of one of our processes; whether it was one.
    fn end_process(&mut self, pid: u32, status: i32) -> bool {
        let Some(process) = self.processes.iter_mut().find(|process| process.pid == pid && process.exit.is_none())
        else {
            return false;
        };
        process.exit = Some(ExitRecord { code: status, out_of_memory: false, finished_at_ns: now_ns() });
        process.streams.input = None;
        let number = process.number;
        if number == 0 {
            // Whatever is left of it holds the pipes open and must not outlive it. A group that cannot be emptied is
            // stuck in the kernel; the daemon's `delete` reports it.
            let _ = self.config.cgroup.kill_all();
            self.carrier.end();
        }
        // From here on: what was done for it may have taken time, in which nobody read its output.
        if let Some(process) = self.processes.iter_mut().find(|process| process.number == number) {
            process.drain_deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        }
        true
    }

    /// The OCI runtime has ended, or was given up (`None`).
    fn finish_task(&mut self, task: Task, status: Option<i32>) {
        match task.kind {
            TaskKind::Start { message_log } => {
                let message = oci::message(message_log.path());
                if status == Some(0) {
                    self.started();
                    self.answer(task.client, &json_frame(FrameKind::Ok, &()));
                } else {
                    let message = message.unwrap_or_else(|| "the OCI runtime did not start it".to_owned());
                    self.answer(task.client, &json_frame(FrameKind::Refused, &Refusal { code: 0, message }));
                }
            }
            TaskKind::Exec { mut launched, program, process_file, size } => {
                drop(process_file);
                let finished = launched.finish(status, || program);
                // What it was told may be somebody else's word: only a new child of ours is one.
                let finished = finished.and_then(|pid| match self.is_new_child(pid) {
                    true => Ok(pid),
                    false => {
                        Err(crate::Error::CannotStart { code: 126, message: "its process is not there".to_owned() })
                    }
                });
                match finished {
                    Ok(pid) => self.exec_started(*launched, pid, size, task.client),
                    Err(error) => {
                        if let Some(left) = launched.left_behind()
                            && self.is_new_child(left)
                            && !self.has_ended(left)
                        {
                            // It is ours and not reaped: the number is still its own.
                            crate::sys::kill(left, libc::SIGKILL);
                        }
                        let refusal = match error {
                            crate::Error::CannotStart { code, message } => Refusal { code, message },
                            other => Refusal { code: 0, message: crate::error::chain(&other) },
                        };
                        self.answer(task.client, &json_frame(FrameKind::Refused, &refusal));
                    }
                }
            }
        }
    }

    fn has_ended(&self, pid: u32) -> bool {
        self.unclaimed.iter().any(|(ended, _)| *ended == pid)
    }

    /// Whether this is a child of ours, running or ended, that is no process yet that we know.
    fn is_new_child(&self, pid: u32) -> bool {
        let is_known = self.processes.iter().any(|process| process.pid == pid && process.exit.is_none())
            || self.tasks.iter().any(|task| task.child == pid)
            || self.carrier.is_process(pid);
        !is_known && (self.has_ended(pid) || children::look(pid).is_ok())
    }

    fn exec_started(&mut self, launched: Launched, pid: u32, size: (u16, u16), client: u64) {
        let mut process = launched.process;
        process.pid = pid;
        if size != (0, 0) {
            // A terminal that cannot be sized is still a terminal.
            let _ = process.resize(size.0, size.1);
        }
        let number = process.number;
        let had_input = process.streams.input.is_some();
        self.processes.push(process);
        if let Some((_, waiting)) = self.clients.iter_mut().find(|(id, _)| *id == client) {
            waiting.role = Role::Attached { process: number, stdin: had_input };
            waiting.send_bytes(&json_frame(FrameKind::Ok, &pid), &self.directory.0);
            waiting.write(Instant::now());
        } else {
            self.end_input(number);
        }
        if let Some(at) = self.unclaimed.iter().position(|(ended, _)| *ended == pid) {
            let (_, status) = self.unclaimed.remove(at);
            self.end_process(pid, status);
        }
    }

    /// Sends a last answer to a client that waits for one.
    pub fn answer(&mut self, client: u64, bytes: &[u8]) {
        if let Some((_, client)) = self.clients.iter_mut().find(|(id, _)| *id == client) {
            client.send_bytes(bytes, &self.directory.0);
            client.ends = true;
            client.write(Instant::now());
        }
    }

    /// The main process was let go.
    pub fn started(&mut self) {
        self.state.started_at_ns = now_ns();
        // Without it a restarted daemon would take the container for one that never ran; nothing better can be done here.
        let _ = write_json(&self.directory.state(), &self.state, false);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let tasks = self.tasks.iter().map(|task| task.deadline);
        let drains = self
            .processes
            .iter()
            .filter(|process| process.exit.is_some() && !process.announced)
            .filter_map(|process| process.drain_deadline);
        let stalls = self
            .clients
            .iter()
            .filter(|(_, client)| client.holds_back())
            .map(|(_, client)| client.last_progress + STALL_TIMEOUT);
        tasks.chain(drains).chain(stalls).chain(self.linger_deadline).chain(self.carrier.deadline()).min()
    }

    fn handle_deadlines(&mut self, now: Instant) {
        self.carrier.wake(now);
        while let Some(at) = self.tasks.iter().position(|task| task.deadline <= now) {
            let task = self.tasks.remove(at);
            crate::sys::kill(task.child, libc::SIGKILL);
            children::wait_for_end(task.child, KILL_PATIENCE);
            self.finish_task(task, None);
        }
        for (_, client) in &mut self.clients {
            if client.holds_back() && client.last_progress + STALL_TIMEOUT <= now {
                client.closed = true;
            }
        }
    }

    /// Tells clients of processes that have ended and whose output was read.
    fn announce_ends(&mut self, now: Instant) {
        for index in 0..self.processes.len() {
            let Some(process) = self.processes.get(index) else { return };
            let Some(exit) = process.exit.filter(|_| !process.announced) else { continue };
            let late = process.drain_deadline.is_some_and(|deadline| deadline <= now);
            if process.output_open() && !late {
                continue;
            }
            let number = process.number;
            let exit = if number == 0 { self.end_container(exit) } else { exit };
            if let Some(process) = self.processes.get_mut(index) {
                process.announced = true;
                process.exit = Some(exit);
            }
            let bytes = json_frame(FrameKind::Exit, &exit);
            let attached = |role| matches!(role, Role::Attached { process, .. } if process == number);
            self.tell_end(&bytes, attached, now);
            if number == 0 {
                // Who waits may have us killed at once: by then the attached have what they will read, or it is said that not.
                if self.clients.iter().any(|(_, client)| attached(client.role) && client.wants_to_write()) {
                    let _ = std::fs::write(self.directory.unread(), "");
                }
                self.tell_end(&bytes, |role| role == Role::Waiting, now);
                // Nobody waits for the disk: the daemon writes down what it was told before it tells others.
                let _ = std::fs::File::open(self.directory.exit()).and_then(|file| file.sync_all());
                self.linger_deadline = Some(now + LINGER_TIMEOUT);
            }
        }
    }

    /// Tells clients of some roles that a process has ended.
    fn tell_end(&mut self, bytes: &[u8], concerned: impl Fn(Role) -> bool, now: Instant) {
        for (_, client) in self.clients.iter_mut().filter(|(_, client)| concerned(client.role)) {
            client.send_bytes(bytes, &self.directory.0);
            client.ends = true;
            client.write(now);
        }
    }

    /// The container is over: its log is complete, its exit status in a file, its control group gone.
    fn end_container(&mut self, exit: ExitRecord) -> ExitRecord {
        if let Some(log) = self.processes.first_mut().and_then(|main| main.log.as_mut()) {
            log.flush_partial(now_ns());
        }
        let exit = ExitRecord { out_of_memory: self.config.cgroup.out_of_memory_kills() > 0, ..exit };
        // On a full or broken disk clients still hear of the end; after a restart it counts as lost.
        let _ = write_json(&self.directory.exit(), &exit, false);
        // What cannot be removed now is removed by the daemon's `delete`.
        let _ = self.config.cgroup.remove();
        if self.config.oci.kind == OciKind::Crun {
            let _ = std::fs::remove_dir_all(self.config.oci.state_dir(&self.config.id));
        }
        exit
    }

    /// Starts a call of the OCI runtime for a client.
    pub fn begin_task(&mut self, kind: TaskKind, child: u32, client: u64) {
        self.tasks.push(Task { kind, child, deadline: Instant::now() + OCI_TIMEOUT, client });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_lets_go_once_when_it_is_quiet_and_waits_then_for_as_long_as_it_takes() {
        let soon = Some(Duration::from_millis(5));
        for (due, small, waits) in
            [(None, false, Some(QUIET)), (None, true, None), (soon, false, soon), (soon, true, soon)]
        {
            assert_eq!(patience(due, small), waits, "{due:?} {small}");
        }
        for (quiet, was_due, small, then) in [
            (true, false, false, (true, true)),
            (true, false, true, (true, false)),
            (true, true, false, (false, false)),
            (true, true, true, (true, false)),
            (false, false, false, (false, false)),
            (false, false, true, (false, false)),
            (false, true, true, (false, false)),
        ] {
            assert_eq!(after_wait(quiet, was_due, small), then, "{quiet} {was_due} {small}");
        }
    }
}
