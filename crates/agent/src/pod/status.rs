//! A pod's status from what is known of it. Pure: the caller gives the time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{self, Class, Life, Phase, Restart, View};
use super::model::{Ended, Record};

/// Scheme in front of container ids.
pub const ID_SCHEME: &str = "nuee://";
/// Condition types that this module writes; others in the status are left as they are.
const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// What is known of a pod beside its containers.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Address of the machine.
    pub host_ip: String,
    /// Address of the pod; empty before it has one.
    pub pod_ip: String,
    /// The sandbox stands.
    pub sandbox_ready: bool,
    /// The pod was ended by the machine: reason and message.
    pub failed: Option<(String, String)>,
    /// When the agent first saw the pod.
    pub start_time: Option<Timestamp>,
}

/// Computes the whole status.
#[must_use]
pub fn build(pod: &Pod, records: &[Record], around: &Surroundings, now: Timestamp) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let restart = Restart::parse(spec.restart_policy.as_deref());
    let views: Vec<View> = records.iter().map(Record::view).collect();
    let phase = if around.failed.is_some() { Phase::Failed } else { decide::phase(&views, restart) };
    let initialized = decide::initialized(&views);
    let statuses = |classes: &[Class]| {
        let wanted = records.iter().filter(|r| classes.contains(&r.class));
        let list: Vec<_> = wanted.map(|r| container_status(r, initialized, &views)).collect();
        (!list.is_empty()).then_some(list)
    };
    let old = pod.status.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let pod_ip = if host_network { around.host_ip.clone() } else { around.pod_ip.clone() };
    let conditions =
        conditions(spec, records, around, phase, initialized, old.conditions.as_deref().unwrap_or(&[]), now);
    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions),
        host_ip: some_text(&around.host_ip),
        host_ips: some_text(&around.host_ip).map(|ip| vec![HostIP { ip }]),
        pod_ip: some_text(&pod_ip),
        pod_ips: some_text(&pod_ip).map(|ip| vec![PodIP { ip }]),
        start_time: around.start_time.map(Time),
        container_statuses: statuses(&[Class::Main]),
        init_container_statuses: statuses(&[Class::Init, Class::Sidecar]),
        qos_class: Some(qos_class(spec).to_owned()),
        reason: around.failed.as_ref().map(|f| f.0.clone()),
        message: around.failed.as_ref().map(|f| f.1.clone()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name,
        ephemeral_container_statuses: statuses(&[Class::Ephemeral]),
        resource_claim_statuses: old.resource_claim_statuses,
        ..PodStatus::default()
    }
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn container_status(record: &Record, initialized: bool, views: &[View]) -> ContainerStatus {
    let running = record.alive();
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let terminated =
        |ended: &Ended| ContainerState { terminated: Some(terminated_state(ended)), ..ContainerState::default() };
    let (state, last) = if running {
        let running = ContainerStateRunning { started_at: record.started_at.map(Time) };
        (ContainerState { running: Some(running), ..ContainerState::default() }, record.last.as_ref())
    } else if let Some(why) = &record.waiting {
        (waiting(&why.reason, some_text(&why.message)), record.ended.as_ref().or(record.last.as_ref()))
    } else if let Some(ended) = &record.ended {
        (terminated(ended), record.last.as_ref())
    } else {
        let has_init = views.iter().any(|v| matches!(v.class, Class::Init | Class::Sidecar));
        let reason = if has_init && !initialized { "PodInitializing" } else { "ContainerCreating" };
        (waiting(reason, None), record.last.as_ref())
    };
    let completed_init = record.class == Class::Init && record.life == (Life::Exited { code: 0 });
    ContainerStatus {
        name: record.name.clone(),
        image: record.image.clone(),
        image_id: record.image_id.clone(),
        container_id: some_text(&record.container_id).map(|id| format!("{ID_SCHEME}{id}")),
        ready: record.ready && running && record.class != Class::Ephemeral || completed_init,
        started: Some(record.life == (Life::Running { started: true })),
        restart_count: record.restart_count,
        state: Some(state),
        last_state: Some(last.map(terminated).unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn terminated_state(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: some_text(&ended.container_id).map(|id| format!("{ID_SCHEME}{id}")),
        exit_code: ended.code,
        reason: some_text(&ended.reason),
        message: some_text(&ended.message),
        started_at: ended.started_at.map(Time),
        finished_at: ended.finished_at.map(Time),
        signal: None,
    }
}

fn conditions(
    spec: &PodSpec,
    records: &[Record],
    around: &Surroundings,
    phase: Phase,
    initialized: bool,
    old: &[PodCondition],
    now: Timestamp,
) -> Vec<PodCondition> {
    let over = matches!(phase, Phase::Succeeded | Phase::Failed);
    let completed = over.then(|| ("PodCompleted".to_owned(), String::new()));
    let unready = unready_names(records);
    let gates: Vec<&str> = spec.readiness_gates.iter().flatten().map(|g| g.condition_type.as_str()).collect();
    let closed_gate =
        gates.iter().find(|g| !old.iter().any(|c| c.type_ == **g && c.status == "True")).map(|g| (*g).to_owned());
    let containers_ready = unready.is_empty() && !over;
    let not_ready = completed.clone().or_else(|| {
        (!containers_ready).then(|| {
            ("ContainersNotReady".to_owned(), format!("containers with unready status: [{}]", unready.join(" ")))
        })
    });
    let gate_reason = closed_gate.map(|gate| {
        (
            "ReadinessGatesNotReady".to_owned(),
            format!("corresponding condition of pod readiness gate \"{gate}\" does not exist."),
        )
    });
    let incomplete: Vec<&str> = records
        .iter()
        .filter(|r| match r.class {
            Class::Init => r.life != (Life::Exited { code: 0 }),
            Class::Sidecar => r.life != (Life::Running { started: true }),
            Class::Main | Class::Ephemeral => false,
        })
        .map(|r| r.name.as_str())
        .collect();
    let not_initialized = (!initialized && phase != Phase::Succeeded).then(|| {
        (
            "ContainersNotInitialized".to_owned(),
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        )
    });
    let mut list = vec![
        condition("PodReadyToStartContainers", around.sandbox_ready && !over, None, old, now),
        condition(
            "Initialized",
            not_initialized.is_none(),
            not_initialized.or(completed_if_succeeded(phase)),
            old,
            now,
        ),
        condition("Ready", not_ready.is_none() && gate_reason.is_none(), not_ready.clone().or(gate_reason), old, now),
        condition("ContainersReady", not_ready.is_none(), not_ready, old, now),
        condition("PodScheduled", true, None, old, now),
    ];
    list.extend(old.iter().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str())).cloned());
    list
}

