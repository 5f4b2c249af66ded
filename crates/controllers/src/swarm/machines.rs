//! What placement rules ask of a machine, out of its `Node`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::swarm::{DRAIN_TAINT, LABELS_ANNOTATION, Placement, PlacementRule, id_of};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

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
    let text = node.annotations().get(LABELS_ANNOTATION);
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

/// What services ask of machines, kept to tell changes of it from signs of life.
#[derive(Debug, Default)]
pub struct Seen {
    machines: BTreeMap<String, Asked>,
    /// Those that the list under way has not named yet.
    unnamed: Option<BTreeSet<String>>,
}

type Asked = (Option<String>, BTreeMap<String, String>, Machine);

impl Seen {
    /// Takes in an event; whether services must be looked at again.
    pub fn observe(&mut self, event: Event<Node>) -> bool {
        match event {
            Event::Init => {
                self.unnamed = Some(self.machines.keys().cloned().collect());
                false
            }
            Event::Apply(node) | Event::InitApply(node) => {
                let name = node.name_any();
                if let Some(unnamed) = &mut self.unnamed {
                    unnamed.remove(&name);
                }
                let asked = (node.uid(), attributes(&node), machine(&node, &Placement::default()));
                let known = self.machines.insert(name, asked);
                known.as_ref() != self.machines.get(&node.name_any())
            }
            Event::Delete(node) => self.machines.remove(&node.name_any()).is_some(),
            Event::InitDone => {
                let gone = self.unnamed.take().unwrap_or_default();
                self.machines.retain(|name, _| !gone.contains(name));
                !gone.is_empty()
            }
        }
    }
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
    fn a_sign_of_life_is_no_change_and_what_services_ask_for_is() {
        let node = |beat: &str, ready: &str, zone: &str| -> Node {
            let condition = json!({ "type": "Ready", "status": ready, "lastHeartbeatTime": beat });
            let labels = json!({ "zone": zone });
            let text = json!({ "metadata": { "name": "n1", "uid": "1", "resourceVersion": beat, "labels": labels },
                "status": { "conditions": [condition] } });
            serde_json::from_value(text).unwrap()
        };
        let first = "2026-01-01T00:00:00Z";
        let later = "2026-01-01T00:00:10Z";
        let mut seen = Seen::default();
        assert!(!seen.observe(Event::Init));
        assert!(seen.observe(Event::InitApply(node(first, "True", "a"))));
        assert!(!seen.observe(Event::InitDone));
        assert!(!seen.observe(Event::Apply(node(later, "True", "a"))), "a sign of life");
        assert!(seen.observe(Event::Apply(node(later, "True", "b"))), "another label");
        assert!(seen.observe(Event::Apply(node(later, "False", "b"))), "not ready");
        assert!(!seen.observe(Event::Init) && seen.observe(Event::InitDone), "a list that does not name it any more");
        assert!(!seen.observe(Event::Delete(node(later, "False", "b"))), "gone already");
    }

    #[test]
    fn rules_compare_without_case_and_absent_labels_are_unequal() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n1", "uid": "1", "labels": { ARCHITECTURE: "amd64", CONTROL_PLANE: "" },
                "annotations": { LABELS_ANNOTATION: "{\"Zone\":\"West Wing\"}" } },
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
