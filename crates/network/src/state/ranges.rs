//! Which addresses of a network this machine gives. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::subnet::Subnet;
use crate::types::Network;

/// What this machine gives addresses from.
pub(super) fn ranges(network: &Network) -> Vec<Subnet> {
    match &network.parts {
        Some(parts) => parts.clone(),
        None => vec![network.ip_range.filter(|r| network.subnet.contains(r.address())).unwrap_or(network.subnet)],
    }
}

/// First and last addresses of what this machine gives to who wishes for none.
pub(super) fn pieces(network: &Network) -> Vec<(u32, u32)> {
    let ends = |range: &Subnet| network.plan.within(range.address().to_bits(), range.last().to_bits());
    ranges(network).iter().flat_map(ends).collect()
}

/// Whether an address is this machine's to give. Pure.
pub(super) fn is_given(network: &Network, address: Ipv4Addr) -> bool {
    network.subnet.is_host(address)
        && address != network.gateway
        && !is_kept(network, address)
        && !network.parts.iter().flatten().any(|part| network.own_address(part) == address)
        && ranges(network).iter().any(|range| range.contains(address))
}

/// Whether an address is kept from everybody. Pure.
pub(super) fn is_kept(network: &Network, address: Ipv4Addr) -> bool {
    network.kept.contains(&IpAddr::V4(address))
}

/// How many addresses are this machine's to give to who wishes for none, taken or not. Pure.
pub(super) fn usable(network: &Network) -> usize {
    let pieces = pieces(network);
    let length = |(first, last): &(u32, u32)| u64::from(last - first) + 1;
    let own = network.parts.iter().flatten().map(|part| network.own_address(part));
    let kept = own.chain(network.kept.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }));
    let special = [network.subnet.address(), network.subnet.last(), network.gateway].into_iter().chain(kept);
    let is_inside = |one: &Ipv4Addr| pieces.iter().any(|(first, last)| (*first..=*last).contains(&one.to_bits()));
    let missing: HashSet<Ipv4Addr> = special.filter(|one| !is_given(network, *one) && is_inside(one)).collect();
    let all: u64 = pieces.iter().map(length).sum();
    usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(missing.len())
}
