//! The daemon: opens the store, wires the machinery, the brains, the hands and the dialects together, and serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::instance::{Endpoints, Instance, State};
use crate::revoked::Revoked;

mod buildkit;
pub mod control;
mod destroy;
mod hands;
mod in_cluster;
mod join;
mod listen;
mod logging;
mod machines;
mod member;
mod memory;
mod peer;
mod places;
mod pool_client;
mod ready;
mod registry_access;
mod share;
mod tenants;

pub use destroy::destroy_workloads;
pub use member::{Membership, directory as machine_directory, join as join_pool};
pub use tenants::GROUP_PREFIX;

/// Name of the pool's first machine when it calls the others; a certificate with it never leaves the process.
const CONTROL_PLANE_USER: &str = "system:nuee-control-plane";

/// Threads that run tasks. Blocking file work has threads of its own, so two keep the machine's processors for the workloads.
const WORKER_THREADS: usize = 2;
/// How long a daemon that ends may hold its store after it let go of its process file.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Stack of a thread. Units: bytes.
const THREAD_STACK: usize = 2 << 20;

/// Runs until it is told to stop. Workloads go on when it ends.
pub fn run(instance: &Instance, config: Config) -> Result<()> {
    let started = Instant::now();
    let held = instance.lock()?;
    logging::start(instance)?;
    // Where it was started from must stay free to be unmounted or removed.
    std::env::set_current_dir("/").context("cannot change to the root directory")?;
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_stack_size(THREAD_STACK)
        .enable_all()
        .build()
        .context("cannot start the runtime's threads")?;
    let done = threads.block_on(serve(instance, config, started));
    threads.shutdown_background();
    drop(held);
    done
}

async fn serve(instance: &Instance, config: Config, started: Instant) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut state = State {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: false,
        started_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        ready_after_ms: 0,
        endpoints: endpoints(instance, &config),
    };
    instance.write_state(&state)?;
    let house = tokio::select! {
        house = Role::open(instance, &config) => house?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    state.ready = true;
    state.endpoints.registry = house.registry().map(|address| address.to_string());
    state.ready_after_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    instance.write_state(&state)?;
    tracing::info!(after_ms = state.ready_after_ms, "ready");
    let ended = house.run_until(async {
        tokio::select! {
            () = memory::keep_small() => {}
            _ = terminate.recv() => tracing::info!("stopping on SIGTERM"),
            _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
        }
    });
    ended.await
}

fn endpoints(instance: &Instance, config: &Config) -> Endpoints {
    if let Ok(Some(membership)) = Membership::read(instance) {
        let kubernetes = format!("https://{}", membership.server);
        return Endpoints { kubernetes, ..Endpoints::default() };
    }
    let socket = if instance.is_default() {
        crate::instance::DEFAULT_SOCKET.to_owned()
    } else {
        instance.path("docker.sock").display().to_string()
    };
    Endpoints {
        docker: format!("unix://{socket}"),
        kubernetes: server_url(config),
        kubeconfig: share::kubeconfig_path(instance).display().to_string(),
        registry: config.registry_listen.map(|address| address.to_string()),
    }
}

/// The URL at which a client on this machine finds the API.
fn server_url(config: &Config) -> String {
    let address = config.kubernetes_listen;
    if address.ip().is_unspecified() {
        format!("https://127.0.0.1:{}", address.port())
    } else {
        format!("https://{address}")
    }
}

/// What this machine is in its pool.
enum Role {
    /// The first machine: state, API, brains and hands.
    House(House),
    /// One that has joined: hands alone.
    Member(member::Member),
}

impl Role {
    async fn open(instance: &Instance, config: &Config) -> Result<Self> {
        tokio::task::block_in_place(|| places::prepare(instance));
        match Membership::read(instance)? {
            Some(membership) => member::Member::open(instance, config, &membership).await.map(Self::Member),
            None => House::open(instance, config).await.map(Self::House),
        }
    }

    fn registry(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::House(house) => house.registry,
            Self::Member(_) => None,
        }
    }

    async fn run_until(self, stop: impl Future<Output = ()>) -> Result<()> {
        match self {
            Self::House(house) => house.run_until(stop).await,
            Self::Member(member) => member.run_until(stop).await,
        }
    }
}

/// Waits for the future, or for the end of a part that must not end.
async fn first_end(tasks: &mut JoinSet<Result<()>>, stop: impl Future<Output = ()>) -> Result<()> {
    tokio::select! {
        () = stop => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok(done)) => done,
            Some(Err(error)) => Err(error).context("a part of the daemon broke"),
            None => Ok(()),
        },
    }
}

/// Everything that runs on the first machine.
struct House {
    tasks: JoinSet<Result<()>>,
    controllers: controllers::Controllers,
    _agent: Arc<agent::Agent>,
    /// Where the image registry listens, if it does.
    registry: Option<std::net::SocketAddr>,
}

