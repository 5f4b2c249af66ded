//! Facts about pods that several controllers ask for.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::ResourceExt;

/// Whether the pod has not ended and is not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

/// Whether all of the pod's containers ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The pod's phase; empty before the agent or the API server set one.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Since when the pod is ready; `None` while it is not.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Whether the pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Whether the pod has been ready for so many seconds.
pub fn is_available(pod: &Pod, minimum_seconds: i32, now: Timestamp) -> bool {
    ready_since(pod)
        .is_some_and(|since| minimum_seconds <= 0 || now.duration_since(since).as_secs() >= i64::from(minimum_seconds))
}

/// Whether a selector picks these labels; an empty selector picks all. `Source:` Kubernetes API reference, LabelSelector.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|condition| {
            let value = labels.get(&condition.key);
            let listed = || value.is_some_and(|value| condition.values.iter().flatten().any(|item| item == value));
            match condition.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The selector as query text; `None` when it cannot be written so.
pub fn selector_text(selector: &LabelSelector) -> Option<String> {
    let mut parts: Vec<String> =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    for condition in selector.match_expressions.iter().flatten() {
        let key = &condition.key;
        let values = condition.values.clone().unwrap_or_default().join(",");
        parts.push(match condition.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    Some(parts.join(","))
}

/// The owner that manages an object.
pub fn controller_of<K: ResourceExt>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}
