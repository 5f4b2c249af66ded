//! How the machines of a pool share a network's addresses: the first machine has the lower half, each further one a part of the
//! upper half, so that none gives an address that another gives. Pure.

use std::net::Ipv4Addr;

use crate::subnet::Subnet;

/// Parts are at most this large: 254 addresses.
const PREFIX_MIN: u8 = 24;
/// Parts of the upper half, where that is small. Units: bits.
const PARTS_BITS: u8 = 3;
/// A part has room for some workloads.
const PREFIX_MAX: u8 = 28;

/// The first machine's part.
pub fn first(network: Subnet) -> Option<Subnet> {
    Subnet::containing(network.address(), network.prefix() + 1).ok().filter(|half| half.prefix() <= PREFIX_MAX)
}

/// All further parts, in order.
pub fn others(network: Subnet) -> impl Iterator<Item = Subnet> {
    let half = first(network).map(|lower| (lower.last().to_bits().saturating_add(1), lower.prefix()));
    let (start, prefix) = half.unwrap_or((0, PREFIX_MAX));
    let prefix = (prefix + PARTS_BITS).max(PREFIX_MIN);
    let usable = half.is_some() && prefix <= PREFIX_MAX;
    let step = 1u64 << (32 - u32::from(prefix.min(32)));
    let end = u64::from(network.last().to_bits());
    let mut next = u64::from(start);
    std::iter::from_fn(move || {
        if !usable || next > end {
            return None;
        }
        let part = Subnet::new_const(Ipv4Addr::from_bits(u32::try_from(next).ok()?), prefix);
        next += step;
        Some(part)
    })
}

/// A part for one more machine, when these are taken.
pub fn free(network: Subnet, taken: &[Subnet]) -> Option<Subnet> {
    others(network).find(|part| !taken.iter().any(|taken| taken.overlaps(part)))
}

/// The address by which a machine itself speaks to workloads on other machines: the last one of its part, which it gives to nobody.
pub fn own_address(part: Subnet) -> Ipv4Addr {
    part.last()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_network_has_room_for_128_further_machines() {
        let network: Subnet = "10.88.0.0/16".parse().unwrap();
        assert_eq!(first(network).unwrap().to_string(), "10.88.0.0/17");
        let parts: Vec<Subnet> = others(network).collect();
        assert_eq!((parts.len(), parts[0].to_string().as_str()), (128, "10.88.128.0/24"));
        assert_eq!(free(network, &parts[..2]), Some(parts[2]));
        assert_eq!(free(network, &parts), None);
    }

    #[test]
    fn a_small_network_has_few_parts_and_a_tiny_one_none() {
        let parts: Vec<String> = others("10.89.5.0/24".parse().unwrap()).map(|part| part.to_string()).collect();
        assert_eq!((parts.len(), parts[0].as_str()), (8, "10.89.5.128/28"));
        assert_eq!(others("10.89.5.0/28".parse().unwrap()).count(), 0);
        assert_eq!(first("10.89.5.0/32".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_network_and_never_overlap(base in any::<u32>(), prefix in 8u8..=32) {
            let network = Subnet::containing(Ipv4Addr::from_bits(base), prefix).unwrap();
            let mut parts: Vec<Subnet> = first(network).into_iter().collect();
            parts.extend(others(network).take(200));
            for (at, part) in parts.iter().enumerate() {
                prop_assert!(network.contains(part.address()) && network.contains(part.last()));
                prop_assert!(parts[..at].iter().all(|other| !other.overlaps(part)));
            }
        }
    }
}
