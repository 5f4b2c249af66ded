//! Forgets tracked flows: UDP ones that lead to where a service or a published port no longer leads (TCP connections end by
//! themselves; a UDP client that keeps sending would keep its dead entry alive for ever), and all of a floating address that
//! moves.
//!
//! `Source:` include/uapi/linux/netfilter/nfnetlink_conntrack.h

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::kernel::netlink::{Builder, Channel, HEADER_BYTES, attributes};
use crate::subnet::Subnet;

const MESSAGE_GET: u16 = (1 << 8) | 1;
const MESSAGE_DELETE: u16 = (1 << 8) | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const FAMILIES: [u8; 2] = [2, 10];
const UDP: u8 = 17;

/// Where UDP frontends lead now. A frontend is an address (`None`: every address) and a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frontends(HashMap<(Option<IpAddr>, u16), Vec<SocketAddr>>);

impl Frontends {
    /// Flows to this frontend may lead to these endpoints only.
    pub(crate) fn insert(
        &mut self,
        address: Option<IpAddr>,
        port: u16,
        endpoints: impl IntoIterator<Item = SocketAddr>,
    ) {
        self.0.entry((address, port)).or_default().extend(endpoints);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_stale(&self, flow: &Flow) -> bool {
        if flow.protocol != UDP {
            return false;
        }
        let target = SocketAddr::new(flow.reply_source, flow.reply_source_port);
        let exact = self.0.get(&(Some(flow.destination), flow.destination_port));
        exact
            .or_else(|| self.0.get(&(None, flow.destination_port)))
            .is_some_and(|endpoints| !endpoints.contains(&target))
    }
}

/// A tracked flow.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
    reply_source: IpAddr,
    reply_source_port: u16,
    /// Whom answers are sent to.
    reply_destination: IpAddr,
}

/// Deletes the flows that lead elsewhere now. How many there were.
pub(crate) fn forget_stale(frontends: &Frontends) -> io::Result<usize> {
    if frontends.is_empty() {
        return Ok(0);
    }
    forget(|flow| frontends.is_stale(flow))
}

/// Deletes the flows to these addresses, and those that show them. How many there were.
pub(crate) fn forget_addresses(addresses: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let is_one = |address: IpAddr| matches!(address, IpAddr::V4(address) if addresses.contains(&address));
    forget(|flow| is_one(flow.destination) || is_one(flow.reply_destination))
}

/// Deletes the flows between these pairs of subnets, but for those that were translated on their way. How many there were.
pub(crate) fn forget_between(pairs: &[(Subnet, Subnet)]) -> io::Result<usize> {
    if pairs.is_empty() {
        return Ok(0);
    }
    let is_in = |subnet: &Subnet, address| matches!(address, IpAddr::V4(address) if subnet.contains(address));
    forget(|flow| {
        let leads = |(one, other): (&Subnet, &Subnet)| is_in(one, flow.source) && is_in(other, flow.destination);
        let is_plain = flow.destination == flow.reply_source;
        is_plain && pairs.iter().any(|(one, other)| leads((one, other)) || leads((other, one)))
    })
}

fn forget(is_doomed: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut doomed = Vec::new();
    for family in FAMILIES {
        let mut request = Builder::default();
        request.message(MESSAGE_GET, NLM_F_DUMP, family, 0, |_| ());
        channel.dump_raw(request.bytes(), |message| {
            let body = message.get(HEADER_BYTES + 4..).unwrap_or_default();
            if parse(body).is_some_and(|flow| is_doomed(&flow)) {
                doomed.push(delete_request(body, family));
            }
        })?;
    }
    for request in &doomed {
        match channel.send_raw(request.bytes(), 1) {
            // It timed out in the meantime.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(doomed.len())
}

fn delete_request(body: &[u8], family: u8) -> Builder {
    let mut request = Builder::default();
    request.message(MESSAGE_DELETE, NLM_F_ACK, family, 0, |m| {
        for (kind, value) in attributes(body) {
            match kind {
                CTA_TUPLE_ORIG => m.nest(kind, |n| attributes_copy(n, value)),
                CTA_ZONE => m.attribute(kind, value),
                _ => {}
            }
        }
    });
    request
}

/// Copies nested attributes, with the flag that marks them nested, which the walker strips.
fn attributes_copy(builder: &mut Builder, bytes: &[u8]) {
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_IP | CTA_TUPLE_PROTO => {
                builder.nest(kind, |n| attributes(value).for_each(|(k, v)| n.attribute(k, v)))
            }
            _ => builder.attribute(kind, value),
        }
    }
}

#[derive(Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

fn tuple(bytes: &[u8]) -> Tuple {
    let address = |v: &[u8]| <[u8; 4]>::try_from(v).ok().map(|v| IpAddr::V4(Ipv4Addr::from(v)));
    let address6 = |v: &[u8]| <[u8; 16]>::try_from(v).ok().map(|v| IpAddr::V6(Ipv6Addr::from(v)));
    let port = |v: &[u8]| <[u8; 2]>::try_from(v).map_or(0, u16::from_be_bytes);
    let mut tuple = Tuple::default();
    for (kind, value) in attributes(bytes) {
        for (inner, value) in attributes(value) {
            match (kind, inner) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => tuple.source = address(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST) => tuple.destination = address(value),
                (CTA_TUPLE_IP, CTA_IP_V6_SRC) => tuple.source = address6(value),
                (CTA_TUPLE_IP, CTA_IP_V6_DST) => tuple.destination = address6(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => tuple.protocol = value.first().copied().unwrap_or(0),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.source_port = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.destination_port = port(value),
                _ => {}
            }
        }
    }
    tuple
}

fn parse(body: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    for (kind, value) in attributes(body) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(tuple(value)),
            CTA_TUPLE_REPLY => reply = Some(tuple(value)),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    Some(Flow {
        protocol: original.protocol,
        source: original.source?,
        destination: original.destination?,
        destination_port: original.destination_port,
        reply_source: reply.source?,
        reply_source_port: reply.source_port,
        reply_destination: reply.destination?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(target: [u8; 4]) -> Flow {
        Flow {
            protocol: UDP,
            source: Ipv4Addr::new(10, 88, 0, 9).into(),
            reply_destination: Ipv4Addr::new(10, 88, 0, 9).into(),
            destination: Ipv4Addr::new(10, 96, 0, 10).into(),
            destination_port: 53,
            reply_source: IpAddr::V4(target.into()),
            reply_source_port: 53,
        }
    }

    #[test]
    fn a_flow_is_stale_when_its_frontend_leads_elsewhere() {
        let mut frontends = Frontends::default();
        let here = SocketAddr::from(([10, 88, 0, 2], 53));
        frontends.insert(Some(Ipv4Addr::new(10, 96, 0, 10).into()), 53, [here]);
        assert!(!frontends.is_stale(&flow([10, 88, 0, 2])));
        assert!(frontends.is_stale(&flow([10, 88, 0, 3])), "removed endpoint");
        assert!(frontends.is_stale(&flow([10, 96, 0, 10])), "never translated");
        let other = Flow { destination_port: 54, ..flow([10, 88, 0, 3]) };
        assert!(!frontends.is_stale(&other), "not a frontend of ours");
    }
}
