//! Datagrams: each client has a socket of its own to the container, so that answers find their way back.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags, SocketType};

use super::Port;

/// How long an association lives of which nothing is heard; dockerd's proxy has the same.
const SILENCE: Duration = Duration::from_secs(90);
/// Pause between two looks for associations that are silent.
const LOOK: Duration = Duration::from_secs(5);
/// The largest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Datagrams of one socket at once, so that others get their turn.
const AT_ONCE: usize = 64;

/// A port, by its place, and a client of it.
type Client = (usize, SocketAddr);

/// All associations.
pub(super) struct Datagrams {
    all: Vec<Association>,
    places: HashMap<Client, usize>,
    most: usize,
    next_look: Option<Instant>,
    buffer: Vec<u8>,
}

struct Association {
    client: Client,
    container: UdpSocket,
    heard: Instant,
}

impl Datagrams {
    pub fn new(most: usize) -> Self {
        let (all, places) = (Vec::new(), HashMap::new());
        Self { all, places, most, next_look: None, buffer: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// When to look for associations that are silent.
    pub fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// One place of the poll set for each association.
    pub fn await_in<'a>(&'a self, set: &mut Vec<PollFd<'a>>) {
        set.extend(self.all.iter().map(|one| PollFd::new(one.container.as_fd(), PollFlags::POLLIN)));
    }

    /// What the container answers, in the places of [`Self::await_in`]; and associations that are silent go.
    pub fn handle(&mut self, ready: &[PollFlags], ports: &[Port], now: Instant) {
        for (one, _) in self.all.iter_mut().zip(ready).filter(|(_, flags)| !flags.is_empty()) {
            let Some(port) = ports.get(one.client.0) else { continue };
            for _ in 0..AT_ONCE {
                match one.container.recv(&mut self.buffer) {
                    Ok(count) => {
                        one.heard = now;
                        // As on any link, one that cannot be sent now is lost.
                        let _ =
                            rustix::net::sendto(&port.socket, &self.buffer[..count], SendFlags::empty(), &one.client.1);
                    }
                    // Nobody listens there yet, or nothing more has come.
                    Err(_) => break,
                }
            }
        }
        if self.next_look.is_some_and(|at| at <= now) {
            self.all.retain(|one| one.heard + SILENCE > now);
            self.places = self.all.iter().enumerate().map(|(place, one)| (one.client, place)).collect();
            self.next_look = (!self.all.is_empty()).then(|| now + LOOK);
        }
    }

    /// What clients send to a port.
    pub fn receive(&mut self, index: usize, port: &Port, now: Instant) {
        self.buffer.resize(DATAGRAM_BYTES, 0);
        for _ in 0..AT_ONCE {
            let received = rustix::net::recvfrom(&port.socket, &mut self.buffer[..], RecvFlags::empty());
            let Ok((_, count, Some(sender))) = received else { return };
            let Ok(sender) = SocketAddr::try_from(sender) else { continue };
            let Some(place) = self.place((index, sender), port, now) else { continue };
            let Some(one) = self.all.get_mut(place) else { continue };
            one.heard = now;
            let sent = one.container.send(&self.buffer[..count]);
            if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
                // That was the answer to an earlier one; somebody may listen by now.
                let _ = one.container.send(&self.buffer[..count]);
            }
        }
    }

    /// The association of a client, made if there is room.
    fn place(&mut self, client: Client, port: &Port, now: Instant) -> Option<usize> {
        if let Some(place) = self.places.get(&client) {
            return Some(*place);
        }
        if self.all.len() >= self.most {
            return None;
        }
        let container = UdpSocket::from(super::dial(port.target, SocketType::DGRAM).ok()?);
        self.all.push(Association { client, container, heard: now });
        self.places.insert(client, self.all.len() - 1);
        self.next_look.get_or_insert(now + LOOK);
        Some(self.all.len() - 1)
    }
}
