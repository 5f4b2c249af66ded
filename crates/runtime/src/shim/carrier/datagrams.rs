//! Datagrams: each client has a socket of its own to the container, so that answers find their way back.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::SocketType;

use super::Port;
use super::room::{Held, Holder, Room};

/// How long an association lives of which nothing is heard; dockerd's proxy has the same.
const SILENCE: Duration = Duration::from_secs(90);
/// How long one must have been silent to give its place to a newcomer when there is none left.
const QUIET: Duration = Duration::from_secs(5);
/// Pause between two looks for associations that are silent.
const LOOK: Duration = Duration::from_secs(5);
/// The largest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Datagrams of one socket at once, so that others get their turn.
const AT_ONCE: usize = 64;

/// Who asks, and what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    /// The port, by its place.
    port: usize,
    from: SocketAddrV6,
    asked: Asked,
}

/// The address that a client asked: answers come from it, as others are none to the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    /// Unspecified where it is none that answers can come from; then the kernel chooses.
    address: Ipv6Addr,
    /// Where the address means nothing without its interface.
    interface: u32,
}

impl Asked {
    /// Chosen by the kernel.
    const ANY: Self = Self { address: Ipv6Addr::UNSPECIFIED, interface: 0 };

    fn of(info: &libc::in6_pktinfo) -> Self {
        let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
        match address.is_multicast() {
            true => Self::ANY,
            // Elsewhere the way back need not be the way here.
            false => Self { address, interface: if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 } },
        }
    }
}

/// Has the kernel tell which address each datagram of a port came to.
pub(super) fn tell_addresses(socket: &OwnedFd) -> std::io::Result<()> {
    Ok(setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?)
}

/// All associations.
pub(super) struct Datagrams {
    all: Vec<Association>,
    places: HashMap<Client, usize>,
    most: usize,
    next_look: Option<Instant>,
    buffer: Vec<u8>,
    /// For what comes beside a datagram.
    space: Vec<u8>,
}

struct Association {
    client: Client,
    container: UdpSocket,
    heard: Instant,
}

impl Datagrams {
    pub fn new(most: usize) -> Self {
        let (all, places) = (Vec::new(), HashMap::new());
        Self { all, places, most, next_look: None, buffer: Vec::new(), space: nix::cmsg_space!(libc::in6_pktinfo) }
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
            let Some(port) = ports.get(one.client.port) else { continue };
            for _ in 0..AT_ONCE {
                match one.container.recv(&mut self.buffer) {
                    Ok(count) => {
                        one.heard = now;
                        // As on any link, one that cannot be sent now is lost.
                        let _ = send(&port.socket, &self.buffer[..count], &one.client);
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
            let Some((count, from, asked)) = self.next(&port.socket) else { return };
            let Some(place) = self.place(Client { port: index, from, asked }, port, now) else { continue };
            let Some(one) = self.all.get_mut(place) else { continue };
            one.heard = now;
            let sent = one.container.send(&self.buffer[..count]);
            if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
                // That was the answer to an earlier one; somebody may listen by now.
                let _ = one.container.send(&self.buffer[..count]);
            }
        }
    }

    /// The next datagram of a port: its length, who sent it, and to what address.
    fn next(&mut self, socket: &OwnedFd) -> Option<(usize, SocketAddrV6, Asked)> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let space = Some(&mut self.space[..]);
        let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, space, MsgFlags::empty()).ok()?;
        let asked = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| match one {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::of(&info)),
                _ => None,
            })
        });
        Some((message.bytes, message.address?.into(), asked.unwrap_or(Asked::ANY)))
    }

    /// The association of a client, made if there is room, or somebody gives way.
    fn place(&mut self, client: Client, port: &Port, now: Instant) -> Option<usize> {
        if let Some(place) = self.places.get(&client) {
            return Some(*place);
        }
        if self.all.len() >= self.most {
            let held = self.all.iter().map(|one| Held { holder: one.holder(), heard: one.heard });
            let place = Room::of(held, QUIET, now).place_for(Holder::of((*client.from.ip()).into()))?;
            self.places.remove(&self.all.swap_remove(place).client);
            if let Some(moved) = self.all.get(place) {
                self.places.insert(moved.client, place);
            }
        }
        let container = UdpSocket::from(super::dial(port.target, SocketType::DGRAM).ok()?);
        self.all.push(Association { client, container, heard: now });
        self.places.insert(client, self.all.len() - 1);
        self.next_look.get_or_insert(now + LOOK);
        Some(self.all.len() - 1)
    }
}

impl Association {
    fn holder(&self) -> Holder {
        Holder::of((*self.client.from.ip()).into())
    }
}

/// Sends an answer, from the address that was asked.
fn send(socket: &OwnedFd, bytes: &[u8], client: &Client) -> nix::Result<usize> {
    let Asked { address, interface } = client.asked;
    let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: interface };
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    let control = if client.asked == Asked::ANY { &[][..] } else { &control[..] };
    let to = SockaddrIn6::from(client.from);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), Some(&to))
}
