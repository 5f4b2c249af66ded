//! What to do next for a StatefulSet: pure. `Source:` Kubernetes, "StatefulSets", "Deployment and Scaling Guarantees", "Rolling
//! Updates".

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::pods;
use crate::revisions::HASH;

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Ordinals that need a pod, each with the revision that it is to have.
    pub create: Vec<(i32, String)>,
    /// Names of pods to delete.
    pub delete: Vec<String>,
    /// The status that the set should have.
    pub status: StatefulSetStatus,
}

/// The number at the end of a pod's name, when the rest of it is the set's.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let text = pod.strip_prefix(set)?.strip_prefix('-')?;
    text.parse().ok().filter(|number: &i32| *number >= 0 && number.to_string() == text)
}

fn revision(pod: &Pod) -> &str {
    pod.labels().get(HASH).map(String::as_str).unwrap_or_default()
}

/// Decides. `update` is the revision of the present template; `current` the one from which an update is under way.
pub fn plan(set: &StatefulSet, owned: &[Pod], current: &str, update: &str, now: Timestamp) -> Plan {
    let empty = StatefulSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&empty);
    let name = set.name_any();
    let first = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let wanted = first..first.saturating_add(spec.replicas.unwrap_or(1).max(0));
    let minimum = spec.min_ready_seconds.unwrap_or(0);
    let present: BTreeMap<i32, &Pod> =
        owned.iter().filter_map(|pod| Some((ordinal(&name, &pod.name_any())?, pod))).collect();
    let healthy = |pod: &Pod| pods::is_active(pod) && pods::is_available(pod, minimum, now);
    let mut plan = Plan { status: status(set, &present, current, update, now), ..Plan::default() };
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    let fixed = fixed_below(spec, first);
    let mut settled = true;
    for number in wanted.clone() {
        match present.get(&number) {
            None => {
                let of = if number < fixed { current } else { update };
                plan.create.push((number, of.to_owned()));
            }
            // One that ended is replaced under its own name, once it is gone.
            Some(pod) if pods::has_ended(pod) && pod.metadata.deletion_timestamp.is_none() => {
                plan.delete.push(pod.name_any());
            }
            Some(pod) if healthy(pod) => continue,
            Some(_) => {}
        }
        settled = false;
        if in_order {
            return plan;
        }
    }
    let surplus = present.iter().rev().filter(|(number, _)| !wanted.contains(number));
    for (_, pod) in surplus {
        settled = false;
        if pod.metadata.deletion_timestamp.is_none() {
            plan.delete.push(pod.name_any());
        }
        if in_order {
            return plan;
        }
    }
    let rolls = spec.update_strategy.as_ref().and_then(|one| one.type_.as_deref()) != Some("OnDelete");
    if rolls && settled {
        let old = wanted.rev().take_while(|number| *number >= fixed).filter_map(|number| present.get(&number));
        plan.delete.extend(old.into_iter().find(|pod| revision(pod) != update).map(|pod| pod.name_any()));
    } else if rolls && plan.create.is_empty() && plan.delete.is_empty() {
        // A pod of the old revision that does not work must not hold up the new one.
        let broken = present.iter().rev().find(|(_, pod)| !healthy(pod));
        let stuck = broken.filter(|(number, pod)| {
            **number >= fixed && revision(pod) != update && pod.metadata.deletion_timestamp.is_none() && !in_order
        });
        plan.delete.extend(stuck.map(|(_, pod)| pod.name_any()));
    }
    plan
}

/// Ordinals below this one keep the old revision.
fn fixed_below(spec: &StatefulSetSpec, first: i32) -> i32 {
    let rolling = spec.update_strategy.as_ref().and_then(|one| one.rolling_update.as_ref());
    first.saturating_add(rolling.and_then(|one| one.partition).unwrap_or(0))
}

