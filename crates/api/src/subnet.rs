//! `Subnet`: the address plan of a `Network` that says none itself: which addresses are given, and what workloads are told beside them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::share::Range;

/// Keeps a subnet until nobody has an address of it.
pub const FINALIZER: &str = "nuee.dev/subnet";
/// Most ranges of addresses to give from: each is looked at for each address.
pub const POOLS_MAX: usize = 16;
/// Most name servers. `Source:` OpenStack Neutron, `max_dns_nameservers`.
pub const NAME_SERVERS_MAX: usize = 5;
/// Most routes: all of them go into one DHCP option of 255 bytes. `Source:` OpenStack Neutron, `max_subnet_host_routes`; RFC 3442.
pub const ROUTES_MAX: usize = 20;
/// Shortest prefix: larger subnets leave nothing for anybody else. Units: bits.
const PREFIX_MIN: u8 = 8;
/// Longest prefix: smaller ones have no room for a gateway and workloads. Units: bits.
const PREFIX_MAX: u8 = 29;
/// What `gatewayIP` says, beside nothing at all, when workloads are told no gateway.
const NO_GATEWAY: &str = "none";

/// The addresses of a network. `network`, `cidr` and `gatewayIP` stay as they are; what else is said may change, and is told to a workload
/// when it next asks.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Subnet", namespaced, status = "SubnetStatus", shortname = "subn")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetSpec {
    /// Name of the `Network` of the same namespace. It says no subnet itself, and has no other `Subnet`.
    pub network: String,
    /// All addresses of the network (`10.90.0.0/24`).
    pub cidr: String,
    /// The way to everything else; absent means the first address, an empty text or `none` that workloads are told no way. The machine has
    /// this address on the network; without a gateway it has the first one.
    #[serde(rename = "gatewayIP", skip_serializing_if = "Option::is_none")]
    pub gateway_ip: Option<String>,
    /// Addresses that are given to who wishes for none; without any, all of them are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allocation_pools: Vec<AllocationPool>,
    /// Whether guests are answered when they ask for their address; absent means yes. Otherwise a configuration drive says it.
    #[serde(rename = "enableDHCP", skip_serializing_if = "Option::is_none")]
    pub enable_dhcp: Option<bool>,
    /// Name servers that guests are told; without any, it is the machine's own, which knows the network's workloads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_nameservers: Vec<String>,
    /// Ways to other addresses, beside the gateway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_routes: Vec<HostRoute>,
}

/// A range of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AllocationPool {
    /// First address.
    pub start: String,
    /// Last address.
    pub end: String,
}

/// A way to other addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostRoute {
    /// Where it leads (`192.168.7.0/24`): not into the subnet itself.
    pub destination: String,
    /// By whom: an address of the subnet.
    pub next_hop: String,
}

/// What became of it; the pool's first machine writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetStatus {
    /// The gateway in force; empty: none.
    #[serde(rename = "gatewayIP")]
    pub gateway_ip: String,
    /// Addresses of workloads and ports.
    pub used_addresses: i64,
    /// Addresses of the pools that nobody has.
    pub available_addresses: i64,
    /// Conditions; `Ready`: its network has its addresses.
    pub conditions: Vec<Condition>,
    /// Why it is not ready, or what it waits for.
    pub message: String,
}

/// The plan of a network as its `Subnet` says it, kept in the network's status: all machines go by that. Nothing is left out when it is
/// written, since it is merged into what was there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPlan {
    /// Name of the `Subnet`.
    pub subnet: String,
    /// Workloads are told no gateway.
    pub without_gateway: bool,
    /// Guests are not answered DHCP.
    #[serde(rename = "withoutDHCP")]
    pub without_dhcp: bool,
    /// Addresses that are given.
    pub allocation_pools: Vec<AllocationPool>,
    /// Name servers.
    pub dns_nameservers: Vec<String>,
    /// Further routes.
    pub host_routes: Vec<HostRoute>,
}

/// A subnet that was read and makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSubnet {
    /// All addresses.
    pub cidr: Range,
    /// The machine's address: the gateway, if there is one.
    pub gateway: Ipv4Addr,
    /// Workloads are told of it.
    pub has_gateway: bool,
    /// First and last addresses of the pools, in order.
    pub pools: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl AllocationPool {
    /// First and last address.
    pub fn read(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let (start, end) = (self.start.parse().ok()?, self.end.parse().ok()?);
        Some((start, end)).filter(|(start, end)| start <= end)
    }
}

