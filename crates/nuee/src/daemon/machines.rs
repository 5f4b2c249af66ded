//! All machines of the pool as one: whatever a dialect asks about a workload goes to the machine that the workload is bound to,
//! in this process or over mTLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use kubernetes::pki::machine::Machine;
use node::remote::RemoteNode;
use node::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, FileChange, LogOptions, LogStream, Node, PathStatistics,
    ProcessTable, Result, Session, SharedNode, Statistics, TerminalSize, Workload,
};

use super::peer::Peer;

/// The machines.
pub struct Machines {
    name: String,
    agent: OnceLock<SharedNode>,
    client: OnceLock<Client>,
    /// Where the others are.
    others: arc_swap::ArcSwap<HashMap<String, SocketAddr>>,
    identity: Machine,
}

impl Machines {
    /// No machine answers yet. `identity` is shown to the others.
    pub fn new(name: &str, identity: Machine) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            agent: OnceLock::new(),
            client: OnceLock::new(),
            others: arc_swap::ArcSwap::default(),
            identity,
        })
    }

    /// Puts this machine's agent behind it; only the first call counts.
    pub fn set(&self, agent: SharedNode) {
        if self.agent.set(agent).is_err() {
            tracing::warn!("this machine already has an agent");
        }
    }

    /// Follows the machines of the pool until the future is dropped.
    pub async fn follow(self: Arc<Self>, client: Client) {
        let _first = self.client.set(client.clone());
        let config = watcher::Config::default();
        let mut events = std::pin::pin!(watcher::watcher(Api::<NodeObject>::all(client), config).default_backoff());
        let mut found: HashMap<String, SocketAddr> = HashMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => found.clear(),
                Ok(Event::Apply(object) | Event::InitApply(object)) => {
                    let name = object.metadata.name.clone().unwrap_or_default();
                    match place(&object).filter(|_| name != self.name) {
                        Some(place) => found.insert(name, place),
                        None => found.remove(&name),
                    };
                }
                Ok(Event::Delete(object)) => {
                    found.remove(object.metadata.name.as_deref().unwrap_or_default());
                }
                Ok(Event::InitDone) => {}
                Err(error) => tracing::warn!(%error, "cannot follow the machines; trying again"),
            }
            if **self.others.load() != found {
                self.others.store(Arc::new(found.clone()));
            }
        }
    }

    fn own(&self) -> Result<SharedNode> {
        self.agent.get().cloned().ok_or_else(|| Error::Unavailable("the machine is starting; try again".into()))
    }

    /// A machine of the pool by its name.
    fn named(&self, name: &str) -> Result<SharedNode> {
        if name == self.name {
            return self.own();
        }
        let place = self.others.load().get(name).copied();
        let place = place.ok_or_else(|| Error::Unavailable(format!("machine {name} is not in the pool")))?;
        Ok(Arc::new(RemoteNode::new(Arc::new(Peer::new(self.identity.clone(), name, place)))))
    }

    /// The machine that a workload is bound to.
    async fn of(&self, workload: &Workload) -> Result<SharedNode> {
        // One machine alone need not be looked up.
        if self.others.load().is_empty() {
            return self.own();
        }
        let client =
            self.client.get().ok_or_else(|| Error::Unavailable("the machine is starting; try again".into()))?;
        let unreadable = |error: kube::Error| Error::Unavailable(format!("cannot read the object: {error}"));
        let bound = match workload {
            Workload::PodContainer { namespace, pod, .. } => {
                let found = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(pod).await.map_err(unreadable)?;
                found.and_then(|pod| pod.spec?.node_name)
            }
            Workload::Container { namespace, name } => {
                let objects: Api<api::Container> = Api::namespaced(client.clone(), namespace);
                objects.get_opt(name).await.map_err(unreadable)?.and_then(|container| container.spec.node_name)
            }
        };
        self.named(bound.as_deref().unwrap_or(&self.name))
    }
}

/// Where a machine's agent listens: its internal address, and the port that its status tells.
fn place(object: &NodeObject) -> Option<SocketAddr> {
    let status = object.status.as_ref()?;
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    Some(SocketAddr::new(address.address.parse().ok()?, u16::try_from(port).ok()?))
}

#[async_trait]
impl Node for Machines {
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream> {
        self.of(workload).await?.logs(workload, options).await
    }
    async fn exec(&self, workload: &Workload, request: ExecRequest) -> Result<Session> {
        self.of(workload).await?.exec(workload, request).await
    }
    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session> {
        self.of(workload).await?.attach(workload, options).await
    }
    async fn resize(&self, workload: &Workload, size: TerminalSize) -> Result<()> {
        self.of(workload).await?.resize(workload, size).await
    }
    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()> {
        self.of(workload).await?.signal(workload, signal).await
    }
    async fn port_forward(&self, workload: &Workload, port: u16) -> Result<Box<dyn Duplex>> {
        self.of(workload).await?.port_forward(workload, port).await
    }
    async fn statistics(&self, workload: &Workload) -> Result<Statistics> {
        self.of(workload).await?.statistics(workload).await
    }
    async fn processes(&self, workload: &Workload, arguments: &str) -> Result<ProcessTable> {
        self.of(workload).await?.processes(workload, arguments).await
    }
    async fn path_statistics(&self, workload: &Workload, path: &str) -> Result<PathStatistics> {
        self.of(workload).await?.path_statistics(workload, path).await
    }
    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)> {
        self.of(workload).await?.read_archive(workload, path).await
    }
    async fn write_archive(&self, workload: &Workload, path: &str, archive: ByteStream) -> Result<()> {
        self.of(workload).await?.write_archive(workload, path, archive).await
    }
    async fn changes(&self, workload: &Workload) -> Result<Vec<FileChange>> {
        self.of(workload).await?.changes(workload).await
    }
    async fn export(&self, workload: &Workload) -> Result<ByteStream> {
        self.of(workload).await?.export(workload).await
    }
    async fn changes_layer(&self, workload: &Workload) -> Result<ByteStream> {
        self.of(workload).await?.changes_layer(workload).await
    }
}
