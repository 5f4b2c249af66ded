//! Connections: bytes both ways, each way ending by itself; what one side does not take, the other waits with.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::net::SocketType;
use rustix::net::sockopt::{set_socket_keepalive, set_socket_linger};

use super::room::{Held, Holder, Room, last_of_most};

/// Read at once, and thereby the most that waits to be taken, each way.
const PIECE_BYTES: usize = 32 << 10;
/// How long the container may take to accept.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Connections accepted at once, so that those that there are get their turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// How long one must have been silent to give its place to a newcomer when there is none left.
const SILENCE: Duration = Duration::from_secs(60);
/// Clients that wait for a place. They are accepted, so that nobody who is to wait long keeps away those behind it, who are not.
pub(super) const WAITING_MAX: usize = 128;

/// All connections.
pub(super) struct Streams {
    all: Vec<Connection>,
    waiting: VecDeque<Newcomer>,
    /// Since when nobody has looked whether there is a place for those who wait.
    looked: Option<Instant>,
    most: usize,
    /// Shared by all: an idle connection has no buffer.
    piece: Vec<u8>,
}

/// A client without a place.
struct Newcomer {
    client: TcpStream,
    holder: Holder,
    target: SocketAddrV4,
}

/// A client and the container.
struct Connection {
    holder: Holder,
    /// When something last went through it.
    heard: Instant,
    client: TcpStream,
    container: TcpStream,
    /// Until when the container must have accepted; `None`: it has.
    connects_until: Option<Instant>,
    there: Way,
    back: Way,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read, and not taken yet.
    waiting: Vec<u8>,
    /// The sender has ended, and the receiver was told.
    ended: bool,
    /// The sender has ended; the receiver is told when it has taken all.
    ends: bool,
}

impl Streams {
    pub fn new(most: usize) -> Self {
        let (all, waiting) = (Vec::new(), VecDeque::new());
        // Who waits waits for the end of another.
        Self { all, waiting, looked: None, most: most.max(1), piece: vec![0; PIECE_BYTES] }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.waiting.is_empty()
    }

    /// When the first container must have accepted, or there may be a place for one who waits.
    pub fn deadline(&self) -> Option<Instant> {
        let accepts = self.all.iter().filter_map(|one| one.connects_until).min();
        let silent = self.all.iter().map(|one| one.heard + SILENCE);
        let silent = silent.filter(|at| !self.waiting.is_empty() && self.looked.is_none_or(|looked| *at > looked));
        accepts.into_iter().chain(silent.min()).min()
    }

    /// A place of the poll set for each socket of which something is wished: one of which nothing is would still report a hang-up, over
    /// and over.
    pub fn await_in<'a>(&'a self, set: &mut Vec<PollFd<'a>>) {
        for one in &self.all {
            for (flags, socket) in one.awaited().into_iter().zip([&one.client, &one.container]) {
                if !flags.is_empty() {
                    set.push(PollFd::new(socket.as_fd(), flags));
                }
            }
        }
    }

    /// What is ready, in the places of [`Self::await_in`]. Connections that are over go, and others come in their places.
    pub fn handle(&mut self, ready: &[PollFlags], now: Instant) {
        let mut ready = ready.iter();
        let piece = &mut self.piece;
        self.all.retain_mut(|one| {
            let flags = one.awaited().map(|wished| match wished.is_empty() {
                true => PollFlags::empty(),
                false => ready.next().copied().unwrap_or(PollFlags::empty()),
            });
            match one.step(flags, piece, now) {
                Ok(is_over) => !is_over,
                Err(_) => {
                    one.reset();
                    false
                }
            }
        });
        self.seat(now);
    }

    /// Gives places to those who wait, in their order, as far as there are any for them.
    fn seat(&mut self, now: Instant) {
        self.looked = Some(now);
        while !self.waiting.is_empty() {
            let at = if self.all.len() < self.most { Some(0) } else { self.make_room(now) };
            let Some(newcomer) = at.and_then(|at| self.waiting.remove(at)) else { return };
            match super::dial(newcomer.target, SocketType::STREAM) {
                Ok(container) => self.all.push(Connection::new(newcomer, container.into(), now)),
                Err(_) => reset(&newcomer.client),
            }
        }
    }

    /// Ends a connection for one who waits; which one that is.
    fn make_room(&mut self, now: Instant) -> Option<usize> {
        let held = self.all.iter().map(|one| Held { holder: one.holder, heard: one.heard });
        let room = Room::of(held, SILENCE, now);
        let found = self.waiting.iter().enumerate().find_map(|(at, one)| Some((at, room.place_for(one.holder)?)));
        let (at, place) = found?;
        self.all.swap_remove(place).reset();
        Some(at)
    }

    /// Takes the clients that have come. Too many who wait are too many of one holder, who is told.
    pub fn accept(&mut self, listener: &OwnedFd, target: SocketAddrV4, now: Instant) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
            let (client, from) = match rustix::net::acceptfrom_with(listener, flags) {
                Ok((client, from)) => (TcpStream::from(client), from.and_then(|from| SocketAddr::try_from(from).ok())),
                // It went before its turn.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            let Some(from) = from else { continue };
            self.waiting.push_back(Newcomer { client, holder: Holder::of(from.ip()), target });
            self.seat(now);
            if self.waiting.len() > WAITING_MAX
                && let Some(at) = last_of_most(self.waiting.iter().map(|one| one.holder))
                && let Some(newcomer) = self.waiting.remove(at)
            {
                reset(&newcomer.client);
            }
        }
    }
}

