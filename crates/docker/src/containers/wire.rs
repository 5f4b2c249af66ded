//! The create request as Docker writes it. Only shapes; the translation is in `config`.

use std::collections::BTreeMap;

use api::container::{HealthCheck, NetworkEndpoint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mounts;

/// A list that may also be written as one text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Words(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Many(Vec<String>),
            One(String),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Many(words) => Words(words),
            Form::One(word) => Words(vec![word]),
        })
    }
}

/// Docker's clients write `null` for what is empty.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Body of `POST /containers/create`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateRequest {
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) user: String,
    pub(crate) attach_stdin: bool,
    pub(crate) attach_stdout: bool,
    pub(crate) attach_stderr: bool,
    pub(crate) exposed_ports: BTreeMap<String, Value>,
    pub(crate) tty: bool,
    pub(crate) open_stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) env: Vec<String>,
    pub(crate) cmd: Option<Words>,
    pub(crate) healthcheck: Option<HealthConfig>,
    pub(crate) image: String,
    pub(crate) volumes: BTreeMap<String, Value>,
    pub(crate) working_dir: String,
    pub(crate) entrypoint: Option<Words>,
    pub(crate) mac_address: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stop_signal: String,
    pub(crate) stop_timeout: Option<i64>,
    /// Kept as it came, for inspect.
    pub(crate) host_config: Value,
    pub(crate) networking_config: NetworkingConfig,
}

/// Docker's health check. Units: nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HealthConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl HealthConfig {
    /// As the object has it.
    pub(crate) fn into_object(self) -> HealthCheck {
        HealthCheck {
            test: self.test,
            interval_ns: self.interval,
            timeout_ns: self.timeout,
            start_period_ns: self.start_period,
            start_interval_ns: self.start_interval,
            retries: self.retries,
        }
    }

    /// As Docker has it.
    pub(crate) fn of_object(check: &HealthCheck) -> Self {
        Self {
            test: check.test.clone(),
            interval: check.interval_ns,
            timeout: check.timeout_ns,
            start_period: check.start_period_ns,
            start_interval: check.start_interval_ns,
            retries: check.retries,
        }
    }
}

/// The part of `HostConfig` that we act on; the rest is only given back.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    pub(crate) binds: Vec<String>,
    pub(crate) mounts: Vec<mounts::MountRequest>,
    pub(crate) tmpfs: BTreeMap<String, String>,
    pub(crate) volumes_from: Vec<String>,
    pub(crate) network_mode: String,
    pub(crate) port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    pub(crate) publish_all_ports: bool,
    pub(crate) restart_policy: RestartRequest,
    pub(crate) auto_remove: bool,
    pub(crate) cap_add: Option<Words>,
    pub(crate) cap_drop: Option<Words>,
    pub(crate) dns: Vec<String>,
    pub(crate) dns_options: Vec<String>,
    pub(crate) dns_search: Vec<String>,
    pub(crate) extra_hosts: Vec<String>,
    pub(crate) links: Vec<String>,
    pub(crate) group_add: Vec<String>,
    pub(crate) ipc_mode: String,
    pub(crate) pid_mode: String,
    #[serde(rename = "UTSMode")]
    pub(crate) uts_mode: String,
    pub(crate) userns_mode: String,
    pub(crate) cgroupns_mode: String,
    pub(crate) cgroup_parent: String,
    pub(crate) storage_opt: BTreeMap<String, String>,
    pub(crate) privileged: bool,
    pub(crate) readonly_rootfs: bool,
    pub(crate) security_opt: Vec<String>,
    pub(crate) shm_size: i64,
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) ulimits: Vec<UlimitRequest>,
    pub(crate) init: Option<bool>,
    pub(crate) runtime: String,
    pub(crate) log_config: LogConfig,
    pub(crate) oom_score_adj: i32,
    pub(crate) oom_kill_disable: bool,
    pub(crate) devices: Vec<DeviceRequest>,
    pub(crate) device_cgroup_rules: Vec<String>,
    pub(crate) device_requests: Vec<Value>,
    pub(crate) masked_paths: Option<Vec<String>>,
    pub(crate) readonly_paths: Option<Vec<String>>,
    pub(crate) memory: i64,
    pub(crate) memory_swap: i64,
    pub(crate) memory_reservation: i64,
    pub(crate) nano_cpus: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_period: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) blkio_device_read_bps: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) blkio_device_write_bps: Vec<ThrottleDevice>,
    #[serde(rename = "BlkioDeviceReadIOps", deserialize_with = "null_is_default")]
    pub(crate) blkio_device_read_iops: Vec<ThrottleDevice>,
    #[serde(rename = "BlkioDeviceWriteIOps", deserialize_with = "null_is_default")]
    pub(crate) blkio_device_write_iops: Vec<ThrottleDevice>,
    pub(crate) blkio_weight: u16,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) blkio_weight_device: Vec<Value>,
    pub(crate) isolation: String,
    pub(crate) memory_swappiness: Option<i64>,
    pub(crate) pids_limit: i64,
}

/// One place on the host for a port.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct PortBinding {
    pub(crate) host_ip: String,
    pub(crate) host_port: String,
}

/// When to start again.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RestartRequest {
    pub(crate) name: String,
    pub(crate) maximum_retry_count: i64,
}

/// A ulimit.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct UlimitRequest {
    pub(crate) name: String,
    pub(crate) soft: i64,
    pub(crate) hard: i64,
}

/// Where logs go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct LogConfig {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    pub(crate) config: BTreeMap<String, String>,
}

/// A device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DeviceRequest {
    pub(crate) path_on_host: String,
    pub(crate) path_in_container: String,
    pub(crate) cgroup_permissions: String,
}

/// A bound on a device's rate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ThrottleDevice {
    pub(crate) path: String,
    pub(crate) rate: u64,
}

/// Networks to join.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct NetworkingConfig {
    pub(crate) endpoints_config: BTreeMap<String, Option<EndpointConfig>>,
}

/// How to join one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EndpointConfig {
    #[serde(rename = "IPAMConfig")]
    pub(crate) ipam_config: Option<EndpointAddresses>,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) links: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) aliases: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) driver_opts: BTreeMap<String, String>,
    pub(crate) mac_address: String,
}

/// Wanted addresses.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EndpointAddresses {
    #[serde(rename = "IPv4Address")]
    pub(crate) ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    pub(crate) ipv6_address: String,
    #[serde(rename = "LinkLocalIPs", deserialize_with = "null_is_default")]
    pub(crate) link_local_ips: Vec<String>,
}

impl EndpointConfig {
    /// As the object has it.
    pub(crate) fn into_object(self) -> NetworkEndpoint {
        let addresses = self.ipam_config.unwrap_or_default();
        NetworkEndpoint {
            aliases: self.aliases,
            links: self.links,
            ipv4_address: addresses.ipv4_address,
            ipv6_address: addresses.ipv6_address,
            link_local_addresses: addresses.link_local_ips,
            driver_options: self.driver_opts,
            mac_address: self.mac_address,
        }
    }
}
