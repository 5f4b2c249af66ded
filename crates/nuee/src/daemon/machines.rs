//! All machines of the pool as one: whatever a dialect asks about a workload goes to the machine that the workload is bound to,
//! in this process or over mTLS.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use kubernetes::pki::machine::Machine;
use node::remote::RemoteNode;
use node::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, FileChange, LogOptions, LogStream, Node, PathStatistics,
    ProcessTable, Result, Session, SharedNode, Statistics, TerminalSize, Workload,
};
use parking_lot::Mutex;

use super::peer::Peer;

/// How long a question may wait for the first list of the machines.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The machines.
pub struct Machines {
    name: String,
    agent: OnceLock<SharedNode>,
    client: OnceLock<Client>,
    nodes: Nodes,
    /// Keeps `nodes` current; taken by whoever follows.
    writer: Mutex<Option<Writer<NodeObject>>>,
    identity: Machine,
}

impl Machines {
    /// No machine answers yet. `identity` is shown to the others.
    pub fn new(name: &str, identity: Machine) -> Arc<Self> {
        let (store, writer) = reflector::store();
        Arc::new(Self {
            name: name.to_owned(),
            agent: OnceLock::new(),
            client: OnceLock::new(),
            nodes: Nodes(store),
            writer: Mutex::new(Some(writer)),
            identity,
        })
    }

    /// Puts this machine's agent behind it; only the first call counts.
    pub fn set(&self, agent: SharedNode) {
        if self.agent.set(agent).is_err() {
            tracing::warn!("this machine already has an agent");
        }
    }

    /// Follows the machines of the pool until the future is dropped; only the first call does.
    pub async fn follow(self: Arc<Self>, client: Client) {
        let _first = self.client.set(client.clone());
        let Some(writer) = self.writer.lock().take() else { return };
        let events = watcher(Api::<NodeObject>::all(client), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(reflector::reflector(writer, events));
        while let Some(event) = events.next().await {
            if let Err(error) = event {
                tracing::warn!(%error, "cannot follow the machines; trying again");
            }
        }
    }

    fn own(&self) -> Result<SharedNode> {
        self.agent.get().cloned().ok_or_else(starting)
    }

    /// A machine of the pool by its name.
    fn named(&self, name: &str) -> Result<SharedNode> {
        if name == self.name {
            return self.own();
        }
        let place = self.nodes.place(name);
        let place = place.ok_or_else(|| Error::Unavailable(format!("machine {name} is not in the pool")))?;
        Ok(Arc::new(RemoteNode::new(Arc::new(Peer::new(self.identity.clone(), name, place)))))
    }

    /// The machine that a workload is bound to.
    async fn of(&self, workload: &Workload) -> Result<SharedNode> {
        // One machine alone need not be looked up.
        if self.nodes.count().await? <= 1 {
            return self.own();
        }
        let client = self.client.get().ok_or_else(starting)?;
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
            Workload::VirtualMachine { namespace, name } => {
                let objects: Api<api::VirtualMachine> = Api::namespaced(client.clone(), namespace);
                objects.get_opt(name).await.map_err(unreadable)?.and_then(|machine| machine.spec.node_name)
            }
        };
        self.named(bound.as_deref().unwrap_or(&self.name))
    }
}

fn starting() -> Error {
    Error::Unavailable("the machine is starting; try again".into())
}

/// The `Node` objects. While they are listed anew, what the last list said holds: half a list would have workloads of other machines
/// looked for on this one.
struct Nodes(Store<NodeObject>);

impl Nodes {
    /// How many there are; waits for the first list.
    async fn count(&self) -> Result<usize> {
        match tokio::time::timeout(LIST_TIMEOUT, self.0.wait_until_ready()).await {
            Ok(Ok(())) => Ok(self.0.len()),
            _ => Err(starting()),
        }
    }

    fn place(&self, name: &str) -> Option<SocketAddr> {
        place(self.0.get(&ObjectRef::new(name))?.as_ref())
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

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    fn machine(name: &str) -> NodeObject {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.2"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 6443}}}}))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn machines_are_known_while_they_are_listed_anew() {
        let (store, mut writer) = reflector::store();
        let nodes = Nodes(store);
        assert!(nodes.count().await.is_err(), "nobody knows yet who is there");
        for event in [
            Event::Init,
            Event::InitApply(machine("n1")),
            Event::InitApply(machine("n2")),
            Event::InitDone,
            Event::Init,
            Event::InitApply(machine("n1")),
        ] {
            writer.apply_watcher_event(&event);
        }
        assert_eq!(nodes.count().await.unwrap(), 2);
        assert_eq!(nodes.place("n2"), Some("192.0.2.2:6443".parse().unwrap()));
        writer.apply_watcher_event(&Event::InitDone);
        assert_eq!((nodes.count().await.unwrap(), nodes.place("n2")), (1, None));
    }
}
