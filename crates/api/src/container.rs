//! `Container`: a Docker container. Its create-time configuration is the spec; it keeps its writable layer over stops.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::swarm::{FileMount, TaskInfo};

/// All capabilities, in the order of their numbers. Source: linux/capability.h of 6.18.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities that containers have by default. `Source:` Docker, "Runtime privilege and Linux capabilities".
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What the user wants of a container. `metadata.name` is its id: 64 lower-case hexadecimal digits.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "Container",
    namespaced,
    status = "ContainerStatus",
    shortname = "ctr"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerSpec {
    /// Docker's name, without the leading slash; unique in its namespace.
    pub name: String,
    /// The machine that it is bound to; the scheduler fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// What it should be doing.
    pub desired: Desired,
    /// Counts requests to start; the agent starts it anew whenever this is above `status.observedStart`.
    pub start_request: i64,
    /// Image reference as the user wrote it.
    pub image: String,
    /// Image id (`sha256:…`) that the reference meant at creation; empty: the agent finds or pulls it at the first start,
    /// and completes the spec with what the image says.
    pub image_id: String,
    /// `Secret` in its namespace with the credentials of the image's registry, in the form of `kubernetes.io/dockerconfigjson`;
    /// empty means none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pull_secret: String,
    /// Program and arguments, entry point included.
    pub command: Vec<String>,
    /// How many words at the front of `command` are the entry point (Docker shows them apart).
    pub entrypoint_length: usize,
    /// Environment, `NAME=value`, image's own included.
    pub environment: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_directory: String,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// Host name; empty means the first 12 digits of the id.
    pub hostname: String,
    /// Domain name.
    pub domainname: String,
    /// Give the main process a terminal.
    pub terminal: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Close standard input when the first attached client leaves.
    pub stdin_once: bool,
    /// Labels as Docker has them (free-form, unlike Kubernetes' labels).
    pub labels: BTreeMap<String, String>,
    /// Delete the object when the container ends.
    pub auto_remove: bool,
    /// When to start it again by itself.
    pub restart_policy: RestartPolicy,
    /// Signal that asks it to stop; empty means `SIGTERM`.
    pub stop_signal: String,
    /// How long a stop waits before SIGKILL; Units: seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout_seconds: Option<i64>,
    /// Mounts of host paths, volumes and tmpfs.
    pub mounts: Vec<Mount>,
    /// Files out of secrets and config maps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileMount>,
    /// Ports to publish on the host.
    pub ports: Vec<PortMapping>,
    /// Ports that the image or the user declared (`80/tcp`), published or not.
    pub exposed_ports: Vec<String>,
    /// `bridge`, `none`, `host`, `container:<id>` or the name of a network.
    pub network_mode: String,
    /// Networks to join (by `Network` object name), with options; empty with mode bridge means the default network.
    pub networks: BTreeMap<String, NetworkEndpoint>,
    /// Other containers whose addresses it is told when it starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Extra lines of /etc/hosts, `name:address`.
    pub extra_hosts: Vec<String>,
    /// Name servers; empty means the host's, or Nuée's own on user networks.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Bounds.
    pub resources: Resources,
    /// Security settings.
    pub security: Security,
    /// An init process that reaps orphans.
    pub init: bool,
    /// Size of /dev/shm; 0 means 64 MiB. Units: bytes.
    pub shm_size_bytes: i64,
    /// Kernel settings of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// ulimits: name, soft, hard.
    pub ulimits: Vec<Ulimit>,
    /// Health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthCheck>,
    /// Largest size of one log file before rotation; 0 means the default. Units: bytes.
    pub log_max_size_bytes: i64,
    /// Number of rotated log files to keep; 0 means the default.
    pub log_max_files: i64,
    /// Where the log goes: `json-file`, `local`, `journald` or `none`; empty means `json-file`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_driver: String,
    /// Options of the log's driver as the user wrote them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub log_options: BTreeMap<String, String>,
    /// The task of a service that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskInfo>,
    /// The dialect's own create request (JSON text), given back by inspect; the agent never reads it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dialect_config: String,
}

/// What the user wants the container to be doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Made but never started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Stopped; keeps its writable layer.
    Stopped,
    /// Frozen.
    Paused,
}

