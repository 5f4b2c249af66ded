//! Pods that this machine must not run. Pure.

use k8s_openapi::api::core::v1::PodSpec;

/// Kernel settings that belong to the pod alone. Source: Kubernetes, "Using sysctls in a Kubernetes Cluster", safe sysctls.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why the pod may not run, if so: reason and message.
#[must_use]
pub fn refusal(spec: &PodSpec) -> Option<(&'static str, String)> {
    let security = spec.security_context.as_ref()?;
    for setting in security.sysctls.iter().flatten() {
        // Slashes are another way to write dots.
        let name = setting.name.replace('/', ".");
        let shared = spec.host_network == Some(true) && name.starts_with("net.")
            || spec.host_ipc == Some(true) && name.starts_with("kernel.shm");
        if !SAFE_SYSCTLS.contains(&name.as_str()) || shared {
            return Some(("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, reason: Option<&str>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(refusal(&spec).map(|r| r.0), reason);
    }

    #[test]
    fn settings_that_reach_beyond_the_pod_are_refused() {
        let sysctl = |name: &str| json!({"sysctls": [{"name": name, "value": "1"}]});
        check(json!({"securityContext": sysctl("net.ipv4.tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("net/ipv4/tcp_syncookies")}), None);
        check(json!({"securityContext": sysctl("kernel.msgmax")}), Some("SysctlForbidden"));
        check(json!({"securityContext": sysctl("vm.swappiness")}), Some("SysctlForbidden"));
        check(
            json!({"hostNetwork": true, "securityContext": sysctl("net.ipv4.tcp_syncookies")}),
            Some("SysctlForbidden"),
        );
        check(json!({}), None);
    }
}
