//! `SwarmService`: keeps its tasks, which are `Container` objects, and its addresses, which are `Service` objects. What to do is
//! decided by the pure [`plan`]; this file reads and acts.

use std::sync::Arc;
use std::time::Duration;

use api::container::Container;
use api::network::Network;
use api::swarm::{FINALIZER, HISTORY_LIMIT, HISTORY_MEMBER, SERVICE_LABEL, SETTINGS_NAME, SwarmService, id_of};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::Controller;
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, follow, gone, watching};

mod addresses;
pub mod machines;
pub mod networks;
pub mod plan;
mod rollout;
#[cfg(test)]
mod simulation;
pub mod tasks;

use plan::{Action, Slot, View};

/// Tasks that are made in one pass; the rest follows in the next.
const CREATES_MAX: usize = 500;
/// The least time between two looks at a service of which nothing changed.
const LEAST_WAIT: Duration = Duration::from_millis(20);

/// Runs the controller.
pub async fn run(client: Client) {
    let mut seen = machines::Seen::default();
    let nodes = follow(Api::<Node>::all(client.clone()), watching());
    let changes = nodes.filter_map(move |event| std::future::ready(seen.observe(event).then_some(())));
    let controller = Controller::new(Api::<SwarmService>::all(client.clone()), watching())
        // Tasks alone: other containers come and go far more often, and are nobody's.
        .owns(Api::<Container>::all(client.clone()), watching().labels(SERVICE_LABEL))
        .reconcile_all_on(changes);
    drive(controller, "swarm service", reconcile, Arc::new(client)).await;
}

/// What a reconcile reads.
struct World {
    service: SwarmService,
    containers: Vec<Container>,
    nodes: Vec<Node>,
    networks: Vec<Network>,
    history: usize,
}

async fn reconcile(service: Arc<SwarmService>, client: Arc<Client>) -> Result<Requeue> {
    let namespace = service.namespace().ok_or(Error::Incomplete("namespace"))?;
    let services = Api::<SwarmService>::namespaced((*client).clone(), &namespace);
    let Some(service) = services.get_opt(&service.name_any()).await? else { return Ok(Requeue::await_change()) };
    let world = read(&client, &namespace, service).await?;
    addresses::sync(&client, &world.service, &world.networks, &world.containers).await?;
    let placement = &world.service.spec.current.task.placement;
    let machines: Vec<plan::Machine> = world.nodes.iter().map(|node| machines::machine(node, placement)).collect();
    let known: Vec<plan::Task> = world.containers.iter().filter_map(tasks::task).collect();
    let now = Timestamp::now();
    let version = world.service.spec.current.task.version();
    let plan = plan::plan(
        &View {
            spec: &world.service.spec,
            version: &version,
            rollout: world.service.status.as_ref().and_then(|status| status.rollout.as_ref()),
            removed: world.service.metadata.deletion_timestamp.is_some(),
            machines: &machines,
            history: world.history,
            now,
        },
        &known,
    );
    let creates = plan.actions.iter().filter(|action| matches!(action, Action::Create { .. })).count();
    let mut made = 0;
    for action in plan.actions {
        made += usize::from(matches!(action, Action::Create { .. }));
        if made <= CREATES_MAX || !matches!(action, Action::Create { .. }) {
            act(&client, &namespace, &world, &version, action, now).await?;
        }
    }
    if creates > CREATES_MAX {
        return Ok(Requeue::requeue(LEAST_WAIT));
    }
    Ok(match plan.again {
        Some(at) => Requeue::requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default().max(LEAST_WAIT)),
        None => Requeue::await_change(),
    })
}

