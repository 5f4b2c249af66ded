//! What Docker keeps of a service's specification and shows in inspect. Pure.

use api::swarm::ServiceNetwork;
use serde_json::{Map, Value, json};

use super::spec::{GRACE_NS, MONITOR_NS, NetworkFacts, RESTART_DELAY_NS};
use super::wire::Spec;

/// Completes a specification as Docker keeps it: networks by id, and what clients leave out.
pub(super) fn complete(given: &mut Value, spec: &Spec, networks: &[(NetworkFacts, Option<ServiceNetwork>)]) {
    let by_template = spec.task_template.networks.as_ref().is_some_and(|list| !list.is_empty());
    let list = if by_template { given.pointer_mut("/TaskTemplate/Networks") } else { given.get_mut("Networks") };
    for (config, (facts, _)) in list.and_then(Value::as_array_mut).into_iter().flatten().zip(networks) {
        config["Target"] = json!(facts.id);
    }
    default(given, "Labels", json!({}));
    if given.get("Mode").and_then(Value::as_object).is_none_or(Map::is_empty) {
        given["Mode"] = json!({ "Replicated": { "Replicas": 1 } });
    }
    let ports = given.pointer_mut("/EndpointSpec/Ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        default(port, "Protocol", json!("tcp"));
        default(port, "PublishMode", json!("ingress"));
    }
    if let Some(template) = given.get_mut("TaskTemplate") {
        default(template, "ForceUpdate", json!(0));
        default(template, "Runtime", json!("container"));
        if let Some(container) = template.get_mut("ContainerSpec") {
            default(container, "Isolation", json!("default"));
        }
    }
}

/// What inspect fills in on demand. `Source:` swarmkit, `defaults.Service`.
pub(super) fn insert_defaults(spec: &mut Value) {
    let policy = json!({
        "Parallelism": 1, "FailureAction": "pause", "Monitor": MONITOR_NS, "MaxFailureRatio": 0, "Order": "stop-first",
    });
    default(spec, "UpdateConfig", policy.clone());
    default(spec, "RollbackConfig", policy);
    default(spec, "EndpointSpec", json!({ "Mode": "vip" }));
    if let Some(template) = spec.get_mut("TaskTemplate") {
        default(template, "Resources", json!({ "Limits": {}, "Reservations": {} }));
        default(template, "RestartPolicy", json!({ "Condition": "any", "Delay": RESTART_DELAY_NS, "MaxAttempts": 0 }));
        default(template, "Placement", json!({}));
        if let Some(container) = template.get_mut("ContainerSpec") {
            default(container, "StopGracePeriod", json!(GRACE_NS));
            default(container, "DNSConfig", json!({}));
        }
    }
}

/// Sets a member that is absent or null.
fn default(target: &mut Value, name: &str, value: Value) {
    if target.get(name).is_none_or(Value::is_null) {
        target[name] = value;
    }
}
