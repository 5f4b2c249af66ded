//! `NetworkRoute` objects: which machine has which part of the pods' network. What they should be is the pure [`wanted`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use api::{NetworkRoute, NetworkRouteSpec, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};

use crate::{Result, follow, gone, watching};

/// Time after which routes that should be as they are, are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The network of pods.
const NETWORK: &str = "default";

enum Change {
    Node(Box<Event<Node>>),
    Guest(Box<Event<VirtualMachine>>),
}

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its part of the network: first address and prefix length.
    part: (Ipv4Addr, u8),
    address: Ipv4Addr,
    port: u16,
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let nodes = follow(Api::<Node>::all(client.clone()), watching());
    let guests = follow(Api::<VirtualMachine>::all(client.clone()), watching());
    let sources: Vec<BoxStream<'static, Change>> = vec![
        nodes.map(|event| Change::Node(Box::new(event))).boxed(),
        guests.map(|event| Change::Guest(Box::new(event))).boxed(),
    ];
    let mut changes = select_all(sources);
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    let mut guests: BTreeMap<String, (Ipv4Addr, String)> = BTreeMap::new();
    let (mut nodes_listed, mut guests_listed) = (false, false);
    // What was settled last, and when: most events of machines are signs of life. A fresh list forgets it, as it ends a gap in
    // which anything may have happened; and now and then the objects are looked at all the same, as somebody may have changed them.
    let mut settled: Option<(BTreeMap<String, NetworkRouteSpec>, Instant)> = None;
    while let Some(change) = changes.next().await {
        match change {
            Change::Node(event) => match *event {
                Event::Init => places.clear(),
                Event::Apply(node) | Event::InitApply(node) => match place(&node) {
                    Some(place) => drop(places.insert(node.name_any(), place)),
                    None => drop(places.remove(&node.name_any())),
                },
                Event::Delete(node) => drop(places.remove(&node.name_any())),
                Event::InitDone => (nodes_listed, settled) = (true, None),
            },
            Change::Guest(event) => match *event {
                Event::Init => guests.clear(),
                Event::Apply(guest) | Event::InitApply(guest) => match residence(&guest) {
                    Some(residence) => drop(guests.insert(key(&guest), residence)),
                    None => drop(guests.remove(&key(&guest))),
                },
                Event::Delete(guest) => drop(guests.remove(&key(&guest))),
                Event::InitDone => (guests_listed, settled) = (true, None),
            },
        }
        if nodes_listed && guests_listed {
            let routes = wanted(&places, guests.values());
            let known = settled.as_ref().is_some_and(|(last, at)| *last == routes && at.elapsed() < LOOK_AGAIN);
            if !known {
                settle(&client, &routes).await?;
                settled = Some((routes, Instant::now()));
            }
        }
    }
    Ok(())
}

fn key(guest: &VirtualMachine) -> String {
    format!("{}/{}", guest.namespace().unwrap_or_default(), guest.name_any())
}

fn cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn place(node: &Node) -> Option<Place> {
    let part = cidr(node.spec.as_ref()?.pod_cidr.as_deref()?)?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address: Ipv4Addr = addresses.iter().find(|one| one.type_ == "InternalIP")?.address.parse().ok()?;
    let endpoint = node.status.as_ref()?.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
    let port = u16::try_from(endpoint.port).ok()?;
    (!address.is_loopback()).then_some(Place { part, address, port })
}

/// A guest's address on the pods' network, and its machine.
fn residence(guest: &VirtualMachine) -> Option<(Ipv4Addr, String)> {
    if !guest.spec.network.is_empty() && guest.spec.network != api::names::DEFAULT_NETWORK {
        return None;
    }
    let address = guest.status.as_ref()?.addresses.first()?.ip.parse().ok()?;
    Some((address, guest.spec.node_name.clone()?))
}

/// What the routes should be: a part for each machine, and each guest that is not where its address comes from. A machine alone
/// needs none. Pure.
pub fn wanted<'a>(
    places: &BTreeMap<String, Place>,
    guests: impl Iterator<Item = &'a (Ipv4Addr, String)>,
) -> BTreeMap<String, NetworkRouteSpec> {
    if places.len() < 2 {
        return BTreeMap::new();
    }
    let route = |(address, prefix): (Ipv4Addr, u8), node: &str, place: &Place| {
        let (base, bits) = place.part;
        let spec = NetworkRouteSpec {
            network: NETWORK.into(),
            destination: format!("{address}/{prefix}"),
            node_name: node.to_owned(),
            machine_address: place.address.to_string(),
            machine_port: place.port,
            gateway: Ipv4Addr::from_bits(base.to_bits() | !mask(bits)).to_string(),
        };
        (format!("{NETWORK}-{}-{prefix}", address.to_string().replace('.', "-")), spec)
    };
    let mut routes: BTreeMap<_, _> = places.iter().map(|(name, place)| route(place.part, name, place)).collect();
    for (address, node) in guests {
        let Some(place) = places.get(node) else { continue };
        let (base, bits) = place.part;
        let at_home = address.to_bits() & mask(bits) == base.to_bits() & mask(bits);
        if !at_home {
            routes.extend([route((*address, 32), node, place)]);
        }
    }
    routes
}

async fn settle(client: &Client, wanted: &BTreeMap<String, NetworkRouteSpec>) -> Result<()> {
    let routes: Api<NetworkRoute> = Api::all(client.clone());
    let mut present = routes.list(&ListParams::default()).await?.items;
    for (name, spec) in wanted {
        let found = present.iter().position(|route| route.name_any() == *name).map(|at| present.swap_remove(at));
        match found {
            Some(found) if found.spec == *spec => {}
            Some(found) => {
                let route = NetworkRoute { metadata: found.metadata, spec: spec.clone() };
                routes.replace(name, &PostParams::default(), &route).await?;
            }
            None => drop(routes.create(&PostParams::default(), &NetworkRoute::new(name, spec.clone())).await?),
        }
    }
    for route in present {
        gone(routes.delete(&route.name_any(), &DeleteParams::default()).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(names: &[(&str, &str, &str)]) -> BTreeMap<String, Place> {
        let one = |(name, part, address): &(&str, &str, &str)| {
            ((*name).to_owned(), Place { part: cidr(part).unwrap(), address: address.parse().unwrap(), port: 6443 })
        };
        names.iter().map(one).collect()
    }

    #[test]
    fn a_guest_away_from_home_has_a_route_of_its_own() {
        let places = places(&[("n1", "10.88.0.0/17", "192.0.2.1"), ("n2", "10.88.128.0/24", "192.0.2.2")]);
        let at = |node: &str| [(Ipv4Addr::new(10, 88, 0, 7), node.to_owned())];
        assert_eq!(wanted(&places, at("n1").iter()).len(), 2);
        let routes = wanted(&places, at("n2").iter());
        let moved = &routes["default-10-88-0-7-32"];
        assert_eq!((moved.machine_address.as_str(), moved.gateway.as_str()), ("192.0.2.2", "10.88.128.255"));
        assert_eq!(routes["default-10-88-0-0-17"].gateway, "10.88.127.255");
        assert_eq!(wanted(&places, at("n9").iter()).len(), 2);
    }

    #[test]
    fn a_machine_alone_needs_no_routes() {
        assert!(wanted(&places(&[("n1", "10.88.0.0/17", "192.0.2.1")]), [].iter()).is_empty());
    }
}
