//! Cells of `kubectl get` for the core group. `Source:` pkg/printers/internalversion of Kubernetes 1.36.

use jiff::Timestamp;
use serde_json::Value;

use super::columns::{length, or_none};
use super::fields::{items, number, text};
use crate::time::age;

/// Text at a pointer, or `<none>`.
pub(super) fn or_none_at(object: &Value, pointer: &str) -> Value {
    or_none(text(object, pointer).to_owned())
}

/// Number of entries of `data` and `binaryData`.
pub(super) fn data_count(object: &Value, _: Timestamp) -> Value {
    (length(object.get("data")) + length(object.get("binaryData"))).into()
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object.get("status").map(|status| items(status, "conditions")).unwrap_or_default();
    conditions.iter().find(|one| one["type"] == kind).map_or("", |one| text(one, "/status"))
}

pub(super) fn node_status(object: &Value, _: Timestamp) -> Value {
    let ready = match condition(object, "Ready") {
        "True" => "Ready",
        "" => "Unknown",
        _ => "NotReady",
    };
    let cordoned = object.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    format!("{ready}{}", if cordoned { ",SchedulingDisabled" } else { "" }).into()
}

pub(super) fn node_roles(object: &Value, _: Timestamp) -> Value {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    or_none(roles.join(","))
}

pub(super) fn node_address(object: &Value, kind: &str) -> Value {
    let addresses = object.get("status").map(|status| items(status, "addresses")).unwrap_or_default();
    let found = addresses.iter().find(|one| one["type"] == kind).map_or("", |one| text(one, "/address"));
    or_none(found.to_owned())
}

fn event_time(object: &Value, fields: &[&str], now: Timestamp) -> Value {
    let found = fields.iter().find_map(|field| object.pointer(field).filter(|value| value.is_string()));
    age(found, now).into()
}

pub(super) fn event_last_seen(object: &Value, now: Timestamp) -> Value {
    event_time(object, &["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"], now)
}

pub(super) fn event_first_seen(object: &Value, now: Timestamp) -> Value {
    event_time(object, &["/firstTimestamp", "/eventTime"], now)
}

pub(super) fn event_count(object: &Value, _: Timestamp) -> Value {
    let count = object.pointer("/series/count").or_else(|| object.get("count")).and_then(Value::as_i64).unwrap_or(1);
    count.max(1).into()
}

pub(super) fn event_object(object: &Value, _: Timestamp) -> Value {
    let (kind, name) = (text(object, "/involvedObject/kind"), text(object, "/involvedObject/name"));
    if name.is_empty() { kind.to_lowercase().into() } else { format!("{}/{name}", kind.to_lowercase()).into() }
}

pub(super) fn event_source(object: &Value, _: Timestamp) -> Value {
    let component = [text(object, "/source/component"), text(object, "/reportingComponent")];
    let host = [text(object, "/source/host"), text(object, "/reportingInstance")];
    let parts: Vec<&str> =
        [component, host].iter().filter_map(|pair| pair.iter().find(|one| !one.is_empty()).copied()).collect();
    parts.join(", ").into()
}

/// `used/hard` of a quota, requests or limits.
pub(super) fn quota(object: &Value, limits: bool) -> Value {
    let hard = object.pointer("/status/hard").or_else(|| object.pointer("/spec/hard")).and_then(Value::as_object);
    let parts: Vec<String> = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, bound)| {
            let used = object.pointer("/status/used").and_then(|used| used.get(name));
            let show = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{name}: {}/{}", used.map_or_else(|| "0".to_owned(), show), show(bound))
        })
        .collect();
    parts.join(", ").into()
}

pub(super) fn pod_ready(object: &Value, _: Timestamp) -> Value {
    let statuses = object.get("status").map(|status| items(status, "containerStatuses")).unwrap_or_default();
    let sidecars = sidecar_statuses(object);
    let ready = statuses.iter().filter(|one| one["ready"] == true && one.pointer("/state/running").is_some()).count()
        + sidecars.iter().filter(|one| one["ready"] == true).count();
    let total = length(object.pointer("/spec/containers")) + sidecar_names(object).len();
    format!("{ready}/{total}").into()
}

fn sidecar_names(object: &Value) -> Vec<&str> {
    let containers = object.get("spec").map(|spec| items(spec, "initContainers")).unwrap_or_default();
    containers.iter().filter(|one| one["restartPolicy"] == "Always").map(|one| text(one, "/name")).collect()
}

fn sidecar_statuses(object: &Value) -> Vec<&Value> {
    let names = sidecar_names(object);
    let statuses = object.get("status").map(|status| items(status, "initContainerStatuses")).unwrap_or_default();
    statuses.iter().filter(|one| names.contains(&text(one, "/name"))).collect()
}

