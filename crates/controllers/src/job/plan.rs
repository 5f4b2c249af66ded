//! What to do next for a Job: pure. The Job and its pods in; a status, and pods to make, delete and let go of out.
//!
//! Each pod carries a finalizer, so that it stays until it was counted, whoever deletes it. It is counted in two steps: its uid
//! goes into the status; then its finalizer goes; then the uid turns into a count. A crash between any two loses and doubles
//! nothing. `Source:` Kubernetes, "Jobs", "Job termination and cleanup"; KEP-2307.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{indexes, policy};
use crate::pods;

/// The finalizer that keeps a pod until it was counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Label and annotation with the index of a pod of an indexed Job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// First and longest pause after a pod failed. `Source:` Kubernetes, "Pod backoff failure policy".
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(360));

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// The status that the Job should have; written before anything else is done.
    pub status: JobStatus,
    /// Pods to make, each with its index in an indexed Job.
    pub create: Vec<Option<i32>>,
    /// Names of pods to delete.
    pub delete: Vec<String>,
    /// Names of pods that were counted: their finalizer goes.
    pub release: Vec<String>,
    /// Look again after so long.
    pub wake: Option<Duration>,
}

struct View<'a> {
    pod: &'a Pod,
    uid: &'a str,
    index: Option<i32>,
    tracked: bool,
    succeeded: bool,
    failed: bool,
}

impl<'a> View<'a> {
    fn of(pod: &'a Pod) -> Self {
        let succeeded = pods::phase(pod) == "Succeeded";
        Self {
            pod,
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
            index: pod.annotations().get(INDEX).and_then(|text| text.parse().ok()),
            tracked: pod.finalizers().iter().any(|name| name == TRACKING),
            succeeded,
            // A pod on its way out will not succeed any more.
            failed: !succeeded && (pods::phase(pod) == "Failed" || pod.metadata.deletion_timestamp.is_some()),
        }
    }

    fn active(&self) -> bool {
        !self.succeeded && !self.failed
    }

    fn terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some() && !pods::has_ended(self.pod)
    }
}

/// Whether the Job has ended for good.
pub fn is_over(status: &JobStatus) -> bool {
    holds(status, "Complete") || holds(status, "Failed")
}

fn holds(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|one| one.type_ == kind && one.status == "True")
}

/// Decides.
pub fn plan(job: &Job, owned: &[Pod], now: Timestamp) -> Plan {
    let empty = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&empty);
    let views: Vec<View<'_>> = owned.iter().map(View::of).collect();
    let mut status = job.status.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let failures = count(spec, &mut status, &views, &mut plan);
    let suspended = spec.suspend == Some(true);
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(Time(now));
    }
    if let Some((kind, reason, message)) = verdict(spec, &status, &views, &failures, now) {
        set(&mut status, kind, "True", &reason, &message, now);
    }
    let (target, success) = (holds(&status, "FailureTarget"), holds(&status, "SuccessCriteriaMet"));
    if target || success || suspended {
        plan.delete = views.iter().filter(|view| view.active()).map(|view| view.pod.name_any()).collect();
    }
    if target || success {
        finish(&mut status, &views, success, now);
    } else {
        suspend(spec, &mut status, now);
        if !suspended && job.metadata.deletion_timestamp.is_none() {
            scale(spec, &status, &views, now, &mut plan);
            wake_at_deadline(spec, &status, now, &mut plan);
        }
    }
    let number = |test: &dyn Fn(&View<'_>) -> bool| {
        i32::try_from(views.iter().filter(|view| test(view)).count()).unwrap_or(i32::MAX)
    };
    status.active = Some(number(&|view| view.active())).filter(|count| *count > 0);
    status.terminating = Some(number(&|view| view.terminating()));
    status.ready = Some(number(&|view| view.active() && pods::is_ready(view.pod)));
    plan.status = status;
    plan
}

