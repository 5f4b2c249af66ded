//! What to do next for a DaemonSet: pure. `Source:` Kubernetes, "DaemonSet", "Perform a Rolling Update on a DaemonSet".

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use kube::ResourceExt;
use placement::{Resources, filter};

use crate::deployment::rollout;
use crate::revisions::HASH;
use crate::{pods, scheduler};

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Machines that need a pod.
    pub create: Vec<String>,
    /// Names of pods to delete.
    pub delete: Vec<String>,
    /// The status that the set should have.
    pub status: DaemonSetStatus,
}

/// Taints that a daemon's pods ignore. `Source:` Kubernetes, "DaemonSet", "Taints and tolerations".
pub fn tolerations(host_network: bool) -> Vec<Toleration> {
    let one = |(key, effect): (&str, &str)| Toleration {
        key: Some(format!("node.kubernetes.io/{key}")),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    };
    let mut list: Vec<(&str, &str)> = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    list.extend(host_network.then_some(("network-unavailable", "NoSchedule")));
    list.into_iter().map(one).collect()
}

/// Whether the set's pod belongs on the machine, whatever is free there; and whether one that is there may stay.
fn wants(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut spec = template.spec.unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    spec.tolerations.get_or_insert_default().extend(tolerations(host_network));
    let mut workload = scheduler::pod_workload(&Pod { spec: Some(spec), ..Pod::default() });
    workload.requests = Resources::default();
    workload.host_ports.clear();
    let mut machine = scheduler::machine(node);
    // A machine that is closed or unwell has its daemons all the same.
    machine.unschedulable = false;
    machine.taints.retain(|taint| taint.key != "node.kubernetes.io/not-ready");
    let run = filter::check(&machine, &workload).is_ok();
    machine.taints.retain(|taint| taint.effect == placement::TaintEffect::NoExecute);
    (run, filter::check(&machine, &workload).is_ok())
}

/// Decides. `hash` is that of the present template.
pub fn plan(set: &DaemonSet, nodes: &[Node], owned: &[Pod], hash: &str, now: Timestamp) -> Plan {
    let empty = DaemonSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&empty);
    let minimum = spec.min_ready_seconds.unwrap_or(0);
    let mut by_node: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
    for pod in owned {
        by_node.entry(node_of(pod)).or_default().push(pod);
    }
    let mut plan = Plan::default();
    let mut status = DaemonSetStatus { observed_generation: set.metadata.generation, ..DaemonSetStatus::default() };
    let mut old: Vec<(&Pod, bool)> = Vec::new();
    let mut unavailable = 0;
    for node in nodes {
        let (run, stay) = wants(set, node);
        let mut here = by_node.remove(&node.name_any()).unwrap_or_default();
        here.sort_by_key(|pod| {
            (pod.metadata.deletion_timestamp.is_some(), pod.creation_timestamp().map(|time| time.0))
        });
        status.number_misscheduled += i32::from(!run && !here.is_empty());
        status.desired_number_scheduled += i32::from(run);
        status.current_number_scheduled += i32::from(run && !here.is_empty());
        if !stay {
            plan.delete
                .extend(here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| pod.name_any()));
            continue;
        }
        // One that ended is replaced; of several the oldest stays.
        let (ended, living): (Vec<&Pod>, Vec<&Pod>) = here.into_iter().partition(|pod| pods::has_ended(pod));
        plan.delete.extend(ended.iter().map(|pod| pod.name_any()));
        plan.delete.extend(living.iter().skip(1).filter(|pod| pods::is_active(pod)).map(|pod| pod.name_any()));
        let Some(pod) = living.first() else {
            // While the old one is not gone, a new one would meet its name, ports and files.
            if run && ended.is_empty() {
                plan.create.push(node.name_any());
            }
            unavailable += i32::from(run);
            continue;
        };
        let available = pods::is_available(pod, minimum, now) && pods::is_active(pod);
        let current = pod.labels().get(HASH).is_some_and(|own| own == hash);
        if run {
            status.number_ready += i32::from(pods::is_ready(pod));
            status.number_available = Some(status.number_available.unwrap_or(0) + i32::from(available));
            status.updated_number_scheduled = Some(status.updated_number_scheduled.unwrap_or(0) + i32::from(current));
            unavailable += i32::from(!available);
            old.extend((!current && pods::is_active(pod)).then_some((*pod, available)));
        }
    }
    plan.delete.extend(by_node.into_values().flatten().filter(|pod| pods::is_active(pod)).map(|pod| pod.name_any()));
    roll(spec, status.desired_number_scheduled, unavailable, old, &mut plan);
    let missing = status.desired_number_scheduled - status.number_available.unwrap_or(0);
    status.number_unavailable = (missing > 0).then_some(missing);
    status.collision_count = set.status.as_ref().and_then(|status| status.collision_count);
    plan.status = status;
    plan
}

