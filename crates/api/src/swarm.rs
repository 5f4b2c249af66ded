//! `SwarmService`: a number of containers kept running by one template, as Docker's Swarm mode has it. Its tasks are
//! `Container` objects with [`TaskInfo`]; addresses and published ports are `Service` objects; secrets and configs are
//! `Secret` and `ConfigMap` objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::ContainerSpec;

/// Label of tasks, services and slices with the object name of their `SwarmService`.
pub const SERVICE_LABEL: &str = "nuee.dev/swarm-service";
/// Label of secrets, config maps and networks that Swarm's clients made.
pub const MANAGED_LABEL: &str = "nuee.dev/swarm";
/// Finalizer that holds a `SwarmService` until its tasks have ended, and a network until no task is on it.
pub const FINALIZER: &str = "nuee.dev/swarm";
/// Annotation of a `Service` whose address leads to its endpoints on every port, not only on those that it names.
pub const ALL_PORTS_ANNOTATION: &str = "nuee.dev/all-ports";
/// Annotation of a `Service` with the name of the `Network` object, in its own namespace, on which [`NAMES_ANNOTATION`] are
/// names of its address.
pub const NETWORK_ANNOTATION: &str = "nuee.dev/network";
/// Annotation of a `Service` with names in DNS, separated by commas.
pub const NAMES_ANNOTATION: &str = "nuee.dev/names";
/// Taint of machines that were drained by a Docker client; pods leave for it, too.
pub const DRAIN_TAINT: &str = "nuee.dev/drain";
/// Annotation of a `Node`, `Secret` or `ConfigMap` with its labels in Swarm, as JSON: they may hold what a Kubernetes label
/// may not.
pub const LABELS_ANNOTATION: &str = "nuee.dev/swarm-labels";
/// Annotation of the same with the name that the user chose.
pub const NAME_ANNOTATION: &str = "nuee.dev/swarm-name";
/// Annotation of a `Secret` or `ConfigMap` whose content is a template, with Docker's driver of templates as JSON.
pub const TEMPLATING_ANNOTATION: &str = "nuee.dev/swarm-templating";
/// The one driver of templates that there is.
pub const TEMPLATE_DRIVER: &str = "golang";
/// Name of the `Secret` that holds a swarm's settings and join tokens; there is a swarm where it exists.
pub const SETTINGS_NAME: &str = "nuee-swarm";
/// Member of it with the number of tasks that are remembered for each slot.
pub const HISTORY_MEMBER: &str = "taskHistoryLimit";
/// The same when it says nothing. `Source:` swarmkit, `TaskHistoryRetentionLimit`.
pub const HISTORY_LIMIT: usize = 5;

/// What the user wants of a service. `metadata.name` is its id: 25 digits of base 36.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "SwarmService",
    namespaced,
    status = "SwarmServiceStatus",
    shortname = "swarmsvc"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct SwarmServiceSpec {
    /// Docker's name; unique in its namespace.
    pub name: String,
    /// What is wanted now.
    pub current: ServiceVersion,
    /// What was wanted before; a rollback returns to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<ServiceVersion>,
    /// Counts the changes by users; a roll-out that paused goes on when it rises.
    pub request: i64,
    /// `current` came back by a rollback, so `current.rollback` says how it is rolled out.
    pub rolling_back: bool,
    /// Why it came back.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rollback_reason: String,
}

/// One version of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceVersion {
    /// How many tasks, and where.
    pub mode: Mode,
    /// Tasks (`replicated`), or completions (`replicatedJob`).
    pub replicas: u32,
    /// Tasks of a job at once; 0 means no bound.
    pub max_concurrent: u32,
    /// What each task is.
    pub task: TaskTemplate,
    /// How a new version is rolled out.
    pub update: RolloutPolicy,
    /// How a rollback is rolled out.
    pub rollback: RolloutPolicy,
    /// No virtual address: the service's name leads to its tasks' addresses.
    pub round_robin_names: bool,
    /// Ports that every machine leads to the tasks.
    pub ports: Vec<IngressPort>,
    /// The dialect's own specification (JSON text), given back by inspect; no controller reads it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dialect_config: String,
}

/// What one task is. A change of it replaces the tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskTemplate {
    /// The container, with templates such as `{{.Task.Slot}}` in its host name, environment and mounts.
    pub container: ContainerSpec,
    /// Where it may run.
    pub placement: Placement,
    /// When it is started again.
    pub restart: RestartRules,
    /// Networks with the service's further names on them.
    pub networks: Vec<ServiceNetwork>,
    /// Counts updates that change nothing but replace the tasks all the same.
    pub force: i64,
}

/// How many tasks, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// A number of tasks.
    #[default]
    Replicated,
    /// One on each machine that fits.
    Global,
    /// A number of tasks, each until it ends well.
    ReplicatedJob,
    /// One on each machine that fits, until it ends well.
    GlobalJob,
}

impl Mode {
    /// Whether tasks end by themselves and are then done.
    #[must_use]
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob | Self::GlobalJob)
    }

    /// Whether each machine has one task.
    #[must_use]
    pub fn is_global(self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob)
    }
}

/// Where a task may run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// All of them must hold.
    pub rules: Vec<PlacementRule>,
    /// Machine attributes over whose values the tasks are spread (`node.labels.zone`).
    pub spread: Vec<String>,
    /// Most tasks of the service on one machine; 0 means no bound.
    pub max_per_node: u32,
    /// Architectures as Kubernetes names them; empty means any.
    pub architectures: Vec<String>,
    /// Processor time that must be free; Units: billionths of a CPU.
    pub nano_cpus: i64,
    /// Memory that must be free; Units: bytes.
    pub memory_bytes: i64,
    /// Further resources that must be free, by name.
    pub resources: BTreeMap<String, u32>,
}

