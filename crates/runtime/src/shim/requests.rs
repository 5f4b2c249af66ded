//! What clients ask of a shim.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use super::EXECS_MAX;
use super::client::Role;
use super::create::{self, Launch};
use super::events::{Shim, TaskKind};
use super::scratch::Scratch;
use crate::detached;
use crate::oci::OciKind;
use crate::protocol::{
    AttachRequest, Attached, CarriedPort, ExecStart, FrameKind, Refusal, decode_size, frame, json_frame,
};
use crate::state::now_ns;

/// How long a created container may take to reach the point where it waits.
const START_PATIENCE: Duration = Duration::from_millis(200);
/// Pause between two tries.
const START_PAUSE: Duration = Duration::from_millis(1);

impl Shim {
    /// One frame of the client at `index`.
    pub fn handle_frame(&mut self, index: usize, kind: FrameKind, payload: &[u8]) {
        let Some((id, client)) = self.clients.get(index) else { return };
        let (id, role) = (*id, client.role);
        match (role, kind) {
            (Role::Attached { process, stdin: true }, FrameKind::Stdin) => {
                if let Some(process) = self.processes.iter_mut().find(|candidate| candidate.number == process) {
                    process.input_queue.extend_from_slice(payload);
                    process.write_input();
                }
            }
            (Role::Attached { process, stdin: true }, FrameKind::StdinEnd) => {
                if let Some((_, client)) = self.clients.get_mut(index) {
                    client.role = Role::Attached { process, stdin: false };
                }
                self.end_input(process);
            }
            (Role::Attached { process, .. }, FrameKind::Resize) => {
                if let (Some((columns, rows)), Some(process)) =
                    (decode_size(payload), self.processes.iter().find(|candidate| candidate.number == process))
                {
                    // It may have ended meanwhile.
                    let _ = process.resize(columns, rows);
                }
            }
            (Role::New, FrameKind::Start) => self.start(index, id),
            (Role::New, FrameKind::Kill) => self.kill(id, payload),
            (Role::New, FrameKind::Resize) => self.resize(id, payload),
            (Role::New, FrameKind::Attach) => self.attach(index, payload),
            (Role::New, FrameKind::Exec) => self.exec(index, id, payload),
            (Role::New, FrameKind::Wait) => self.wait(index),
            (Role::New, FrameKind::Carry) => self.carry(index, id, payload),
            // Input that comes after its end, and whatever makes no sense, is dropped.
            _ => {}
        }
    }

    fn refuse(&mut self, client: u64, message: String) {
        self.answer(client, &json_frame(FrameKind::Refused, &Refusal { code: 0, message }));
    }

    /// Lets the main process go.
    fn start(&mut self, index: usize, id: u64) {
        if self.state.started_at_ns != 0 {
            return self.refuse(id, "container is already started".to_owned());
        }
        if self.processes.first().is_none_or(|main| main.exit.is_some()) {
            return self.refuse(id, "container has ended before its start".to_owned());
        }
        if self.config.oci.kind == OciKind::Crun && self.open_gate() {
            self.started();
            return self.answer(id, &frame(FrameKind::Ok, b"null"));
        }
        let message_log = Scratch::new(self.config.oci.kind, &self.directory.0, "start.log");
        let spawned = self.config.oci.command(message_log.path(), None, &[]).and_then(|mut command| {
            command.arg("start").arg(&self.config.id);
            command.spawn().map_err(crate::Error::io("start", &self.config.oci.program))
        });
        match spawned {
            Ok(child) => {
                if let Some((_, client)) = self.clients.get_mut(index) {
                    client.role = Role::Pending;
                }
                self.begin_task(TaskKind::Start { message_log }, child.id(), id);
            }
            Err(error) => self.refuse(id, crate::error::chain(&error)),
        }
    }

