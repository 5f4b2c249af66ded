//! The steps of Jobs, one by one, and whatever may happen in between.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn job(spec: Value) -> Job {
    let mut spec = spec;
    spec["template"] = json!({"spec": {"restartPolicy": "Never", "containers": []}});
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec})).unwrap()
}

fn pod(name: &str, phase: &str, end: i64) -> Pod {
    let state = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": i32::from(phase == "Failed"), "finishedAt": at(end).to_string()}}}]);
    let ended = matches!(phase, "Succeeded" | "Failed");
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name, "finalizers": [TRACKING]},
        "status": {"phase": phase, "containerStatuses": if ended { state } else { json!([]) }}
    }))
    .unwrap()
}

/// Does what the plan says, as the API server would.
fn act(job: &mut Job, world: &mut Vec<Pod>, plan: Plan, serial: &mut u32) {
    job.status = Some(plan.status);
    for pod in world.iter_mut().filter(|pod| plan.release.contains(&pod.name_any())) {
        pod.metadata.finalizers = None;
    }
    world.retain(|pod| !plan.delete.contains(&pod.name_any()) || pods::has_ended(pod));
    for index in plan.create {
        *serial += 1;
        let mut made = pod(&format!("p{serial}"), "Running", 0);
        if let Some(index) = index {
            made.annotations_mut().insert(INDEX.into(), index.to_string());
        }
        world.push(made);
    }
}

#[test]
fn a_job_runs_until_it_has_its_completions() {
    let (mut job, mut world, mut serial) = (job(json!({"completions": 3, "parallelism": 2})), Vec::new(), 0);
    let mut most = 0;
    for second in 0..20 {
        let plan = plan(&job, &world, at(second));
        act(&mut job, &mut world, plan, &mut serial);
        most = most.max(world.iter().filter(|pod| pods::phase(pod) == "Running").count());
        if let Some(running) = world.iter_mut().find(|pod| pods::phase(pod) == "Running") {
            let name = running.name_any();
            *running = pod(&name, "Succeeded", second);
        }
    }
    let status = job.status.unwrap();
    assert_eq!((status.succeeded, serial, most), (Some(3), 3, 2));
    assert!(holds(&status, "Complete") && status.completion_time.is_some(), "{status:?}");
}

#[test]
fn failures_are_tried_again_after_growing_pauses_until_the_limit() {
    let (mut job, mut world, mut serial) = (job(json!({"completions": 1, "backoffLimit": 2})), Vec::new(), 0);
    let mut starts = Vec::new();
    for second in 0..100 {
        for _ in 0..3 {
            let plan = plan(&job, &world, at(second));
            starts.extend(plan.create.iter().map(|_| second));
            act(&mut job, &mut world, plan, &mut serial);
        }
        if let Some(running) = world.iter_mut().find(|pod| pods::phase(pod) == "Running") {
            let name = running.name_any();
            *running = pod(&name, "Failed", second);
        }
    }
    let status = job.status.unwrap();
    assert_eq!((starts, status.failed), (vec![0, 10, 30], Some(3)));
    let failed = status.conditions.unwrap().into_iter().find(|one| one.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn a_deadline_ends_the_job_with_its_pods() {
    let mut job = job(json!({"completions": 1, "activeDeadlineSeconds": 5}));
    let first = plan(&job, &[], at(0));
    assert_eq!(first.wake, Some(Duration::from_secs(6)));
    job.status = Some(first.status);
    let end = plan(&job, &[pod("a", "Running", 0)], at(5));
    assert_eq!(end.delete, ["a"]);
    assert!(holds(&end.status, "FailureTarget") && !is_over(&end.status), "not over while its pod lives");
}

#[test]
fn a_suspended_job_has_no_pods_and_goes_on_when_resumed() {
    let mut job = job(json!({"completions": 1, "suspend": true}));
    let stopped = plan(&job, &[pod("a", "Running", 0)], at(0));
    assert_eq!((stopped.delete, stopped.create.len()), (vec!["a".to_owned()], 0));
    assert!(holds(&stopped.status, "Suspended"));
    job.status = Some(stopped.status);
    job.spec.as_mut().unwrap().suspend = Some(false);
    let resumed = plan(&job, &[], at(1));
    assert!(!holds(&resumed.status, "Suspended") && resumed.create.len() == 1);
}

#[test]
fn a_policy_ends_the_job_at_once_or_looks_away() {
    let rules = json!([{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]);
    let policy = |rules: Value| job(json!({"completions": 1, "podFailurePolicy": {"rules": rules}}));
    let end = plan(&policy(rules), &[pod("a", "Failed", 0)], at(0));
    let condition = end.status.conditions.unwrap().remove(0);
    assert_eq!((condition.type_.as_str(), condition.reason.as_deref()), ("FailureTarget", Some("PodFailurePolicy")));
    let rules = json!([{"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [2]}}]);
    let ignored = plan(&policy(rules), &[pod("a", "Failed", 0)], at(0));
    assert_eq!((ignored.release.len(), totals(&ignored.status)), (1, (0, 0)));
}

proptest! {
    /// Whatever happens in whatever order, and however often a plan is computed and lost before it is carried out: each pod
    /// counts once, and an indexed Job runs each index to its end once.
    #[test]
    fn every_pod_counts_once(
        indexed: bool,
        completions in 1i32..6,
        parallelism in 1i32..4,
        steps in proptest::collection::vec((0u8..4, 0usize..8), 1..120),
    ) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut job = job(json!({"completions": completions, "parallelism": parallelism, "completionMode": mode, "backoffLimit": 1000}));
        let (mut world, mut serial): (Vec<Pod>, u32) = (Vec::new(), 0);
        let (mut second, mut well, mut badly) = (0, 0, 0);
        for (what, which) in steps {
            second += 400;
            let running: Vec<usize> = (0..world.len()).filter(|i| pods::phase(&world[*i]) == "Running").collect();
            match (what, running.get(which % running.len().max(1))) {
                (0 | 1, Some(index)) => {
                    let phase = if what == 0 { "Succeeded" } else { "Failed" };
                    world[*index].status = pod("x", phase, second).status;
                    if what == 0 { well += 1 } else { badly += 1 }
                }
                // A plan that was computed, and its status written, when the process died.
                (2, _) => job.status = Some(plan(&job, &world, at(second)).status),
                _ => {
                    let plan = plan(&job, &world, at(second));
                    act(&mut job, &mut world, plan, &mut serial);
                    // Somebody clears away ended pods that nothing holds.
                    world.retain(|pod| !pods::has_ended(pod) || !pod.finalizers().is_empty());
                }
            }
            let running = world.iter().filter(|pod| pods::phase(pod) == "Running").count();
            prop_assert!(running <= usize::try_from(parallelism).unwrap());
        }
        for _ in 0..4 {
            let plan = plan(&job, &world, at(second));
            let create = plan.create.is_empty();
            act(&mut job, &mut world, plan, &mut serial);
            if !create { break }
        }
        let status = plan(&job, &world, at(second)).status;
        prop_assert_eq!(totals(&status), (well, badly));
        prop_assert!(well <= completions);
    }
}
