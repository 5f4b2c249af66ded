//! DaemonSet: one pod on every machine that fits. What to do is decided by the pure [`plan`]; this file reads and acts.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec,
};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, members, pods, revisions, watching};

pub mod plan;

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<DaemonSet>::all(client.clone()), watching())
        .owns(Api::<Pod>::all(client.clone()), watching())
        .owns(Api::<ControllerRevision>::all(client.clone()), watching());
    let sets = controller.store();
    let controller = controller.watches(Api::<Node>::all(client.clone()), watching(), move |_| {
        sets.state().iter().map(|set| ObjectRef::from_obj(&**set)).collect::<Vec<_>>()
    });
    drive(controller, "daemonset", reconcile, Arc::new(client)).await;
}

async fn reconcile(set: Arc<DaemonSet>, client: Arc<Client>) -> Result<Action> {
    let namespace = set.namespace().ok_or(Error::Incomplete("namespace"))?;
    let sets = Api::<DaemonSet>::namespaced((*client).clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await? else { return Ok(Action::await_change()) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let spec = set.spec.clone().unwrap_or_default();
    let api = Api::<Pod>::namespaced((*client).clone(), &namespace);
    let history = revisions::sync(&client, &set, &spec.selector, &spec.template).await?;
    let hash = history.newest().map(revisions::hash).unwrap_or_default();
    let nodes = Api::<Node>::all((*client).clone()).list(&ListParams::default()).await?.items;
    let owned = members::owned(&api, &set, &spec.selector).await?;
    let plan = plan::plan(&set, &nodes, &owned, &hash, Timestamp::now());
    if set.status.as_ref() != Some(&plan.status) {
        // Numbers that are absent now must not stay from before.
        let mut status = serde_json::to_value(&plan.status)?;
        for field in ["numberAvailable", "numberUnavailable", "updatedNumberScheduled"] {
            let value = status.get(field).cloned().unwrap_or_default();
            status[field] = value;
        }
        let patch = Patch::Merge(json!({ "status": status }));
        sets.patch_status(&set.name_any(), &PatchParams::default(), &patch).await?;
    }
    let victims: Vec<&Pod> = owned.iter().filter(|pod| plan.delete.contains(&pod.name_any())).collect();
    members::delete(&api, &victims).await?;
    let made: Result<Vec<Pod>> = plan.create.iter().map(|node| make(&set, &spec.template, node, &hash)).collect();
    members::create(&client, &api, &set, &made?).await?;
    let used = |one: &ControllerRevision| {
        let own = revisions::hash(one);
        owned.iter().any(|pod| pod.labels().get(revisions::HASH) == Some(&own))
    };
    revisions::prune(&client, &namespace, &history, spec.revision_history_limit.unwrap_or(10), used).await?;
    let minimum = spec.min_ready_seconds.unwrap_or(0);
    let settling = minimum > 0
        && owned.iter().any(|pod| pods::is_ready(pod) && !pods::is_available(pod, minimum, Timestamp::now()));
    Ok(if settling { Action::requeue(std::time::Duration::from_secs(1)) } else { Action::await_change() })
}

/// The pod for one machine; the scheduler binds it there once it fits.
fn make(set: &DaemonSet, template: &PodTemplateSpec, node: &str, hash: &str) -> Result<Pod> {
    let mut pod = members::from_template(set, template)?;
    pod.labels_mut().insert(revisions::HASH.into(), hash.to_owned());
    if let Some(spec) = &mut pod.spec {
        let field = NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        };
        let term = NodeSelectorTerm { match_fields: Some(vec![field]), ..NodeSelectorTerm::default() };
        let affinity = spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_default();
        affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: vec![term] });
        let host_network = spec.host_network == Some(true);
        let own = spec.tolerations.get_or_insert_default();
        let added: Vec<_> = plan::tolerations(host_network).into_iter().filter(|one| !own.contains(one)).collect();
        own.extend(added);
    }
    Ok(pod)
}
