//! What a machine's conditions mean for it and for its pods. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const PREFIX: &str = "node.kubernetes.io/";
/// Conditions that a silent machine can no longer vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Taints that follow from conditions and fields of the machine: key, effect.
const OURS: [(&str, &str); 8] = [
    ("not-ready", "NoExecute"),
    ("not-ready", "NoSchedule"),
    ("unreachable", "NoExecute"),
    ("unreachable", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("disk-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == kind)
}

/// What the machine, or we in its stead, said about its readiness.
pub fn ready(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|one| one.status.as_str())
}

/// Since when it has been so.
pub fn ready_since(node: &Node) -> Option<Timestamp> {
    condition(node, "Ready").and_then(|one| one.last_transition_time.as_ref()).map(|time| time.0)
}

/// The time of the machine's last own word in its status.
pub fn heartbeat(node: &Node) -> Option<Timestamp> {
    condition(node, "Ready").and_then(|one| one.last_heartbeat_time.as_ref()).map(|time| time.0)
}

/// The conditions of a silent machine.
pub fn unknown(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let changed = |kind: &&str| {
        let before = condition(node, kind).cloned().unwrap_or_default();
        NodeCondition {
            type_: (*kind).into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            last_heartbeat_time: before.last_heartbeat_time,
        }
    };
    VOUCHED.iter().map(changed).collect()
}

/// The taints that the machine should have: ours as its conditions say, those of others as they are.
pub fn taints(node: &Node, own: &[Taint], now: Timestamp) -> Vec<Taint> {
    let pressed = |kind: &str| condition(node, kind).is_some_and(|one| one.status == "True");
    let wanted = |key: &str| match key {
        "not-ready" => ready(node) == Some("False"),
        "unreachable" => ready(node) == Some("Unknown"),
        "memory-pressure" => pressed("MemoryPressure"),
        "disk-pressure" => pressed("DiskPressure"),
        "pid-pressure" => pressed("PIDPressure"),
        _ => node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true),
    };
    let is_ours = |taint: &Taint| {
        OURS.iter().any(|(key, effect)| taint.key.strip_prefix(PREFIX) == Some(*key) && taint.effect == *effect)
    };
    let keep = |taint: &&Taint| !is_ours(taint) || taint.key.strip_prefix(PREFIX).is_some_and(wanted);
    let mut list: Vec<Taint> = own.iter().filter(keep).cloned().collect();
    for (key, effect) in OURS.iter().filter(|(key, _)| wanted(key)) {
        let full = format!("{PREFIX}{key}");
        if list.iter().all(|taint| taint.key != full || taint.effect != *effect) {
            let added = (*effect == "NoExecute").then_some(Time(now));
            list.push(Taint { key: full, effect: (*effect).into(), time_added: added, ..Taint::default() });
        }
    }
    list
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let exists = toleration.operator.as_deref() == Some("Exists");
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).is_none_or(|key| key == taint.key)
        && (exists || toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default())
}

/// When the pod must leave a machine with these taints; `None`: it may stay.
pub fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations: Vec<&Toleration> = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten()).collect();
    let leaves = taints.iter().filter(|taint| taint.effect == "NoExecute").filter_map(|taint| {
        let covering: Vec<_> = tolerations.iter().filter(|one| covers(one, taint)).collect();
        if covering.is_empty() {
            return Some(now);
        }
        // Of several bounds the shortest counts; without any it may stay.
        let seconds = covering.iter().filter_map(|one| one.toleration_seconds).min()?;
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    });
    leaves.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn node(ready: &str, unschedulable: bool) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"unschedulable": unschedulable},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    fn keys(list: &[Taint]) -> Vec<String> {
        list.iter().map(|taint| format!("{}:{}", taint.key.trim_start_matches(PREFIX), taint.effect)).collect()
    }

    #[test]
    fn conditions_become_taints_and_foreign_taints_stay() {
        let foreign = Taint { key: "gpu".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let silent = taints(&node("Unknown", false), std::slice::from_ref(&foreign), NOW);
        assert_eq!(keys(&silent), ["gpu:NoSchedule", "unreachable:NoExecute", "unreachable:NoSchedule"]);
        assert_eq!(
            keys(&taints(&node("False", true), &silent, NOW)),
            ["gpu:NoSchedule", "not-ready:NoExecute", "not-ready:NoSchedule", "unschedulable:NoSchedule"]
        );
        assert_eq!(taints(&node("True", false), &silent, NOW), [foreign]);
        assert_eq!(taints(&node("Unknown", false), &silent, NOW), silent, "nothing to write");
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let list = taints(&node("Unknown", false), &[], NOW);
        let check = |tolerations: Value, expected: Option<i64>| {
            let pod: Pod =
                serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            assert_eq!(eviction(&pod, &list, NOW).map(|at| at.as_second()), expected);
        };
        let patient = |seconds: Value| json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        check(json!([]), Some(0));
        check(patient(json!(300)), Some(300));
        check(patient(json!(-5)), Some(0));
        check(patient(Value::Null), None);
        check(json!([{"operator": "Exists"}]), None);
    }
}
