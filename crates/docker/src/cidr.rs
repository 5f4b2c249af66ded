//! Subnets of both families as users write them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, Result};

/// A subnet in canonical form: no host bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: IpAddr,
    prefix: u32,
}

impl Cidr {
    /// Reads a subnet; `None` when empty.
    ///
    /// Errors: in Docker's words.
    pub(crate) fn parse(text: &str) -> Result<Option<Cidr>> {
        if text.is_empty() {
            return Ok(None);
        }
        let invalid = || Error::Invalid(format!("invalid subnet {text}: invalid CIDR address: {text}"));
        let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(invalid)?;
        Ok(Some(Cidr { base: mask(ip, prefix), prefix }))
    }

    /// The first address.
    pub(crate) fn base(&self) -> IpAddr {
        self.base
    }

    /// Length of the prefix.
    pub(crate) fn prefix(&self) -> u32 {
        self.prefix
    }

    /// Whether it is one of IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        self.base.is_ipv6()
    }

    /// Whether an address is inside.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        mask(ip, self.prefix) == self.base
    }

    /// The addresses that nobody else gets on a network of this subnet: its first, the gateway (the next one if none is named), and the last
    /// where that is for all.
    pub(crate) fn given(&self, gateway: &str) -> Vec<IpAddr> {
        let (next, last): (IpAddr, Option<IpAddr>) = match self.base {
            IpAddr::V4(base) => {
                let hosts = u32::MAX.checked_shr(self.prefix).unwrap_or(0);
                (
                    Ipv4Addr::from_bits(base.to_bits() | 1).into(),
                    Some(Ipv4Addr::from_bits(base.to_bits() | hosts).into()),
                )
            }
            IpAddr::V6(base) => (Ipv6Addr::from_bits(base.to_bits() | 1).into(), None),
        };
        [self.base, gateway.parse().unwrap_or(next)].into_iter().chain(last).collect()
    }

    /// Whether the two have an address in common.
    pub(crate) fn overlaps(&self, other: &Cidr) -> bool {
        self.holds(other.base) || other.holds(self.base)
    }
}

/// Whether a subnet, as the user wrote it, holds an address.
pub(crate) fn holds(subnet: &str, ip: IpAddr) -> bool {
    Cidr::parse(subnet).ok().flatten().is_some_and(|subnet| subnet.holds(ip))
}

fn mask(ip: IpAddr, prefix: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let bits = 32u32.checked_sub(prefix).and_then(|zeros| u32::MAX.checked_shl(zeros)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & bits).into()
        }
        IpAddr::V6(ip) => {
            let bits = 128u32.checked_sub(prefix).and_then(|zeros| u128::MAX.checked_shl(zeros)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & bits).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::parse(text).unwrap().unwrap()
    }

    #[test]
    fn subnets_are_read_and_masked() {
        assert_eq!(cidr("10.1.2.3/24").base().to_string(), "10.1.2.0");
        assert_eq!(cidr("fd00::7/64").base().to_string(), "fd00::");
        assert_eq!(Cidr::parse("").unwrap(), None);
        for bad in ["10.1.2.3", "10.1.2.3/33", "fd00::/129", "fd00:zz::/64", "/8"] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_subnet_keeps_for_itself_is_known() {
        let given = |subnet: &str, gateway: &str| {
            cidr(subnet).given(gateway).iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(given("10.1.2.0/24", ""), "10.1.2.0 10.1.2.1 10.1.2.255");
        assert_eq!(given("10.1.2.0/29", "10.1.2.6"), "10.1.2.0 10.1.2.6 10.1.2.7");
        assert_eq!(given("fd00::/64", ""), "fd00:: fd00::1");
    }

    #[test]
    fn families_have_nothing_in_common() {
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.1.0.0/16")) && cidr("fd00::/8").overlaps(&cidr("fd00:1::/64")));
        assert!(!cidr("0.0.0.0/0").overlaps(&cidr("fd00::/64")) && !cidr("::/0").overlaps(&cidr("10.0.0.0/8")));
        assert!(holds("0.0.0.0/0", [1, 2, 3, 4].into()) && !holds("0.0.0.0/40", [1, 2, 3, 4].into()));
    }
}