impl House {
    async fn open(instance: &Instance, config: &Config) -> Result<Self> {
        let node_name = config.node_name()?;
        let pki = tokio::task::block_in_place(|| open_pki(instance, config))?;
        share::share_kubeconfig(instance)?;
        let listeners = listen::bind(instance, config).await?;
        let commands = control::bind(instance)?;
        let state = async {
            let store = open_store(instance, config).await?;
            Ok((open_api(instance, config, &pki, store.clone()).await?, store))
        };
        let ((api, store), hands) = tokio::try_join!(state, hands::Hands::open(instance, config, &pki.ca_pem))?;

        let (certificate, key) = pki.client_certificate(CONTROL_PLANE_USER, None, kubernetes::pki::LEAF_LIFE)?;
        let identity = kubernetes::pki::machine::Machine::of(&pki.ca_pem, &certificate, &key)?;
        let node = machines::Machines::new(&node_name, identity.clone());
        let own_agent = Arc::new(std::sync::OnceLock::new());
        let options = kubernetes::RouterOptions {
            server_address: config.kubernetes_listen.to_string(),
            ..kubernetes::RouterOptions::default()
        };
        let access = Arc::new(registry_access::TokenAccess::new(api.clone()));
        let router = kubernetes::router(api.clone(), node.clone(), options);
        let masters = |name: &str| {
            kubernetes::client(
                &router,
                apiserver::UserInfo {
                    name: name.into(),
                    groups: vec![api::names::ADMIN_GROUP.into(), "system:authenticated".into()],
                    ..apiserver::UserInfo::default()
                },
            )
        };
        let mut tasks = JoinSet::new();
        let tls = pki.server_config()?;
        let limits = kubernetes::ServeLimits::default();
        tasks.spawn({
            let gate = join::Gate {
                api,
                client: masters("system:nuee-join"),
                pki: pki.clone(),
                images: hands.images.clone(),
                pool: pool(config),
                agent: own_agent.clone(),
                turn: tokio::sync::Mutex::default(),
            };
            let router = join::router(gate, router.clone());
            async move {
                kubernetes::serve(listeners.kubernetes, tls, router, limits).await.context("the Kubernetes API ended")
            }
        });

        tasks.spawn(async move { control::serve(commands, store).await.context("the socket for commands ended") });

        let client = masters(&format!("system:node:{node_name}"));
        let images = hands.images.clone();
        let mut options = hands.agent_options(instance, config, &node_name, client.clone(), &pki.ca_pem)?;
        options.peers = Some(Arc::new(peer::Peers { identity, client: client.clone() }));
        let agent = agent::Agent::start(options).await.context("the agent did not start")?;
        node.set(agent.clone());
        let _first = own_agent.set(agent.clone());
        tasks.spawn({
            let (node, client) = (node.clone(), masters(CONTROL_PLANE_USER));
            async move {
                node.follow(client).await;
                Ok(())
            }
        });
        let controllers = controllers::Controllers::start(
            masters(api::names::CONTROLLER_USER),
            masters(api::names::SCHEDULER_USER),
            controllers::Options {
                root_ca: pki.ca_pem.clone(),
                floating_addresses: config.floating_ranges()?,
                identity: format!("{node_name}_{}", instance.id()),
                api: Some(in_cluster::place(config, &agent)?),
            },
        );
        if let Some(listener) = in_cluster::listen(config, &agent).await? {
            let (tls, router) = (pki.server_config()?, router.clone());
            tasks.spawn(async move {
                kubernetes::serve(listener, tls, router, limits).await.context("the Kubernetes API for pods ended")
            });
        }

        let registry = listeners.registry.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?;
        if let (Some(listener), Some(address)) = (listeners.registry, registry) {
            let port = address.port();
            let names = vec![format!("localhost:{port}"), format!("127.0.0.1:{port}")];
            let router = registry::router(images.clone(), registry::RegistryOptions { names, access: Some(access) });
            let tls = config.registry_tls.then(|| pki.server_config()).transpose()?;
            tasks.spawn(async move {
                registry_access::serve(listener, tls, router).await.context("the image registry ended")
            });
        }
        if let Some(listener) = listeners.tenants {
            let make = tenant_endpoints(instance, config.docker_experimental, &router, &node_name, &agent, &node);
            let router = tenants::Tenants::new(client.clone(), images.clone(), Revoked::of(instance), make).router();
            let tls = pki.server_config()?;
            tasks.spawn(async move {
                kubernetes::serve(listener, tls, router, limits).await.context("the Docker API of tenants ended")
            });
        }
        let docker = docker::router(docker::DockerState {
            client: masters("docker-socket"),
            namespace: api::names::DOCKER_NAMESPACE.into(),
            node_name: Some(node_name.clone()),
            node: node.clone(),
            buildkit: Some(buildkit::Host::start(images.clone(), agent.clone())),
            images,
            step_runner: agent.clone(),
            endpoint: docker::Endpoint::Machine,
            experimental: config.docker_experimental,
            data_dir: instance.directory().to_owned(),
            authority: pki.fingerprint()?,
        });
        for listener in listeners.docker {
            let docker = docker.clone();
            tasks.spawn(async move { docker::serve(listener, docker).await.context("the Docker socket ended") });
        }
        ready::wait(&client, &node_name).await?;
        Ok(Self { tasks, controllers, _agent: agent, registry })
    }

