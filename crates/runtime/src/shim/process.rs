//! One process of the container that a client may talk to: the main one, or one that was exec'd; its streams and its end.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use node::OutputStream;

use super::log_writer::LogWriter;
use crate::state::ExitRecord;

/// The streams of a process, as the shim holds them.
pub(super) struct Streams {
    /// Terminal: the master; otherwise the reading ends of standard output and standard error.
    pub output: [Option<std::fs::File>; 2],
    /// The writing end of standard input; on a terminal a second descriptor of the master.
    pub input: Option<std::fs::File>,
    pub terminal: bool,
}

pub(super) struct Process {
    /// 0 is the main process.
    pub number: u32,
    /// 0 until it is known.
    pub pid: u32,
    pub streams: Streams,
    pub log: Option<LogWriter>,
    /// Standard input on its way.
    pub input_queue: Vec<u8>,
    /// Close standard input when the queue is empty.
    pub input_ends: bool,
    /// The end of a client's input is the end of the process' input.
    pub input_once: bool,
    pub exit: Option<ExitRecord>,
    /// After its end: when to stop waiting for more output.
    pub drain_deadline: Option<Instant>,
    /// Its clients were told.
    pub announced: bool,
}

impl Process {
    pub fn new(number: u32, streams: Streams, log: Option<LogWriter>, input_once: bool) -> Self {
        Self {
            number,
            pid: 0,
            streams,
            log,
            input_queue: Vec::new(),
            input_ends: false,
            input_once,
            exit: None,
            drain_deadline: None,
            announced: false,
        }
    }

    pub fn stream_of(index: usize) -> OutputStream {
        if index == 0 { OutputStream::Stdout } else { OutputStream::Stderr }
    }

    pub fn output_open(&self) -> bool {
        self.streams.output.iter().any(Option::is_some)
    }

    /// Writes as much of the queued input as goes without waiting.
    pub fn write_input(&mut self) {
        while let Some(input) = self.streams.input.as_mut().filter(|_| !self.input_queue.is_empty()) {
            match input.write(&self.input_queue) {
                Ok(count) => {
                    self.input_queue.drain(..count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The process has closed it.
                    self.streams.input = None;
                    self.input_queue = Vec::new();
                }
            }
        }
        if self.streams.input.is_none() {
            self.input_queue = Vec::new();
        }
        if self.input_ends && self.input_queue.is_empty() {
            self.streams.input = None;
        }
        if self.input_queue.is_empty() && self.input_queue.capacity() > 0 {
            self.input_queue = Vec::new();
        }
    }

    pub fn resize(&self, columns: u16, rows: u16) -> std::io::Result<()> {
        match &self.streams.output[0] {
            Some(master) if self.streams.terminal => crate::sys::set_terminal_size(master.as_fd(), columns, rows),
            _ => Ok(()),
        }
    }
}

/// Pipes for a process without terminal: ours, and the three for the child.
pub(super) fn pipes(stdin: bool) -> std::io::Result<(Streams, [Option<OwnedFd>; 3])> {
    use nix::fcntl::OFlag;
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(std::io::Error::from);
    let ours = |fd: OwnedFd| -> std::io::Result<std::fs::File> {
        nonblocking(&fd)?;
        Ok(std::fs::File::from(fd))
    };
    let (stdin_read, stdin_write) = if stdin {
        let (read, write) = pipe()?;
        (Some(read), Some(ours(write)?))
    } else {
        (None, None)
    };
    let (stdout_read, stdout_write) = pipe()?;
    let (stderr_read, stderr_write) = pipe()?;
    let streams =
        Streams { output: [Some(ours(stdout_read)?), Some(ours(stderr_read)?)], input: stdin_write, terminal: false };
    Ok((streams, [stdin_read, Some(stdout_write), Some(stderr_write)]))
}

/// Streams over a terminal's master.
pub(super) fn terminal(master: OwnedFd, stdin: bool) -> std::io::Result<Streams> {
    nonblocking(&master)?;
    let input = if stdin { Some(std::fs::File::from(master.try_clone()?)) } else { None };
    Ok(Streams { output: [Some(std::fs::File::from(master)), None], input, terminal: true })
}

pub(super) fn nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
