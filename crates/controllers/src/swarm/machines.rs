//! What placement rules ask of a machine, out of its `Node`. Pure.

use std::collections::BTreeMap;

use api::swarm::{DRAIN_TAINT, NODE_LABELS_ANNOTATION, Placement, PlacementRule, id_of};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::plan::Machine;
use crate::node_life;

/// Label by which a machine is known as one that decides.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Label with a machine's architecture.
const ARCHITECTURE: &str = "kubernetes.io/arch";

/// Attributes by name, all in small letters, as rules compare them.
pub fn attributes(node: &Node) -> BTreeMap<String, String> {
    let labels = node.labels();
    let status = node.status.clone().unwrap_or_default();
    let address = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP");
    let info = status.node_info.unwrap_or_default();
    let hostname = labels.get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any());
    let mut found = BTreeMap::from([
        ("node.id".to_owned(), id_of(&node.uid().unwrap_or_default())),
        ("node.hostname".to_owned(), hostname),
        ("node.ip".to_owned(), address.map(|address| address.address.clone()).unwrap_or_default()),
        ("node.role".to_owned(), if labels.contains_key(CONTROL_PLANE) { "manager" } else { "worker" }.to_owned()),
        ("node.platform.os".to_owned(), info.operating_system),
        ("node.platform.arch".to_owned(), labels.get(ARCHITECTURE).cloned().unwrap_or(info.architecture)),
    ]);
    found.extend(swarm_labels(node).into_iter().map(|(key, value)| (format!("node.labels.{key}"), value)));
    found.extend(labels.iter().map(|(key, value)| (format!("engine.labels.{key}"), value.clone())));
    found.into_iter().map(|(key, value)| (key.to_lowercase(), value.to_lowercase())).collect()
}

/// The labels that a machine has in Swarm.
pub fn swarm_labels(node: &Node) -> BTreeMap<String, String> {
    let text = node.annotations().get(NODE_LABELS_ANNOTATION);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// A rule's value as machines have it: clients write architectures as the kernel does.
fn value(rule: &PlacementRule) -> &str {
    match (rule.attribute.as_str(), rule.value.as_str()) {
        ("node.platform.arch", "x86_64") => "amd64",
        ("node.platform.arch", "aarch64") => "arm64",
        (_, value) => value,
    }
}

/// Rules as attribute, value and whether it must not be so.
pub fn rules(placement: &Placement) -> Vec<(String, Vec<String>, bool)> {
    let mut rules: Vec<_> = placement
        .rules
        .iter()
        .map(|rule| (rule.attribute.clone(), vec![value(rule).to_owned()], rule.negated))
        .collect();
    if !placement.architectures.is_empty() {
        rules.push(("node.platform.arch".to_owned(), placement.architectures.clone(), false));
    }
    rules
}

/// A machine as a service's plan sees it.
pub fn machine(node: &Node, placement: &Placement) -> Machine {
    let spec = node.spec.clone().unwrap_or_default();
    let drives_out = |key: &str| spec.taints.iter().flatten().any(|t| t.key == key && t.effect == "NoExecute");
    let lost = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"].into_iter().any(drives_out);
    let ready = node_life::rules::ready(node) == Some("True");
    let own = attributes(node);
    let fits = rules(placement)
        .iter()
        .all(|(attribute, values, negated)| own.get(attribute).is_some_and(|value| values.contains(value)) != *negated);
    Machine {
        name: node.name_any(),
        takes_new: ready && spec.unschedulable != Some(true),
        drains: lost || drives_out(DRAIN_TAINT),
        lost,
        fits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_compare_without_case_and_absent_labels_are_unequal() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n1", "uid": "1", "labels": { ARCHITECTURE: "amd64", CONTROL_PLANE: "" },
                "annotations": { NODE_LABELS_ANNOTATION: "{\"Zone\":\"West Wing\"}" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .unwrap_or_default();
        let fits = |attribute: &str, negated, value: &str| {
            let rule = PlacementRule { attribute: attribute.into(), negated, value: value.into() };
            machine(&node, &Placement { rules: vec![rule], ..Placement::default() }).fits
        };
        assert!(fits("node.labels.zone", false, "west wing") && !fits("node.labels.zone", true, "west wing"));
        assert!(fits("node.labels.disk", true, "ssd") && !fits("node.labels.disk", false, "ssd"));
        assert!(fits("node.role", false, "manager") && fits("node.platform.arch", false, "x86_64"));
        assert!(fits("node.hostname", false, "n1"));
    }
}
