//! DHCP messages. Pure. Bytes come from hostile guests: nothing is trusted but the kernel's length.
//!
//! `Source:` RFC 2131, RFC 2132

use std::net::Ipv4Addr;

use super::Lease;
use crate::plan::StaticRoute;
use crate::subnet::Subnet;
use crate::types::Mac;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Where the options begin. Units: bytes.
const OPTIONS_AT: usize = 240;
/// Some clients take no shorter message. `Source:` RFC 1542, 2.1
const MESSAGE_BYTES_MIN: usize = 300;
/// An option's value has at most so many bytes.
const VALUE_BYTES_MAX: usize = 255;

/// Kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Acknowledge = 5,
    Refuse = 6,
    Release = 7,
    Inform = 8,
}

impl Kind {
    fn from(number: u8) -> Option<Self> {
        use Kind::{Acknowledge, Decline, Discover, Inform, Offer, Refuse, Release, Request};
        [Discover, Offer, Request, Decline, Acknowledge, Refuse, Release, Inform]
            .into_iter()
            .find(|k| *k as u8 == number)
    }
}

/// What a guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) transaction: [u8; 4],
    pub(super) mac: Mac,
    /// The address that it has.
    pub(super) current: Ipv4Addr,
    /// The address that it asks for.
    pub(super) wanted: Option<Ipv4Addr>,
    /// The server whose offer it takes.
    pub(super) server: Option<Ipv4Addr>,
}

impl Request {
    /// Reads a message; `None` for what is no request.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..3)? != [REQUEST, ETHERNET, 6] || bytes.get(236..OPTIONS_AT)? != COOKIE {
            return None;
        }
        let address = |at: usize| -> Option<Ipv4Addr> {
            let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(octets.into())
        };
        let mut request = Self {
            kind: Kind::Discover,
            transaction: bytes.get(4..8)?.try_into().ok()?,
            mac: Mac(bytes.get(28..34)?.try_into().ok()?),
            current: address(12)?,
            wanted: None,
            server: None,
        };
        let mut kind = None;
        let mut at = OPTIONS_AT;
        while let Some(code) = bytes.get(at).copied().filter(|code| *code != 255) {
            if code == 0 {
                at += 1;
                continue;
            }
            let length = usize::from(*bytes.get(at + 1)?);
            let value = bytes.get(at + 2..at + 2 + length)?;
            match (code, length) {
                (53, 1) => kind = Kind::from(value[0]),
                (50, 4) => request.wanted = address(at + 2),
                (54, 4) => request.server = address(at + 2),
                _ => {}
            }
            at += 2 + length;
        }
        request.kind = kind?;
        Some(request)
    }
}

/// The value of option 121. Whoever reads it does not look at option 3, so the gateway is in it too. It ends with the last route for which
/// there is room. `Source:` RFC 3442
fn classless(routes: &[StaticRoute], gateway: Option<Ipv4Addr>) -> Vec<u8> {
    let mut value = Vec::new();
    let default =
        gateway.map(|next_hop| StaticRoute { destination: Subnet::new_const(Ipv4Addr::UNSPECIFIED, 0), next_hop });
    for route in default.iter().chain(routes) {
        // Of the destination, as many bytes as its prefix reaches into.
        let bytes = usize::from(route.destination.prefix().div_ceil(8));
        let mut one = vec![route.destination.prefix()];
        one.extend(route.destination.address().octets().into_iter().take(bytes));
        one.extend(route.next_hop.octets());
        if value.len() + one.len() > VALUE_BYTES_MAX {
            break;
        }
        value.extend(one);
    }
    value
}