async fn read(client: &Client, namespace: &str, service: SwarmService) -> Result<World> {
    let query = ListParams::default().labels(&format!("{SERVICE_LABEL}={}", service.name_any()));
    let containers = Api::<Container>::namespaced(client.clone(), namespace).list(&query).await?.items;
    let own =
        |container: &Container| container.spec.task.as_ref().is_some_and(|task| task.service == service.name_any());
    let settings = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(SETTINGS_NAME).await?;
    let limit = settings.and_then(|settings| settings.data?.remove(HISTORY_MEMBER));
    let limit = limit.and_then(|bytes| String::from_utf8(bytes.0).ok()?.trim().parse::<usize>().ok());
    Ok(World {
        containers: containers.into_iter().filter(own).collect(),
        nodes: Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items,
        networks: Api::<Network>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items,
        history: limit.unwrap_or(HISTORY_LIMIT),
        service,
    })
}

async fn act(
    client: &Client,
    namespace: &str,
    world: &World,
    version: &str,
    action: Action,
    now: Timestamp,
) -> Result<()> {
    let containers = Api::<Container>::namespaced(client.clone(), namespace);
    let services = Api::<SwarmService>::namespaced(client.clone(), namespace);
    let find = |name: &str| world.containers.iter().find(|container| container.name_any() == name);
    let node = |name: &str| world.nodes.iter().find(|node| node.name_any() == name);
    let parameters = PatchParams::default();
    match action {
        Action::Create { slot, restarts, restarted_at, start_after } => {
            let machine_id = match &slot {
                Slot::Machine(name) => node(name).and_then(ResourceExt::uid).map(|uid| id_of(&uid)),
                Slot::Number(_) => None,
            };
            let ingress = world.networks.iter().find(|network| network.spec.ingress).map(ResourceExt::name_any);
            let birth = tasks::Birth {
                slot: &slot,
                version,
                restarts,
                restarted_at: &restarted_at,
                start_after,
                ingress: ingress.as_deref(),
                machine_id: machine_id.unwrap_or_default(),
                now,
            };
            containers.create(&PostParams::default(), &tasks::container(&world.service, &birth)?).await?;
        }
        Action::Start(name) => {
            let Some(container) = find(&name) else { return Ok(()) };
            let node = container.spec.node_name.as_deref().and_then(node);
            let id = node.and_then(ResourceExt::uid).map(|uid| id_of(&uid)).unwrap_or_default();
            let hostname = node.map(ResourceExt::name_any).unwrap_or_default();
            let change = Patch::Merge(tasks::start(container, &id, &hostname));
            gone(containers.patch(&name, &parameters, &change).await)?;
        }
        Action::Stop { name, desired, stopped } => {
            let Some(container) = find(&name) else { return Ok(()) };
            let change = Patch::Merge(tasks::stop(container, desired, stopped));
            gone(containers.patch(&name, &parameters, &change).await)?;
        }
        Action::Delete(name) => {
            let uid = find(&name).and_then(ResourceExt::uid);
            let same = Preconditions { uid, resource_version: None };
            gone(containers.delete(&name, &DeleteParams::default().preconditions(same)).await)?;
        }
        Action::Rollout(rollout) => {
            // Members that are absent now must not stay from before.
            let mut value = serde_json::to_value(&rollout)?;
            let completed = value.get("completedAt").cloned().unwrap_or_default();
            value["completedAt"] = completed;
            let change = json!({ "metadata": exact(&world.service), "status": { "rollout": value } });
            services.patch_status(&world.service.name_any(), &parameters, &Patch::Merge(change)).await?;
        }
        Action::Rollback(reason) => {
            let mut next = world.service.clone();
            let Some(previous) = next.spec.previous.take() else { return Ok(()) };
            next.spec.current = previous;
            next.spec.rolling_back = true;
            next.spec.rollback_reason = reason;
            services.replace(&next.name_any(), &PostParams::default(), &next).await?;
        }
        Action::Release => {
            let rest: Vec<&String> = world.service.finalizers().iter().filter(|own| *own != FINALIZER).collect();
            let mut meta = exact(&world.service);
            meta["finalizers"] = json!(rest);
            let change = Patch::Merge(json!({ "metadata": meta }));
            gone(services.patch(&world.service.name_any(), &parameters, &change).await)?;
        }
    }
    Ok(())
}

/// What makes a change fail when the object is not the one that was read.
fn exact(service: &SwarmService) -> serde_json::Value {
    json!({ "uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version })
}
