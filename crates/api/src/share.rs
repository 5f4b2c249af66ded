//! How the machines of a pool share a network's addresses: the first machine has the lower half, each further one parts of the
//! upper half, so that none gives an address that another gives. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range: a first address and the length of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    base: u32,
    prefix: u8,
}

/// The text is no IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRange;

impl Range {
    /// The range of this length that holds an address; a length over 32 is taken as 32.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        let range = Self { base: address.to_bits(), prefix };
        Self { base: range.base & range.mask(), prefix }
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// First address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// Last address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | !self.mask())
    }

    /// Length of the prefix. Units: bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address is inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.base
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address()) || other.contains(self.address())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

impl FromStr for Range {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let (address, prefix) = text.split_once('/').ok_or(NoRange)?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or(NoRange)?;
        Ok(Self::containing(address.parse().map_err(|_| NoRange)?, prefix))
    }
}

/// Parts are at most this large: 254 addresses.
const PREFIX_MIN: u8 = 24;
/// Parts of the upper half, where that is small. Units: bits.
const PARTS_BITS: u8 = 3;
/// A part has room for some workloads.
const PREFIX_MAX: u8 = 28;

/// A machine's own address is one of so many at the end of its part.
const OWN_CANDIDATES: u32 = 3;

/// The first machine's part.
pub fn first(network: Range) -> Option<Range> {
    Some(Range::containing(network.address(), network.prefix() + 1)).filter(|half| half.prefix() <= PREFIX_MAX)
}

/// All further parts, in order.
pub fn others(network: Range) -> impl Iterator<Item = Range> {
    let half = first(network).map(|lower| (lower.last().to_bits().saturating_add(1), lower.prefix()));
    let (start, prefix) = half.unwrap_or((0, PREFIX_MAX));
    // A small half has fewer parts.
    let prefix = (prefix + PARTS_BITS).clamp(PREFIX_MIN, PREFIX_MAX);
    let usable = half.is_some();
    let step = 1u64 << (32 - u32::from(prefix.min(32)));
    let end = u64::from(network.last().to_bits());
    let mut next = u64::from(start);
    std::iter::from_fn(move || {
        if !usable || next > end {
            return None;
        }
        let part = Range::containing(Ipv4Addr::from_bits(u32::try_from(next).ok()?), prefix);
        next += step;
        Some(part)
    })
}

/// The further part that holds an address.
pub fn other_with(network: Range, address: Ipv4Addr) -> Option<Range> {
    let first_other = others(network).next()?;
    let in_upper_half = network.contains(address) && address.to_bits() >= first_other.address().to_bits();
    in_upper_half.then(|| Range::containing(address, first_other.prefix()))
}

/// A part for one more machine, when these are taken.
pub fn free(network: Range, taken: &[Range]) -> Option<Range> {
    others(network).find(|part| !taken.iter().any(|taken| taken.overlaps(*part)))
}

/// The address by which a machine itself speaks to workloads on other machines: the last one of its part that is not the network's
/// broadcast address, nor its gateway. It is given to nobody.
pub fn own_address(network: Range, part: Range, gateway: Option<Ipv4Addr>) -> Ipv4Addr {
    let is_free = |address: &Ipv4Addr| *address != network.last() && Some(*address) != gateway;
    let back = |by: u32| Ipv4Addr::from_bits(part.last().to_bits().saturating_sub(by));
    // Two may be taken, so one of three is free.
    (0..OWN_CANDIDATES).map(back).find(is_free).unwrap_or_else(|| part.last())
}

/// Whether an address may be a machine's own by [`own_address`], whatever the network and its gateway.
pub fn may_be_own(range: Range, address: Ipv4Addr) -> bool {
    let half = first(range).filter(|half| half.contains(address));
    let part = half.or_else(|| other_with(range, address));
    part.is_some_and(|part| part.last().to_bits() - address.to_bits() < OWN_CANDIDATES)
}

/// How many workloads there is room for in a part, at least: without network, broadcast, gateway and the machine's own address.
pub fn room(part: Range) -> usize {
    const OTHERS: u64 = 4;
    usize::try_from((1u64 << (32 - u32::from(part.prefix))).saturating_sub(OTHERS)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_machine_may_take_for_itself_is_known() {
        let network: Range = "10.90.0.0/24".parse().unwrap();
        for part in first(network).into_iter().chain(others(network)) {
            for gateway in [None, Some(part.last())] {
                assert!(may_be_own(network, own_address(network, part, gateway)));
            }
            assert!(!may_be_own(network, part.address()));
        }
        assert!(!may_be_own(network, Ipv4Addr::new(10, 91, 0, 127)));
    }

    #[test]
    fn the_usual_network_has_room_for_128_further_machines() {
        let network: Range = "10.88.0.0/16".parse().unwrap();
        assert_eq!(first(network).unwrap().to_string(), "10.88.0.0/17");
        let parts: Vec<Range> = others(network).collect();
        assert_eq!((parts.len(), parts[0].to_string().as_str()), (128, "10.88.128.0/24"));
        assert_eq!(free(network, &parts[..2]), Some(parts[2]));
        assert_eq!(free(network, &parts), None);
    }

    #[test]
    fn a_small_network_has_few_parts_and_a_tiny_one_none() {
        let parts: Vec<String> = others("10.89.5.0/24".parse().unwrap()).map(|part| part.to_string()).collect();
        assert_eq!((parts.len(), parts[0].as_str()), (8, "10.89.5.128/28"));
        assert_eq!(others("10.89.5.0/27".parse().unwrap()).count(), 1);
        assert_eq!(others("10.89.5.0/28".parse().unwrap()).count(), 0);
        assert_eq!(first("10.89.5.0/32".parse().unwrap()), None);
        assert!(["", "10.0.0.0", "10.0.0.0/33", "::/0"].iter().all(|bad| bad.parse::<Range>().is_err()));
    }

    #[test]
    fn a_machines_own_address_is_never_that_of_broadcasts() {
        let network: Range = "10.89.5.0/24".parse().unwrap();
        let own: Vec<u8> = others(network).map(|part| own_address(network, part, None).octets()[3]).collect();
        assert_eq!((own[0], own[7]), (143, 254));
    }

    #[test]
    fn a_machines_own_address_is_never_the_gateway() {
        let network: Range = "10.89.5.0/24".parse().unwrap();
        let own = |part: &str, gateway: [u8; 4]| own_address(network, part.parse().unwrap(), Some(gateway.into()));
        assert_eq!(own("10.89.5.240/28", [10, 89, 5, 254]), Ipv4Addr::new(10, 89, 5, 253));
        assert_eq!(own("10.89.5.0/25", [10, 89, 5, 127]), Ipv4Addr::new(10, 89, 5, 126));
        assert_eq!(own("10.89.5.0/25", [10, 89, 5, 1]), Ipv4Addr::new(10, 89, 5, 127));
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_network_and_never_overlap(base in any::<u32>(), prefix in 8u8..=32) {
            let network = Range::containing(Ipv4Addr::from_bits(base), prefix);
            let mut parts: Vec<Range> = first(network).into_iter().collect();
            parts.extend(others(network).take(200));
            for part in others(network).take(200) {
                prop_assert_eq!(other_with(network, part.address()), Some(part));
                prop_assert_eq!(other_with(network, part.last()), Some(part));
            }
            prop_assert_eq!(other_with(network, network.address()), None);
            for (at, part) in parts.iter().enumerate() {
                prop_assert!(network.contains(part.address()) && network.contains(part.last()));
                prop_assert!(parts[..at].iter().all(|other| !other.overlaps(*part)));
            }
        }
    }
}
