//! A service's specification as Docker writes it, and its names in Docker's case. Only shapes; the translation is in
//! [`super::spec`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::containers::wire::HealthConfig;
use crate::error::{Error, Result};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) task_template: Template,
    pub(super) mode: Value,
    pub(super) update_config: Option<UpdateConfig>,
    pub(super) rollback_config: Option<UpdateConfig>,
    pub(super) networks: Option<Vec<NetworkConfig>>,
    pub(super) endpoint_spec: Option<EndpointSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Template {
    pub(super) container_spec: Option<Container>,
    pub(super) plugin_spec: Option<Value>,
    pub(super) resources: Option<Resources>,
    pub(super) restart_policy: Option<RestartPolicy>,
    pub(super) placement: Option<PlacementSpec>,
    pub(super) networks: Option<Vec<NetworkConfig>>,
    pub(super) log_driver: Option<Value>,
    pub(super) force_update: u64,
    pub(super) runtime: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Container {
    pub(super) image: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) command: Option<Vec<String>>,
    pub(super) args: Option<Vec<String>>,
    pub(super) hostname: String,
    pub(super) env: Option<Vec<String>>,
    pub(super) dir: String,
    pub(super) user: String,
    pub(super) groups: Option<Vec<String>>,
    pub(super) privileges: Option<Value>,
    #[serde(rename = "TTY")]
    pub(super) tty: bool,
    pub(super) open_stdin: bool,
    pub(super) read_only: bool,
    pub(super) mounts: Option<Vec<Value>>,
    pub(super) stop_signal: String,
    pub(super) stop_grace_period: Option<i64>,
    pub(super) healthcheck: Option<HealthConfig>,
    pub(super) hosts: Option<Vec<String>>,
    #[serde(rename = "DNSConfig")]
    pub(super) dns_config: Option<DnsConfig>,
    pub(super) secrets: Option<Vec<FileReference>>,
    pub(super) configs: Option<Vec<FileReference>>,
    pub(super) init: Option<bool>,
    pub(super) sysctls: Option<BTreeMap<String, String>>,
    pub(super) capability_add: Option<Vec<String>>,
    pub(super) capability_drop: Option<Vec<String>>,
    pub(super) ulimits: Option<Vec<Value>>,
    pub(super) oom_score_adj: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DnsConfig {
    pub(super) nameservers: Option<Vec<String>>,
    pub(super) search: Option<Vec<String>>,
    pub(super) options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileReference {
    #[serde(rename = "File")]
    pub(super) file: Option<FileTarget>,
    #[serde(rename = "SecretID", alias = "ConfigID")]
    pub(super) id: String,
    #[serde(rename = "SecretName", alias = "ConfigName")]
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileTarget {
    #[serde(rename = "Name")]
    pub(super) name: String,
    #[serde(rename = "UID")]
    pub(super) uid: String,
    #[serde(rename = "GID")]
    pub(super) gid: String,
    #[serde(rename = "Mode")]
    pub(super) mode: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Resources {
    pub(super) limits: Option<Amounts>,
    pub(super) reservations: Option<Amounts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Amounts {
    #[serde(rename = "NanoCPUs")]
    pub(super) nano_cpus: i64,
    pub(super) memory_bytes: i64,
    pub(super) pids: i64,
    pub(super) generic_resources: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RestartPolicy {
    pub(super) condition: String,
    pub(super) delay: Option<i64>,
    pub(super) max_attempts: Option<u64>,
    pub(super) window: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PlacementSpec {
    pub(super) constraints: Option<Vec<String>>,
    pub(super) preferences: Option<Vec<Value>>,
    pub(super) max_replicas: u64,
    pub(super) platforms: Option<Vec<Platform>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    #[serde(rename = "Architecture")]
    pub(super) architecture: String,
    #[serde(rename = "OS")]
    pub(super) os: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkConfig {
    pub(super) target: String,
    pub(super) aliases: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct UpdateConfig {
    pub(super) parallelism: u64,
    pub(super) delay: i64,
    pub(super) failure_action: String,
    pub(super) monitor: i64,
    pub(super) max_failure_ratio: f64,
    pub(super) order: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct EndpointSpec {
    pub(super) mode: String,
    pub(super) ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Port {
    pub(super) protocol: String,
    pub(super) target_port: u32,
    pub(super) published_port: u32,
    pub(super) publish_mode: String,
}

/// Members whose own members are named by the user.
const FREE: [&str; 5] = ["Labels", "Sysctls", "Options", "DriverOpts", "Config"];
/// Names that some clients write in other cases than Docker does, whose reader does not mind.
const NAMES: [&str; 24] = [
    "Mode",
    "Replicated",
    "Global",
    "ReplicatedJob",
    "GlobalJob",
    "Replicas",
    "MaxConcurrent",
    "TotalCompletions",
    "Parallelism",
    "Delay",
    "Order",
    "FailureAction",
    "Monitor",
    "MaxFailureRatio",
    "Name",
    "Labels",
    "TaskTemplate",
    "ContainerSpec",
    "Networks",
    "Target",
    "Aliases",
    "EndpointSpec",
    "UpdateConfig",
    "RollbackConfig",
];

/// The same specification with Docker's names in Docker's case.
///
/// Errors: a member is there twice, in different cases.
pub(super) fn canonical(value: Value) -> Result<Value> {
    match value {
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, member) in map {
                let known = NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(&key));
                let key = known.map_or(key, str::to_owned);
                let member = if FREE.contains(&key.as_str()) { member } else { canonical(member)? };
                if out.insert(key.clone(), member).is_some() {
                    return Err(Error::Invalid(format!("invalid JSON: {key} is there twice")));
                }
            }
            Ok(Value::Object(out))
        }
        Value::Array(items) => Ok(Value::Array(items.into_iter().map(canonical).collect::<Result<_>>()?)),
        other => Ok(other),
    }
}