/// Takes ended pods into the status. Answers the pods that count as failures now.
fn count<'a>(spec: &JobSpec, status: &mut JobStatus, views: &'a [View<'a>], plan: &mut Plan) -> Vec<&'a View<'a>> {
    let indexed = is_indexed(spec);
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut well, mut badly) = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
    let held: BTreeSet<&str> = views.iter().filter(|view| view.tracked).map(|view| view.uid).collect();
    for (list, total) in [(&mut uncounted.succeeded, &mut well), (&mut uncounted.failed, &mut badly)] {
        let list = list.get_or_insert_default();
        let before = list.len();
        list.retain(|uid| held.contains(uid.as_str()));
        *total += i32::try_from(before - list.len()).unwrap_or(0);
    }
    let mut completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
    let mut failures = Vec::new();
    for view in views.iter().filter(|view| view.tracked && !view.active()) {
        plan.release.push(view.pod.name_any());
        if view.failed && policy::action(spec, view.pod) == policy::Action::Ignore {
            continue;
        }
        failures.extend(view.failed.then_some(view));
        match view.index {
            Some(index) if indexed && view.succeeded => drop(completed.insert(index)),
            _ => {
                let list = if view.succeeded { &mut uncounted.succeeded } else { &mut uncounted.failed };
                let list = list.get_or_insert_default();
                if !list.iter().any(|uid| uid == view.uid) {
                    list.push(view.uid.to_owned());
                }
            }
        }
    }
    if indexed {
        let most = spec.completions.unwrap_or(0);
        completed.retain(|index| (0..most).contains(index));
        well = i32::try_from(completed.len()).unwrap_or(i32::MAX);
        status.completed_indexes = (!completed.is_empty()).then(|| indexes::text(&completed));
    }
    status.succeeded = (well > 0).then_some(well);
    status.failed = (badly > 0).then_some(badly);
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: uncounted.succeeded.filter(|list| !list.is_empty()),
        failed: uncounted.failed.filter(|list| !list.is_empty()),
    });
    failures
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Counted and about to be counted: well and badly ended.
fn totals(status: &JobStatus) -> (i32, i32) {
    let waiting = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let length = |list: Option<Vec<String>>| i32::try_from(list.unwrap_or_default().len()).unwrap_or(0);
    (status.succeeded.unwrap_or(0) + length(waiting.succeeded), status.failed.unwrap_or(0) + length(waiting.failed))
}

