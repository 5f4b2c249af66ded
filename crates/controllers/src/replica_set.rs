//! ReplicaSet: keeps the wanted number of pods alive.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, is_missing, pods, watching};

/// Most pods made or deleted in one go; the rest waits for the next turn. `Source:` Kubernetes' BurstReplicas.
const BURST: usize = 500;
/// Requests under way at once.
const PARALLEL: usize = 16;

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
    let owned = owned_pods(&api, &set).await?;
    if set.metadata.deletion_timestamp.is_none() {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let active: Vec<&Pod> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
        if active.len() < wanted {
            create(&api, &set, (wanted - active.len()).min(BURST)).await?;
        } else if active.len() > wanted {
            delete(&api, &surplus(&active, (active.len() - wanted).min(BURST))).await?;
        }
    }
    let now = Timestamp::now();
    let owned = owned_pods(&api, &set).await?;
    let status = status(&set, &owned, now);
    if set.status.as_ref() != Some(&status) {
        sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await?;
    }
    let settling = spec.min_ready_seconds.unwrap_or(0) > 0 && status.ready_replicas != status.available_replicas;
    Ok(if settling { Action::requeue(Duration::from_secs(1)) } else { Action::await_change() })
}

/// The pods that this set owns; pods that match and have no owner are adopted on the way.
async fn owned_pods(api: &Api<Pod>, set: &ReplicaSet) -> Result<Vec<Pod>> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector).ok_or(Error::Incomplete("selector"))?;
    let Some(text) = pods::selector_text(selector) else { return Ok(Vec::new()) };
    let mut owned = Vec::new();
    for pod in api.list(&ListParams::default().labels(&text)).await?.items {
        match pods::controller_of(&pod) {
            Some(owner) if Some(&owner.uid) == set.metadata.uid.as_ref() => owned.push(pod),
            Some(_) => {}
            None if pods::is_active(&pod) && set.metadata.deletion_timestamp.is_none() => {
                let owner = set.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?;
                let patch = json!({ "metadata": { "uid": pod.metadata.uid, "ownerReferences": [owner] } });
                owned.push(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await?);
            }
            None => {}
        }
    }
    Ok(owned)
}

async fn create(api: &Api<Pod>, set: &ReplicaSet, count: usize) -> Result<()> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![set.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    let parameters = PostParams::default();
    stream::iter(0..count)
        .map(|_| api.create(&parameters, &pod))
        .buffer_unordered(PARALLEL)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(())
}

async fn delete(api: &Api<Pod>, victims: &[&Pod]) -> Result<()> {
    let names: Vec<(String, Option<String>)> =
        victims.iter().map(|pod| (pod.name_any(), pod.metadata.uid.clone())).collect();
    stream::iter(names)
        .map(|(name, uid)| async move {
            let same = Preconditions { uid, resource_version: None };
            match api.delete(&name, &DeleteParams::default().preconditions(same)).await {
                Err(error) if !is_missing(&error) => Err(error),
                _ => Ok(()),
            }
        })
        .buffer_unordered(PARALLEL)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    Ok(())
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
