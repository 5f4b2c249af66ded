//! ReplicaSet: keeps the wanted number of pods alive.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::members::{self, BURST};
use crate::{Error, Result, drive, pods, watching};

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<ReplicaSet>::all(client.clone()), watching())
        .owns(Api::<Pod>::all(client.clone()), watching());
    drive(controller, "replicaset", reconcile, Arc::new(client)).await;
}

async fn reconcile(set: Arc<ReplicaSet>, client: Arc<Client>) -> Result<Action> {
    let namespace = set.namespace().ok_or(Error::Incomplete("namespace"))?;
    let sets = Api::<ReplicaSet>::namespaced((*client).clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await? else { return Ok(Action::await_change()) };
    let spec = set.spec.clone().unwrap_or_default();
    let api = Api::<Pod>::namespaced((*client).clone(), &namespace);
    let owned = members::owned(&api, &set, &spec.selector).await?;
    if set.metadata.deletion_timestamp.is_none() {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let active: Vec<&Pod> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
        if active.len() < wanted {
            let pod = members::from_template(&set, &spec.template.clone().unwrap_or_default())?;
            members::create(&client, &api, &set, &vec![pod; (wanted - active.len()).min(BURST)]).await?;
        } else if active.len() > wanted {
            members::delete(&api, &surplus(&active, (active.len() - wanted).min(BURST))).await?;
        }
    }
    let now = Timestamp::now();
    let owned = members::owned(&api, &set, &spec.selector).await?;
    let status = status(&set, &owned, now);
    if set.status.as_ref() != Some(&status) {
        sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;
    }
    let settling = spec.min_ready_seconds.unwrap_or(0) > 0 && status.ready_replicas != status.available_replicas;
    Ok(if settling { Action::requeue(Duration::from_secs(1)) } else { Action::await_change() })
}

/// Which pods to give up: those not placed first, then not running, then not ready, then the youngest.
fn surplus<'a>(active: &[&'a Pod], count: usize) -> Vec<&'a Pod> {
    let mut ranked = active.to_vec();
    ranked.sort_by_key(|pod| {
        let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let running = pods::phase(pod) == "Running";
        let age = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (placed, running, pods::is_ready(pod), std::cmp::Reverse(pods::ready_since(pod)), std::cmp::Reverse(age))
    });
    ranked.truncate(count);
    ranked
}

fn status(set: &ReplicaSet, owned: &[Pod], now: Timestamp) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels = spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels);
    let active: Vec<&Pod> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX);
    let labelled =
        |pod: &Pod| template_labels.iter().flatten().all(|(key, value)| pod.labels().get(key) == Some(value));
    let nonzero = |number: i32| (number > 0).then_some(number);
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&labelled)),
        ready_replicas: nonzero(count(&pods::is_ready)),
        available_replicas: nonzero(count(&|pod| pods::is_available(pod, spec.min_ready_seconds.unwrap_or(0), now))),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        terminating_replicas: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: Option<&str>, phase: &str) -> Pod {
        let object = json!({
            "metadata": { "name": name },
            "spec": { "containers": [], "nodeName": node },
            "status": { "phase": phase },
        });
        serde_json::from_value(object).unwrap_or_default()
    }

    #[test]
    fn pods_that_run_nowhere_are_given_up_first() {
        let running = pod("running", Some("a"), "Running");
        let pending = pod("pending", Some("a"), "Pending");
        let unplaced = pod("unplaced", None, "Pending");
        let names: Vec<String> =
            surplus(&[&running, &pending, &unplaced], 2).iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["unplaced", "pending"]);
    }
}