/// The answer to a request.
pub(super) fn reply(request: &Request, kind: Kind, lease: &Lease, seconds: u32) -> Vec<u8> {
    let mut bytes = vec![0u8; OPTIONS_AT];
    bytes[..3].copy_from_slice(&[REPLY, ETHERNET, 6]);
    bytes[4..8].copy_from_slice(&request.transaction);
    // The broadcast flag: nothing else can reach it yet.
    bytes[10] = 0x80;
    if kind != Kind::Refuse {
        bytes[12..16].copy_from_slice(&request.current.octets());
        bytes[16..20].copy_from_slice(&lease.address.octets());
    }
    bytes[28..34].copy_from_slice(&request.mac.0);
    bytes[236..OPTIONS_AT].copy_from_slice(&COOKIE);
    let mut option = |code: u8, value: &[u8]| {
        let value = &value[..value.len().min(VALUE_BYTES_MAX)];
        if let Ok(length) = u8::try_from(value.len()) {
            bytes.extend([code, length]);
            bytes.extend(value);
        }
    };
    option(53, &[kind as u8]);
    option(54, &lease.server.octets());
    if kind != Kind::Refuse {
        let mask = u32::MAX.checked_shl(32 - u32::from(lease.prefix.min(32))).unwrap_or(0);
        option(1, &mask.to_be_bytes());
        let gateway = lease.plan.gateway(lease.server, lease.leads_out);
        if let Some(gateway) = gateway {
            option(3, &gateway.octets());
        }
        let servers = lease.plan.told_servers(lease.server);
        option(6, &servers.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>());
        let routes = lease.plan.told_routes(lease.server, lease.leads_out);
        if !routes.is_empty() {
            option(121, &classless(&routes, gateway));
        }
        option(12, lease.hostname.as_bytes());
        if !lease.domain.is_empty() {
            option(15, lease.domain.as_bytes());
        }
        option(26, &lease.mtu.to_be_bytes());
        if request.kind != Kind::Inform {
            option(51, &seconds.to_be_bytes());
        }
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(MESSAGE_BYTES_MIN), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; OPTIONS_AT];
        bytes[..3].copy_from_slice(&[REQUEST, ETHERNET, 6]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        bytes[236..OPTIONS_AT].copy_from_slice(&COOKIE);
        bytes.extend(options);
        bytes
    }

    #[test]
    fn a_request_is_read() {
        let request = Request::parse(&message(&[53, 1, 3, 0, 50, 4, 10, 0, 0, 7, 54, 4, 10, 0, 0, 1, 255])).unwrap();
        assert_eq!((request.kind, request.wanted), (Kind::Request, Some(Ipv4Addr::new(10, 0, 0, 7))));
        assert_eq!(request.server, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(Request::parse(&message(&[53, 1])).is_none(), "cut off");
        assert!(Request::parse(&message(&[255])).is_none(), "no kind");
    }

    fn route(destination: &str, next_hop: [u8; 4]) -> StaticRoute {
        StaticRoute { destination: destination.parse().unwrap(), next_hop: next_hop.into() }
    }

    #[test]
    fn routes_are_as_long_as_their_prefixes_need() {
        let hop = [10, 0, 0, 1];
        for (destination, expected) in [
            ("10.0.0.0/8", &[8, 10][..]),
            ("10.128.0.0/9", &[9, 10, 128]),
            ("10.17.0.0/16", &[16, 10, 17]),
            ("10.27.129.0/24", &[24, 10, 27, 129]),
            ("10.229.0.128/25", &[25, 10, 229, 0, 128]),
            ("10.198.122.47/32", &[32, 10, 198, 122, 47]),
            ("128.0.0.0/1", &[1, 128]),
        ] {
            assert_eq!(classless(&[route(destination, hop)], None), [expected, &hop[..]].concat(), "{destination}");
        }
        let both = classless(&[route("10.0.0.0/8", [10, 0, 0, 9])], Some(hop.into()));
        assert_eq!(both, [0, 10, 0, 0, 1, 8, 10, 10, 0, 0, 9], "the gateway comes along");
    }

    /// What a client makes of option 121.
    fn read(mut value: &[u8]) -> Vec<StaticRoute> {
        let mut routes = Vec::new();
        while let Some((prefix, rest)) = value.split_first() {
            let bytes = usize::from(prefix.div_ceil(8));
            let mut address = [0u8; 4];
            address[..bytes].copy_from_slice(&rest[..bytes]);
            let next_hop: [u8; 4] = rest[bytes..bytes + 4].try_into().unwrap();
            routes.push(StaticRoute {
                destination: Subnet::containing(address.into(), *prefix).unwrap(),
                next_hop: next_hop.into(),
            });
            value = &rest[bytes + 4..];
        }
        routes
    }

    proptest! {
        #[test]
        fn a_client_reads_the_routes_that_were_said(all in prop::collection::vec((any::<u32>(), 0u8..=32, any::<u32>()), 0..40)) {
            let routes: Vec<StaticRoute> = all.into_iter().map(|(to, prefix, by)| StaticRoute {
                destination: Subnet::containing(Ipv4Addr::from_bits(to), prefix).unwrap(),
                next_hop: Ipv4Addr::from_bits(by),
            }).collect();
            let value = classless(&routes, None);
            prop_assert!(value.len() <= VALUE_BYTES_MAX);
            let told = read(&value);
            prop_assert_eq!(&told[..], &routes[..told.len()]);
            prop_assert!(told.len() >= routes.len().min(VALUE_BYTES_MAX / 9), "as many as there is room for");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn no_options_make_it_panic(options in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::parse(&message(&options));
        }
    }
}