/// Whether the Job is to end, and how.
fn verdict(
    spec: &JobSpec,
    status: &JobStatus,
    views: &[View<'_>],
    failures: &[&View<'_>],
    now: Timestamp,
) -> Option<(&'static str, String, String)> {
    if holds(status, "FailureTarget") || holds(status, "SuccessCriteriaMet") {
        return None;
    }
    let (well, badly) = totals(status);
    let failed = |reason: &str, message: &str| Some(("FailureTarget", reason.to_owned(), message.to_owned()));
    for view in failures {
        if let policy::Action::FailJob(message) = policy::action(spec, view.pod) {
            return failed("PodFailurePolicy", &message);
        }
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts: i32 = views.iter().filter(|view| view.active()).map(|view| restarts(view.pod)).sum();
    let restarted = restarts > 0 && restarts >= limit.max(1) && restart_policy(spec) == Some("OnFailure");
    if badly > limit || restarted {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if spec.suspend != Some(true) && seconds_left(spec, status, now).is_some_and(|left| left <= 0) {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let active = views.iter().any(View::active);
    let complete = match spec.completions {
        Some(wanted) => well >= wanted,
        None => well > 0 && !active,
    };
    let message = "Reached expected number of succeeded pods";
    complete.then(|| ("SuccessCriteriaMet", "CompletionsReached".to_owned(), message.to_owned()))
}

fn restart_policy(spec: &JobSpec) -> Option<&str> {
    spec.template.spec.as_ref()?.restart_policy.as_deref()
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let lists = status.into_iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
    lists.flatten().map(|container| container.restart_count).sum()
}

fn seconds_left(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<i64> {
    let begin = status.start_time.as_ref()?.0;
    Some(spec.active_deadline_seconds? - now.duration_since(begin).as_secs())
}

fn wake_at_deadline(spec: &JobSpec, status: &JobStatus, now: Timestamp, plan: &mut Plan) {
    if let Some(left) = seconds_left(spec, status, now) {
        wake(plan, Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1));
    }
}

fn wake(plan: &mut Plan, after: Duration) {
    plan.wake = Some(plan.wake.map_or(after, |before| before.min(after)));
}

/// The last word, once no pod is active and all are counted.
fn finish(status: &mut JobStatus, views: &[View<'_>], success: bool, now: Timestamp) {
    let waiting = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let uncounted = waiting.succeeded.is_some() || waiting.failed.is_some();
    if uncounted || views.iter().any(|view| view.active() || view.terminating()) {
        return;
    }
    let interim = if success { "SuccessCriteriaMet" } else { "FailureTarget" };
    let why = status.conditions.iter().flatten().find(|one| one.type_ == interim).cloned();
    let (reason, message) =
        why.map(|one| (one.reason.unwrap_or_default(), one.message.unwrap_or_default())).unwrap_or_default();
    if success {
        status.completion_time = Some(Time(now));
    }
    set(status, if success { "Complete" } else { "Failed" }, "True", &reason, &message, now);
}

fn suspend(spec: &JobSpec, status: &mut JobStatus, now: Timestamp) {
    if spec.suspend == Some(true) {
        status.start_time = None;
        if !holds(status, "Suspended") {
            set(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        }
    } else if holds(status, "Suspended") {
        set(status, "Suspended", "False", "JobResumed", "Job resumed", now);
    }
}

/// Pods to make, or too many of them.
fn scale(spec: &JobSpec, status: &JobStatus, views: &[View<'_>], now: Timestamp, plan: &mut Plan) {
    let number = |value: Option<i32>, default| usize::try_from(value.unwrap_or(default)).unwrap_or(0);
    let well = usize::try_from(totals(status).0).unwrap_or(0);
    let active: Vec<&View<'_>> = views.iter().filter(|view| view.active()).collect();
    let parallel = number(spec.parallelism, 1);
    let wanted = match spec.completions {
        Some(_) => parallel.min(number(spec.completions, 1).saturating_sub(well)),
        None if well > 0 => active.len().min(parallel),
        None => parallel,
    };
    if active.len() > wanted {
        let surplus = active.iter().rev().take(active.len() - wanted);
        plan.delete.extend(surplus.map(|view| view.pod.name_any()));
        return;
    }
    // Some wait until the pod before is really gone.
    let holding = if spec.pod_replacement_policy.as_deref() == Some("Failed") {
        views.iter().filter(|view| view.terminating()).count()
    } else {
        0
    };
    let missing = wanted.saturating_sub(active.len() + holding);
    if missing == 0 {
        return;
    }
    if let Some(pause) = pause(views, now) {
        return wake(plan, pause);
    }
    if !is_indexed(spec) {
        plan.create = vec![None; missing.min(crate::members::BURST)];
        return;
    }
    let mut taken: BTreeSet<i32> = active.iter().filter_map(|view| view.index).collect();
    taken.extend(indexes::parse(status.completed_indexes.as_deref().unwrap_or_default()));
    let free = (0..spec.completions.unwrap_or(0)).filter(|index| !taken.contains(index));
    plan.create = free.take(missing.min(crate::members::BURST)).map(Some).collect();
}

/// What is left of the pause after the last failure; failures before the last success are forgotten.
fn pause(views: &[View<'_>], now: Timestamp) -> Option<Duration> {
    let last_success = views.iter().filter(|view| view.succeeded).map(|view| ended_at(view.pod)).max().flatten();
    let failures: Vec<Timestamp> = views
        .iter()
        .filter(|view| view.failed)
        .filter_map(|view| ended_at(view.pod))
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len()).unwrap_or(u32::MAX).saturating_sub(1).min(16);
    let pause = BACKOFF.0.saturating_mul(1 << doublings).min(BACKOFF.1);
    let passed = Duration::try_from(now.duration_since(*last)).unwrap_or_default();
    pause.checked_sub(passed).filter(|left| !left.is_zero())
}

/// When the last of its containers ended; when it was deleted, for one that did not run.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref();
    let lists = status.into_iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
    let ends = lists.flatten().filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0));
    ends.max().or(pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let list = status.conditions.get_or_insert_default();
    list.retain(|one| one.type_ != kind);
    list.push(JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

#[cfg(test)]
mod tests;
