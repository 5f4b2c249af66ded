//! DNS for the cluster, and for names on user networks. What is neither is asked of the machine's own resolvers.
//!
//! Cluster names follow the Kubernetes DNS specification 1.1.0; names on user networks are Docker's, and are told only to
//! who is on the network. The agent gives all of it as an immutable snapshot; nothing here watches anything.

mod answer;
mod cache;
mod forward;
mod listen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::error::Result;
use crate::subnet::Subnet;
use crate::types::Protocol;

/// Everything that the server knows, as one immutable snapshot.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Services by namespace and name.
    pub services: BTreeMap<(String, String), ServiceRecord>,
    /// Addresses of pods, by namespace: `10-88-0-5.<namespace>.pod.<domain>`.
    pub pods: BTreeMap<String, Vec<Ipv4Addr>>,
    /// User networks, with the names on them.
    pub networks: Vec<NetworkNames>,
}

/// A service as DNS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRecord {
    /// One virtual address.
    Cluster {
        /// The address.
        address: Ipv4Addr,
        /// Its ports.
        ports: Vec<ServicePort>,
    },
    /// Headless: the endpoints themselves.
    Headless {
        /// The endpoints.
        endpoints: Vec<HeadlessEndpoint>,
    },
    /// An alias for a name elsewhere.
    External {
        /// The name.
        name: String,
    },
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for an unnamed one, which has no SRV record.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// One endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadlessEndpoint {
    /// The pod's `hostname`; empty: the address with dashes.
    pub hostname: String,
    /// Address.
    pub address: Ipv4Addr,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// Names on a user network. Only those who are on it can ask for them.
#[derive(Clone, Debug, Default)]
pub struct NetworkNames {
    /// The network's subnet: who asks from inside it may know its names.
    pub subnet: Option<Subnet>,
    /// Addresses on other networks of who is on this one: they may know its names too.
    pub elsewhere: BTreeSet<Ipv4Addr>,
    /// An internal network: its names only, nothing of the world outside.
    pub internal: bool,
    /// Name of the network: `<container>.<network>` answers too.
    pub name: String,
    /// Lower-case names and aliases, each with all its addresses.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Addresses with the name that a reverse look-up gives.
    pub reverse: BTreeMap<IpAddr, String>,
    /// Names of virtual addresses, for who asks from inside the subnet. Others have no way to such an address: they get what
    /// `names` says.
    pub virtual_names: BTreeMap<String, Ipv4Addr>,
}

/// Where a client has names asked for that are not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The resolvers.
    pub servers: Vec<IpAddr>,
    /// The network namespace that it asks from.
    pub namespace: PathBuf,
}

/// How to run a [`Server`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Where other names are asked for; empty follows `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Who may ask. By default the private ranges: a resolver that is open to the world is a weapon.
    pub clients: Vec<Subnet>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cluster_domain: "cluster.local".into(),
            upstreams: Vec::new(),
            clients: vec![
                Subnet::new_const(Ipv4Addr::new(127, 0, 0, 0), 8),
                Subnet::new_const(Ipv4Addr::new(10, 0, 0, 0), 8),
                Subnet::new_const(Ipv4Addr::new(172, 16, 0, 0), 12),
                Subnet::new_const(Ipv4Addr::new(192, 168, 0, 0), 16),
                Subnet::new_const(Ipv4Addr::new(100, 64, 0, 0), 10),
            ],
        }
    }
}

/// What answers on one address.
struct Listener {
    /// Whose address it is.
    network: String,
    tasks: [JoinHandle<()>; 2],
}

/// A name server. Listens where it is told, answers from the last snapshot.
pub struct Server {
    options: Options,
    view: ArcSwap<answer::View>,
    forwarder: forward::Forwarder,
    /// By client: where it has other names asked for, in place of the machine's resolvers.
    chosen: ArcSwap<HashMap<Ipv4Addr, Arc<forward::Own>>>,
    listeners: Mutex<HashMap<SocketAddr, Listener>>,
    /// Held while an address is bound or let go of.
    binding: tokio::sync::Mutex<()>,
    limits: listen::Limits,
}

impl Server {
    /// A server that listens nowhere yet.
    pub fn new(options: Options) -> Arc<Server> {
        let view = answer::View::new(Records::default(), &options.cluster_domain);
        Arc::new(Server {
            view: ArcSwap::from_pointee(view),
            forwarder: forward::Forwarder::new(options.upstreams.clone()),
            chosen: ArcSwap::default(),
            listeners: Mutex::default(),
            binding: tokio::sync::Mutex::default(),
            limits: listen::Limits::default(),
            options,
        })
    }

    /// Answers from these records from now on.
    pub fn set_records(&self, records: Records) {
        self.view.store(Arc::new(answer::View::new(records, &self.options.cluster_domain)));
    }

    /// Asks these for the names that are not ours when those clients ask, each from its own network namespace: a client has
    /// nobody asked whom it could not ask itself.
    pub fn set_chosen(&self, chosen: HashMap<Ipv4Addr, Chosen>) {
        let before = self.chosen.load();
        let mut now = HashMap::new();
        for (client, chosen) in chosen {
            let servers = forward::usable(&chosen.servers);
            if !servers.is_empty() {
                now.insert(client, Arc::new(forward::Own::new(servers, chosen.namespace, before.get(&client))));
            }
        }
        self.chosen.store(Arc::new(now));
    }

    /// Listens on UDP and TCP for a network. Listening twice on one address is fine: the address is the newest one's. A network may come
    /// to the subnet of one that has just gone before that one's end is heard of here.
    ///
    /// `Errors:` [`crate::Error::Io`] when the address is not ours or taken.
    pub async fn listen(self: &Arc<Self>, address: SocketAddr, network: &str) -> Result<()> {
        let _binding = self.binding.lock().await;
        if let Some(listener) = self.listeners.lock().get_mut(&address) {
            network.clone_into(&mut listener.network);
            return Ok(());
        }
        let tasks = listen::start(self, address).await?;
        self.forwarder.add_own(address);
        self.listeners.lock().insert(address, Listener { network: network.to_owned(), tasks });
        Ok(())
    }

    /// Stops listening on an address, unless it is another network's by now. The address is free when this returns.
    pub async fn stop(&self, address: SocketAddr, network: &str) {
        let _binding = self.binding.lock().await;
        let stopped = {
            let mut listeners = self.listeners.lock();
            let is_its = listeners.get(&address).is_some_and(|listener| listener.network == network);
            is_its.then(|| listeners.remove(&address)).flatten()
        };
        for task in stopped.into_iter().flat_map(|listener| listener.tasks) {
            task.abort();
            // Its socket is closed only when it has ended.
            let _ = task.await;
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.lock().keys().copied().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listeners.lock().values().flat_map(|listener| &listener.tasks).for_each(JoinHandle::abort);
    }
}