impl HostRoute {
    /// Destination and next hop.
    pub fn read(&self) -> Option<(Range, Ipv4Addr)> {
        Some((exact(&self.destination)?, self.next_hop.parse().ok()?))
    }
}

/// What is wrong: the field, and why.
pub type Flaw = (String, String);

/// A range that is written without bits behind its prefix.
fn exact(text: &str) -> Option<Range> {
    let range: Range = text.parse().ok()?;
    (range.to_string() == text).then_some(range)
}

fn is_host(cidr: Range, address: Ipv4Addr) -> bool {
    cidr.contains(address) && address != cidr.address() && address != cidr.last()
}

impl SubnetSpec {
    /// What it says, or all that is wrong with it. Pure.
    pub fn read(&self) -> Result<ReadSubnet, Vec<Flaw>> {
        let flaw = |field: &str, text: String| (field.to_owned(), text);
        let Some(cidr) = exact(&self.cidr) else {
            return Err(vec![flaw(
                "cidr",
                "must be an IPv4 subnet without bits behind its prefix, as in 10.90.0.0/24".into(),
            )]);
        };
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&cidr.prefix()) {
            return Err(vec![flaw("cidr", format!("must have a prefix of {PREFIX_MIN} to {PREFIX_MAX} bits"))]);
        }
        let first = Ipv4Addr::from_bits(cidr.address().to_bits() + 1);
        let (gateway, has_gateway) = match self.gateway_ip.as_deref() {
            None => (Some(first), true),
            Some("" | NO_GATEWAY) => (Some(first), false),
            Some(text) => (text.parse().ok().filter(|address| is_host(cidr, *address)), true),
        };
        let mut flaws = Vec::new();
        if gateway.is_none() {
            flaws.push(flaw("gatewayIP", format!("must be an address of {cidr} that a host may have, or none")));
        }
        let pools = self.read_pools(cidr, gateway.filter(|_| has_gateway), &mut flaws);
        self.check_servers(&mut flaws);
        self.check_routes(cidr, &mut flaws);
        match gateway {
            Some(gateway) if flaws.is_empty() => Ok(ReadSubnet { cidr, gateway, has_gateway, pools }),
            _ => Err(flaws),
        }
    }

    fn read_pools(&self, cidr: Range, gateway: Option<Ipv4Addr>, flaws: &mut Vec<Flaw>) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        if self.allocation_pools.len() > POOLS_MAX {
            flaws.push(("allocationPools".into(), format!("must have at most {POOLS_MAX} items")));
            return Vec::new();
        }
        let mut pools: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for (at, pool) in self.allocation_pools.iter().enumerate() {
            let inside = |(start, end): &(Ipv4Addr, Ipv4Addr)| is_host(cidr, *start) && is_host(cidr, *end);
            let problem = match pool.read().filter(inside) {
                None => format!("must begin and end at addresses of {cidr} that hosts may have, in this order"),
                Some((start, end)) if gateway.is_some_and(|gateway| start <= gateway && gateway <= end) => {
                    "must not hold the gateway".to_owned()
                }
                Some((start, end)) if pools.iter().any(|(first, last)| start <= *last && *first <= end) => {
                    "must not overlap with another".to_owned()
                }
                Some(pool) => {
                    pools.push(pool);
                    continue;
                }
            };
            flaws.push((format!("allocationPools[{at}]"), problem));
        }
        pools.sort_unstable();
        pools
    }

    fn check_servers(&self, flaws: &mut Vec<Flaw>) {
        if self.dns_nameservers.len() > NAME_SERVERS_MAX {
            flaws.push(("dnsNameservers".into(), format!("must have at most {NAME_SERVERS_MAX} items")));
            return;
        }
        let mut seen = BTreeSet::new();
        for (at, server) in self.dns_nameservers.iter().enumerate() {
            let problem = match server.parse::<Ipv4Addr>() {
                Err(_) => "must be an IPv4 address",
                Ok(address) if address.is_unspecified() || address.is_multicast() || address.is_broadcast() => {
                    "must be the address of one host"
                }
                Ok(address) if !seen.insert(address) => "must not be named twice",
                Ok(_) => continue,
            };
            flaws.push((format!("dnsNameservers[{at}]"), problem.into()));
        }
    }

    fn check_routes(&self, cidr: Range, flaws: &mut Vec<Flaw>) {
        if self.host_routes.len() > ROUTES_MAX {
            flaws.push(("hostRoutes".into(), format!("must have at most {ROUTES_MAX} items")));
            return;
        }
        let mut seen = BTreeSet::new();
        for (at, route) in self.host_routes.iter().enumerate() {
            let (field, problem) = match (exact(&route.destination), route.next_hop.parse::<Ipv4Addr>()) {
                (None, _) => ("destination", "must be an IPv4 subnet without bits behind its prefix".to_owned()),
                (Some(to), _) if to.prefix() == 0 => ("destination", "is the gateway's: see gatewayIP".to_owned()),
                (Some(to), _) if cidr.contains(to.address()) && to.prefix() >= cidr.prefix() => {
                    ("destination", format!("must not lie in {cidr}, whose addresses are reached without a hop"))
                }
                (Some(to), _) if !seen.insert(to) => ("destination", "must not be named twice".to_owned()),
                (_, Ok(hop)) if is_host(cidr, hop) => continue,
                _ => ("nextHop", format!("must be an address of {cidr} that a host may have")),
            };
            flaws.push((format!("hostRoutes[{at}].{field}"), problem));
        }
    }

    /// The plan for its network. Pure.
    pub fn plan(&self, name: &str, read: &ReadSubnet) -> AddressPlan {
        let pool =
            |(start, end): &(Ipv4Addr, Ipv4Addr)| AllocationPool { start: start.to_string(), end: end.to_string() };
        AddressPlan {
            subnet: name.to_owned(),
            without_gateway: !read.has_gateway,
            without_dhcp: self.enable_dhcp == Some(false),
            allocation_pools: read.pools.iter().map(pool).collect(),
            dns_nameservers: self.dns_nameservers.clone(),
            host_routes: self.host_routes.clone(),
        }
    }
}

