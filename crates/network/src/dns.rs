//! DNS for the cluster and for the names on user networks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::error::{Error, Result};
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
    /// Name of the network: `<container>.<network>` answers too.
    pub name: String,
    /// Lower-case names and aliases, each with all its addresses.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Addresses with the name that a reverse look-up gives.
    pub reverse: BTreeMap<Ipv4Addr, String>,
}

/// How to run a [`Server`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Where other names are asked for; empty reads `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Options { cluster_domain: "cluster.local".into(), upstreams: Vec::new() }
    }
}

/// A name server. Listens where it is told, answers from the last snapshot.
pub struct Server {
    options: Options,
}

impl Server {
    /// A server that listens nowhere yet.
    pub fn new(options: Options) -> Arc<Server> {
        Arc::new(Server { options })
    }

    /// Answers from these records from now on.
    pub fn set_records(&self, _records: Records) {}

    /// Listens on UDP and TCP. Listening twice on one address is fine.
    pub async fn listen(self: &Arc<Self>, address: SocketAddr) -> Result<()> {
        Err(Error::Invalid(format!("cannot listen on {address} for {} yet", self.options.cluster_domain)))
    }

    /// Stops listening on an address.
    pub fn stop(&self, _address: SocketAddr) {}
}