    /// What `crun start` does: one byte into the pipe on which the container's process waits. Saves a process per start;
    /// any surprise (another version, another layout) falls back to the program.
    fn open_gate(&self) -> bool {
        let gate = self.config.oci.state_dir(&self.config.id).join("exec.fifo");
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gate) {
                Ok(mut file) => {
                    let opened = file.write_all(b"0").is_ok();
                    // As crun does: a container can be started once.
                    let _ = std::fs::remove_file(&gate);
                    return opened;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) && Instant::now() < deadline => {
                    std::thread::sleep(START_PAUSE);
                }
                Err(_) => return false,
            }
        }
    }

    fn kill(&mut self, id: u64, payload: &[u8]) {
        let signal = payload.try_into().map(i32::from_le_bytes).unwrap_or(0);
        let target = self.processes.first().filter(|main| main.exit.is_none()).map(|main| main.pid);
        // Its number cannot have been given to another process: we are its parent and have not reaped it.
        if target.is_some_and(|pid| crate::sys::kill(pid, signal)) {
            self.answer(id, &frame(FrameKind::Ok, b"null"));
        } else {
            self.refuse(id, "container is not running".to_owned());
        }
    }

    /// Carries more ports, whose sockets came with the request; without any, none any more.
    fn carry(&mut self, index: usize, id: u64, payload: &[u8]) {
        let Some((_, client)) = self.clients.get_mut(index) else { return };
        let sockets = std::mem::take(&mut client.descriptors);
        let ended = self.processes.first().is_none_or(|main| main.exit.is_some());
        let done = match serde_json::from_slice::<Vec<CarriedPort>>(payload) {
            // All were given back at its end.
            Ok(ports) if ports.is_empty() && ended => Ok(()),
            Ok(ports) if ports.is_empty() => self.carrier.close(),
            Ok(_) if ended => Err("container is not running".to_owned()),
            Ok(ports) => self.carrier.add(ports, sockets),
            Err(error) => Err(format!("bad request to carry: {error}")),
        };
        match done {
            Ok(()) => self.answer(id, &frame(FrameKind::Ok, b"null")),
            Err(message) => self.refuse(id, message),
        }
    }

    fn resize(&mut self, id: u64, payload: &[u8]) {
        let done = match (decode_size(payload), self.processes.first()) {
            (Some((columns, rows)), Some(main)) => main.resize(columns, rows).is_ok(),
            _ => false,
        };
        if done {
            self.answer(id, &frame(FrameKind::Ok, b"null"));
        } else {
            self.refuse(id, "the terminal cannot be sized".to_owned());
        }
    }

    fn attach(&mut self, index: usize, payload: &[u8]) {
        let request: AttachRequest = serde_json::from_slice(payload).unwrap_or_default();
        let mut answer = Attached { pid: self.main_pid(), ..Attached::default() };
        let Some(main) = self.processes.first_mut() else { return };
        if let Some(log) = &mut main.log {
            if request.replay {
                log.flush_partial(now_ns());
            }
            (answer.log_inode, answer.log_bytes) = log.position();
        }
        let exit = main.exit.filter(|_| main.announced);
        let Some((_, client)) = self.clients.get_mut(index) else { return };
        client.role = Role::Attached { process: 0, stdin: request.stdin && main.streams.input.is_some() };
        client.send_bytes(&json_frame(FrameKind::Ok, &answer), &self.directory.0);
        if let Some(exit) = exit {
            client.send_bytes(&json_frame(FrameKind::Exit, &exit), &self.directory.0);
            client.ends = true;
        }
    }

    fn wait(&mut self, index: usize) {
        let exit = self.processes.first().filter(|main| main.announced).and_then(|main| main.exit);
        let Some((_, client)) = self.clients.get_mut(index) else { return };
        client.role = Role::Waiting;
        if let Some(exit) = exit {
            client.send_bytes(&json_frame(FrameKind::Exit, &exit), &self.directory.0);
            client.ends = true;
        }
    }

    /// Runs one more process.
    fn exec(&mut self, index: usize, id: u64, payload: &[u8]) {
        if self.state.started_at_ns == 0 || self.processes.first().is_none_or(|main| main.exit.is_some()) {
            return self.refuse(id, "container is not running".to_owned());
        }
        if self.processes.len() + self.tasks.len() > EXECS_MAX {
            return self.refuse(id, format!("more than {EXECS_MAX} processes were started in the container"));
        }
        let request: ExecStart = match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => return self.refuse(id, format!("bad exec request: {error}")),
        };
        match self.launch_exec(&request) {
            Ok((child, kind)) => {
                if let Some((_, client)) = self.clients.get_mut(index) {
                    client.role = Role::Pending;
                }
                self.begin_task(kind, child, id);
            }
            Err(error) => self.refuse(id, crate::error::chain(&error)),
        }
    }

    fn launch_exec(&mut self, request: &ExecStart) -> crate::Result<(u32, TaskKind)> {
        let number = self.next_exec;
        self.next_exec += 1;
        let program = request.process.pointer("/args/0").and_then(|word| word.as_str()).unwrap_or_default().to_owned();
        let size = (request.columns, request.rows);
        let joining = request.joining.filter(|_| self.may_join());
        // Where it cannot be begun, the OCI runtime may know a way.
        if let Some(joining) = joining
            && let Ok(launched) =
                create::join(&self.config, &self.short.path, number, self.main_pid(), request, joining)
        {
            return Ok((
                launched.child,
                TaskKind::Exec { launched: Box::new(launched), program, process_file: None, size },
            ));
        }
        let name = format!("process-{number}.json");
        let text = serde_json::to_vec(&request.process)
            .map_err(|source| crate::Error::Json { path: self.directory.0.join(&name), source })?;
        let process_file = Scratch::with(self.config.oci.kind, &self.directory.0, &name, &text)?;
        let launched =
            Launch::exec(&self.config, &self.directory.0, &self.short.path, number, request, process_file.path())?
                .spawn(None)?;
        let process_file = Some(process_file);
        Ok((launched.child, TaskKind::Exec { launched: Box::new(launched), program, process_file, size }))
    }

    /// Whether processes of ours may join the container: what enters groups by itself, and cannot be overwritten from inside.
    fn may_join(&self) -> bool {
        self.config.oci.kind == OciKind::Crun && detached::own_program_is_detached()
    }
}