fn status(
    set: &StatefulSet,
    present: &BTreeMap<i32, &Pod>,
    current: &str,
    update: &str,
    now: Timestamp,
) -> StatefulSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let minimum = spec.min_ready_seconds.unwrap_or(0);
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(present.values().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let living = |pod: &Pod| !pods::has_ended(pod);
    let replicas = count(&living);
    let updated = count(&|pod| living(pod) && revision(pod) == update);
    let ready = count(&pods::is_ready);
    let complete = updated == replicas && replicas == spec.replicas.unwrap_or(1) && ready == replicas;
    let current = if complete { update } else { current };
    StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(count(&|pod| pods::is_available(pod, minimum, now))),
        current_replicas: Some(count(&|pod| living(pod) && revision(pod) == current)),
        updated_replicas: Some(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(0),
        ..StatefulSetStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut spec = spec;
        spec["selector"] = json!({});
        spec["template"] = json!({});
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
    }

    fn pod(number: i32, revision: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        serde_json::from_value(json!({
            "metadata": {"name": format!("web-{number}"), "labels": {HASH: revision}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    fn check(spec: Value, owned: &[Pod], create: &[i32], delete: &[&str]) {
        let plan = plan(&set(spec), owned, "old", "new", Timestamp::now());
        assert_eq!(plan.create.iter().map(|one| one.0).collect::<Vec<_>>(), create);
        assert_eq!(plan.delete, delete);
    }

    #[test]
    fn pods_come_one_after_another_and_go_in_reverse() {
        check(json!({"replicas": 3}), &[], &[0], &[]);
        check(json!({"replicas": 3}), &[pod(0, "new", false)], &[], &[]);
        check(json!({"replicas": 3}), &[pod(0, "new", true)], &[1], &[]);
        check(json!({"replicas": 3, "podManagementPolicy": "Parallel"}), &[], &[0, 1, 2], &[]);
        check(
            json!({"replicas": 1}),
            &[pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)],
            &[],
            &["web-2"],
        );
        check(json!({"replicas": 2, "ordinals": {"start": 5}}), &[pod(5, "new", true)], &[6], &[]);
    }

    #[test]
    fn an_update_goes_from_the_last_to_the_partition() {
        let all = |revisions: [&str; 3]| {
            revisions.iter().zip(0..).map(|(revision, number)| pod(number, revision, true)).collect::<Vec<_>>()
        };
        check(json!({"replicas": 3}), &all(["old", "old", "old"]), &[], &["web-2"]);
        check(json!({"replicas": 3}), &all(["old", "old", "new"]), &[], &["web-1"]);
        check(
            json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}}),
            &all(["old", "old", "new"]),
            &[],
            &[],
        );
        check(json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}), &all(["old", "old", "old"]), &[], &[]);
        let kept = plan(
            &set(json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}})),
            &[pod(1, "old", true)],
            "old",
            "new",
            Timestamp::now(),
        );
        assert_eq!(kept.create, [(0, "old".to_owned())]);
    }

    #[test]
    fn names_of_others_are_none_of_ours() {
        assert_eq!(ordinal("web", "web-7"), Some(7));
        for other in ["web-07", "web-x", "web-1-2", "webs-1", "web--1"] {
            assert_eq!(ordinal("web", other), None, "{other}");
        }
    }

    proptest! {
        /// In order: a pod is only made while all before it are ready, and one at most is missing or ending at a time.
        #[test]
        fn order_is_kept_whatever_happens(
            replicas in 0i32..6,
            states in proptest::collection::vec(0u8..3, 6),
        ) {
            let owned: Vec<Pod> = states.iter().zip(0..).filter(|(state, _)| **state > 0).map(|(state, number)| pod(number, "new", *state == 2)).collect();
            let plan = plan(&set(json!({"replicas": replicas})), &owned, "new", "new", Timestamp::now());
            prop_assert!(plan.create.len() + plan.delete.len() <= 1);
            for (number, _) in plan.create {
                prop_assert!(number < replicas && states[..usize::try_from(number).unwrap()].iter().all(|state| *state == 2));
            }
            for name in plan.delete {
                let number = ordinal("web", &name).unwrap();
                let highest = states.iter().rposition(|state| *state > 0).unwrap();
                prop_assert!(number >= replicas && usize::try_from(number).unwrap() == highest);
            }
        }
    }
}