/// `node.role == manager`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlacementRule {
    /// Attribute of the machine, in small letters.
    pub attribute: String,
    /// It must not have the value.
    pub negated: bool,
    /// The value, in small letters.
    pub value: String,
}

/// When a task that ended is followed by another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartRules {
    /// After which endings.
    pub condition: RestartCondition,
    /// Time before it; Units: nanoseconds.
    pub delay_ns: i64,
    /// Most of them; 0 means no bound.
    pub max_attempts: u32,
    /// Only those of so much time count; 0 means all. Units: nanoseconds.
    pub window_ns: i64,
}

/// After which endings a task is followed by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RestartCondition {
    /// Any.
    #[default]
    Any,
    /// Those that are no success.
    OnFailure,
    /// None.
    None,
}

/// How a new version takes the place of an old one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutPolicy {
    /// Slots at once; 0 means all.
    pub parallelism: u32,
    /// Time after each slot; Units: nanoseconds.
    pub delay_ns: i64,
    /// How long a task is watched for failure; Units: nanoseconds.
    pub monitor_ns: i64,
    /// Part of the slots that may fail; Units: millionths.
    pub max_failure_millionths: u32,
    /// What happens when more fail.
    pub on_failure: FailureAction,
    /// Start the new task before the old one is stopped.
    pub start_first: bool,
}

/// What happens when too many new tasks fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FailureAction {
    /// Nothing more is replaced.
    #[default]
    Pause,
    /// It goes on.
    Continue,
    /// The version before comes back.
    Rollback,
}

/// A network of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceNetwork {
    /// Name of the `Network` object.
    pub network: String,
    /// Further names of the service on it.
    pub aliases: Vec<String>,
}

/// A port that every machine leads to the tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port of the tasks.
    pub target: u16,
    /// Port of the machines; 0 means one that is chosen.
    pub published: u16,
}

/// What the controller saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SwarmServiceStatus {
    /// The roll-out that is under way, or was last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// A roll-out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// The `spec.request` that it belongs to.
    pub request: i64,
    /// It goes back to an earlier version.
    pub rollback: bool,
    /// Where it is.
    pub phase: RolloutPhase,
    /// What a user is told.
    pub message: String,
    /// Its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<MicroTime>,
}

/// Where a roll-out is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RolloutPhase {
    /// Tasks are being replaced.
    #[default]
    Running,
    /// Too many failed; a user must decide.
    Paused,
    /// All are replaced, and were watched.
    Completed,
}

/// Which task of which service a container is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskInfo {
    /// The task's id: 25 digits of base 36.
    pub id: String,
    /// Object name of its `SwarmService`.
    pub service: String,
    /// Number among the service's tasks; 0 for one that belongs to a machine.
    pub slot: u32,
    /// The machine that it belongs to, in services of mode global.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// What becomes of it.
    pub desired: TaskDesired,
    /// It was told to stop while it ran: its end is no failure.
    pub stopped: bool,
    /// Which version of the template it was made from.
    pub version: String,
    /// When it was made, to the microsecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<MicroTime>,
    /// It does not start before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_after: Option<MicroTime>,
    /// Tasks of its slot and version before it that ended and were followed by another.
    pub restarts: u32,
    /// When the last of these were followed; no more than the rules ask about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restarted_at: Vec<MicroTime>,
    /// Where it may run.
    pub placement: Placement,
}

/// What becomes of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TaskDesired {
    /// It runs.
    #[default]
    Running,
    /// It ends, and is remembered.
    Shutdown,
    /// It ends, and is forgotten.
    Remove,
}

/// A file out of a `Secret` or a `ConfigMap` in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FileMount {
    /// Out of a `Secret`; else out of a `ConfigMap`.
    pub secret: bool,
    /// Name of the object.
    pub object: String,
    /// Absolute path in the container.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits.
    pub mode: u32,
}

impl TaskTemplate {
    /// Names the template by what it says: tasks of another version are replaced.
    #[must_use]
    pub fn version(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        // FNV-1a, 64 bits, the same in every run. Not for security.
        let hash =
            text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        format!("{hash:016x}")
    }
}

/// Member of a `Secret` or `ConfigMap` with the content of a Swarm secret or config.
pub const CONTENT_MEMBER: &str = "content";

/// An id as Swarm writes them: 25 digits of base 36 for 128 bits, of which `text` has 32 hexadecimal digits (a uid, or the
/// beginning of a container's id). What is no hexadecimal digit is passed over.
#[must_use]
pub fn id_of(text: &str) -> String {
    let bits = text.chars().filter_map(|c| c.to_digit(16)).take(32).fold(0_u128, |bits, d| bits << 4 | u128::from(d));
    let mut digits = [b'0'; 25];
    let mut rest = bits;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::try_from(rest % 36).unwrap_or(0)];
        rest /= 36;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_25_digits_and_differ() {
        assert_eq!(id_of("ffffffff-ffff-ffff-ffff-ffffffffffff"), "f5lxx1zz5pnorynqglhzmsp33");
        assert_eq!(id_of(""), "0000000000000000000000000");
        assert_ne!(id_of("00000000-0000-0000-0000-000000000001"), id_of("00000000-0000-0000-0000-000000000002"));
    }
}
