//! How a pod wants to stand to other pods, in `placement`'s words: affinity, anti-affinity, even spread. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as core, Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use placement::pool::LabelRequirement;
use placement::{Relation, Spread, Workload};

/// Fills in the wishes of a pod.
pub fn fill(workload: &mut Workload, pod: &Pod) {
    let Some(spec) = &pod.spec else { return };
    let labels = pod.labels();
    let affinity = spec.affinity.clone().unwrap_or_default();
    let near = affinity.pod_affinity.unwrap_or_default();
    let apart = affinity.pod_anti_affinity.unwrap_or_default();
    let required = |terms: Option<Vec<PodAffinityTerm>>| {
        terms.into_iter().flatten().map(|term| relation(&term, labels)).collect::<Vec<_>>()
    };
    let preferred = |terms: Option<Vec<WeightedPodAffinityTerm>>, sign: i32| {
        let terms = terms.into_iter().flatten();
        terms.map(|one| (sign * one.weight, relation(&one.pod_affinity_term, labels))).collect::<Vec<_>>()
    };
    workload.near = required(near.required_during_scheduling_ignored_during_execution);
    workload.apart = required(apart.required_during_scheduling_ignored_during_execution);
    workload.near_preferences = preferred(near.preferred_during_scheduling_ignored_during_execution, 1);
    workload.near_preferences.extend(preferred(apart.preferred_during_scheduling_ignored_during_execution, -1));
    workload.spread = spec.topology_spread_constraints.iter().flatten().map(|one| spread(one, labels)).collect();
}

fn relation(term: &PodAffinityTerm, labels: &BTreeMap<String, String>) -> Relation {
    let mut selector = conditions(term.label_selector.as_ref());
    selector.extend(same(term.match_label_keys.as_deref(), labels));
    for condition in same(term.mismatch_label_keys.as_deref(), labels) {
        if let LabelRequirement::In(key, values) = condition {
            selector.push(LabelRequirement::NotIn(key, values));
        }
    }
    let every = term.namespace_selector.as_ref().is_some_and(|selector| {
        selector.match_labels.iter().flatten().next().is_none()
            && selector.match_expressions.iter().flatten().next().is_none()
    });
    Relation {
        selector,
        namespaces: term.namespaces.iter().flatten().cloned().collect(),
        all_namespaces: every,
        topology_key: term.topology_key.clone(),
    }
}

fn spread(constraint: &core::TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Spread {
    let mut selector = conditions(constraint.label_selector.as_ref());
    selector.extend(same(constraint.match_label_keys.as_deref(), labels));
    Spread {
        selector,
        topology_key: constraint.topology_key.clone(),
        max_skew: u64::try_from(constraint.max_skew).unwrap_or(1).max(1),
        required: constraint.when_unsatisfiable == "DoNotSchedule",
    }
}

/// The same value of these labels as the pod itself has.
fn same<'a>(
    keys: Option<&'a [String]>,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = LabelRequirement> + 'a {
    let keys = keys.unwrap_or_default().iter();
    keys.filter_map(|key| Some(LabelRequirement::In(key.clone(), vec![labels.get(key)?.clone()])))
}

/// A selector as conditions; none at all selects nothing.
fn conditions(selector: Option<&LabelSelector>) -> Vec<LabelRequirement> {
    let Some(selector) = selector else { return vec![LabelRequirement::In(String::new(), Vec::new())] };
    let exact = selector.match_labels.iter().flatten();
    let mut list: Vec<_> = exact.map(|(key, value)| LabelRequirement::In(key.clone(), vec![value.clone()])).collect();
    list.extend(selector.match_expressions.iter().flatten().map(|one| {
        let (key, values) = (one.key.clone(), one.values.clone().unwrap_or_default());
        match one.operator.as_str() {
            "NotIn" => LabelRequirement::NotIn(key, values),
            "Exists" => LabelRequirement::Exists(key),
            "DoesNotExist" => LabelRequirement::DoesNotExist(key),
            "In" => LabelRequirement::In(key, values),
            // An operator that we do not know selects nothing.
            _ => LabelRequirement::In(key, Vec::new()),
        }
    }));
    list
}

#[cfg(test)]
mod tests {
    use super::super::convert::{machine, pod_workload};
    use k8s_openapi::api::core::v1::Node;
    use placement::Pool;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, spec: Value) -> Workload {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let object = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}}, "spec": spec});
        pod_workload(&serde_json::from_value(object).unwrap())
    }

    fn pool() -> Pool {
        let mut pool = Pool::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"zone": zone, "host": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
                           "conditions": [{"type": "Ready", "status": "True"}]}
            }))
            .unwrap();
            pool.set_machine(machine(&node));
        }
        pool
    }

    fn placed(pool: &mut Pool, workload: Workload) -> Result<String, String> {
        let choice = placement::place(pool, &workload).map_err(|refusal| refusal.to_string())?;
        pool.assign(&choice.machine, workload);
        Ok(choice.machine)
    }

    #[test]
    fn pods_that_keep_apart_fill_one_place_each_and_then_wait() {
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "host"}]}}});
        let mut pool = pool();
        let mut hosts: Vec<_> =
            (0..3).map(|n| placed(&mut pool, pod(&n.to_string(), apart.clone())).unwrap()).collect();
        hosts.sort();
        assert_eq!(hosts, ["a1", "a2", "b1"]);
        let refused = placed(&mut pool, pod("4", apart)).unwrap_err();
        assert!(refused.contains("3 node(s) didn't match pod anti-affinity rules"), "{refused}");
    }

    #[test]
    fn pods_that_want_to_be_near_follow_the_first() {
        let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}, "topologyKey": "zone"}]}}});
        let mut pool = pool();
        pool.assign("b1", pod("first", json!({})));
        assert_eq!(placed(&mut pool, pod("second", near)), Ok("b1".into()));
    }

    #[test]
    fn pods_spread_over_zones_before_machines() {
        let even = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let mut pool = pool();
        let zones: Vec<String> =
            (0..4).map(|n| placed(&mut pool, pod(&n.to_string(), even.clone())).unwrap()).collect();
        assert_eq!(zones.iter().filter(|host| host.starts_with('b')).count(), 2, "{zones:?}");
    }

    #[test]
    fn a_pod_for_one_machine_by_field_goes_there() {
        let field = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a2"]}]}]}}}});
        assert_eq!(placed(&mut pool(), pod("d", field)), Ok("a2".into()));
    }

    #[test]
    fn a_machine_that_has_the_image_is_preferred() {
        let mut pool = pool();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "b1", "labels": {"zone": "b"}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
                       "conditions": [{"type": "Ready", "status": "True"}],
                       "images": [{"names": ["docker.io/library/big:latest"], "sizeBytes": 2_000_000_000_u64}]}
        }))
        .unwrap();
        pool.set_machine(machine(&node));
        let object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "big"}]}});
        assert_eq!(placed(&mut pool, pod_workload(&serde_json::from_value(object).unwrap())), Ok("b1".into()));
    }
}