/// How many addresses there are to give: those of the pools, without what is the machine's. Pure.
pub fn capacity(read: &ReadSubnet) -> i64 {
    let length = |(start, end): &(Ipv4Addr, Ipv4Addr)| i64::from(end.to_bits()) - i64::from(start.to_bits()) + 1;
    let hosts =
        (Ipv4Addr::from_bits(read.cidr.address().to_bits() + 1), Ipv4Addr::from_bits(read.cidr.last().to_bits() - 1));
    let all = if read.pools.is_empty() { vec![hosts] } else { read.pools.clone() };
    let holds = all.iter().any(|(start, end)| *start <= read.gateway && read.gateway <= *end);
    all.iter().map(length).sum::<i64>() - i64::from(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SubnetSpec {
        SubnetSpec { network: "net".into(), cidr: "10.90.0.0/24".into(), ..SubnetSpec::default() }
    }

    fn pool(start: &str, end: &str) -> AllocationPool {
        AllocationPool { start: start.into(), end: end.into() }
    }

    fn route(destination: &str, next_hop: &str) -> HostRoute {
        HostRoute { destination: destination.into(), next_hop: next_hop.into() }
    }

    fn flaws(spec: &SubnetSpec) -> Vec<String> {
        spec.read().err().unwrap_or_default().into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn a_gateway_is_the_first_address_unless_another_or_none_is_said() {
        let of = |gateway: Option<&str>| {
            let read = SubnetSpec { gateway_ip: gateway.map(str::to_owned), ..spec() }.read();
            read.map(|read| (read.gateway.to_string(), read.has_gateway)).map_err(|flaws| flaws[0].0.clone())
        };
        assert_eq!(of(None), Ok(("10.90.0.1".into(), true)));
        assert_eq!(of(Some("10.90.0.254")), Ok(("10.90.0.254".into(), true)));
        for none in ["", "none"] {
            assert_eq!(of(Some(none)), Ok(("10.90.0.1".into(), false)));
        }
        for bad in ["10.90.0.0", "10.90.0.255", "10.91.0.1", "x"] {
            assert_eq!(of(Some(bad)), Err("gatewayIP".into()), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_field() {
        for cidr in ["", "10.90.0.0", "10.90.0.1/24", "10.0.0.0/7", "10.90.0.0/30", "fd00::/64"] {
            assert_eq!(flaws(&SubnetSpec { cidr: cidr.into(), ..spec() }), ["cidr"], "{cidr}");
        }
        let pools = |pools: &[(&str, &str)]| {
            let allocation_pools = pools.iter().map(|(start, end)| pool(start, end)).collect();
            flaws(&SubnetSpec { allocation_pools, ..spec() })
        };
        assert!(pools(&[("10.90.0.100", "10.90.0.200"), ("10.90.0.2", "10.90.0.2")]).is_empty());
        for (start, end) in [
            ("10.90.0.9", "10.90.0.8"),
            ("10.90.0.1", "10.90.0.9"),
            ("10.90.0.0", "10.90.0.9"),
            ("10.91.0.2", "10.91.0.3"),
            ("a", "b"),
        ] {
            assert_eq!(pools(&[(start, end)]), ["allocationPools[0]"], "{start} {end}");
        }
        assert_eq!(pools(&[("10.90.0.2", "10.90.0.9"), ("10.90.0.9", "10.90.0.12")]), ["allocationPools[1]"]);
        assert_eq!(pools(&[("10.90.0.2", "10.90.0.2"); POOLS_MAX + 1]), ["allocationPools"]);
        let routes = |routes: &[(&str, &str)]| {
            let host_routes = routes.iter().map(|(to, by)| route(to, by)).collect();
            flaws(&SubnetSpec { host_routes, ..spec() })
        };
        assert!(routes(&[("192.168.0.0/16", "10.90.0.7"), ("192.168.7.9/32", "10.90.0.8")]).is_empty());
        assert_eq!(routes(&[("0.0.0.0/0", "10.90.0.7")]), ["hostRoutes[0].destination"]);
        assert_eq!(routes(&[("192.168.0.1/16", "10.90.0.7")]), ["hostRoutes[0].destination"]);
        assert_eq!(routes(&[("10.90.0.0/24", "10.90.0.7")]), ["hostRoutes[0].destination"]);
        assert_eq!(routes(&[("10.90.0.9/32", "10.90.0.7")]), ["hostRoutes[0].destination"]);
        assert!(routes(&[("10.90.0.0/16", "10.90.0.7"), ("10.91.0.0/24", "10.90.0.7")]).is_empty());
        assert_eq!(
            routes(&[("10.1.0.0/16", "10.90.0.7"), ("10.1.0.0/16", "10.90.0.8")]),
            ["hostRoutes[1].destination"]
        );
        for hop in ["10.91.0.7", "10.90.0.0", "", "10.90.0.255"] {
            assert_eq!(routes(&[("192.168.0.0/16", hop)]), ["hostRoutes[0].nextHop"], "{hop}");
        }
        let servers = |servers: &[&str]| {
            let dns_nameservers = servers.iter().map(|one| (*one).to_owned()).collect();
            flaws(&SubnetSpec { dns_nameservers, ..spec() })
        };
        assert!(servers(&["192.0.2.53", "10.90.0.1"]).is_empty());
        assert_eq!(
            servers(&["x", "192.0.2.53", "192.0.2.53", "0.0.0.0"]),
            ["dnsNameservers[0]", "dnsNameservers[2]", "dnsNameservers[3]"]
        );
    }

    #[test]
    fn what_can_be_given_is_counted_without_the_machines_own_address() {
        let count = |gateway: Option<&str>, pools: &[(&str, &str)]| {
            let allocation_pools = pools.iter().map(|(start, end)| pool(start, end)).collect();
            capacity(&SubnetSpec { gateway_ip: gateway.map(str::to_owned), allocation_pools, ..spec() }.read().unwrap())
        };
        assert_eq!(count(None, &[]), 253);
        assert_eq!(count(Some("none"), &[("10.90.0.1", "10.90.0.10")]), 9);
        assert_eq!(count(None, &[("10.90.0.2", "10.90.0.3"), ("10.90.0.200", "10.90.0.200")]), 3);
    }
}
