//! A blocking netlink channel, and a builder for the attributes of messages that no crate encodes. One channel serves one
//! short job: it belongs to the network namespace of the thread that opened it, wherever it is used afterwards.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel answers at once; a longer silence means that it never will. Units: seconds.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// Room for answers to many messages of one batch. Units: bytes.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_BYTES: usize = 16;

/// A netlink socket that is used by one thread at a time.
pub(crate) struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// Opens a channel in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Channel> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER_BYTES).unwrap_or(i32::MAX))?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0))?;
        Ok(Channel { socket, sequence: 1 })
    }

    /// A channel for links, addresses and routes.
    pub(crate) fn route() -> io::Result<Channel> {
        Channel::open(NETLINK_ROUTE)
    }

    /// Sends one request and waits until the kernel has done it.
    pub(crate) fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let bytes = self.encode(message, flags | NLM_F_ACK);
        self.socket.send(&bytes, 0)?;
        self.acknowledgements(1)
    }

    /// Asks for one object; `None` when there is no such thing.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        let bytes = self.encode(message, 0);
        self.socket.send(&bytes, 0)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => Ok(Some(inner)),
            NetlinkPayload::Error(error) => match error.to_io() {
                e if e.raw_os_error() == Some(libc_enodev()) => Ok(None),
                e => Err(e),
            },
            _ => Ok(None),
        }
    }

    /// Lists objects. What this crate's decoder does not understand is left out.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.encode(message, NLM_F_DUMP);
        let mut found = Vec::new();
        self.dump_raw(&bytes, |message| {
            if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(inner), .. }) =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
            {
                found.push(inner);
            }
        })?;
        Ok(found)
    }

    /// Sends a dump request, and shows every message of the answer (with its header).
    pub(crate) fn dump_raw(&mut self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.socket.send(request, 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                match message_kind(message) {
                    KIND_DONE => return Ok(()),
                    KIND_ERROR => return error_of(message),
                    _ => each(message),
                }
            }
        }
    }

    /// Sends messages that are encoded already, `expected` of which ask for an acknowledgement.
    pub(crate) fn send_raw(&mut self, bytes: &[u8], expected: usize) -> io::Result<()> {
        self.socket.send(bytes, 0)?;
        self.acknowledgements(expected)
    }

    /// Asks whether there is an object: the answer is either the object or an error.
    pub(crate) fn check_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        match messages(&bytes).next() {
            Some(message) if message_kind(message) == KIND_ERROR => error_of(message),
            _ => Ok(()),
        }
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn acknowledgements(&mut self, expected: usize) -> io::Result<()> {
        let mut seen = 0;
        while seen < expected {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                if message_kind(message) == KIND_ERROR {
                    error_of(message)?;
                    seen += 1;
                }
            }
        }
        Ok(())
    }
}

fn libc_enodev() -> i32 {
    nix::errno::Errno::ENODEV as i32
}

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

/// The type in a message's header.
pub(crate) fn message_kind(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

fn error_of(message: &[u8]) -> io::Result<()> {
    let code =
        message.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

/// Splits a datagram into messages, each with its header. Stops at the first that lies about its length.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return None;
        }
        let (message, _) = bytes.split_at(length);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Walks over attributes: `(type without flags, value)`. Stops at the first that lies about its length.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// Builds messages of the netfilter family, which no permissively licensed crate encodes.
#[derive(Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    sequence: u32,
}

/// Set on attributes that hold attributes.
const NESTED: u16 = 0x8000;

impl Builder {
    /// Appends a message; `fill` adds its attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Builder),
    ) {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// Appends a NUL-terminated string.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Appends an attribute that holds attributes. They must fit into 64 KiB.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Builder)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// What was built.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_builder_writes_the_walkers_read() {
        let mut builder = Builder::default();
        builder.message(0x0a0c, 0, 1, 7, |m| {
            m.string(1, "nuee");
            m.nest(3, |n| n.attribute(1, &[1, 2, 3, 4, 5]));
        });
        let all: Vec<_> = messages(builder.bytes()).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(message_kind(all[0]), 0x0a0c);
        let found: Vec<_> = attributes(&all[0][HEADER_BYTES + 4..]).collect();
        assert_eq!(found[0], (1, &b"nuee\0"[..]));
        assert_eq!(attributes(found[1].1).next(), Some((1, &[1, 2, 3, 4, 5][..])));
    }

    proptest! {
        #[test]
        fn walkers_survive_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes).map(<[u8]>::len).sum::<usize>();
            let _ = attributes(&bytes).map(|(_, v)| v.len()).sum::<usize>();
        }
    }
}
