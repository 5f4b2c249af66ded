//! `NetworkRoute` objects: which machine has which part of the pods' network, and of those networks of users that span machines. What
//! they should be is pure: [`wanted`] for the pods' network, [`spans::wanted`] for the others.

mod spans;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use api::share::Range;
use api::{Container, Network, NetworkRoute, NetworkRouteSpec, Port, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};

use self::spans::Member;
use crate::{Result, chain, follow, is_missing, watching};

/// Time after which routes that should be as they are, are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Time after which what the API refused is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// The network of pods.
const NETWORK: &str = "default";
const GUEST: &str = "VirtualMachine";
const CONTAINER: &str = "Container";

enum Change {
    Node(Box<Event<Node>>),
    Guest(Box<Event<VirtualMachine>>),
    Network(Box<Event<Network>>),
    Container(Box<Event<Container>>),
    Port(Box<Event<Port>>),
}

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its part of the network: first address and prefix length.
    part: (Ipv4Addr, u8),
    address: Ipv4Addr,
    port: u16,
}

/// What is known of everything.
#[derive(Default)]
struct World {
    /// The machines, with their ways if they have one.
    places: BTreeMap<String, Option<Place>>,
    /// Machines by their parts of the pods' network: the first one holds the lowest addresses.
    parts: BTreeMap<(Ipv4Addr, u8), String>,
    /// Guests on the pods' network.
    guests: BTreeMap<String, Vec<(Ipv4Addr, String)>>,
    /// Containers and pods on ports of the pods' network.
    ports: BTreeMap<String, (Ipv4Addr, String)>,
    spans: spans::World,
}

impl World {
    /// Notes a change; whether it may change routes.
    fn note(&mut self, change: Change, listed: &mut Listed) -> bool {
        match change {
            Change::Node(event) => match *event {
                Event::Init => {
                    self.places.clear();
                    self.parts.clear();
                    begin(&mut listed.nodes)
                }
                Event::Apply(node) | Event::InitApply(node) => {
                    let place = place(&node);
                    self.parts.extend(part(&node).map(|part| (part, node.name_any())));
                    self.places.insert(node.name_any(), place.clone()) != Some(place)
                }
                Event::Delete(node) => {
                    self.parts.retain(|_, name| *name != node.name_any());
                    self.places.remove(&node.name_any()).is_some()
                }
                Event::InitDone => end(&mut listed.nodes),
            },
            Change::Guest(event) => match *event {
                Event::Init => {
                    self.guests.clear();
                    self.spans.members.retain(|(kind, ..), _| *kind != GUEST);
                    begin(&mut listed.guests)
                }
                Event::Apply(guest) | Event::InitApply(guest) => {
                    let residences = Some(residences(&guest)).filter(|all| !all.is_empty());
                    let default = replace(&mut self.guests, key(&guest), residences);
                    self.note_members((GUEST, place_of(&guest)), spans::of_guest(&guest)) || default
                }
                Event::Delete(guest) => {
                    let default = self.guests.remove(&key(&guest)).is_some();
                    self.note_members((GUEST, place_of(&guest)), Vec::new()) || default
                }
                Event::InitDone => end(&mut listed.guests),
            },
            Change::Network(event) => match *event {
                Event::Init => {
                    self.spans.networks.clear();
                    begin(&mut listed.networks)
                }
                Event::Apply(network) | Event::InitApply(network) => {
                    replace(&mut self.spans.networks, place_of(&network), spans::span(&network))
                }
                Event::Delete(network) => self.spans.networks.remove(&place_of(&network)).is_some(),
                Event::InitDone => end(&mut listed.networks),
            },
            Change::Container(event) => match *event {
                Event::Init => {
                    self.spans.members.retain(|(kind, ..), _| *kind != CONTAINER);
                    begin(&mut listed.containers)
                }
                Event::Apply(container) | Event::InitApply(container) => {
                    self.note_members((CONTAINER, place_of(&container)), spans::of_container(&container))
                }
                Event::Delete(container) => self.note_members((CONTAINER, place_of(&container)), Vec::new()),
                Event::InitDone => end(&mut listed.containers),
            },
            Change::Port(event) => match *event {
                Event::Init => {
                    self.ports.clear();
                    self.spans.ports.clear();
                    begin(&mut listed.ports)
                }
                Event::Apply(port) | Event::InitApply(port) => {
                    let network = (port.namespace().unwrap_or_default(), port.spec.network().to_owned());
                    let is_new = replace(&mut self.spans.ports, place_of(&port), Some(network));
                    replace(&mut self.ports, key(&port), residence(&port)) || is_new
                }
                Event::Delete(port) => {
                    let is_known = self.spans.ports.remove(&place_of(&port)).is_some();
                    self.ports.remove(&key(&port)).is_some() || is_known
                }
                Event::InitDone => end(&mut listed.ports),
            },
        }
    }

