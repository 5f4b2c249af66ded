//! Which machine has which part of a network of users: parts are given to machines with workloads on it, as many as these need, and
//! stay with them until the machine or the network is gone. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use api::container::{Container, Desired};
use api::network_route::{MEMBER_NAME_BYTES_MAX, MEMBER_NAMES_MAX, MEMBERS_MAX};
use api::share::{self, Range};
use api::{Network, NetworkMember, NetworkRouteSpec, VirtualMachine};
use kube::ResourceExt;

use super::Place;

/// The first number for networks of users; 1 is that of the pods' network.
const NUMBER_FIRST: u32 = 2;
/// Numbers are of 24 bits. `Source:` RFC 7348.
const NUMBER_MAX: u32 = (1 << 24) - 1;
/// Larger networks are shared by nobody; the machines refuse them too. Units: bits.
const PREFIX_MIN: u8 = 8;
/// A port needs so many addresses, since ports have half of them at most.
const PORTS_SHARE: usize = 2;
/// The phase of a network that was made.
const READY: &str = "Ready";
/// What a [`Container`]'s mode says when it is on no network of users.
const NO_NETWORK: [&str; 5] = ["", "default", "bridge", "host", "none"];

/// Namespace and name.
pub type Key = (String, String);

/// A network that spans machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    uid: String,
    /// All of its addresses.
    subnet: Range,
    /// Those that the machines share.
    range: Range,
    /// The network's own address.
    gateway: Option<Ipv4Addr>,
    /// First and last addresses that are given; without any, all are.
    pools: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Span {
    /// How many workloads there is room for in a part, at least.
    fn room(&self, part: Range) -> usize {
        if self.pools.is_empty() {
            return share::room(part);
        }
        let own = share::own_address(self.subnet, part, self.gateway);
        let length = |(start, end): &(Ipv4Addr, Ipv4Addr)| {
            let (start, end) = ((*start).max(part.address()), (*end).min(part.last()));
            let all = (u64::from(end.to_bits()) + 1).saturating_sub(start.to_bits().into());
            let mut kept = BTreeSet::from([Some(own), self.gateway]);
            kept.retain(|one| one.is_some_and(|one| start <= one && one <= end));
            usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(kept.len())
        };
        self.pools.iter().map(length).sum()
    }
}

/// A workload that is or will be on a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Namespace and name of the network.
    network: Key,
    node: String,
    /// The address that it has.
    address: Option<Ipv4Addr>,
    /// The address that it must have.
    wanted: Option<Ipv4Addr>,
    names: Vec<String>,
}

