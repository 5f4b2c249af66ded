//! What a Deployment reports, as a pure function of it, its ReplicaSets and the time.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{rollout, same_template, template_value};

/// Time a rollout may stand still when the Deployment does not say. Units: seconds. `Source:` Kubernetes API reference.
const DEFAULT_DEADLINE_SECONDS: i32 = 600;

/// The status to report now.
pub fn status(deployment: &Deployment, owned: &[ReplicaSet], now: Timestamp) -> DeploymentStatus {
    let template = deployment.spec.as_ref().and_then(|spec| template_value(&spec.template).ok());
    let newest = owned.iter().rev().find(|set| template.as_ref().is_some_and(|template| same_template(set, template)));
    let sum = |read: fn(&ReplicaSet) -> i32, sets: &mut dyn Iterator<Item = &ReplicaSet>| sets.map(read).sum::<i32>();
    let existing = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let available = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    let total = sum(existing, &mut owned.iter());
    let total_available = sum(available, &mut owned.iter());
    let nonzero = |number: i32| (number > 0).then_some(number);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(total),
        updated_replicas: nonzero(sum(existing, &mut newest.into_iter())),
        ready_replicas: nonzero(sum(ready, &mut owned.iter())),
        available_replicas: nonzero(total_available),
        unavailable_replicas: nonzero(total.max(rollout::wanted(deployment)) - total_available),
        collision_count: before.collision_count,
        conditions: None,
        terminating_replicas: None,
    };
    let conditions = [available_condition(deployment, total_available), progressing(deployment, &status, newest, now)];
    status.conditions = Some(conditions.into_iter().flatten().map(|new| merge(&before, new, now)).collect());
    status
}

/// Seconds until a rollout that stands still passes its deadline; `None` when it is done or has passed it.
pub fn until_deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<u64> {
    let condition = find(status, "Progressing")?;
    if condition.status != "True" || is_complete(deployment, status) {
        return None;
    }
    let since = condition.last_update_time.as_ref().map_or(now, |time| time.0);
    let left = i64::from(deadline(deployment)) - now.duration_since(since).as_secs();
    Some(u64::try_from(left).unwrap_or(0) + 1)
}

fn deadline(deployment: &Deployment) -> i32 {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.progress_deadline_seconds).unwrap_or(DEFAULT_DEADLINE_SECONDS)
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = rollout::wanted(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn available_condition(deployment: &Deployment, available: i32) -> Option<DeploymentCondition> {
    let minimum = rollout::wanted(deployment) - rollout::bounds(deployment).1;
    Some(if available >= minimum {
        condition("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into())
    } else {
        let message = "Deployment does not have minimum availability.".into();
        condition("Available", "False", "MinimumReplicasUnavailable", message)
    })
}

fn progressing(
    deployment: &Deployment,
    status: &DeploymentStatus,
    newest: Option<&ReplicaSet>,
    now: Timestamp,
) -> Option<DeploymentCondition> {
    if deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false) {
        let before = deployment.status.as_ref().and_then(|status| find(status, "Progressing")).cloned();
        return Some(before.filter(|before| before.reason.as_deref() == Some("DeploymentPaused")).unwrap_or_else(
            || condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".into()),
        ));
    }
    let name = newest.map_or_else(|| deployment.name_any(), ResourceExt::name_any);
    if is_complete(deployment, status) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        return Some(condition("Progressing", "True", "NewReplicaSetAvailable", message));
    }
    let before = deployment.status.clone().unwrap_or_default();
    let known = find(&before, "Progressing");
    if has_moved(&before, status) || known.is_none() {
        let mut new =
            condition("Progressing", "True", "ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."));
        new.last_update_time = Some(Time(now));
        return Some(new);
    }
    let known = known?.clone();
    let since = known.last_update_time.as_ref().map_or(now, |time| time.0);
    let late = now.duration_since(since).as_secs() >= i64::from(deadline(deployment));
    if late && known.reason.as_deref() != Some("NewReplicaSetAvailable") {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        return Some(condition("Progressing", "False", "ProgressDeadlineExceeded", message));
    }
    if known.reason.as_deref() == Some("NewReplicaSetAvailable") || known.reason.as_deref() == Some("DeploymentPaused")
    {
        let mut new =
            condition("Progressing", "True", "ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."));
        new.last_update_time = Some(Time(now));
        return Some(new);
    }
    Some(known)
}

/// Whether the rollout got on since the last report.
fn has_moved(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    after.updated_replicas > before.updated_replicas
        || old(after) < old(before)
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: None,
        last_update_time: None,
    }
}

/// Keeps the times of a condition that did not change.
fn merge(before: &DeploymentStatus, mut new: DeploymentCondition, now: Timestamp) -> DeploymentCondition {
    let known = find(before, &new.type_);
    let same_status = known.filter(|known| known.status == new.status);
    let same = same_status.filter(|known| known.reason == new.reason && known.message == new.message);
    let stamp = || Some(Time(now));
    new.last_transition_time = same_status.and_then(|known| known.last_transition_time.clone()).or_else(stamp);
    if new.last_update_time.is_none() {
        new.last_update_time = same.and_then(|known| known.last_update_time.clone()).or_else(stamp);
    }
    new
}
