//! What workloads of a network are given and told beside its subnet. Pure.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::subnet::Subnet;
use crate::types::METADATA_ADDRESS;

/// What workloads of a network are given and told beside its subnet. The usual one says nothing of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// First and last addresses of the ranges that are given to who wishes for none; without any, all are.
    pub pools: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Nobody is told a gateway.
    pub without_gateway: bool,
    /// Guests are not answered DHCP.
    pub without_dhcp: bool,
    /// Name servers that guests are told; without any, it is the network's own.
    pub name_servers: Vec<Ipv4Addr>,
    /// Ways to other addresses.
    pub routes: Vec<StaticRoute>,
}

/// A way to other addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticRoute {
    /// Where it leads.
    pub destination: Subnet,
    /// By whom.
    pub next_hop: Ipv4Addr,
}

impl Plan {
    /// The gateway that a guest is told, if the way to everything else is by this network.
    pub fn gateway(&self, own: Ipv4Addr, leads_out: bool) -> Option<Ipv4Addr> {
        (leads_out && !self.without_gateway).then_some(own)
    }

    /// The routes that a guest is told beside its gateway. One that has none is told the way to its metadata.
    pub fn told_routes(&self, own: Ipv4Addr, leads_out: bool) -> Vec<StaticRoute> {
        let metadata = StaticRoute { destination: Subnet::new_const(METADATA_ADDRESS, 32), next_hop: own };
        let is_missing = leads_out && self.without_gateway;
        self.routes.iter().copied().chain(is_missing.then_some(metadata)).collect()
    }

    /// The name servers that a guest is told.
    pub fn told_servers(&self, own: Ipv4Addr) -> Vec<Ipv4Addr> {
        if self.name_servers.is_empty() { vec![own] } else { self.name_servers.clone() }
    }

    /// What lies in the pools of a range of addresses, as first and last ones.
    pub(crate) fn within(&self, first: u32, last: u32) -> Vec<(u32, u32)> {
        if self.pools.is_empty() {
            return vec![(first, last)];
        }
        let cut = |(start, end): &(Ipv4Addr, Ipv4Addr)| (start.to_bits().max(first), end.to_bits().min(last));
        self.pools.iter().map(cut).filter(|(first, last)| first <= last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_gateway_finds_its_metadata_and_nobody_is_told_more_than_once() {
        let own = Ipv4Addr::new(10, 90, 0, 1);
        let route =
            StaticRoute { destination: "192.168.7.0/24".parse().unwrap(), next_hop: Ipv4Addr::new(10, 90, 0, 9) };
        let plan = Plan { routes: vec![route], ..Plan::default() };
        assert_eq!((plan.gateway(own, true), plan.gateway(own, false)), (Some(own), None));
        assert_eq!(plan.told_routes(own, true), [route]);
        let apart = Plan { without_gateway: true, ..plan };
        assert_eq!(apart.gateway(own, true), None);
        let told: Vec<String> = apart.told_routes(own, true).iter().map(|one| one.destination.to_string()).collect();
        assert_eq!(told, ["192.168.7.0/24", "169.254.169.254/32"]);
        assert_eq!(apart.told_routes(own, false), [route], "another interface leads there");
        assert_eq!(apart.told_servers(own), [own]);
    }

    #[test]
    fn a_range_is_cut_by_the_pools() {
        let pool = |start: u32, end: u32| (Ipv4Addr::from_bits(start), Ipv4Addr::from_bits(end));
        let plan = Plan { pools: vec![pool(10, 20), pool(30, 40)], ..Plan::default() };
        assert_eq!(plan.within(15, 35), [(15, 20), (30, 35)]);
        assert_eq!(plan.within(21, 29), []);
        assert_eq!(Plan::default().within(1, 2), [(1, 2)]);
    }
}
