//! One connection of the daemon: frames in, frames out. Output that a client does not read in time goes to a nameless file,
//! so that neither the log nor other clients wait for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use super::{QUEUE_MAX_BYTES, SPILL_MAX_BYTES};
use crate::protocol::{FrameKind, HEADER_BYTES, decode_header, frame};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// No request yet.
    New,
    /// Waits for the answer to a request that takes time.
    Pending,
    /// Streams of a process; whether it brought standard input.
    Attached { process: u32, stdin: bool },
    /// Wants to know of the end.
    Waiting,
}

pub(super) struct Client {
    pub stream: UnixStream,
    pub role: Role,
    /// Close when everything is written.
    pub ends: bool,
    /// Gone: remove.
    pub closed: bool,
    /// What came beside the bytes of a request.
    pub descriptors: Vec<OwnedFd>,
    input: Vec<u8>,
    queue: Vec<u8>,
    queue_at: usize,
    spill: Option<Spill>,
    pub last_progress: Instant,
}

struct Spill {
    file: File,
    read: u64,
    written: u64,
}

impl Client {
    pub fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            role: Role::New,
            ends: false,
            closed: false,
            descriptors: Vec::new(),
            input: Vec::new(),
            queue: Vec::new(),
            queue_at: 0,
            spill: None,
            last_progress: now,
        }
    }

    pub fn wants_to_write(&self) -> bool {
        self.queue_at < self.queue.len() || self.spill.is_some()
    }

    /// Whether it has left so much unread that the container should wait for it.
    pub fn holds_back(&self) -> bool {
        self.spill.as_ref().is_some_and(|spill| spill.written - spill.read >= SPILL_MAX_BYTES)
    }

    /// Queues a frame; `directory` is where a spill file may be.
    pub fn send(&mut self, kind: FrameKind, payload: &[u8], directory: &Path) {
        let bytes = frame(kind, payload);
        self.send_bytes(&bytes, directory);
    }

    pub fn send_bytes(&mut self, bytes: &[u8], directory: &Path) {
        if self.closed {
            return;
        }
        if self.spill.is_none() && self.queue.len() - self.queue_at + bytes.len() <= QUEUE_MAX_BYTES {
            self.queue.extend_from_slice(bytes);
            return;
        }
        let spilled = match &mut self.spill {
            Some(spill) => spill.append(bytes),
            none => Spill::open(directory).and_then(|spill| none.insert(spill).append(bytes)),
        };
        if spilled.is_err() {
            // Nowhere to keep its output: better an end that it sees than a gap that it does not.
            self.closed = true;
        }
    }

    /// Writes as much as goes without waiting.
    pub fn write(&mut self, now: Instant) {
        loop {
            if self.queue_at == self.queue.len() && !self.refill() {
                if self.ends {
                    self.closed = true;
                }
                return;
            }
            match self.stream.write(&self.queue[self.queue_at..]) {
                Ok(count) => {
                    self.queue_at += count;
                    self.last_progress = now;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// Takes the next piece from the spill file; whether there is something to write.
    fn refill(&mut self) -> bool {
        self.queue = Vec::new();
        self.queue_at = 0;
        let Some(spill) = &mut self.spill else { return false };
        let left = spill.written - spill.read;
        let wanted = usize::try_from(left).unwrap_or(QUEUE_MAX_BYTES).min(QUEUE_MAX_BYTES / 2);
        self.queue.resize(wanted, 0);
        if spill.file.read_exact_at(&mut self.queue, spill.read).is_err() {
            self.closed = true;
            return false;
        }
        spill.read += wanted as u64;
        if spill.read == spill.written {
            self.spill = None;
        }
        wanted > 0
    }

    /// Reads what there is; frames come out of [`Self::next_frame`]. At its end `closed` is set.
    pub fn read(&mut self, buffer: &mut [u8]) {
        let result = match self.role {
            Role::New => self.receive(buffer),
            _ => self.stream.read(buffer),
        };
        match result {
            Ok(0) => self.closed = true,
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
    }

    /// Reads with the descriptors that come along: those of one message, as no request brings more.
    fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (count, descriptors) = super::descriptors::receive(&self.stream, buffer)?;
        if self.descriptors.is_empty() {
            self.descriptors = descriptors;
        }
        Ok(count)
    }

    /// The next complete frame. Nonsense closes the connection.
    pub fn next_frame(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        let header: [u8; HEADER_BYTES] = self.input.get(..HEADER_BYTES)?.try_into().ok()?;
        let Some((kind, length)) = decode_header(header) else {
            self.closed = true;
            self.input = Vec::new();
            return None;
        };
        let payload = self.input.get(HEADER_BYTES..HEADER_BYTES + length)?.to_vec();
        self.input.drain(..HEADER_BYTES + length);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Some((kind, payload))
    }
}

impl Spill {
    fn open(directory: &Path) -> std::io::Result<Self> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(directory)?;
        Ok(Self { file, read: 0, written: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