    fn note_members(&mut self, (kind, (namespace, name)): (&'static str, spans::Key), members: Vec<Member>) -> bool {
        let at = (kind, namespace, name);
        replace(&mut self.spans.members, at, Some(members).filter(|members| !members.is_empty()))
    }

    fn wanted(&self, present: &BTreeMap<String, NetworkRouteSpec>) -> BTreeMap<String, NetworkRouteSpec> {
        let ways = self.places.iter().filter_map(|(name, place)| Some((name.clone(), place.clone()?))).collect();
        let mut routes = wanted(&ways, self.guests.values().flatten().chain(self.ports.values()));
        if let Some(home) = self.parts.values().next() {
            let users = present.iter().filter(|(_, route)| route.network != NETWORK);
            let users = users.map(|(name, route)| (name.clone(), route.clone())).collect();
            routes.extend(spans::wanted(&self.spans, &self.places, home, &users));
        }
        routes
    }
}

/// Which lists have been told whole.
#[derive(Default)]
struct Listed {
    nodes: bool,
    guests: bool,
    networks: bool,
    ports: bool,
    containers: bool,
}

fn begin(listed: &mut bool) -> bool {
    *listed = false;
    false
}

/// A fresh list ends a gap in which anything may have happened.
fn end(listed: &mut bool) -> bool {
    *listed = true;
    true
}

/// Whether that is new.
fn replace<K: Ord, V: PartialEq + Clone>(known: &mut BTreeMap<K, V>, at: K, value: Option<V>) -> bool {
    match value {
        Some(value) => known.insert(at, value.clone()) != Some(value),
        None => known.remove(&at).is_some(),
    }
}

fn place_of<K: kube::Resource>(object: &K) -> spans::Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let nodes = follow(Api::<Node>::all(client.clone()), watching());
    let guests = follow(Api::<VirtualMachine>::all(client.clone()), watching());
    let networks = follow(Api::<Network>::all(client.clone()), watching());
    let ports = follow(Api::<Port>::all(client.clone()), watching());
    let sources: Vec<BoxStream<'static, Change>> = vec![
        nodes.map(|event| Change::Node(Box::new(event))).boxed(),
        guests.map(|event| Change::Guest(Box::new(event))).boxed(),
        networks.map(|event| Change::Network(Box::new(event))).boxed(),
        ports.map(|event| Change::Port(Box::new(event))).boxed(),
    ];
    let mut changes = select_all(sources);
    let (mut world, mut listed) = (World::default(), Listed::default());
    let mut follows_containers = false;
    // What was settled last, and when: now and then the objects are looked at all the same, as somebody may have changed them.
    let mut settled: Option<(BTreeMap<String, NetworkRouteSpec>, Instant)> = None;
    let mut failed = false;
    loop {
        let change = match failed {
            true => tokio::time::timeout(TRY_AGAIN, changes.next()).await,
            false => Ok(changes.next().await),
        };
        let matters = match change {
            Ok(Some(change)) => world.note(change, &mut listed),
            Ok(None) => return Ok(()),
            Err(_) => true,
        };
        // Containers come and go often, and most pools have no network of theirs that spans machines.
        if !follows_containers && !world.spans.networks.is_empty() {
            let containers = follow(Api::<Container>::all(client.clone()), watching());
            changes.push(containers.map(|event| Change::Container(Box::new(event))).boxed());
            follows_containers = true;
        }
        // Half a list would take parts from machines that are still there.
        let objects = listed.nodes && listed.guests && listed.networks && listed.ports;
        let whole = objects && (listed.containers || !follows_containers);
        let stale = settled.as_ref().is_none_or(|(_, at)| at.elapsed() > LOOK_AGAIN);
        if !whole || !(matters || stale) {
            continue;
        }
        let present = match settled.take().filter(|_| !stale) {
            Some((present, _)) => present,
            None => list(&client).await?,
        };
        let routes = world.wanted(&present);
        failed = routes != present && !settle(&client, &routes).await?;
        settled = (!failed).then(|| (routes, Instant::now()));
    }
}

fn key<K: kube::Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
}

fn part(node: &Node) -> Option<(Ipv4Addr, u8)> {
    cidr(node.spec.as_ref()?.pod_cidr.as_deref()?)
}

