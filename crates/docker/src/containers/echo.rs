//! What Docker gives back in inspect although nothing acts on it: the request's own `HostConfig` and a few flags, kept in
//! `spec.dialectConfig`, and Docker's defaults for what the request left out.

use api::Container;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::wire::CreateRequest;
use crate::time;

/// The kept part of a create request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Echo {
    /// When it was made. Units: nanoseconds since the Unix epoch.
    pub(crate) created_ns: i64,
    pub(crate) attach_stdin: bool,
    pub(crate) attach_stdout: bool,
    pub(crate) attach_stderr: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<String>,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(crate) host_config: Value,
}

impl Echo {
    /// Keeps what inspect must give back.
    pub(crate) fn of_request(request: &CreateRequest) -> Self {
        Self {
            created_ns: time::now_ns(),
            attach_stdin: request.attach_stdin,
            attach_stdout: request.attach_stdout,
            attach_stderr: request.attach_stderr,
            volumes: request.volumes.keys().cloned().collect(),
            host_config: request.host_config.clone(),
        }
    }

    /// Reads it back; a container that another client made has none.
    pub(crate) fn of(container: &Container) -> Self {
        serde_json::from_str(&container.spec.dialect_config).unwrap_or_default()
    }

    /// As kept in the object.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The whole `HostConfig` as Docker shows it.
    pub(crate) fn full_host_config(&self, container: &Container) -> Value {
        let mut full = defaults();
        if let Value::Object(own) = &self.host_config {
            full.extend(own.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        }
        let spec = &container.spec;
        let is_text = |value: Option<&Value>, text: &str| value.and_then(Value::as_str) == Some(text);
        if is_text(full.get("NetworkMode"), "default") || is_text(full.get("NetworkMode"), "") {
            let mode = if spec.network_mode.is_empty() { "bridge" } else { &spec.network_mode };
            full.insert("NetworkMode".into(), json!(mode));
        }
        if full.get("ShmSize").and_then(Value::as_i64) == Some(0) {
            full.insert("ShmSize".into(), json!(64 << 20));
        }
        if is_text(full.get("IpcMode"), "") {
            full.insert("IpcMode".into(), json!("private"));
        }
        if is_text(full.get("CgroupnsMode"), "") {
            full.insert("CgroupnsMode".into(), json!("private"));
        }
        // Clients write these for "none".
        for (name, none) in [("MemorySwappiness", -1), ("PidsLimit", 0)] {
            if full.get(name).and_then(Value::as_i64) == Some(none) {
                full.insert(name.into(), Value::Null);
            }
        }
        if is_text(full.get("Runtime"), "") {
            full.insert("Runtime".into(), json!("runc"));
        }
        let policy = &spec.restart_policy;
        full.insert(
            "RestartPolicy".into(),
            json!({ "Name": if policy.name.is_empty() { "no" } else { &policy.name }, "MaximumRetryCount": policy.maximum_retry_count }),
        );
        if full.pointer_text("/LogConfig/Type").is_empty() {
            let config = full.get("LogConfig").and_then(|log| log.get("Config")).filter(|config| !config.is_null());
            let config = config.cloned().unwrap_or_else(|| json!({}));
            full.insert("LogConfig".into(), json!({ "Type": "json-file", "Config": config }));
        }
        full.insert("AutoRemove".into(), json!(spec.auto_remove));
        Value::Object(full)
    }
}

trait PointerText {
    fn pointer_text(&self, pointer: &str) -> &str;
}

impl PointerText for Map<String, Value> {
    fn pointer_text(&self, pointer: &str) -> &str {
        let mut parts = pointer.trim_start_matches('/').splitn(2, '/');
        let first = parts.next().and_then(|key| self.get(key));
        first.and_then(|value| value.get(parts.next().unwrap_or(""))).and_then(Value::as_str).unwrap_or("")
    }
}

/// Docker's `HostConfig` of a container that asks for nothing.
fn defaults() -> Map<String, Value> {
    let value = json!({
        "Binds": null, "ContainerIDFile": "", "LogConfig": { "Type": "json-file", "Config": {} },
        "NetworkMode": "bridge", "PortBindings": {}, "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": false, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [0, 0], "CapAdd": null,
        "CapDrop": null, "CgroupnsMode": "private", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null,
        "GroupAdd": null, "IpcMode": "private", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null, "UTSMode": "",
        "UsernsMode": "", "ShmSize": 67_108_864, "Runtime": "runc", "Isolation": "", "CpuShares": 0, "Memory": 0,
        "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [], "CpuPeriod": 0,
        "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "",
        "Devices": [], "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0,
        "MemorySwappiness": null, "OomKillDisable": false, "PidsLimit": null, "Ulimits": [], "CpuCount": 0,
        "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
        "MaskedPaths": ["/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
            "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
            "/sys/firmware", "/sys/devices/virtual/powercap"],
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