/// Docker's restart policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestartPolicy {
    /// `no` (or empty), `always`, `unless-stopped`, `on-failure`.
    pub name: String,
    /// For `on-failure`: at most so many restarts; 0 means no limit.
    pub maximum_retry_count: i64,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs` or `image`.
    pub kind: String,
    /// Host path, name of a `Volume` object, or an image; empty for tmpfs.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Not writable.
    pub read_only: bool,
    /// For volumes: do not copy the image's content at the target into a new volume.
    pub no_copy: bool,
    /// Mount propagation for binds; empty means `rprivate`.
    pub propagation: String,
    /// For tmpfs: size bound; 0 means none. Units: bytes.
    pub tmpfs_size_bytes: i64,
    /// For tmpfs: mode bits; 0 means 0o1777.
    pub tmpfs_mode: u32,
    /// For tmpfs: further options of mount(8), such as `exec` and `uid=5`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs_options: Vec<String>,
    /// For binds: without what is mounted below the source.
    #[serde(skip_serializing_if = "is_false")]
    pub not_recursive: bool,
    /// Of a mount that is not writable: what is mounted below it is left as it is.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only_alone: bool,
    /// Of a mount that is not writable: without a kernel that makes all below it unwritable, the container does not start.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only_throughout: bool,
    /// For volumes and images: the directory of it that is mounted; empty means all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub_path: String,
}

impl Mount {
    /// Whether nobody may write to it. Images are never written to.
    pub fn is_for_reading(&self) -> bool {
        self.read_only || self.kind == "image"
    }
}

impl ContainerSpec {
    /// The images that it mounts beside its own: names or ids.
    pub fn mounted_images(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter(|mount| mount.kind == "image").map(|mount| mount.source.as_str())
    }
}

impl Container {
    /// Whether its machine removes it now: it is to go after its last run, which has ended or could not begin.
    pub fn goes_by_itself(&self) -> bool {
        let status = self.status.clone().unwrap_or_default();
        let is_wanted = matches!(self.spec.desired, Desired::Running | Desired::Paused);
        let is_due = is_wanted && self.spec.start_request > status.observed_start;
        let is_over = match status.state {
            State::Exited => true,
            State::Created => status.observed_start > 0,
            State::Running | State::Paused | State::Restarting | State::Dead => false,
        };
        self.spec.auto_remove && is_over && !is_due
    }
}

/// One published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapping {
    /// Port in the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address on the host; empty means all.
    pub host_ip: String,
    /// Port on the host; 0 means any free one (the choice is in the status).
    pub host_port: u16,
    /// Last port of a range on the host of which any free one is wanted; 0 means no range.
    #[serde(skip_serializing_if = "is_zero")]
    pub host_port_end: u16,
}

/// Another container on the default network that this one reaches by a name, and is told about by its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    /// Object name of the other container.
    pub container: String,
    /// The other container's own name.
    pub name: String,
    /// What this container calls it.
    pub alias: String,
    /// Ports that it exposes, `80/tcp`.
    pub ports: Vec<String>,
    /// Its environment, `NAME=value`.
    pub environment: Vec<String>,
}

/// How a container joins a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkEndpoint {
    /// Extra names in the network's DNS.
    pub aliases: Vec<String>,
    /// Further names for other containers in the network's DNS, `container:alias`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Wanted address; empty means any.
    pub ipv4_address: String,
    /// Wanted IPv6 address; empty means any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_address: String,
    /// Link-local addresses that are wanted too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub link_local_addresses: Vec<String>,
    /// Options for the network's driver.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_options: BTreeMap<String, String>,
    /// Wanted MAC address; empty means any.
    pub mac_address: String,
}

/// Bounds on a container; 0 means none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Processor time; Units: billionths of a CPU.
    pub nano_cpus: i64,
    /// CPU shares (relative weight).
    pub cpu_shares: i64,
    /// CFS quota; Units: microseconds.
    pub cpu_quota_us: i64,
    /// CFS period; Units: microseconds.
    pub cpu_period_us: i64,
    /// CPUs it may use (`0-1`); empty means all.
    pub cpuset_cpus: String,
    /// Memory nodes it may use (`0-1`); empty means all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpuset_mems: String,
    /// Bounds on the rate of devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_rates: Vec<DeviceRate>,
    /// Memory bound; Units: bytes.
    pub memory_bytes: i64,
    /// Memory plus swap bound; Units: bytes; -1 means no bound on swap.
    pub memory_swap_bytes: i64,
    /// Soft memory bound; Units: bytes.
    pub memory_reservation_bytes: i64,
    /// Most tasks; 0 means what the machine gives to who asks for nothing, -1 no bound.
    pub pids_limit: i64,
    /// Do not kill on out-of-memory.
    pub oom_kill_disable: bool,
    /// How readily its memory is swapped out, 0 to 100; `None` leaves it to the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swappiness: Option<u8>,
    /// Control group above the container's own, as a plain absolute path; empty means that of the daemon.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_parent: String,
    /// Weight of block input and output, 10 to 1000; 0 means the usual one.
    #[serde(skip_serializing_if = "is_zero")]
    pub block_weight: u16,
}

/// A bound on how fast a block device may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceRate {
    /// `readBytes`, `writeBytes`, `readOperations` or `writeOperations`.
    pub kind: String,
    /// Path of the device on the machine.
    pub path: String,
    /// The bound; Units: per second.
    pub rate: u64,
}

/// A change of bounds that was tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceUpdate {
    /// The bounds.
    pub resources: Resources,
    /// Why they are not in force; empty when they are.
    pub error: String,
}

/// Security settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Everything allowed.
    pub privileged: bool,
    /// Capabilities to add (`NET_ADMIN`, `ALL`).
    pub capabilities_add: Vec<String>,
    /// Capabilities to drop.
    pub capabilities_drop: Vec<String>,
    /// Root file system not writable.
    pub read_only_root: bool,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `default`, `unconfined`, or a JSON profile; empty means default.
    pub seccomp: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Share the host's process namespace (`host`) or another container's (`container:<id>`).
    pub pid_mode: String,
    /// Share the host's IPC namespace (`host`), that of another container (`container:<id>`), or one's own (`shareable`);
    /// `none` is without shared memory.
    pub ipc_mode: String,
    /// Share the host's UTS namespace (`host`).
    pub uts_mode: String,
    /// See the machine's control groups (`host`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroup_mode: String,
    /// Devices: host path, container path, permissions, separated by colons.
    pub devices: Vec<String>,
    /// Masked paths; `None` means the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_paths: Option<Vec<String>>,
    /// Read-only paths; `None` means the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_paths: Option<Vec<String>>,
    /// OOM score adjustment.
    pub oom_score_adj: i32,
}

/// A ulimit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Ulimit {
    /// `nofile`, `nproc`…
    pub name: String,
    /// Soft bound; -1 means unlimited.
    pub soft: i64,
    /// Hard bound; -1 means unlimited.
    pub hard: i64,
}

/// A health check. Units: nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthCheck {
    /// `["CMD", …]`, `["CMD-SHELL", text]` or `["NONE"]`.
    pub test: Vec<String>,
    /// Time between two checks; 0 means 30 s.
    pub interval_ns: i64,
    /// Time for one check; 0 means 30 s.
    pub timeout_ns: i64,
    /// Grace time after the start.
    pub start_period_ns: i64,
    /// Time between checks during the grace time; 0 means 5 s.
    pub start_interval_ns: i64,
    /// Failures in a row that mean unhealthy; 0 means 3.
    pub retries: i64,
}

/// What the agent saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Where it is in its life.
    pub state: State,
    /// The `spec.startRequest` that was acted on last.
    pub observed_start: i64,
    /// Host process id; 0 when it does not run.
    pub pid: i64,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// The last run was ended by the OOM killer.
    pub oom_killed: bool,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Start of the last run, to the microsecond: short runs are told apart by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// End of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Restarts by policy since the last start request.
    pub restart_count: i64,
    /// Addresses by network name.
    pub networks: BTreeMap<String, NetworkAttachment>,
    /// Ports as they were bound on the host.
    pub ports: Vec<PortMapping>,
    /// `starting`, `healthy`, `unhealthy`; empty without a health check.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub health: String,
    /// Results of the last health checks, newest last, at most five.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub health_log: Vec<HealthResult>,
    /// Failures in a row.
    pub health_failing_streak: i64,
    /// What came of the last change of bounds while it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_update: Option<ResourceUpdate>,
    /// Where mounted volumes lie on the machine, by target path.
    pub volume_paths: BTreeMap<String, String>,
    /// Path of the log file on the machine.
    pub log_path: String,
    /// Why no machine was found for it yet; said by the scheduler.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waiting: String,
}

/// One health check's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthResult {
    /// Its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<MicroTime>,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<MicroTime>,
    /// Exit code; 0 healthy.
    pub exit_code: i64,
    /// First 4 KiB of what it printed.
    pub output: String,
}

/// Life of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not started yet.
    #[default]
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended; waits for its next start by policy.
    Restarting,
    /// Ended.
    Exited,
    /// Cannot be used any more.
    Dead,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// For `skip_serializing_if`, which passes a reference.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// A container's place on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkAttachment {
    /// Address.
    pub ip: String,
    /// Length of the subnet's prefix. Units: bits.
    pub prefix_length: u8,
    /// Gateway.
    pub gateway: String,
    /// IPv6 address; empty without IPv6.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
    /// Length of the IPv6 subnet's prefix. Units: bits.
    #[serde(skip_serializing_if = "is_zero")]
    pub ipv6_prefix_length: u8,
    /// IPv6 gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_gateway: String,
    /// MAC address.
    pub mac: String,
    /// Names in the network's DNS.
    pub aliases: Vec<String>,
    /// Interface in the container.
    pub interface: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_goes_by_itself_after_its_last_run_or_a_start_that_failed() {
        let goes = |auto_remove, state, start_request, observed_start| {
            let spec =
                ContainerSpec { auto_remove, start_request, desired: Desired::Running, ..ContainerSpec::default() };
            let status = ContainerStatus { state, observed_start, ..ContainerStatus::default() };
            Container { status: Some(status), ..Container::new("c", spec) }.goes_by_itself()
        };
        assert!(goes(true, State::Exited, 1, 1));
        assert!(goes(true, State::Created, 1, 1), "its start failed");
        assert!(!goes(true, State::Created, 0, 0), "it was not started");
        assert!(!goes(true, State::Created, 1, 0), "it is to start");
        assert!(!goes(true, State::Exited, 2, 1), "it starts again");
        assert!(!goes(true, State::Running, 1, 1));
        assert!(!goes(false, State::Exited, 1, 1), "it stays");
    }
}
