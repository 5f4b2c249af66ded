//! What every part of the agent shares: the hands, the client, and small caches.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::runtime::reflector::Store;
use parking_lot::Mutex;

use crate::container::places::Places;
use crate::directory::Directory;
use crate::events::Recorder;
use crate::hands::{Images, Runtime};
use crate::launch::Machine;
use crate::networks::Networks;
use crate::pod::Handle as PodHandle;

/// An object's place: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The place of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

/// Shared by every task of the agent.
pub struct Context {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Name of this machine's `Node` object.
    pub node_name: String,
    /// The API is on another machine of the pool, and lets this one do what concerns it alone.
    pub is_member: bool,
    /// Address of this machine.
    pub host_address: Ipv4Addr,
    /// Domain of cluster names.
    pub cluster_domain: String,
    /// Name server for pods; `None` means the default network's gateway.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Certificates of the cluster's authority, for pods when there is no config map with them.
    pub cluster_ca: String,
    /// Speaks to the apiserver.
    pub client: kube::Client,
    /// Runs containers.
    pub runtime: Runtime,
    /// Images.
    pub images: Images,
    /// Network.
    pub fabric: Arc<network::Fabric>,
    /// Networks by object.
    pub networks: Networks,
    /// The other machines of the pool.
    pub peers: Option<Arc<dyn crate::guest::moving::Peers>>,
    /// Guests that come from them.
    pub receptions: crate::guest::moving::target::Receptions,
    /// Guests that another machine runs with a part of their memory here.
    pub giving: crate::guest::moving::post_copy::Ongoing,
    /// Virtual machines.
    pub guests: crate::guest::Guests,
    /// Names in DNS.
    pub directory: Directory,
    /// Writes events.
    pub events: Recorder,
    /// Services, for environment variables.
    pub services: Store<Service>,
    /// Drivers of containers.
    pub containers: Places,
    /// Rings when a container has come.
    pub arrivals: tokio::sync::Notify,
    /// Drivers of pods.
    pub pods: Mutex<HashMap<Key, Arc<PodHandle>>>,
    /// Steps of builds that run.
    pub steps: Mutex<HashMap<String, crate::build::Running>>,
    /// What this machine lets the daemon give away.
    pub machine: Machine,
    /// Part of the disk that workloads must leave free. Units: percent.
    pub disk_reserve_percent: u8,
    /// Most tasks of a Docker container that sets no bound of its own; 0 means none.
    pub container_pids_limit: i64,
    /// Where disk images may be fetched from.
    pub image_reach: image::web::Reach,
    /// Whether too little of the machine's disk is left.
    pub disk_pressure: tokio::sync::watch::Sender<bool>,
    /// Size of the machine.
    pub size: crate::pod::environment::Machine,
    /// Origin of decision time.
    pub origin: tokio::time::Instant,
    /// Ends the drivers, not what they drive.
    pub stop: tokio_util::sync::CancellationToken,
}

impl Context {
    /// Whether a container of this namespace, bound to this machine, has this runtime id.
    pub fn is_neighbour(&self, namespace: &str, id: &str) -> bool {
        self.containers.lock().iter().any(|(key, handle)| key.namespace == namespace && handle.id == id)
    }

    /// Time for decisions: monotonic, since the agent's start.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The tokio instant of a decision time.
    pub fn at(&self, instant: Duration) -> tokio::time::Instant {
        self.origin + instant
    }

    /// Directory of one container's files.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.data_dir.join("containers").join(id)
    }

    /// Directory of the parts of volumes that one container has mounted: apart from its files, since those are removed with
    /// all that lies below them, and the content of a volume is not the container's.
    pub fn pins_dir(&self, id: &str) -> PathBuf {
        self.data_dir.join("pins").join(id)
    }

    /// Directory of one pod's files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// Directory of a volume's content.
    pub fn volume_dir(&self, name: &str) -> PathBuf {
        self.data_dir.join("volumes").join(name).join("_data")
    }
}

/// Whether a name can be one component of a path.
pub fn is_path_safe(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