impl Connection {
    fn new(newcomer: Newcomer, container: TcpStream, now: Instant) -> Self {
        let Newcomer { client, holder, .. } = newcomer;
        for socket in [&client, &container] {
            // A peer that vanished would otherwise hold its place for ever; small answers should not wait. Neither is worth refusing for.
            let _ = set_socket_keepalive(socket, true);
            let _ = socket.set_nodelay(true);
        }
        let connects_until = Some(now + CONNECT_PATIENCE);
        Self { holder, heard: now, client, container, connects_until, there: Way::default(), back: Way::default() }
    }

    /// What to wait for: client, container.
    fn awaited(&self) -> [PollFlags; 2] {
        if self.connects_until.is_some() {
            return [PollFlags::empty(), PollFlags::POLLOUT];
        }
        let flags = |from: &Way, to: &Way| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, from.reads());
            flags.set(PollFlags::POLLOUT, !to.waiting.is_empty());
            flags
        };
        [flags(&self.there, &self.back), flags(&self.back, &self.there)]
    }

    /// Does what can be done; whether both ways are over. An error ends both.
    fn step(&mut self, [client, container]: [PollFlags; 2], piece: &mut [u8], now: Instant) -> std::io::Result<bool> {
        if let Some(until) = self.connects_until {
            if container.is_empty() {
                return if now < until { Ok(false) } else { Err(ErrorKind::TimedOut.into()) };
            }
            if let Some(error) = self.container.take_error()? {
                return Err(error);
            }
            self.connects_until = None;
        }
        if client.is_empty() && container.is_empty() {
            return Ok(false);
        }
        self.heard = now;
        // An error shows at the next read or write; nobody may ever read or write again, though.
        for (flags, socket) in [(client, &self.client), (container, &self.container)] {
            if flags.contains(PollFlags::POLLERR)
                && let Some(error) = socket.take_error()?
            {
                return Err(error);
            }
        }
        self.there.step(&self.client, &self.container, piece)?;
        self.back.step(&self.container, &self.client, piece)?;
        let is_over = self.there.ended && self.back.ended;
        // Both directions of a socket are down without a word of ours: its peer is gone.
        let lost = |flags: PollFlags, to: &Way| flags.contains(PollFlags::POLLHUP) && !to.ended;
        if !is_over && (lost(client, &self.back) || lost(container, &self.there)) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        Ok(is_over)
    }

    fn reset(&self) {
        reset(&self.client);
        reset(&self.container);
    }
}

/// Has the connection end with a reset when it is closed: its peer is not to take this for a regular end.
fn reset(socket: &TcpStream) {
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

impl Way {
    /// Whether more is to be read: all that was read is taken.
    fn reads(&self) -> bool {
        self.waiting.is_empty() && !self.ends
    }

    /// One piece, as far as it goes without waiting.
    fn step(&mut self, mut from: &TcpStream, mut to: &TcpStream, piece: &mut [u8]) -> std::io::Result<()> {
        if !self.waiting.is_empty() {
            let taken = without_waiting(to.write(&self.waiting))?.unwrap_or(0);
            self.waiting.drain(..taken);
            if self.waiting.is_empty() {
                self.waiting = Vec::new();
            }
        }
        if self.reads()
            && let Some(count) = without_waiting(from.read(piece))?
        {
            self.ends = count == 0;
            let taken = if count == 0 { 0 } else { without_waiting(to.write(&piece[..count]))?.unwrap_or(0) };
            self.waiting = piece[taken..count].to_vec();
        }
        if self.ends && self.waiting.is_empty() && !self.ended {
            self.ended = true;
            match to.shutdown(Shutdown::Write) {
                // It has gone already.
                Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn without_waiting(result: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
