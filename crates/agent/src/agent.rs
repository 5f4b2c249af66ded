//! [`Agent`]: wires the parts together at start; nothing is killed when it is dropped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::directory::Directory;
use crate::error::Result;
use crate::events::Recorder;
use crate::guest::moving::Peers;
use crate::hands::{ImageOrigin, Images};
use crate::launch::Machine;
use crate::networks::{self, Networks, Outside};
use crate::node_object::{self, NodeFacts};
use crate::{
    container, disk, floating, garbage, guest, informer, machine, overlay, pod, ports, proxy, routers, security,
    subnets, volumes,
};

/// What an agent is given.
pub struct AgentOptions {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Name of this machine's `Node` object.
    pub node_name: String,
    /// Address by which others reach this machine; `None` finds it out.
    pub host_address: Option<Ipv4Addr>,
    /// Speaks to the apiserver as this node.
    pub client: kube::Client,
    /// Runs containers.
    pub runtime: runtime::Runtime,
    /// Images.
    pub images: Arc<image::ImageStore>,
    /// Network.
    pub fabric: Arc<network::Fabric>,
    /// Subnet of the default network; `None` takes a free one.
    pub default_subnet: Option<network::Subnet>,
    /// Domain of cluster names.
    pub cluster_domain: String,
    /// Name server for pods; `None` means the default network's gateway.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Certificates of the cluster's authority (PEM), for pods.
    pub cluster_ca: String,
    /// Further labels of the node.
    pub labels: BTreeMap<String, String>,
    /// Program that, called with `guest`, becomes a guest's hypervisor.
    pub launcher: PathBuf,
    /// Control group below which everything of this instance is.
    pub cgroup_root: String,
    /// Version shown in the node's status.
    pub version: String,
    /// Port of the apiserver on this machine.
    pub api_port: u16,
    /// Part of the disk that workloads must leave free; 0 lets them fill it. Units: percent.
    pub disk_reserve_percent: u8,
    /// Most tasks of a Docker container that sets no bound of its own; 0 means none.
    pub container_pids_limit: i64,
    /// Where disk images may be fetched from.
    pub image_reach: image::web::Reach,
    /// Part of the default network that this machine gives addresses from; `None` means all of it.
    pub pod_range: Option<network::Subnet>,
    /// What the operator lets networks be towards the outside.
    pub outside: Outside,
    /// The API is on another machine of the pool.
    pub is_member: bool,
    /// Where images are looked for that are not here, before their registry is asked.
    pub origin: Option<Arc<dyn ImageOrigin>>,
    /// Reaches the other machines of the pool.
    pub peers: Option<Arc<dyn Peers>>,
}

/// Makes one machine match the objects bound to it.
pub struct Agent {
    pub(crate) context: Arc<Context>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.context.stop.cancel();
    }
}

impl Agent {
    /// Starts the agent; returns when the machine is registered and ready for workloads.
    ///
    /// Errors: the network cannot be made, or the apiserver does not answer.
    pub async fn start(options: AgentOptions) -> Result<Arc<Self>> {
        let dns = network::dns::Options {
            cluster_domain: options.cluster_domain.clone(),
            ..network::dns::Options::default()
        };
        let directory = Directory::new(network::dns::Server::new(dns));
        let (networks, found) = tokio::try_join!(
            Networks::open(
                options.fabric.clone(),
                options.default_subnet,
                options.pod_range,
                options.outside,
                options.is_member,
            ),
            async { Ok(options.runtime.list().await?) },
        )?;
        let changed = Arc::new(Notify::new());
        let (services, service_events) =
            informer::reflect(Api::<Service>::all(options.client.clone()), watcher::Config::default());
        let size =
            pod::environment::Machine { cpu_milli: machine::cpus() * 1000, memory_bytes: machine::memory_bytes() };
        let containers_dir = options.data_dir.join("containers");
        let context = Arc::new(Context {
            node_name: options.node_name.clone(),
            host_address: options.host_address.unwrap_or_else(machine::address),
            cluster_domain: options.cluster_domain,
            cluster_dns: options.cluster_dns,
            cluster_ca: options.cluster_ca,
            events: Recorder::start(options.client.clone(), options.node_name),
            client: options.client,
            runtime: options.runtime,
            images: Images::new(options.images, containers_dir, options.origin),
            is_member: options.is_member,
            peers: options.peers,
            receptions: guest::moving::target::Receptions::default(),
            giving: guest::moving::post_copy::Ongoing::default(),
            fabric: options.fabric,
            guests: guest::Guests::new(&options.data_dir, options.launcher, options.cgroup_root),
            networks,
            directory,
            services: services.clone(),
            containers: Mutex::default(),
            arrivals: Notify::new(),
            pods: Mutex::default(),
            steps: Mutex::default(),
            machine: Machine::of_this_process(),
            disk_reserve_percent: options.disk_reserve_percent,
            container_pids_limit: options.container_pids_limit,
            image_reach: options.image_reach,
            disk_pressure: tokio::sync::watch::Sender::new(false),
            size,
            origin: tokio::time::Instant::now(),
            stop: tokio_util::sync::CancellationToken::new(),
            data_dir: options.data_dir,
        });
        let facts = NodeFacts {
            labels: options.labels,
            version: options.version,
            port: options.api_port.into(),
            pod_range: options.pod_range,
        };
        let default = context.networks.default_network();
        let (node, objects, ()) = tokio::join!(
            node_object::register(&context, &facts),
            networks::ensure_objects(&context),
            context.networks.listen(&context.directory, &default.id, default.gateway),
        );
        objects?;
        let owners = garbage::disk_owners(&context).await;
        let mut tasks = spawn_tasks(&context, node?, facts, services, service_events, changed, (found, owners));
        tasks.push(tokio::spawn(disk::run(context.clone())));
        tasks.push(tokio::spawn(overlay::run(context.clone())));
        tasks.push(tokio::spawn(security::run(context.clone())));
        tasks.push(tokio::spawn(floating::run(context.clone())));
        tasks.push(tokio::spawn(routers::run(context.clone())));
        tasks.push(tokio::spawn(ports::run(context.clone())));
        if !context.is_member {
            tasks.push(tokio::spawn(ports::give(context.clone())));
            tasks.push(tokio::spawn(subnets::run(context.clone())));
        }
        tasks.push(tokio::spawn(guest::moving::source::run(context.clone())));
        Ok(Arc::new(Self { context, tasks }))
    }

