//! Reconcile loops: each reads the world through the API, takes no other input, and moves it one step toward what the objects
//! say. All can be killed at any instant and started again. Must never know a dialect or the store.

use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::Action;
use kube::runtime::{Controller, WatchStreamExt, watcher};
use tokio::task::JoinSet;

pub mod api_service;
mod bootstrap_tokens;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod endpoints;
pub mod events;
pub mod floating_ips;
pub mod garbage;
pub mod job;
pub mod leader;
pub mod members;
pub mod migration;
pub mod namespace;
pub mod network_routes;
pub mod node_life;
pub mod pods;
pub mod quantity;
pub mod replica_set;
pub mod revisions;
pub mod routers;
pub mod scheduler;
pub mod security_groups;
pub mod service_account;
pub mod stateful_set;
pub mod swarm;
pub mod volumes;

/// Time before a reconcile that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What a reconcile loop can run into; it is logged and tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error("the API refused")]
    Api(#[from] kube::Error),
    /// An object could not be written as JSON.
    #[error("an object could not be written as JSON")]
    Json(#[from] serde_json::Error),
    /// An object lacks what the API server always fills in.
    #[error("object has no {0}")]
    Incomplete(&'static str),
}

/// Result of a reconcile.
pub type Result<T> = std::result::Result<T, Error>;

/// What the controllers need besides a client.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// PEM text of the cluster's CA, published as `kube-root-ca.crt` in every namespace.
    pub root_ca: String,
    /// Name of this daemon among those that may lead: the same after a restart, and no other's.
    pub identity: String,
    /// The pool of floating addresses.
    pub floating_addresses: Vec<floating_ips::Range>,
    /// Where the API is, for the Service `kubernetes`; `None`: there is no such Service.
    pub api: Option<api_service::ApiPlace>,
}

/// The running controllers; dropping this ends them.
pub struct Controllers {
    tasks: JoinSet<()>,
}

impl Controllers {
    /// Starts every controller and the scheduler; they work while this daemon leads. `scheduler` is a client with the
    /// scheduler's own identity.
    pub fn start(client: kube::Client, scheduler: kube::Client, options: Options) -> Self {
        let mut tasks = JoinSet::new();
        let identity = options.identity.clone();
        let work = {
            let client = client.clone();
            move || run_all(client.clone(), scheduler.clone(), options.clone())
        };
        tasks.spawn(leader::lead(client, identity, work));
        Self { tasks }
    }

    /// Stops them all and waits until they are gone.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Runs all of them until one ends, which none does by itself. Dropping the future ends them.
async fn run_all(client: kube::Client, scheduler: kube::Client, options: Options) {
    let mut tasks = JoinSet::new();
    tasks.spawn(forever("scheduler", move || scheduler::run(scheduler.clone())));
    tasks.spawn(replica_set::run(client.clone()));
    tasks.spawn(deployment::run(client.clone()));
    tasks.spawn(daemon_set::run(client.clone()));
    tasks.spawn(stateful_set::run(client.clone()));
    tasks.spawn(job::run(client.clone()));
    tasks.spawn(cron_job::run(client.clone()));
    tasks.spawn(endpoints::run(client.clone()));
    tasks.spawn(swarm::run(client.clone()));
    tasks.spawn(swarm::networks::run(client.clone()));
    tasks.spawn(namespace::run(client.clone()));
    tasks.spawn(service_account::run(client.clone(), options.root_ca));
    if let Some(place) = options.api {
        let client = client.clone();
        tasks.spawn(forever("kubernetes service", move || api_service::run(client.clone(), place)));
    }
    tasks.spawn(bootstrap_tokens::run(client.clone()));
    tasks.spawn(migration::run(client.clone()));
    tasks.spawn(volumes::run(client.clone()));
    tasks.spawn(routers::run(client.clone()));
    let routes = client.clone();
    tasks.spawn(forever("network routes", move || network_routes::run(routes.clone())));
    let floating = client.clone();
    tasks.spawn(forever("floating addresses", move || {
        floating_ips::run(floating.clone(), options.floating_addresses.clone())
    }));
    let groups = client.clone();
    tasks.spawn(forever("security groups", move || security_groups::run(groups.clone())));
    let nodes = client.clone();
    tasks.spawn(forever("node life cycle", move || node_life::run(nodes.clone())));
    tasks.spawn(forever("garbage collector", move || garbage::run(client.clone())));
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(%error, "a controller broke");
    }
}

/// Runs a loop again whenever it ends.
async fn forever<F, W>(name: &'static str, work: F)
where
    F: Fn() -> W,
    W: Future<Output = Result<()>>,
{
    loop {
        match work().await {
            Ok(()) => tracing::debug!(controller = name, "ended; starting again"),
            Err(error) => tracing::warn!(controller = name, error = chain(&error), "failed; starting again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Drives a `kube` controller to its end, logging what fails.
async fn drive<K, F, W, C>(controller: Controller<K>, name: &'static str, reconcile: F, context: std::sync::Arc<C>)
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    F: FnMut(std::sync::Arc<K>, std::sync::Arc<C>) -> W,
    W: futures::TryFuture<Ok = Action, Error = Error> + Send + 'static,
    C: Send + Sync + 'static,
{
    controller
        .run(reconcile, move |_, error, _| retry(name, error), context)
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(controller = name, error = chain(&error), "reconcile did not finish");
            }
        })
        .await;
}

fn retry(name: &'static str, error: &Error) -> Action {
    if is_race(error) {
        tracing::debug!(controller = name, "lost a race; trying again");
        return Action::requeue(Duration::from_millis(20));
    }
    tracing::warn!(controller = name, error = chain(error), "reconcile failed");
    Action::requeue(RETRY)
}

/// Whether somebody else was simply faster.
fn is_race(error: &Error) -> bool {
    matches!(error, Error::Api(kube::Error::Api(status)) if status.code == 409)
}

/// Whether the API said that the object is not there.
fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// What is gone already is no error.
fn gone<T>(done: std::result::Result<T, kube::Error>) -> Result<()> {
    match done {
        Err(error) if !is_missing(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// How every controller watches: straight from the watch cache, with the initial list in the stream.
fn watching() -> watcher::Config {
    watcher::Config::default().any_semantic()
}

/// A watch that goes on after errors.
fn follow<K>(api: kube::Api<K>, config: watcher::Config) -> impl futures::Stream<Item = watcher::Event<K>> + Send
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(api, config).default_backoff().filter_map(|item| async move { item.ok() })
}