/// Replaces old pods, as many at a time as may be missing; those that do not work anyway first.
fn roll(spec: &DaemonSetSpec, desired: i32, unavailable: i32, old: Vec<(&Pod, bool)>, plan: &mut Plan) {
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return;
    }
    let bound = strategy.rolling_update.and_then(|rolling| rolling.max_unavailable);
    let most = bound.map_or(1, |bound| rollout::amount(&bound, desired, true)).max(1);
    let (working, broken): (Vec<_>, Vec<_>) = old.into_iter().partition(|(_, available)| *available);
    plan.delete.extend(broken.iter().map(|(pod, _)| pod.name_any()));
    let room = usize::try_from(most - unavailable).unwrap_or(0);
    plan.delete.extend(working.iter().take(room).map(|(pod, _)| pod.name_any()));
}

/// The machine that a pod is on, or is meant for.
fn node_of(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty()) {
        return name;
    }
    let terms = spec
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = terms.into_iter().flat_map(|selector| &selector.node_selector_terms);
    let mut names =
        fields.flat_map(|term| term.match_fields.iter().flatten()).flat_map(|field| field.values.iter().flatten());
    names.next().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, taint: Option<(&str, &str)>) -> Node {
        let taints: Vec<Value> = taint.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"disk": "fast"}}, "spec": {"taints": taints, "unschedulable": name == "closed"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {HASH: hash}}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    fn set(template: Value) -> DaemonSet {
        serde_json::from_value(
            json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "template": {"spec": template}}}),
        )
        .unwrap()
    }

    #[test]
    fn every_fitting_machine_gets_one_pod() {
        let nodes = [
            node("a", None),
            node("b", Some(("gpu", "NoSchedule"))),
            node("closed", None),
            node("out", Some(("x", "NoExecute"))),
        ];
        let plan = plan(
            &set(json!({"containers": [], "nodeSelector": {"disk": "fast"}})),
            &nodes,
            &[pod("stays", "b", "h", true), pod("goes", "out", "h", true), pod("lost", "gone", "h", true)],
            "h",
            Timestamp::now(),
        );
        assert_eq!(plan.create, ["a", "closed"]);
        assert_eq!(plan.delete, ["goes", "lost"]);
        assert_eq!((plan.status.desired_number_scheduled, plan.status.number_misscheduled), (2, 2));
    }

    #[test]
    fn an_update_replaces_one_at_a_time_and_broken_ones_at_once() {
        let nodes = [node("a", None), node("b", None), node("c", None)];
        let set = set(json!({"containers": []}));
        let all = |ready: [bool; 3]| {
            let owned =
                [pod("a1", "a", "old", ready[0]), pod("b1", "b", "old", ready[1]), pod("c1", "c", "old", ready[2])];
            plan(&set, &nodes, &owned, "new", Timestamp::now()).delete
        };
        assert_eq!(all([true, true, true]), ["a1"]);
        assert_eq!(all([true, false, true]), ["b1"]);
        let waits = plan(
            &set,
            &nodes,
            &[pod("a2", "a", "new", false), pod("b1", "b", "old", true), pod("c1", "c", "old", true)],
            "new",
            Timestamp::now(),
        );
        assert!(waits.delete.is_empty());
        assert_eq!(waits.status.updated_number_scheduled, Some(1));
    }
}
