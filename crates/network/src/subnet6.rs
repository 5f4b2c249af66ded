//! IPv6 subnets, and unique local ones for networks that name none. Pure.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::names::hash;

/// `fd00::/8`: unique local addresses that a site chooses by itself. `Source:` RFC 4193.
const UNIQUE_LOCAL: u128 = 0xfd << 120;
/// Prefix length of a network that names no subnet, as every link has it. `Source:` RFC 4291.
const LINK_PREFIX: u8 = 64;
/// Subnet ids that are tried before giving up: as many as sixteen bits hold.
const SUBNET_IDS: u64 = 1 << 16;

/// An IPv6 subnet in canonical form: no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet6 {
    base: u128,
    prefix: u8,
}

const fn mask(prefix: u8) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix as u32) }
}

impl Subnet6 {
    /// The subnet of this prefix length that holds `address`.
    ///
    /// `Errors:` [`Error::Invalid`] when the prefix is longer than 128.
    pub fn containing(address: Ipv6Addr, prefix: u8) -> Result<Subnet6, Error> {
        if prefix > 128 {
            return Err(Error::Invalid(format!("invalid prefix length {prefix}")));
        }
        Ok(Subnet6 { base: address.to_bits() & mask(prefix), prefix })
    }

    /// First address: the subnet-router anycast address.
    pub const fn address(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base)
    }

    /// Prefix length.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address is inside.
    pub const fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(&self, other: &Subnet6) -> bool {
        self.contains(other.address()) || other.contains(self.address())
    }

    /// Whether a host may have this address: inside, and not the routers' anycast address.
    pub fn is_host(&self, address: Ipv6Addr) -> bool {
        self.contains(address) && (self.prefix >= 127 || address != self.address())
    }

    /// The address so far behind the first one, while it is inside.
    pub fn nth(&self, offset: u128) -> Option<Ipv6Addr> {
        self.base.checked_add(offset).map(Ipv6Addr::from_bits).filter(|address| self.contains(*address))
    }

    /// Whether all of it is unique local: nobody on the internet has it. `Source:` RFC 4193.
    pub fn is_unique_local(&self) -> bool {
        const PREFIX: u8 = 7;
        self.prefix >= PREFIX && self.address().is_unique_local()
    }

    /// Whether workloads can be on it: neither multicast nor link-local, nor the loopback or unspecified address.
    pub fn is_usable(&self) -> bool {
        let forbidden = ["ff00::/8", "fe80::/10", "::/127", "::ffff:0:0/96"];
        self.prefix > 0 && !forbidden.iter().filter_map(|f| f.parse().ok()).any(|f: Subnet6| f.overlaps(self))
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = Error;

    /// Accepts host bits and drops them, as Docker does.
    fn from_str(text: &str) -> Result<Subnet6, Error> {
        let invalid = || Error::Invalid(format!("invalid CIDR address: {text}"));
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address = address.parse().map_err(|_| invalid())?;
        Subnet6::containing(address, prefix.parse().map_err(|_| invalid())?)
    }
}

impl Serialize for Subnet6 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet6 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Subnet6, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A unique local subnet that overlaps with nothing in `used`: the site's part comes from `instance`, the network's from
/// its id, so that the same network gets the same one again. `Source:` RFC 4193, section 3.
pub fn unique_local(instance: &str, network: &str, used: &[Subnet6]) -> Option<Subnet6> {
    let site = u128::from(hash(instance) >> 24) << 80;
    (0..SUBNET_IDS).find_map(|step| {
        let id = u128::from((hash(network) >> 48).wrapping_add(step) % SUBNET_IDS) << 64;
        let candidate = Subnet6::containing(Ipv6Addr::from_bits(UNIQUE_LOCAL | site | id), LINK_PREFIX).ok()?;
        (!used.iter().any(|u| u.overlaps(&candidate))).then_some(candidate)
    })
}

/// The address for an interface identifier made from a MAC address, `fe80::/64`. `Source:` RFC 4291, appendix A.
pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let half = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, half(a ^ 2, b), half(c, 0xff), half(0xfe, d), half(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet6 {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        assert_eq!(subnet("fd00:1::7/64").to_string(), "fd00:1::/64");
        for bad in ["", "fd00::", "fd00::/129", "10.0.0.0/8", "fd00::/x"] {
            assert!(bad.parse::<Subnet6>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_are_inside_and_not_the_anycast_address() {
        let net = subnet("fd00::/126");
        assert!(!net.is_host("fd00::".parse().unwrap()) && net.is_host("fd00::3".parse().unwrap()));
        assert_eq!((net.nth(3).is_some(), net.nth(4), net.nth(u128::MAX)), (true, None, None));
    }

    #[test]
    fn multicast_and_link_local_carry_no_network() {
        for bad in ["ff02::/64", "fe80::/64", "::/0", "::/64", "::ffff:10.0.0.0/104"] {
            assert!(!subnet(bad).is_usable(), "{bad}");
        }
        assert!(subnet("fd00::/64").is_usable() && subnet("2001:db8::/32").is_usable());
    }

    #[test]
    fn unique_local_is_what_lies_in_that_range_whole() {
        assert!(["fc00::/7", "fd00:1::/64"].iter().all(|text| subnet(text).is_unique_local()));
        assert!(!["2001:db8::/64", "fc00::/6", "::/0", "fe80::/64"].iter().any(|text| subnet(text).is_unique_local()));
    }

    #[test]
    fn a_unique_local_subnet_is_stable_and_free() {
        let first = unique_local("0123abcd", "red", &[]).unwrap();
        assert_eq!(unique_local("0123abcd", "red", &[]), Some(first));
        let second = unique_local("0123abcd", "red", &[first]).unwrap();
        assert!(!second.overlaps(&first) && subnet("fd00::/8").overlaps(&second));
        assert_eq!(unique_local("0123abcd", "red", &[subnet("fd00::/8")]), None);
    }

    #[test]
    fn link_local_addresses_follow_the_mac() {
        assert_eq!(link_local([2, 0x42, 10, 88, 0, 2]).to_string(), "fe80::42:aff:fe58:2");
    }
}
