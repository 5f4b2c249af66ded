//! IPv4 subnets, and the search for a free one. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// An IPv4 subnet in canonical form: no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// Ranges that nobody on the internet has. `Source:` RFC 1918, RFC 6598.
const PRIVATE: [Subnet; 4] = [
    Subnet::new_const(Ipv4Addr::new(10, 0, 0, 0), 8),
    Subnet::new_const(Ipv4Addr::new(172, 16, 0, 0), 12),
    Subnet::new_const(Ipv4Addr::new(192, 168, 0, 0), 16),
    Subnet::new_const(Ipv4Addr::new(100, 64, 0, 0), 10),
];

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix as u32) }
}

impl Subnet {
    /// The subnet of this prefix length that holds `address`.
    ///
    /// `Errors:` [`Error::Invalid`] when the prefix is longer than 32.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Result<Subnet, Error> {
        if prefix > 32 {
            return Err(Error::Invalid(format!("invalid prefix length {prefix}")));
        }
        Ok(Subnet::new_const(address, prefix))
    }

    /// For constants; prefixes over 32 are a defect of the caller and fail at compile time.
    pub const fn new_const(address: Ipv4Addr, prefix: u8) -> Subnet {
        assert!(prefix <= 32, "prefix length over 32");
        Subnet { base: address.to_bits() & mask(prefix), prefix }
    }

    /// First address: the network's own.
    pub const fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// Prefix length.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Last address: broadcast.
    pub const fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | !mask(self.prefix))
    }

    /// Whether the address is inside.
    pub const fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.address()) || other.contains(self.address())
    }

    /// Whether all of it lies in one of the private ranges.
    pub fn is_private(&self) -> bool {
        PRIVATE.iter().any(|range| range.contains(self.address()) && range.contains(self.last()))
    }

    /// Whether a host may have this address: inside, and neither the network's own nor broadcast.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && (self.prefix >= 31 || (address != self.address() && address != self.last()))
    }

    /// First address that a host may have.
    pub fn first_host(&self) -> Ipv4Addr {
        if self.prefix >= 31 { self.address() } else { Ipv4Addr::from_bits(self.base + 1) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    /// Accepts host bits and drops them, as Docker does.
    fn from_str(text: &str) -> Result<Subnet, Error> {
        let invalid = || Error::Invalid(format!("invalid CIDR address: {text}"));
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address = address.parse().map_err(|_| invalid())?;
        Subnet::containing(address, prefix.parse().map_err(|_| invalid())?)
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Subnet, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The first piece of the pools that overlaps with nothing in `used`. A pool is `(range, prefix length of the pieces)`.
pub fn first_free(pools: &[(Subnet, u8)], used: &[Subnet]) -> Option<Subnet> {
    for (range, prefix) in pools {
        if *prefix > 32 || *prefix < range.prefix {
            continue;
        }
        let step = 1u64 << (32 - u32::from(*prefix));
        let end = u64::from(range.last().to_bits());
        let mut base = u64::from(range.base);
        while base <= end {
            let candidate = Subnet::new_const(Ipv4Addr::from_bits(u32::try_from(base).ok()?), *prefix);
            match used.iter().find(|u| u.overlaps(&candidate)) {
                None => return Some(candidate),
                // Jump behind the obstacle, so that a large used range costs one step.
                Some(obstacle) => {
                    base = base.max(u64::from(obstacle.last().to_bits())).next_multiple_of(step).max(base + step)
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        assert_eq!(subnet("10.89.3.7/24").to_string(), "10.89.3.0/24");
        assert_eq!(subnet("0.0.0.0/0").last(), Ipv4Addr::BROADCAST);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/-1", "::/0"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn private_is_what_lies_in_a_private_range_whole() {
        for private in ["10.0.0.0/8", "10.89.3.0/24", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"] {
            assert!(subnet(private).is_private(), "{private}");
        }
        for public in ["1.1.1.0/24", "32.0.0.0/3", "0.0.0.0/0", "10.0.0.0/7", "172.32.0.0/16", "127.0.0.0/8"] {
            assert!(!subnet(public).is_private(), "{public}");
        }
    }

    #[test]
    fn host_addresses_leave_out_network_and_broadcast() {
        let net = subnet("10.0.0.0/30");
        let hosts: Vec<_> = (0..4).filter(|i| net.is_host(Ipv4Addr::new(10, 0, 0, *i))).collect();
        assert_eq!(hosts, [1, 2]);
    }

    #[test]
    fn a_free_subnet_avoids_what_is_used() {
        let pools = [(subnet("10.89.0.0/16"), 24)];
        assert_eq!(first_free(&pools, &[]), Some(subnet("10.89.0.0/24")));
        assert_eq!(first_free(&pools, &[subnet("10.89.0.0/23")]), Some(subnet("10.89.2.0/24")));
        assert_eq!(first_free(&pools, &[subnet("10.0.0.0/8")]), None);
        assert_eq!(first_free(&pools, &[subnet("10.89.0.128/25")]), Some(subnet("10.89.1.0/24")));
    }

    proptest! {
        #[test]
        fn a_free_subnet_overlaps_nothing_and_is_missed_never(used in proptest::collection::vec((any::<u16>(), 18u8..=30), 0..20)) {
            let pool = subnet("10.89.0.0/16");
            let used: Vec<_> = used.into_iter()
                .map(|(low, prefix)| Subnet::new_const(Ipv4Addr::from_bits(pool.base | u32::from(low)), prefix)).collect();
            let expected = (0..=255u8).map(|i| Subnet::new_const(Ipv4Addr::new(10, 89, i, 0), 24))
                .find(|c| !used.iter().any(|u| u.overlaps(c)));
            prop_assert_eq!(first_free(&[(pool, 24)], &used), expected);
        }
    }
}