fn place(node: &Node) -> Option<Place> {
    let part = part(node)?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let address: Ipv4Addr = addresses.iter().find(|one| one.type_ == "InternalIP")?.address.parse().ok()?;
    let endpoint = node.status.as_ref()?.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
    let port = u16::try_from(endpoint.port).ok()?;
    (!address.is_loopback()).then_some(Place { part, address, port })
}

/// A guest's addresses on the pods' network, each with its machine.
fn residences(guest: &VirtualMachine) -> Vec<(Ipv4Addr, String)> {
    let Some(node) = &guest.spec.node_name else { return Vec::new() };
    let seats = guest.seats().into_iter().filter(|(network, _)| network == api::names::DEFAULT_NETWORK);
    seats.filter_map(|(_, address)| Some((address?.parse().ok()?, node.clone()))).collect()
}

/// The address of a container or pod on a port of the pods' network, and its machine: it may not be where its address comes from. What
/// guests have their objects tell.
fn residence(port: &Port) -> Option<(Ipv4Addr, String)> {
    let status = port.status.as_ref()?;
    let attached = status.attached_to.as_ref()?;
    let is_guest = !attached.virtual_machine.is_empty();
    let is_here = port.spec.network() == api::names::DEFAULT_NETWORK && !is_guest && !status.node_name.is_empty();
    is_here.then_some(())?;
    Some((status.address.parse().ok()?, status.node_name.clone()))
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
        let gateway = Range::containing(base, bits).last().to_string();
        let spec = NetworkRouteSpec {
            network: NETWORK.into(),
            destination: format!("{address}/{prefix}"),
            node_name: node.to_owned(),
            machine_address: place.address.to_string(),
            machine_port: place.port,
            gateway,
            ..NetworkRouteSpec::default()
        };
        (format!("{NETWORK}-{}-{prefix}", address.to_string().replace('.', "-")), spec)
    };
    let mut routes: BTreeMap<_, _> = places.iter().map(|(name, place)| route(place.part, name, place)).collect();
    for (address, node) in guests {
        let Some(place) = places.get(node) else { continue };
        let (base, bits) = place.part;
        if !Range::containing(base, bits).contains(*address) {
            routes.extend([route((*address, 32), node, place)]);
        }
    }
    routes
}

/// The routes as they are.
async fn list(client: &Client) -> Result<BTreeMap<String, NetworkRouteSpec>> {
    let present = Api::<NetworkRoute>::all(client.clone()).list(&ListParams::default()).await?.items;
    Ok(present.into_iter().map(|route| (route.name_any(), route.spec)).collect())
}

/// Makes the routes be these, as far as the API lets it: one that it refuses does not stand in the way of the others.
/// Returns whether all are.
async fn settle(client: &Client, wanted: &BTreeMap<String, NetworkRouteSpec>) -> Result<bool> {
    let routes: Api<NetworkRoute> = Api::all(client.clone());
    let present = routes.list(&ListParams::default()).await?.items;
    let mut present: BTreeMap<String, NetworkRoute> =
        present.into_iter().map(|route| (route.name_any(), route)).collect();
    let mut all = true;
    let mut note = |name: &str, error: kube::Error| {
        tracing::warn!(route = name, error = %chain(&error), "cannot write a route between machines");
        all = false;
    };
    for (name, spec) in wanted {
        let written = match present.remove(name) {
            Some(found) if found.spec == *spec => continue,
            Some(found) => {
                let route = NetworkRoute { metadata: found.metadata, spec: spec.clone() };
                routes.replace(name, &PostParams::default(), &route).await
            }
            None => routes.create(&PostParams::default(), &NetworkRoute::new(name, spec.clone())).await,
        };
        if let Err(error) = written {
            note(name, error);
        }
    }
    for name in present.keys() {
        match routes.delete(name, &DeleteParams::default()).await {
            Err(error) if !is_missing(&error) => note(name, error),
            _ => {}
        }
    }
    Ok(all)
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

    #[test]
    fn a_container_or_pod_on_a_port_may_be_away_from_home() {
        let at = |network: &str, attached: serde_json::Value| {
            let status = serde_json::json!({"address": "10.88.0.7", "nodeName": "n2", "attachedTo": attached});
            let mut port = Port::new("p", api::PortSpec { network: network.into(), ..Default::default() });
            port.status = serde_json::from_value(status).unwrap();
            residence(&port).map(|(_, node)| node)
        };
        let (pod, guest) = (serde_json::json!({"pod": "a"}), serde_json::json!({"virtualMachine": "a"}));
        assert_eq!(at("", pod.clone()).as_deref(), Some("n2"));
        assert_eq!((at("net", pod), at("", guest), at("", serde_json::Value::Null)), (None, None, None));
    }
}