    /// Address by which others reach this machine; loopback when it has no other.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        self.context.host_address
    }

    /// Address of this machine on the network of its pods.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.context.networks.default_network().gateway
    }

    /// Serves a connection that another machine of the pool made, for a guest that moves. `from` is that machine by its certificate;
    /// `None` is the pool's first one.
    pub async fn take_in(&self, from: Option<&str>, connection: Box<dyn node::Duplex>) {
        if let Err(error) = guest::moving::target::take_in(&self.context, from, connection).await {
            tracing::warn!(from, error = %crate::error::chain(&error), "a guest is not taken in");
        }
    }

    /// Ends all workloads and takes away everything of this instance: for `nuee down --all`. Drop the agent afterwards.
    pub async fn destroy_everything(&self) -> Result<()> {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.context.stop.cancel();
        garbage::destroy_everything(&self.context).await
    }
}

type Services = kube::runtime::reflector::Store<Service>;

fn spawn_tasks(
    context: &Arc<Context>,
    node: k8s_openapi::api::core::v1::Node,
    facts: NodeFacts,
    services: Services,
    service_events: impl futures::Stream<Item = watcher::Event<Service>> + Send + 'static,
    changed: Arc<Notify>,
    (found, owners): (Vec<runtime::ContainerState>, HashSet<String>),
) -> Vec<JoinHandle<()>> {
    let service_changed = changed.clone();
    let (containers_listed, containers) = oneshot::channel();
    let (pods_listed, pods) = oneshot::channel();
    let (guests_listed, guests) = oneshot::channel();
    let (images_listed, images) = oneshot::channel();
    let (volumes_listed, volumes) = oneshot::channel();
    let (snapshots_listed, snapshots) = oneshot::channel();
    let (backups_listed, backups) = oneshot::channel();
    let all: HashSet<String> = found.iter().map(|s| s.id.clone()).collect();
    let found: HashMap<_, _> = found.into_iter().map(|s| (s.id.clone(), s)).collect();
    let collector = context.clone();
    vec![
        tokio::spawn(async move {
            let mut events = std::pin::pin!(service_events);
            while events.next().await.is_some() {
                service_changed.notify_one();
            }
        }),
        tokio::spawn(proxy::run(context.clone(), services, changed)),
        tokio::spawn(networks::run(context.clone())),
        tokio::spawn(volumes::run(context.clone(), volumes_listed)),
        tokio::spawn(node_object::run(context.clone(), facts, node)),
        tokio::spawn(container::run(context.clone(), found.clone(), containers_listed)),
        tokio::spawn(pod::run(context.clone(), found, pods_listed)),
        tokio::spawn(guest::run(context.clone(), guests_listed)),
        tokio::spawn(guest::images::run(context.clone(), images_listed)),
        tokio::spawn(guest::disks::snapshots::run(context.clone(), snapshots_listed)),
        tokio::spawn(guest::disks::backups::run(context.clone(), backups_listed)),
        tokio::spawn(async move {
            let unsettled = guest::moving::unsettled(&collector);
            if let (Ok(containers), Ok(pods), Ok(mut guests)) = (containers.await, pods.await, guests.await) {
                // Whether these live is not in the lists.
                guests.extend(unsettled.iter().map(|(uid, _)| uid.clone()));
                for (uid, incoming) in unsettled {
                    let (context, stop) = (collector.clone(), collector.stop.clone());
                    tokio::spawn(stop.run_until_cancelled_owned(async move {
                        guest::moving::target::settle_unsettled(&context, &uid, &incoming).await;
                    }));
                }
                garbage::collect(&collector, all, containers, pods, &guests).await;
                if let Ok((images, volumes, snapshots, backups)) = tokio::try_join!(images, volumes, snapshots, backups)
                {
                    let kept = [images, volumes, snapshots, backups].concat();
                    garbage::collect_guests(&collector, &owners, &guests, kept).await;
                }
            }
        }),
    ]
}
