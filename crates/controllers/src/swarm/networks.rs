//! Networks that a swarm's client deleted: held until no task is on them any more, so that tasks end in peace.

use std::sync::Arc;
use std::time::Duration;

use api::container::{Container, State};
use api::network::Network;
use api::swarm::FINALIZER;
use jiff::{SignedDuration, Timestamp};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, gone, watching};

/// How often the tasks of a network that is going are looked at. Few networks ever go with tasks on them, and containers come and go far
/// more often: following those would cost every one of them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The same when it has been going for longer than tasks take to stop: one may be on a machine that is lost.
const LOOK_LATER: Duration = Duration::from_secs(5);
const TASKS_STOP: SignedDuration = SignedDuration::from_secs(30);

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Network>::all(client.clone()), watching());
    drive(controller, "swarm network", reconcile, Arc::new(client)).await;
}

async fn reconcile(network: Arc<Network>, client: Arc<Client>) -> Result<Action> {
    let held = network.finalizers().iter().any(|own| own == FINALIZER);
    let Some(deleted) = network.metadata.deletion_timestamp.as_ref().filter(|_| held) else {
        return Ok(Action::await_change());
    };
    let namespace = network.namespace().ok_or(Error::Incomplete("namespace"))?;
    let containers = Api::<Container>::namespaced((*client).clone(), &namespace);
    let members = containers.list(&ListParams::default()).await?.items;
    let lives = |container: &Container| {
        let state = container.status.as_ref().map(|status| status.state).unwrap_or_default();
        matches!(state, State::Running | State::Paused | State::Restarting)
            && container.spec.networks.contains_key(&network.name_any())
    };
    if members.iter().any(lives) {
        let is_late = Timestamp::now().duration_since(deleted.0) > TASKS_STOP;
        return Ok(Action::requeue(if is_late { LOOK_LATER } else { LOOK_AGAIN }));
    }
    let rest: Vec<&String> = network.finalizers().iter().filter(|own| *own != FINALIZER).collect();
    let change = json!({ "metadata": {
        "uid": network.metadata.uid, "resourceVersion": network.metadata.resource_version, "finalizers": rest,
    } });
    let networks = Api::<Network>::namespaced((*client).clone(), &namespace);
    gone(networks.patch(&network.name_any(), &PatchParams::default(), &Patch::Merge(change)).await)?;
    Ok(Action::await_change())
}
