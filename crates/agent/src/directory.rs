//! The names that DNS knows: services, pods, and containers on user networks. One snapshot goes to the name server at
//! each change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use network::Subnet;
use network::dns::{Chosen, NetworkNames, Records, Server, ServiceRecord};
use parking_lot::Mutex;

#[derive(Default)]
struct State {
    services: BTreeMap<(String, String), ServiceRecord>,
    pods: BTreeMap<String, Vec<Ipv4Addr>>,
    networks: BTreeMap<String, Members>,
    /// By network: names of virtual addresses.
    virtual_names: VirtualNames,
    /// By owner: name servers that it chose for names that are not ours.
    chosen: BTreeMap<String, Chosen>,
    /// By network: workloads on other machines.
    elsewhere: MembersElsewhere,
}

/// By network id: addresses of workloads on other machines, with their names.
pub type MembersElsewhere = BTreeMap<String, Vec<(Ipv4Addr, Vec<String>)>>;

/// By network id: names of virtual addresses, each with the name that all who stand behind it share.
pub type VirtualNames = BTreeMap<String, BTreeMap<String, (Ipv4Addr, String)>>;

#[derive(Default)]
struct Members {
    subnet: Option<Subnet>,
    name: String,
    internal: bool,
    members: BTreeMap<String, (Vec<IpAddr>, Vec<String>)>,
    /// By owner: names of others with what the owner calls them.
    links: BTreeMap<String, Vec<(String, String)>>,
}

/// The names.
pub struct Directory {
    state: Mutex<State>,
    server: Arc<Server>,
}

impl Directory {
    /// An empty directory in front of a name server.
    pub fn new(server: Arc<Server>) -> Self {
        Self { state: Mutex::default(), server }
    }

    /// The name server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Replaces all services, and the names that they have on networks of users.
    pub fn set_services(&self, services: BTreeMap<(String, String), ServiceRecord>, names: VirtualNames) {
        self.change(|state| {
            let changed = state.services != services || state.virtual_names != names;
            state.services = services;
            state.virtual_names = names;
            changed
        });
    }

    /// Replaces what is known of workloads on other machines.
    pub fn set_members_elsewhere(&self, members: MembersElsewhere) {
        self.change(|state| {
            let changed = state.elsewhere != members;
            state.elsewhere = members;
            changed
        });
    }

    /// Adds or removes a pod's address.
    pub fn set_pod(&self, namespace: &str, address: Ipv4Addr, present: bool) {
        self.change(|state| {
            let list = state.pods.entry(namespace.to_owned()).or_default();
            list.retain(|a| *a != address);
            if present {
                list.push(address);
            }
            true
        });
    }

    /// Puts an owner's names on a network; the first name is the one that reverse look-ups give. Links are names of others
    /// with what the owner calls them; the whole network hears them.
    pub fn join(
        &self,
        network: &network::Network,
        name: &str,
        owner: &str,
        addresses: Vec<IpAddr>,
        names: Vec<String>,
        links: Vec<(String, String)>,
    ) {
        self.change(|state| {
            let members = state.networks.entry(network.id.clone()).or_default();
            members.subnet = Some(network.subnet);
            members.internal = network.internal;
            name.clone_into(&mut members.name);
            let names = names.into_iter().map(|n| n.to_lowercase()).collect();
            members.members.insert(owner.to_owned(), (addresses, names));
            let links = links.into_iter().map(|(other, alias)| (other.to_lowercase(), alias.to_lowercase())).collect();
            members.links.insert(owner.to_owned(), links);
            true
        });
    }

    /// Has names that are not ours asked for where an owner wants it, from its own network namespace; none follows the machine.
    /// Counts from the owner's next [`Directory::join`].
    pub fn choose(&self, owner: &str, servers: &[String], namespace: &Path) {
        let servers: Vec<_> = servers.iter().filter_map(|server| server.parse().ok()).collect();
        let mut state = self.state.lock();
        if servers.is_empty() {
            state.chosen.remove(owner);
        } else {
            state.chosen.insert(owner.to_owned(), Chosen { servers, namespace: namespace.to_owned() });
        }
    }

    /// Takes an owner's names off a network, or off all.
    pub fn leave(&self, owner: &str, network: Option<&str>) {
        self.change(|state| {
            let mut changed = network.is_none() && state.chosen.remove(owner).is_some();
            for (id, members) in &mut state.networks {
                if network.is_none_or(|n| n == id) {
                    changed |= members.members.remove(owner).is_some();
                    members.links.remove(owner);
                }
            }
            state.networks.retain(|_, m| !m.members.is_empty());
            changed
        });
    }

    fn change(&self, f: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state.lock();
        if f(&mut state) {
            self.server.set_records(records(&state));
            self.server.set_chosen(chosen(&state));
        }
    }
}

/// By address, for those who chose.
fn chosen(state: &State) -> HashMap<Ipv4Addr, Chosen> {
    let members = state.networks.values().flat_map(|network| &network.members);
    let pairs = members.filter_map(|(owner, (addresses, _))| Some((addresses, state.chosen.get(owner)?)));
    let four = |address: &IpAddr| if let IpAddr::V4(four) = address { Some(*four) } else { None };
    pairs.flat_map(|(addresses, chosen)| addresses.iter().filter_map(four).map(|four| (four, chosen.clone()))).collect()
}

fn records(state: &State) -> Records {
    let mut of_owner: BTreeMap<&str, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for (owner, (addresses, _)) in state.networks.values().flat_map(|network| &network.members) {
        let four = addresses.iter().filter_map(|a| if let IpAddr::V4(four) = a { Some(*four) } else { None });
        of_owner.entry(owner).or_default().extend(four);
    }
    let networks = state.networks.iter().map(|(id, network)| names_of(state, id, network, &of_owner));
    Records { services: state.services.clone(), pods: state.pods.clone(), networks: networks.collect() }
}

/// The names of one network.
fn names_of(state: &State, id: &str, network: &Members, of_owner: &BTreeMap<&str, BTreeSet<Ipv4Addr>>) -> NetworkNames {
    let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    let mut reverse = BTreeMap::new();
    let here = network.members.values().flat_map(|(addresses, own)| addresses.iter().map(move |a| (*a, own)));
    let elsewhere = state.elsewhere.get(id).into_iter().flatten().map(|(address, own)| (IpAddr::V4(*address), own));
    for (address, own) in here.chain(elsewhere) {
        for name in own {
            let list = names.entry(name.clone()).or_default();
            if !list.contains(&address) {
                list.push(address);
            }
        }
        reverse.extend(own.first().map(|name| (address, name.clone())));
    }
    for (other, alias) in network.links.values().flatten() {
        // A name that somebody has by itself is not taken from him.
        if let Some(addresses) = names.get(other).cloned() {
            names.entry(alias.clone()).or_insert(addresses);
        }
    }
    let mut virtual_names = BTreeMap::new();
    for (name, (address, members)) in state.virtual_names.get(id).into_iter().flatten() {
        virtual_names.insert(name.clone(), *address);
        if let Some(addresses) = names.get(members).cloned() {
            names.insert(name.clone(), addresses);
        }
    }
    let is_elsewhere = |address: &Ipv4Addr| network.subnet.is_none_or(|subnet| !subnet.contains(*address));
    let owned = network.members.keys().filter_map(|owner| of_owner.get(owner.as_str())).flatten();
    let elsewhere = owned.copied().filter(is_elsewhere).collect();
    let (subnet, name, internal) = (network.subnet, network.name.clone(), network.internal);
    NetworkNames { subnet, name, names, reverse, internal, virtual_names, elsewhere }
}