pub(super) fn pod_restarts(object: &Value, now: Timestamp) -> Value {
    let empty = Value::Null;
    let status = object.get("status").unwrap_or(&empty);
    let mut watched: Vec<&Value> = sidecar_statuses(object);
    if initializing(object).is_some() {
        watched.extend(items(status, "initContainerStatuses"));
    }
    watched.extend(items(status, "containerStatuses"));
    let restarts: i64 = watched.iter().map(|one| number(one, "/restartCount")).sum();
    let last = watched
        .iter()
        .filter_map(|one| one.pointer("/lastState/terminated/finishedAt"))
        .max_by(|a, b| a.as_str().cmp(&b.as_str()));
    match last.filter(|_| restarts > 0) {
        Some(last) => format!("{restarts} ({} ago)", age(Some(last), now)).into(),
        None => restarts.to_string().into(),
    }
}

/// The status text of an init container that has not ended well, if there is one.
fn initializing(object: &Value) -> Option<String> {
    let sidecars = sidecar_names(object);
    let statuses = object.get("status").map(|status| items(status, "initContainerStatuses")).unwrap_or_default();
    let total = length(object.pointer("/spec/initContainers"));
    for (index, one) in statuses.iter().enumerate() {
        if let Some(terminated) = one.pointer("/state/terminated") {
            if number(terminated, "/exitCode") == 0 {
                continue;
            }
            return Some(format!("Init:{}", terminated_reason(terminated)));
        }
        if sidecars.contains(&text(one, "/name")) && one["started"] == true {
            continue;
        }
        let waiting = text(one, "/state/waiting/reason");
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{index}/{total}"));
    }
    None
}

fn terminated_reason(terminated: &Value) -> String {
    let (reason, signal) = (text(terminated, "/reason"), number(terminated, "/signal"));
    if !reason.is_empty() {
        reason.to_owned()
    } else if signal != 0 {
        format!("Signal:{signal}")
    } else {
        format!("ExitCode:{}", number(terminated, "/exitCode"))
    }
}

pub(super) fn pod_status(object: &Value, _: Timestamp) -> Value {
    let own_reason = text(object, "/status/reason");
    let mut reason = if own_reason.is_empty() { text(object, "/status/phase") } else { own_reason }.to_owned();
    let conditions = object.get("status").map(|status| items(status, "conditions")).unwrap_or_default();
    if conditions.iter().any(|one| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let initialized = condition(object, "Initialized") == "True";
    match initializing(object) {
        Some(text) => reason = text,
        None => running_reason(object, &mut reason),
    }
    let _ = initialized;
    let deleted = object.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string);
    let ended = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
    if deleted && own_reason == "NodeLost" {
        reason = "Unknown".into();
    } else if deleted && !ended {
        reason = "Terminating".into();
    }
    reason.into()
}

fn running_reason(object: &Value, reason: &mut String) {
    let statuses = object.get("status").map(|status| items(status, "containerStatuses")).unwrap_or_default();
    let mut has_running = false;
    for one in statuses.iter().rev() {
        let waiting = text(one, "/state/waiting/reason");
        if !waiting.is_empty() {
            *reason = waiting.to_owned();
        } else if let Some(terminated) = one.pointer("/state/terminated") {
            *reason = terminated_reason(terminated);
        } else if one["ready"] == true && one.pointer("/state/running").is_some() {
            has_running = true;
        }
    }
    if reason == "Completed" && has_running {
        *reason = if condition(object, "Ready") == "True" { "Running" } else { "NotReady" }.into();
    }
}

pub(super) fn pod_readiness_gates(object: &Value, _: Timestamp) -> Value {
    let gates = object.get("spec").map(|spec| items(spec, "readinessGates")).unwrap_or_default();
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| condition(object, text(gate, "/conditionType")) == "True").count();
    format!("{met}/{}", gates.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn check(status: Value, expected: (&str, &str, &str)) {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": status});
        let shown = (pod_ready(&pod, now()), pod_status(&pod, now()), pod_restarts(&pod, now()));
        assert_eq!((shown.0.as_str().unwrap(), shown.1.as_str().unwrap(), shown.2.as_str().unwrap()), expected);
    }

    #[test]
    fn pods_read_as_kubectl_shows_them() {
        check(json!({"phase": "Pending"}), ("0/2", "Pending", "0"));
        check(
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}, "restartCount": 2,
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}}]}),
            ("1/2", "Running", "2 (5m ago)"),
        );
        check(
            json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ("0/2", "CrashLoopBackOff", "0"),
        );
        check(
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            ("0/2", "ExitCode:3", "0"),
        );
        check(
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}),
            ("0/2", "Init:0/0", "0"),
        );
    }

    #[test]
    fn nodes_show_roles_and_cordons() {
        let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}});
        assert_eq!(node_status(&node, now()), "Ready,SchedulingDisabled");
        assert_eq!(node_roles(&node, now()), "control-plane");
        assert_eq!(node_address(&node, "InternalIP"), "1.2.3.4");
        assert_eq!(node_address(&node, "ExternalIP"), "<none>");
    }
}
