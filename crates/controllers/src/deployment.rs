//! Deployment: rolls ReplicaSets from one pod template to the next. What to do is decided by the pure [`rollout`]; this file
//! reads and acts.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::{Error, Result, drive, is_missing, members, pods, watching};

pub mod rollout;
pub mod status;

/// Label that tells the ReplicaSets of one Deployment apart.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotation with the number of the rollout.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotations by which rollouts are scaled in proportion.
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotation of `kubectl apply`, which belongs to the Deployment alone.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Deployment>::all(client.clone()), watching())
        .owns(Api::<ReplicaSet>::all(client.clone()), watching());
    drive(controller, "deployment", reconcile, Arc::new(client)).await;
}

async fn reconcile(deployment: Arc<Deployment>, client: Arc<Client>) -> Result<Action> {
    let namespace = deployment.namespace().ok_or(Error::Incomplete("namespace"))?;
    let deployments = Api::<Deployment>::namespaced((*client).clone(), &namespace);
    let Some(deployment) = deployments.get_opt(&deployment.name_any()).await? else {
        return Ok(Action::await_change());
    };
    let sets = Api::<ReplicaSet>::namespaced((*client).clone(), &namespace);
    let mut owned = owned_sets(&sets, &deployment).await?;
    if deployment.metadata.deletion_timestamp.is_none() {
        step(&deployments, &sets, &deployment, &mut owned).await?;
    }
    let now = Timestamp::now();
    let status = status::status(&deployment, &owned, now);
    if deployment.status.as_ref() != Some(&status) {
        let patch = Patch::Merge(json!({ "status": status }));
        deployments.patch_status(&deployment.name_any(), &PatchParams::default(), &patch).await?;
    }
    Ok(match status::until_deadline(&deployment, &status, now) {
        Some(seconds) => Action::requeue(Duration::from_secs(seconds)),
        None => Action::await_change(),
    })
}

/// Makes the new ReplicaSet when it is missing, scales all one step on, and forgets the oldest.
async fn step(
    deployments: &Api<Deployment>,
    sets: &Api<ReplicaSet>,
    deployment: &Deployment,
    owned: &mut Vec<ReplicaSet>,
) -> Result<()> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let paused = spec.paused.unwrap_or(false);
    let template = template_value(&spec.template)?;
    let mut newest = owned.iter().position(|set| same_template(set, &template));
    if newest.is_none() && !paused {
        owned.push(create_set(sets, deployment, &template, owned).await?);
        newest = Some(owned.len() - 1);
    }
    if let Some(index) = newest {
        owned[index] = update_revision(deployments, sets, deployment, owned, index).await?;
    }
    for (index, replicas) in rollout::plan(deployment, owned, newest) {
        let set = &owned[index];
        let patch = json!({
            "metadata": { "annotations": scale_annotations(deployment) },
            "spec": { "replicas": replicas },
        });
        owned[index] = sets.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    for index in rollout::forgettable(deployment, owned, newest) {
        match sets.delete(&owned[index].name_any(), &DeleteParams::background()).await {
            Err(error) if !is_missing(&error) => return Err(error.into()),
            _ => tracing::debug!(replica_set = owned[index].name_any(), "forgot an old revision"),
        }
    }
    Ok(())
}

async fn owned_sets(sets: &Api<ReplicaSet>, deployment: &Deployment) -> Result<Vec<ReplicaSet>> {
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector).ok_or(Error::Incomplete("selector"))?;
    let mut owned = members::claim(sets, deployment, selector, |set| set.metadata.deletion_timestamp.is_none()).await?;
    owned.sort_by_key(|set| (rollout::revision(set), set.metadata.creation_timestamp.as_ref().map(|time| time.0)));
    Ok(owned)
}

/// The template as JSON, without the label that the controller itself adds.
fn template_value<T: serde::Serialize>(template: &T) -> Result<Value> {
    let mut value = serde_json::to_value(template)?;
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    if let Some(meta) = value.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        meta.remove("creationTimestamp");
    }
    Ok(value)
}

fn same_template(set: &ReplicaSet, template: &Value) -> bool {
    let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    own.is_some_and(|own| template_value(own).is_ok_and(|own| own == *template))
}

async fn create_set(
    sets: &Api<ReplicaSet>,
    deployment: &Deployment,
    template: &Value,
    owned: &[ReplicaSet],
) -> Result<ReplicaSet> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    loop {
        let hash = rollout::hash(template, collisions);
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", deployment.name_any())),
                labels: spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
                annotations: Some(inherited_annotations(deployment)),
                owner_references: Some(vec![deployment.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(rollout::first_replicas(deployment, owned)),
                min_ready_seconds: spec.min_ready_seconds,
                selector: with_hash(&spec.selector, &hash),
                template: Some(spec.template.clone()),
            }),
            status: None,
        };
        set.labels_mut().insert(TEMPLATE_HASH.into(), hash.clone());
        set.annotations_mut().extend(scale_annotations(deployment));
        set.annotations_mut().insert(REVISION.into(), (rollout::highest_revision(owned) + 1).to_string());
        if let Some(template) = set.spec.as_mut().and_then(|spec| spec.template.as_mut()) {
            let meta = template.metadata.get_or_insert_default();
            meta.labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash);
        }
        match sets.create(&PostParams::default(), &set).await {
            Ok(created) => return Ok(created),
            Err(kube::Error::Api(status)) if status.code == 409 && collisions < 1000 => {
                let existing = sets.get_opt(&set.name_any()).await?;
                let ours = existing.filter(|existing| {
                    same_template(existing, template)
                        && pods::controller_of(existing).map(|owner| &owner.uid) == deployment.metadata.uid.as_ref()
                });
                match ours {
                    Some(existing) => return Ok(existing),
                    None => collisions += 1,
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives the newest set the highest revision, and notes it on the Deployment.
async fn update_revision(
    deployments: &Api<Deployment>,
    sets: &Api<ReplicaSet>,
    deployment: &Deployment,
    owned: &[ReplicaSet],
    newest: usize,
) -> Result<ReplicaSet> {
    let mut set = owned[newest].clone();
    let others = owned.iter().enumerate().filter(|(index, _)| *index != newest).map(|(_, set)| rollout::revision(set));
    let highest = others.max().unwrap_or(0);
    if rollout::revision(&set) <= highest {
        let mut annotations = json!(inherited_annotations(deployment));
        annotations[REVISION] = json!((highest + 1).to_string());
        let patch = json!({ "metadata": { "annotations": annotations } });
        set = sets.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let current = set.annotations().get(REVISION).cloned().unwrap_or_default();
    if deployment.annotations().get(REVISION) != Some(&current) {
        let patch = json!({ "metadata": { "annotations": { REVISION: current } } });
        deployments.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(set)
}

fn inherited_annotations(deployment: &Deployment) -> std::collections::BTreeMap<String, String> {
    let own = [LAST_APPLIED, REVISION, DESIRED_REPLICAS, MAXIMUM_REPLICAS];
    let kept = deployment.annotations().iter().filter(|(key, _)| !own.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn scale_annotations(deployment: &Deployment) -> std::collections::BTreeMap<String, String> {
    let wanted = rollout::wanted(deployment);
    let (surge, _) = rollout::bounds(deployment);
    [(DESIRED_REPLICAS.to_owned(), wanted.to_string()), (MAXIMUM_REPLICAS.to_owned(), (wanted + surge).to_string())]
        .into_iter()
        .collect()
}

fn with_hash(selector: &LabelSelector, hash: &str) -> LabelSelector {
    let mut selector = selector.clone();
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash.into());
    selector
}
