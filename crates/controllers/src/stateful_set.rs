//! StatefulSet: pods with names and an order. What to do is decided by the pure [`plan`]; this file reads and acts.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, events, members, pods, revisions, watching};

pub mod plan;

/// Label with a pod's own name, so that a Service can choose one.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with a pod's number.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<StatefulSet>::all(client.clone()), watching())
        .owns(Api::<Pod>::all(client.clone()), watching())
        .owns(Api::<ControllerRevision>::all(client.clone()), watching());
    drive(controller, "statefulset", reconcile, Arc::new(client)).await;
}

async fn reconcile(set: Arc<StatefulSet>, client: Arc<Client>) -> Result<Action> {
    let namespace = set.namespace().ok_or(Error::Incomplete("namespace"))?;
    let sets = Api::<StatefulSet>::namespaced((*client).clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await? else { return Ok(Action::await_change()) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let spec = set.spec.clone().unwrap_or_default();
    let api = Api::<Pod>::namespaced((*client).clone(), &namespace);
    let history = revisions::sync(&client, &set, &spec.selector, &spec.template).await?;
    let update = history.newest().map(ResourceExt::name_any).unwrap_or_default();
    let known = set.status.as_ref().and_then(|status| status.current_revision.clone());
    let current = known.filter(|name| history.template(name).is_some()).unwrap_or_else(|| update.clone());
    let owned = members::owned(&api, &set, &spec.selector).await?;
    let plan = plan::plan(&set, &owned, &current, &update, Timestamp::now());
    if set.status.as_ref() != Some(&plan.status) {
        let patch = Patch::Merge(json!({ "status": plan.status }));
        sets.patch_status(&set.name_any(), &PatchParams::default(), &patch).await?;
    }
    let victims: Vec<&Pod> = owned.iter().filter(|pod| plan.delete.contains(&pod.name_any())).collect();
    members::delete(&api, &victims).await?;
    for (number, revision) in &plan.create {
        let template = history.template(revision).unwrap_or_else(|| spec.template.clone());
        claim(&client, &set, &spec, *number).await?;
        let pod = make(&set, &spec, &template, *number, revision)?;
        members::create(&client, &api, &set, &[pod]).await?;
    }
    let used = |one: &ControllerRevision| {
        let name = one.name_any();
        name == current || owned.iter().any(|pod| pod.labels().get(revisions::HASH) == Some(&name))
    };
    revisions::prune(&client, &namespace, &history, spec.revision_history_limit.unwrap_or(10), used).await?;
    let minimum = spec.min_ready_seconds.unwrap_or(0);
    let now = Timestamp::now();
    let settling = minimum > 0 && owned.iter().any(|pod| pods::is_ready(pod) && !pods::is_available(pod, minimum, now));
    Ok(if settling { Action::requeue(Duration::from_secs(1)) } else { Action::await_change() })
}

fn claim_name(template: &str, set: &StatefulSet, number: i32) -> String {
    format!("{template}-{}-{number}", set.name_any())
}

/// Makes the claims of one pod. They stay when it goes.
async fn claim(client: &Client, set: &StatefulSet, spec: &StatefulSetSpec, number: i32) -> Result<()> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "PersistentVolumeClaim"));
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &set.namespace().unwrap_or_default(), &kind);
    for template in spec.volume_claim_templates.iter().flatten() {
        let mut wanted = serde_json::to_value(template)?;
        wanted["apiVersion"] = "v1".into();
        wanted["kind"] = "PersistentVolumeClaim".into();
        wanted["metadata"]["name"] = claim_name(&template.name_any(), set, number).into();
        let wanted: DynamicObject = serde_json::from_value(wanted)?;
        match api.create(&PostParams::default(), &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) => {
                let text = format!("create Claim {} failed: {}", wanted.name_any(), status.message);
                let about = events::reference(set);
                events::publish_from(client, &about, "Warning", "FailedCreate", &text, "statefulset-controller").await;
                return Err(kube::Error::Api(status).into());
            }
            done => drop(done?),
        }
    }
    Ok(())
}

fn make(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    number: i32,
    revision: &str,
) -> Result<Pod> {
    let mut pod = members::from_template(set, template)?;
    let name = format!("{}-{number}", set.name_any());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.labels_mut();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), number.to_string());
    labels.insert(revisions::HASH.into(), revision.to_owned());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name);
        pod_spec.subdomain = spec.service_name.clone().filter(|name| !name.is_empty());
        for claim in spec.volume_claim_templates.iter().flatten() {
            let own = claim.name_any();
            let source = PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(&own, set, number),
                ..PersistentVolumeClaimVolumeSource::default()
            };
            let volumes = pod_spec.volumes.get_or_insert_default();
            volumes.retain(|volume| volume.name != own);
            volumes.push(Volume { name: own, persistent_volume_claim: Some(source), ..Volume::default() });
        }
    }
    Ok(pod)
}
