//! Elements of sets and maps, added and deleted by one netlink batch: all or nothing, without a process.
//!
//! `Source:` include/uapi/linux/netfilter/nf_tables.h

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::TABLE;
use crate::error::{Error, Result};
use crate::kernel::netlink::{Builder, Channel};
use crate::types::{Mac, Protocol};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = (SUBSYSTEM << 8) | 1;
const GET_CHAIN: u16 = (SUBSYSTEM << 8) | 4;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
/// `IFNAMSIZ`: names are compared as 16 bytes.
const INTERFACE_BYTES: usize = 16;

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Inet,
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Bridge => 7,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        })
    }
}

/// One part of a concatenated key or value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Address(Ipv4Addr),
    Address6(Ipv6Addr),
    /// An address that is looked for as sixteen raw bytes of a packet.
    Raw6(Ipv6Addr),
    Protocol(Protocol),
    Port(u16),
    Interface(String),
    Mac(Mac),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Address(address) => write!(f, "{address}"),
            Field::Address6(address) => write!(f, "{address}"),
            Field::Raw6(address) => write!(f, "0x{:032x}", address.to_bits()),
            Field::Protocol(protocol) => write!(f, "{protocol}"),
            Field::Port(port) => write!(f, "{port}"),
            Field::Interface(name) => write!(f, "\"{name}\""),
            Field::Mac(mac) => write!(f, "{mac}"),
        }
    }
}

/// An element of a set, or of a map when it has a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) family: Family,
    pub(crate) set: &'static str,
    pub(crate) key: Vec<Field>,
    pub(crate) value: Vec<Field>,
}

fn join(fields: &[Field]) -> String {
    fields.iter().map(Field::to_string).collect::<Vec<_>>().join(" . ")
}

impl Element {
    /// The element as nft(8) reads it.
    pub(crate) fn text(&self) -> String {
        let Element { family, set, key, value } = self;
        let value = if value.is_empty() { String::new() } else { format!(" : {}", join(value)) };
        format!("add element {family} {TABLE} {set} {{ {}{value} }}\n", join(key))
    }
}

/// Fields fill whole registers of four bytes each.
fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Field::Address(address) => bytes.extend(address.octets()),
            Field::Address6(address) | Field::Raw6(address) => bytes.extend(address.octets()),
            Field::Protocol(protocol) => bytes.push(protocol.number()),
            Field::Port(port) => bytes.extend(port.to_be_bytes()),
            Field::Interface(name) => {
                let end = bytes.len() + INTERFACE_BYTES;
                bytes.extend(name.bytes().take(INTERFACE_BYTES - 1));
                bytes.resize(end, 0);
            }
            Field::Mac(mac) => bytes.extend(mac.0),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Changes to elements, applied together.
#[derive(Default)]
pub(crate) struct Batch {
    add: Vec<Element>,
    delete: Vec<Element>,
}

impl Batch {
    /// Adds an element; it may be there already, with the same value.
    pub(crate) fn add(&mut self, element: Element) {
        self.add.push(element);
    }

    /// Deletes an element; it may be gone already.
    pub(crate) fn delete(&mut self, element: Element) {
        self.delete.push(element);
    }

    /// Applies the batch over a channel that stays open: closing a netfilter socket waits until the kernel has disposed
    /// of everything that was deleted, an RCU grace period (some 15 ms) that nobody else needs to wait for. Deletions
    /// come first.
    pub(crate) fn apply(&self, channel: &mut Option<Channel>) -> Result<()> {
        if self.add.is_empty() && self.delete.is_empty() {
            return Ok(());
        }
        let failed = |source: io::Error| Error::Netlink { action: "change elements of nftables sets".into(), source };
        let (bytes, expected) = self.encode();
        let mut open = match channel.take() {
            Some(open) => open,
            None => Channel::open(NETLINK_NETFILTER).map_err(failed)?,
        };
        open.send_raw(&bytes, expected).map_err(failed)?;
        // After an error answers may be left in it, so only a channel that did well is kept.
        *channel = Some(open);
        Ok(())
    }

    fn encode(&self) -> (Vec<u8>, usize) {
        let mut builder = Builder::default();
        builder.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| ());
        let mut count = 0;
        for element in &self.delete {
            // Deleting what is not there fails the whole batch; adding it first makes it be there.
            element_message(&mut builder, NEW_ELEMENT, NLM_F_CREATE, element);
            element_message(&mut builder, DELETE_ELEMENT, 0, element);
            count += 2;
        }
        for element in &self.add {
            element_message(&mut builder, NEW_ELEMENT, NLM_F_CREATE, element);
            count += 1;
        }
        builder.message(BATCH_END, 0, 0, SUBSYSTEM, |_| ());
        (builder.bytes().to_vec(), count)
    }
}

fn element_message(builder: &mut Builder, kind: u16, flags: u16, element: &Element) {
    builder.message(kind, flags | NLM_F_ACK, element.family.number(), 0, |m| {
        m.string(LIST_TABLE, TABLE);
        m.string(LIST_SET, element.set);
        m.nest(LIST_ELEMENTS, |list| {
            list.nest(LIST_ELEMENT, |e| {
                e.nest(ELEMENT_KEY, |k| k.attribute(DATA_VALUE, &encode(&element.key)));
                if !element.value.is_empty() {
                    e.nest(ELEMENT_DATA, |v| v.attribute(DATA_VALUE, &encode(&element.value)));
                }
            });
        });
    });
}

/// Whether one of our tables is there.
pub(crate) fn table_exists(family: Family) -> Result<bool> {
    exists("look for an nftables table", |b| {
        b.message(GET_TABLE, NLM_F_ACK, family.number(), 0, |m| m.string(1, TABLE))
    })
}

/// Whether one of our tables has a chain.
pub(crate) fn chain_exists(family: Family, chain: &str) -> Result<bool> {
    exists("look for an nftables chain", |b| {
        b.message(GET_CHAIN, NLM_F_ACK, family.number(), 0, |m| {
            m.string(1, TABLE);
            m.string(3, chain);
        });
    })
}

fn exists(action: &str, fill: impl FnOnce(&mut Builder)) -> Result<bool> {
    let mut builder = Builder::default();
    fill(&mut builder);
    match Channel::open(NETLINK_NETFILTER).and_then(|mut c| c.check_raw(builder.bytes())) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Netlink { action: action.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_fill_whole_registers() {
        let key = [
            Field::Interface("nuv1".into()),
            Field::Mac(Mac([2, 0x42, 10, 88, 0, 2])),
            Field::Address(Ipv4Addr::new(10, 88, 0, 2)),
            Field::Protocol(Protocol::Udp),
            Field::Port(53),
        ];
        let mut expected = b"nuv1".to_vec();
        expected.extend([0; 12]);
        expected.extend([2, 0x42, 10, 88, 0, 2, 0, 0]);
        expected.extend([10, 88, 0, 2, 17, 0, 0, 0, 0, 53, 0, 0]);
        assert_eq!(encode(&key), expected);
    }

    #[test]
    fn elements_print_as_nft_reads_them() {
        let element = Element {
            family: Family::Inet,
            set: "published_any",
            key: vec![Field::Protocol(Protocol::Tcp), Field::Port(8080)],
            value: vec![Field::Address(Ipv4Addr::new(10, 88, 0, 2)), Field::Port(80)],
        };
        assert_eq!(element.text(), "add element inet nuee published_any { tcp . 8080 : 10.88.0.2 . 80 }\n");
    }
}