/// What is known of everything that the parts depend on.
#[derive(Default)]
pub struct World {
    /// By place of the object.
    pub networks: BTreeMap<Key, Span>,
    /// By kind, namespace and name of the workload.
    pub members: BTreeMap<(&'static str, String, String), Vec<Member>>,
    /// Networks of ports, by the places of those.
    pub ports: BTreeMap<Key, Key>,
}

/// The network, when it spans machines. One that the first machine has not made has no parts: its spec may say anything.
pub fn span(network: &Network) -> Option<Span> {
    let status = network.status.as_ref().filter(|status| status.phase == READY)?;
    let subnet: Range = status.subnet.parse().ok().filter(|subnet: &Range| subnet.prefix() >= PREFIX_MIN)?;
    let range = network.spec.shared(&status.subnet)?;
    // The spec may have changed since.
    let is_inside = subnet.contains(range.address()) && range.prefix() >= subnet.prefix();
    let gateway = status.gateway.parse().ok();
    let pools = status.plan.iter().flat_map(|plan| &plan.allocation_pools).filter_map(|pool| pool.read()).collect();
    Some(Span { uid: network.uid().filter(|_| is_inside)?, subnet, range, gateway, pools })
}

/// As many names as a route tells of, and none that is too long for DNS.
fn told_names(names: impl IntoIterator<Item = String>) -> Vec<String> {
    names.into_iter().filter(|name| name.len() <= MEMBER_NAME_BYTES_MAX).take(MEMBER_NAMES_MAX).collect()
}

/// A container's places on networks.
pub fn of_container(container: &Container) -> Vec<Member> {
    let (spec, Some(node)) = (&container.spec, &container.spec.node_name) else { return Vec::new() };
    let namespace = container.namespace().unwrap_or_default();
    let mode = Some(spec.network_mode.as_str()).filter(|mode| !NO_NETWORK.contains(mode) && !mode.contains(':'));
    let mut names: BTreeSet<&str> = spec.networks.keys().map(String::as_str).collect();
    names.extend(mode.filter(|_| spec.networks.is_empty()));
    let places = container.status.as_ref().map(|status| &status.networks);
    let member = |name: &str| {
        let place = places.and_then(|places| places.get(name));
        let address = place.and_then(|place| place.ip.parse().ok());
        let runs = matches!(spec.desired, Desired::Running | Desired::Paused);
        let wanted = spec.networks.get(name).and_then(|endpoint| endpoint.ipv4_address.parse().ok());
        let names = place.map(|place| place.aliases.clone()).unwrap_or_default();
        (runs || address.is_some()).then(|| Member {
            network: (namespace.clone(), name.to_owned()),
            node: node.clone(),
            address,
            wanted,
            names: told_names(names.into_iter().map(|name| name.to_lowercase())),
        })
    };
    names.into_iter().filter_map(member).collect()
}

/// A guest's places on its networks, but for the default one.
pub fn of_guest(guest: &VirtualMachine) -> Vec<Member> {
    let (spec, Some(node)) = (&guest.spec, &guest.spec.node_name) else { return Vec::new() };
    let mut names = vec![guest.name_any()];
    names.extend(Some(spec.hostname.to_lowercase()).filter(|name| !name.is_empty() && *name != names[0]));
    let names = told_names(names);
    let namespace = guest.namespace().unwrap_or_default();
    let seats = guest.seats().into_iter().filter(|(network, _)| !NO_NETWORK.contains(&network.as_str()));
    let member = |(network, address): (String, Option<String>)| Member {
        network: (namespace.clone(), network),
        node: node.clone(),
        address: address.and_then(|address| address.parse().ok()),
        wanted: None,
        names: names.clone(),
    };
    seats.map(member).collect()
}

/// A machine's hold on a network.
#[derive(Default)]
struct Hold {
    parts: Vec<Range>,
    /// The machine's own address on the network: once chosen it stays, as it leads the others here.
    gateway: Option<Ipv4Addr>,
}

/// What the routes should be. `places` are the machines with their ways, if they have one; `home` is the one that holds the lower half of
/// every network.
pub fn wanted(
    world: &World,
    places: &BTreeMap<String, Option<Place>>,
    home: &str,
    present: &BTreeMap<String, NetworkRouteSpec>,
) -> BTreeMap<String, NetworkRouteSpec> {
    let mut by_network: BTreeMap<&Key, Vec<&Member>> = BTreeMap::new();
    for member in world.members.values().flatten().filter(|member| places.contains_key(&member.node)) {
        by_network.entry(&member.network).or_default().push(member);
    }
    // Ports are the first machine's, and have half of its addresses at most. Where all are given, it has enough without being asked.
    let mut ports: BTreeMap<&Key, usize> = BTreeMap::new();
    world.ports.values().for_each(|network| *ports.entry(network).or_default() += PORTS_SHARE);
    let mut numbers: BTreeMap<&str, u32> = present.values().map(|route| (&*route.network, route.number)).collect();
    let mut routes = BTreeMap::new();
    for (key, span) in &world.networks {
        let members = by_network.get(key).map(Vec::as_slice).unwrap_or_default();
        let kept = if span.pools.is_empty() { 0 } else { ports.get(key).copied().unwrap_or_default() };
        if !numbers.contains_key(&*span.uid) && fits_at_home(span, members, kept, home) {
            continue;
        }
        let holds = holds(span, members, kept, places, home, present);
        let alone = holds.iter().all(|(node, hold)| *node == home && hold.parts.len() < 2);
        if alone {
            continue;
        }
        let number = numbers.get(&*span.uid).copied().filter(|number| (NUMBER_FIRST..=NUMBER_MAX).contains(number));
        let Some(number) = number.or_else(|| free_number(&numbers)) else { continue };
        numbers.insert(&span.uid, number);
        routes.extend(of_network(key, span, number, members, &holds, places));
    }
    routes
}

/// Whether the first machine's half is all that a network needs: at once, however large the network is.
fn fits_at_home(span: &Span, members: &[&Member], kept: usize, home: &str) -> bool {
    let Some(lower) = share::first(span.range) else { return true };
    let is_in_half = |member: &&Member| {
        let mut addresses = [member.address, member.wanted].into_iter().flatten();
        member.node == home && addresses.all(|address| lower.contains(address))
    };
    members.len() + kept <= span.room(lower) && members.iter().all(is_in_half)
}

/// The number behind the highest in use, so that one is not used again while a machine may still hold to what it meant before.
fn free_number(taken: &BTreeMap<&str, u32>) -> Option<u32> {
    let range = NUMBER_FIRST..=NUMBER_MAX;
    let taken: BTreeSet<u32> = taken.values().copied().filter(|number| range.contains(number)).collect();
    let next = taken.last().map_or(NUMBER_FIRST, |highest| highest + 1);
    (next..=NUMBER_MAX).chain(NUMBER_FIRST..next).find(|number| !taken.contains(number))
}

/// Which machine holds which parts: those that it had, and more where it needs more.
fn holds<'a>(
    span: &Span,
    members: &[&'a Member],
    kept: usize,
    places: &'a BTreeMap<String, Option<Place>>,
    home: &'a str,
    present: &BTreeMap<String, NetworkRouteSpec>,
) -> BTreeMap<&'a str, Hold> {
    let mut holds: BTreeMap<&str, Hold> = BTreeMap::new();
    let lower = share::first(span.range);
    holds.entry(home).or_default().parts.extend(lower);
    for route in present.values().filter(|route| route.network == span.uid) {
        let Some((node, _)) = places.get_key_value(&route.node_name) else { continue };
        let Ok(part) = route.destination.parse::<Range>() else { continue };
        // The network may have had another subnet, which overlaps this one: parts of that would overlap those of this one.
        if Some(part) != lower && share::other_with(span.range, part.address()) != Some(part) {
            continue;
        }
        let hold = holds.entry(node).or_default();
        hold.gateway = route.gateway.parse().ok();
        if Some(part) != lower {
            hold.parts.push(part);
        }
    }
    let give = |holds: &mut BTreeMap<&'a str, Hold>, node: &'a str, address: Option<Ipv4Addr>| {
        let is_free = |part: &Range| !holds.values().flat_map(|hold| &hold.parts).any(|held| held.overlaps(*part));
        let free = match address {
            Some(address) => share::other_with(span.range, address).filter(is_free),
            None => share::others(span.range).find(|part| span.room(*part) > 0 && is_free(part)),
        };
        holds.entry(node).or_default().parts.extend(free);
        free.is_some()
    };
    // Addresses that somebody has or insists on lie in parts of his machine, as long as nobody else holds them.
    for member in members {
        for address in [member.address, member.wanted].into_iter().flatten() {
            give(&mut holds, &member.node, Some(address));
        }
    }
    let mut needs: BTreeMap<&str, usize> = BTreeMap::new();
    members.iter().for_each(|member| *needs.entry(&member.node).or_default() += 1);
    if kept > 0 {
        *needs.entry(home).or_default() += kept;
    }
    for (node, need) in needs {
        let room = |holds: &BTreeMap<&str, Hold>| {
            holds.get(node).map_or(0, |hold| hold.parts.iter().map(|part| span.room(*part)).sum())
        };
        while room(&holds) < need && give(&mut holds, node, None) {}
    }
    for hold in holds.values_mut() {
        hold.parts.sort();
        // Only such a one is given to nobody, whatever the subnet was when it was chosen.
        let own = |part: &Range| share::own_address(span.subnet, *part, span.gateway);
        let kept = hold.gateway.filter(|address| hold.parts.iter().any(|part| own(part) == *address));
        hold.gateway = kept.or_else(|| hold.parts.first().map(own));
    }
    holds.retain(|_, hold| !hold.parts.is_empty());
    holds
}

