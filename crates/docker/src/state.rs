//! What the dialect works with: the client of the object store, the machine, the images, the caches, the events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use api::swarm::SETTINGS_NAME;
use api::{Container, Network, Volume};
use image::ImageStore;
use image::build::StepRunner;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher;
use kube::{Api, Client};
use node::SharedNode;
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::events::Events;
use crate::exec::Exec;
use crate::images::buildkit::BuildKitHost;
use crate::images::library::Images;
use crate::images::uploads::Uploads;
use crate::policy::Endpoint;

/// What the wiring gives to the dialect.
pub struct DockerState {
    /// Talks to the apiserver with the identity of this endpoint's users.
    pub client: Client,
    /// Namespace that this endpoint belongs to.
    pub namespace: String,
    /// Machine that new containers are bound to at once; `None` leaves the choice to the scheduler.
    pub node_name: Option<String>,
    /// The machine (or the way to all of them).
    pub node: SharedNode,
    /// The machine's images.
    pub images: Arc<ImageStore>,
    /// Runs the RUN steps of builds.
    pub step_runner: Arc<dyn StepRunner>,
    /// Speaks BuildKit's protocol; `None` where there is none.
    pub buildkit: Option<Arc<dyn BuildKitHost>>,
    /// Who uses this endpoint, and so what they may ask for.
    pub endpoint: Endpoint,
    /// Whether clients are offered what dockerd has with its experimental features alone: `docker build --squash`.
    pub experimental: bool,
    /// Data directory, shown by `docker info`.
    pub data_dir: std::path::PathBuf,
    /// SHA-256 of the public key of the pool's authority, in hexadecimal: what join tokens name it by.
    pub authority: String,
}

/// The running dialect, shared by all requests.
pub(crate) struct Docker {
    pub(crate) state: DockerState,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) containers: Cache<Container>,
    pub(crate) networks: Cache<Network>,
    pub(crate) volumes: Cache<Volume>,
    /// The `Secret` of the swarm's settings. A tenant's endpoint is in no swarm.
    pub(crate) swarm: Option<Cache<Secret>>,
    pub(crate) events: Events,
    /// Exec instances that were made here; they live as long as their container or this process.
    pub(crate) execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Contexts that come beside their builds.
    pub(crate) uploads: Uploads,
    /// Event streams that are open now, for `docker info`.
    pub(crate) listeners: AtomicUsize,
}

impl Docker {
    /// Starts the caches; they fill in the background, and requests wait for the first list.
    pub(crate) fn start(state: DockerState, images: Arc<dyn Images>) -> Arc<Self> {
        let events = Events::default();
        let api_containers: Api<Container> = Api::namespaced(state.client.clone(), &state.namespace);
        let api_networks: Api<Network> = Api::namespaced(state.client.clone(), &state.namespace);
        let api_volumes: Api<Volume> = Api::namespaced(state.client.clone(), &state.namespace);
        let seen = events.clone();
        let containers = Cache::start(
            api_containers,
            Box::new(move |old, new, live| crate::events::container_changed(&seen, old, new, live)),
        );
        let seen = events.clone();
        let networks = Cache::start(
            api_networks,
            Box::new(move |old, new, live| crate::events::network_changed(&seen, old, new, live)),
        );
        let seen = events.clone();
        let volumes = Cache::start(
            api_volumes,
            Box::new(move |old, new, live| crate::events::volume_changed(&seen, old, new, live)),
        );
        let swarm = (state.endpoint == Endpoint::Machine).then(|| {
            let api: Api<Secret> = Api::namespaced(state.client.clone(), &state.namespace);
            let of = watcher::Config::default().fields(&format!("metadata.name={SETTINGS_NAME}"));
            Cache::start_of(api, of, Box::new(|_, _, _| ()))
        });
        if let Some(host) = &state.buildkit {
            let seen = events.clone();
            host.on_tag(Box::new(move |id, name| seen.image(id, name, "tag")));
        }
        Arc::new(Self {
            state,
            images,
            containers,
            networks,
            volumes,
            swarm,
            events,
            execs: Mutex::default(),
            uploads: Uploads::default(),
            listeners: AtomicUsize::new(0),
        })
    }

    /// Waits until the caches have been filled once.
    pub(crate) async fn ready(&self) -> crate::error::Result<()> {
        self.containers.ready().await?;
        self.networks.ready().await?;
        self.volumes.ready().await?;
        match &self.swarm {
            Some(swarm) => swarm.ready().await,
            None => Ok(()),
        }
    }

    /// The workload that a container object stands for.
    pub(crate) fn workload(&self, id: &str) -> node::Workload {
        node::Workload::Container { namespace: self.state.namespace.clone(), name: id.to_owned() }
    }
}