    /// Serves until the future resolves, or a part ends that must not.
    async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let ended = first_end(&mut self.tasks, stop).await;
        self.controllers.stop().await;
        self.tasks.shutdown().await;
        ended
    }
}

/// Makes the dialect of a tenant's namespace, with an identity that may only work there.
fn tenant_endpoints(
    instance: &Instance,
    experimental: bool,
    api: &axum::Router,
    node_name: &str,
    agent: &Arc<agent::Agent>,
    machines: &Arc<machines::Machines>,
) -> tenants::Make {
    let (data_dir, api, node_name) = (instance.directory().to_owned(), api.clone(), node_name.to_owned());
    let (agent, machines) = (agent.clone(), machines.clone());
    Box::new(move |namespace, images| {
        let group = format!("{GROUP_PREFIX}{namespace}");
        let user = apiserver::UserInfo {
            name: group.clone(),
            groups: vec![group, "system:authenticated".into()],
            ..apiserver::UserInfo::default()
        };
        docker::router(docker::DockerState {
            client: kubernetes::client(&api, user),
            namespace: namespace.to_owned(),
            node_name: Some(node_name.clone()),
            node: machines.clone(),
            // Cache mounts are known by their names alone, so tenants would see each other's.
            buildkit: None,
            images,
            step_runner: agent.clone(),
            endpoint: docker::Endpoint::Tenant,
            experimental,
            data_dir: data_dir.clone(),
            // A tenant is in no swarm, and makes no tokens.
            authority: String::new(),
        })
    })
}

/// What the machines of this pool agree on.
fn pool(config: &Config) -> join::Pool {
    join::Pool {
        pod_cidr: config.pod_cidr.clone(),
        pod_range: String::new(),
        service_cidr: config.service_cidr.clone(),
        node_ports: config.node_ports,
        cluster_domain: config.cluster_domain.clone(),
    }
}

/// The certificates, made where they are missing.
pub fn open_pki(instance: &Instance, config: &Config) -> Result<kubernetes::pki::Pki> {
    let options = kubernetes::pki::PkiOptions {
        dir: instance.path("pki"),
        kubeconfig: instance.path("kubeconfig"),
        server: server_url(config),
        names: config
            .alternative_names
            .iter()
            .cloned()
            .chain([in_cluster::service_address(config)?.to_string()])
            .chain([kubernetes::pki::machine::server_name(&config.node_name()?)])
            .collect(),
        now: jiff::Timestamp::now,
    };
    kubernetes::pki::Pki::open(&options).context("the certificates cannot be opened")
}

/// The store that the settings name: in the data directory, or an etcd cluster.
async fn open_store(instance: &Instance, config: &Config) -> Result<store::SharedStore> {
    if let Some(etcd) = &config.etcd {
        let store = store::EtcdStore::connect(etcd.options()?).await;
        return Ok(store.with_context(|| format!("etcd at {} cannot be used", etcd.endpoints.join(", ")))?);
    }
    let directory = instance.path("store");
    let options = store::EmbeddedOptions { lock_patience: STORE_PATIENCE, ..store::EmbeddedOptions::default() };
    let opened = tokio::task::spawn_blocking(move || store::EmbeddedStore::open(&directory, options));
    Ok(opened.await?.context("the store cannot be opened")?)
}

async fn open_api(
    instance: &Instance,
    config: &Config,
    pki: &kubernetes::pki::Pki,
    store: store::SharedStore,
) -> Result<Arc<apiserver::ApiServer>> {
    let options = apiserver::Options {
        service_cidr: config.service_cidr.clone(),
        node_ports: config.node_ports,
        token_key: Some(pki.token_key.clone()),
        audit_log: Some(instance.path("audit.log")),
        webhooks: Some(Arc::new(kubernetes::HttpsWebhooks::default())),
        mount_service_account_tokens: true,
        ..apiserver::Options::default()
    };
    let opened = apiserver::ApiServer::open(store, kubernetes::builtin_kinds(), options).await;
    opened.context("the API machinery did not start")
}