fn completed_if_succeeded(phase: Phase) -> Option<(String, String)> {
    (phase == Phase::Succeeded).then(|| ("PodCompleted".to_owned(), String::new()))
}

fn unready_names(records: &[Record]) -> Vec<&str> {
    let counted = records.iter().filter(|r| matches!(r.class, Class::Main | Class::Sidecar));
    counted.filter(|r| !(r.ready && r.alive())).map(|r| r.name.as_str()).collect()
}

fn condition(
    kind: &str,
    value: bool,
    why: Option<(String, String)>,
    old: &[PodCondition],
    now: Timestamp,
) -> PodCondition {
    let status = if value { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == kind && c.status == status);
    let (reason, message) = why.unzip();
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        reason,
        message: message.filter(|m| !m.is_empty()),
        ..PodCondition::default()
    }
}

/// The quality-of-service class. Source: Kubernetes, "Pod Quality of Service Classes".
#[must_use]
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        let resources = container.resources.clone().unwrap_or_default();
        let (requests, limits) = (resources.requests.unwrap_or_default(), resources.limits.unwrap_or_default());
        for name in ["cpu", "memory"] {
            let limit = limits.get(name).filter(|q| !is_zero(&q.0));
            let request = requests.get(name).filter(|q| !is_zero(&q.0));
            any |= limit.is_some() || request.is_some();
            // A request that is not given takes the limit's value.
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_zero(quantity: &str) -> bool {
    quantity.chars().all(|c| matches!(c, '0' | '.')) && !quantity.is_empty()
}

/// The values of a status that must be written without delay: when one of these changes, somebody waits for it.
#[must_use]
pub fn urgent_part(status: &PodStatus) -> BTreeMap<String, String> {
    let mut part = BTreeMap::new();
    part.insert("phase".to_owned(), status.phase.clone().unwrap_or_default());
    for c in status.conditions.iter().flatten().filter(|c| c.type_ == "Ready") {
        part.insert("ready".to_owned(), c.status.clone());
    }
    for c in status.container_statuses.iter().chain(&status.init_container_statuses).flatten() {
        let state = c.state.as_ref();
        let word = match state {
            Some(ContainerState { running: Some(_), .. }) => "running",
            Some(ContainerState { terminated: Some(_), .. }) => "terminated",
            _ => "waiting",
        };
        part.insert(format!("container/{}", c.name), format!("{word}/{}", c.restart_count));
    }
    part
}