/// A route for each part, and for each workload that is not where its address comes from.
fn of_network(
    (namespace, name): &Key,
    span: &Span,
    number: u32,
    members: &[&Member],
    holds: &BTreeMap<&str, Hold>,
    places: &BTreeMap<String, Option<Place>>,
) -> BTreeMap<String, NetworkRouteSpec> {
    let route = |range: Range, node: &str, hold: &Hold| {
        let place = places.get(node).and_then(Option::as_ref);
        let here = |member: &&&Member| member.node == node && member.address.is_some_and(|own| range.contains(own));
        let mut told: Vec<NetworkMember> = members
            .iter()
            .filter(here)
            .filter_map(|member| {
                Some(NetworkMember { address: member.address?.to_string(), names: member.names.clone() })
            })
            .collect();
        told.sort();
        told.dedup();
        // Those without names are told of for their addresses, which others can do without.
        told.sort_by_key(|member| member.names.is_empty());
        told.truncate(MEMBERS_MAX);
        let spec = NetworkRouteSpec {
            network: span.uid.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            number,
            destination: range.to_string(),
            node_name: node.to_owned(),
            machine_address: place.map(|place| place.address.to_string()).unwrap_or_default(),
            machine_port: place.map(|place| place.port).unwrap_or_default(),
            gateway: hold.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            members: told,
        };
        (format!("{}-{}-{}", span.uid, range.address().to_string().replace('.', "-"), range.prefix()), spec)
    };
    let mut routes = BTreeMap::new();
    for (node, hold) in holds {
        routes.extend(hold.parts.iter().map(|part| route(*part, node, hold)));
    }
    for member in members {
        let (Some(address), Some(hold)) = (member.address, holds.get(&*member.node)) else { continue };
        let at_home = hold.parts.iter().any(|part| part.contains(address));
        if !at_home && span.range.contains(address) {
            routes.extend([route(Range::containing(address, 32), &member.node, hold)]);
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(names: &[&str]) -> BTreeMap<String, Option<Place>> {
        let place = |at: usize| Place {
            part: (Ipv4Addr::new(10, 88, u8::try_from(at).unwrap(), 0), 24),
            address: Ipv4Addr::new(192, 0, 2, 1 + u8::try_from(at).unwrap()),
            port: 6443,
        };
        names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), Some(place(at)))).collect()
    }

    fn key(name: &str) -> Key {
        ("shop".into(), name.into())
    }

    fn world(networks: &[(&str, &str)], members: &[(&str, &str, &str)]) -> World {
        let mut world = World::default();
        for (name, subnet) in networks {
            let subnet: Range = subnet.parse().unwrap();
            let span = Span { uid: format!("uid-{name}"), subnet, range: subnet, gateway: None, pools: Vec::new() };
            world.networks.insert(key(name), span);
        }
        for (at, (network, node, address)) in members.iter().enumerate() {
            let member = Member {
                network: key(network),
                node: (*node).into(),
                address: address.parse().ok(),
                wanted: None,
                names: vec![format!("m{at}")],
            };
            world.members.insert(("Container", "shop".into(), at.to_string()), vec![member]);
        }
        world
    }

    fn shown(routes: &BTreeMap<String, NetworkRouteSpec>) -> Vec<String> {
        let one = |route: &NetworkRouteSpec| {
            format!("{} {} {} {}", route.name, route.destination, route.node_name, route.gateway)
        };
        routes.values().map(one).collect()
    }

    #[test]
    fn a_network_is_led_to_machines_with_workloads_on_it_and_to_no_others() {
        let places = places(&["n1", "n2", "n3"]);
        let none = BTreeMap::new();
        let networks = [("a", "10.89.0.0/24"), ("b", "10.89.1.0/24")];
        let alone = world(&networks, &[("a", "n1", "10.89.0.2")]);
        assert!(wanted(&alone, &places, "n1", &none).is_empty());
        let both = world(&networks, &[("a", "n1", "10.89.0.2"), ("a", "n2", "")]);
        let routes = wanted(&both, &places, "n1", &none);
        assert_eq!(shown(&routes), ["a 10.89.0.0/25 n1 10.89.0.127", "a 10.89.0.128/28 n2 10.89.0.143"]);
        assert!(routes.values().all(|route| route.number == 2));
        assert_eq!(routes["uid-a-10-89-0-0-25"].members[0].names, ["m0"]);
        // Another network gets another number, and what is there keeps its own.
        let more = world(
            &[("b", "10.89.1.0/24"), ("0", "10.89.2.0/24"), ("a", "10.89.0.0/24")],
            &[("a", "n2", ""), ("0", "n3", "")],
        );
        let next = wanted(&more, &places, "n1", &routes);
        let numbers: BTreeSet<(&str, u32)> = next.values().map(|route| (&*route.name, route.number)).collect();
        assert_eq!(numbers, [("0", 3), ("a", 2)].into());
        // A machine that left takes its parts along.
        let left = wanted(&both, &super::tests::places(&["n1"]), "n1", &routes);
        assert!(left.is_empty());
    }

    #[test]
    fn a_machine_gets_more_parts_when_it_needs_them_and_a_static_address_gets_its_part() {
        let places = places(&["n1", "n2"]);
        let members: Vec<(&str, &str, &str)> = (0..13).map(|_| ("a", "n2", "")).collect();
        let mut world = world(&[("a", "10.89.0.0/24")], &members);
        let routes = wanted(&world, &places, "n1", &BTreeMap::new());
        assert_eq!(shown(&routes)[1..], ["a 10.89.0.128/28 n2 10.89.0.143", "a 10.89.0.144/28 n2 10.89.0.143"]);
        let first = world.members.values_mut().next().unwrap();
        first[0].wanted = Some(Ipv4Addr::new(10, 89, 0, 250));
        first[0].node = "n1".into();
        let routes = wanted(&world, &places, "n1", &routes);
        assert!(shown(&routes).contains(&"a 10.89.0.240/28 n1 10.89.0.127".to_owned()), "{:?}", shown(&routes));
    }

    #[test]
    fn a_machine_gets_parts_with_addresses_that_are_given() {
        let places = places(&["n1", "n2"]);
        let at = |last: u8| Ipv4Addr::new(10, 89, 0, last);
        let with = |pools: &[(u8, u8)], members: &[(&str, &str, &str)], ports: usize| {
            let mut world = world(&[("a", "10.89.0.0/24")], members);
            let span = world.networks.values_mut().next().unwrap();
            span.pools = pools.iter().map(|(start, end)| (at(*start), at(*end))).collect();
            world.ports = (0..ports).map(|port| (key(&port.to_string()), key("a"))).collect();
            shown(&wanted(&world, &places, "n1", &BTreeMap::new()))
        };
        // What lies in the lower half is the first machine's, and enough for it.
        assert!(with(&[(10, 19)], &[("a", "n1", "")], 2).is_empty());
        // Elsewhere a part begins with the first address that is given; the first machine too needs one there.
        assert_eq!(with(&[(10, 19), (200, 220)], &[("a", "n2", "")], 0)[1..], ["a 10.89.0.192/28 n2 10.89.0.207"]);
        let upper = [(200, 206), (230, 235)];
        assert_eq!(with(&upper, &[("a", "n1", "")], 0)[1..], ["a 10.89.0.192/28 n1 10.89.0.127"]);
        // Its ports count twice: these seven addresses are not enough for four of them.
        assert_eq!(with(&upper, &[], 3).len(), 2);
        assert_eq!(with(&upper, &[], 4).len(), 3);
    }

    #[test]
    fn a_part_of_an_earlier_subnet_is_nobodys() {
        let places = places(&["n1", "n2"]);
        let members = [("a", "n2", "")];
        let before = wanted(&world(&[("a", "10.89.0.0/24")], &members), &places, "n1", &BTreeMap::new());
        let after = wanted(&world(&[("a", "10.90.0.0/24")], &members), &places, "n1", &before);
        assert_eq!(shown(&after), ["a 10.90.0.0/25 n1 10.90.0.127", "a 10.90.0.128/28 n2 10.90.0.143"]);
        // The same where the two overlap, whichever is the larger one.
        let larger = wanted(&world(&[("a", "10.90.0.0/16")], &members), &places, "n1", &after);
        assert_eq!(shown(&larger), ["a 10.90.0.0/17 n1 10.90.127.255", "a 10.90.128.0/24 n2 10.90.128.255"]);
        let smaller = wanted(&world(&[("a", "10.90.0.0/24")], &members), &places, "n1", &larger);
        assert_eq!(shown(&smaller), shown(&after));
        // A part may be one of both; what was its machine's own address may be the broadcast address by now.
        let members = [("a", "n2", "10.90.0.176")];
        let before = wanted(&world(&[("a", "10.90.0.0/24")], &members), &places, "n1", &BTreeMap::new());
        assert_eq!(shown(&before)[1..], ["a 10.90.0.176/28 n2 10.90.0.191"]);
        let after = wanted(&world(&[("a", "10.90.0.128/26")], &members), &places, "n1", &before);
        assert_eq!(shown(&after)[1..], ["a 10.90.0.176/28 n2 10.90.0.190"]);
    }

    #[test]
    fn only_what_was_made_spans_machines_and_only_as_it_was_made() {
        let network = |phase: &str, status: &str, spec: &str, range: &str| {
            let spec = api::NetworkSpec { subnet: spec.into(), ip_range: range.into(), ..Default::default() };
            let mut network = Network::new("a", spec);
            network.metadata.uid = Some("uid-a".into());
            let (phase, subnet) = (phase.into(), status.into());
            network.status = Some(api::NetworkStatus { phase, subnet, ..Default::default() });
            span(&network).map(|span| span.range.to_string())
        };
        assert_eq!(network("Ready", "10.89.0.0/24", "", ""), Some("10.89.0.0/24".into()));
        assert_eq!(network("Ready", "10.89.0.0/24", "0.0.0.0/0", ""), Some("10.89.0.0/24".into()));
        assert_eq!(network("Ready", "10.89.0.0/24", "", "10.89.0.0/25"), Some("10.89.0.0/25".into()));
        assert_eq!(network("Ready", "10.89.0.0/24", "", "0.0.0.0/0"), None);
        assert_eq!(network("Ready", "0.0.0.0/0", "0.0.0.0/0", ""), None);
        assert_eq!(network("Ready", "", "10.89.0.0/24", ""), None);
        assert_eq!(network("Pending", "", "0.0.0.0/0", ""), None);
        assert_eq!(network("Failed", "10.89.0.0/24", "10.89.0.0/24", ""), None);
    }

    #[test]
    fn a_number_is_not_used_again_at_once() {
        let free = |taken: &[u32]| {
            let names: Vec<String> = taken.iter().map(u32::to_string).collect();
            free_number(&names.iter().map(String::as_str).zip(taken.iter().copied()).collect())
        };
        assert_eq!((free(&[]), free(&[2]), free(&[2, 7])), (Some(2), Some(3), Some(8)));
        assert_eq!((free(&[NUMBER_MAX]), free(&[2, NUMBER_MAX]), free(&[5, u32::MAX])), (Some(2), Some(3), Some(6)));
    }

    #[test]
    fn names_that_are_many_or_long_are_not_told() {
        let names = (0..20).map(|at| format!("n{at}")).chain(["x".repeat(MEMBER_NAME_BYTES_MAX + 1)]);
        assert_eq!(told_names(names).len(), MEMBER_NAMES_MAX);
        assert!(told_names(["x".repeat(MEMBER_NAME_BYTES_MAX + 1)]).is_empty());
    }

    #[test]
    fn who_has_no_names_is_told_of_behind_those_who_have() {
        let mut world = world(&[("a", "10.89.0.0/24")], &[("a", "n2", "10.89.0.130"), ("a", "n2", "10.89.0.131")]);
        world.members.values_mut().next().unwrap()[0].names.clear();
        let routes = wanted(&world, &places(&["n1", "n2"]), "n1", &BTreeMap::new());
        let members = &routes["uid-a-10-89-0-128-28"].members;
        let told: Vec<(&str, usize)> = members.iter().map(|one| (one.address.as_str(), one.names.len())).collect();
        assert_eq!(told, [("10.89.0.131", 1), ("10.89.0.130", 0)]);
    }

    #[test]
    fn a_guest_away_from_home_has_a_route_of_its_own() {
        let places = places(&["n1", "n2"]);
        let world = world(&[("a", "10.89.0.0/24")], &[("a", "n2", "10.89.0.7")]);
        let routes = wanted(&world, &places, "n1", &BTreeMap::new());
        let moved = &routes["uid-a-10-89-0-7-32"];
        assert_eq!((moved.node_name.as_str(), moved.gateway.as_str()), ("n2", "10.89.0.143"));
    }

    proptest! {
        /// Whatever comes and goes, no address is of two machines' parts, what a machine holds stays, and numbers are of one network each.
        #[test]
        fn parts_never_overlap_and_stay(
            steps in proptest::collection::vec(
                proptest::collection::vec((0usize..3, 0usize..4, proptest::option::of(any::<u8>())), 0..40), 1..8),
        ) {
            let places = places(&["n0", "n1", "n2", "n3"]);
            let subnets = [("a", "10.89.0.0/24"), ("b", "10.89.1.0/24"), ("c", "10.89.2.0/26")];
            let mut present: BTreeMap<String, NetworkRouteSpec> = BTreeMap::new();
            for step in steps {
                let nodes = ["n0", "n1", "n2", "n3"];
                let mut world = world(&subnets, &[]);
                for (at, (network, node, address)) in step.iter().enumerate() {
                    let wanted = address.map(|last| Ipv4Addr::new(10, 89, u8::try_from(*network).unwrap(), last));
                    let member = Member {
                        network: key(subnets[*network].0), node: nodes[*node].into(), address: None, wanted, names: Vec::new(),
                    };
                    world.members.insert(("Container", "shop".into(), at.to_string()), vec![member]);
                }
                let next = wanted(&world, &places, "n0", &present);
                let parts: Vec<(&NetworkRouteSpec, Range)> =
                    next.values().map(|route| (route, route.destination.parse().unwrap())).collect();
                for (at, (route, part)) in parts.iter().enumerate() {
                    for (other, taken) in &parts[..at] {
                        prop_assert!(route.network != other.network || !part.overlaps(*taken), "{part} {taken}");
                        prop_assert_eq!(route.network == other.network, route.number == other.number);
                        if route.network == other.network && route.node_name == other.node_name {
                            prop_assert_eq!(&route.gateway, &other.gateway);
                        }
                    }
                }
                // What was given stays, while anything of the network is elsewhere than at home.
                for (name, route) in &present {
                    let still = next.values().any(|other| other.network == route.network);
                    prop_assert!(!still || next.get(name).map(|next| &next.node_name) == Some(&route.node_name));
                    prop_assert!(still, "parts are given up by machine or network alone");
                }
                present = next;
            }
        }
    }
}
