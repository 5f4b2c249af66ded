//! Pod security standards: `baseline` and `restricted`, chosen by labels of the namespace. `Source:` Kubernetes' Pod
//! Security Standards. The agent checks again what the machine must never do.

use api::privilege::{Privilege, of_container, of_machine, of_network, of_volume};
use api::{NetworkSpec, VirtualMachineSpec};
use serde_json::Value;

use crate::kind::Kind;
use crate::server::ApiServer;
use crate::status::Status;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// Capabilities that baseline lets a container add.
const BASELINE_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "NET_BIND_SERVICE",
];
/// Sysctls that baseline lets a pod set.
const SAFE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];
/// Volume sources that restricted allows.
const RESTRICTED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

fn level(labels: &Value, mode: &str) -> Level {
    match labels.get(format!("{PREFIX}{mode}")).and_then(Value::as_str) {
        Some("baseline") => Level::Baseline,
        // A level that nobody knows is the strictest.
        Some("privileged") | None => Level::Privileged,
        Some(_) => Level::Restricted,
    }
}

/// Kinds of Nuée's own that can reach the machine; a namespace that keeps pods from it keeps them too.
pub(super) const OWN_KINDS: [&str; 4] = ["containers", "volumes", "networks", "virtualmachines"];

/// Checks a pod, or an object of one of [`OWN_KINDS`], against its namespace's levels; answers warnings. Errors: forbidden.
/// What an own object asked for before stays: it can be stopped, and its machine can write into it.
pub(super) fn check(
    server: &ApiServer,
    kind: &Kind,
    namespace: &str,
    checked: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let Some(object) = server.cache_of("", "namespaces").get(namespace) else { return Ok(Vec::new()) };
    let labels = object.to_value()["metadata"]["labels"].take();
    let describe = |level: Level| {
        let problems = match kind.group.as_str() {
            "" => violations(checked, level),
            _ if level == Level::Privileged => Vec::new(),
            _ => {
                let before = old.map(|old| own_violations(&kind.plural, &old["spec"])).unwrap_or_default();
                let mut now = own_violations(&kind.plural, &checked["spec"]);
                now.retain(|problem| !before.contains(problem));
                now
            }
        };
        let name = if level == Level::Restricted { "restricted" } else { "baseline" };
        (!problems.is_empty()).then(|| format!("violates PodSecurity \"{name}:latest\": {}", problems.join(", ")))
    };
    if let Some(problem) = describe(level(&labels, "enforce")) {
        let name = crate::json::text(checked, "/metadata/name");
        return Err(Status::forbidden(&kind.group, &kind.plural, name, &problem));
    }
    Ok(describe(level(&labels, "warn"))
        .into_iter()
        .map(|problem| format!("would {}", problem.replacen("violates", "violate", 1)))
        .collect())
}

/// What an object of Nuée's own asks of the machine itself.
fn own_violations(plural: &str, spec: &Value) -> Vec<String> {
    let text = |found: Vec<Privilege>| found.iter().map(ToString::to_string).collect();
    // What does not have the kind's shape reaches no machine.
    match plural {
        "containers" => {
            serde_json::from_value(spec.clone()).map_or_else(|_| Vec::new(), |spec| text(of_container(&spec)))
        }
        "volumes" => serde_json::from_value(spec["options"].clone())
            .map_or_else(|_| Vec::new(), |options| text(of_volume(&options))),
        "networks" => serde_json::from_value::<NetworkSpec>(spec.clone())
            .map_or_else(|_| Vec::new(), |spec| text(of_network(spec.mode, &spec.options))),
        "virtualmachines" => serde_json::from_value::<VirtualMachineSpec>(spec.clone())
            .map_or_else(|_| Vec::new(), |spec| text(of_machine(&spec))),
        _ => Vec::new(),
    }
}

fn violations(pod: &Value, level: Level) -> Vec<String> {
    let mut found = Vec::new();
    if level == Level::Privileged {
        return found;
    }
    let spec = &pod["spec"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field] == true {
            found.push(format!("host namespaces ({field}=true)"));
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let sources =
            volume.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).filter(|name| *name != "name");
        for source in sources {
            let forbidden =
                if level == Level::Restricted { !RESTRICTED_VOLUMES.contains(&source) } else { source == "hostPath" };
            if forbidden {
                found.push(format!(
                    "restricted volume types (volume {:?} uses {source})",
                    crate::json::text(volume, "/name")
                ));
            }
        }
    }
    for sysctl in spec["securityContext"]["sysctls"].as_array().into_iter().flatten() {
        if !SAFE_SYSCTLS.contains(&crate::json::text(sysctl, "/name")) {
            found.push(format!("forbidden sysctls ({})", crate::json::text(sysctl, "/name")));
        }
    }
    context(&spec["securityContext"], "pod", &mut found);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let name = format!("container {:?}", crate::json::text(container, "/name"));
            baseline(container, &name, &mut found);
            context(&container["securityContext"], &name, &mut found);
            if level == Level::Restricted {
                restricted(container, &spec["securityContext"], &name, &mut found);
            }
        }
    }
    found
}

/// What holds for the security context of a pod and of a container alike.
fn context(context: &Value, name: &str, found: &mut Vec<String>) {
    if context["seccompProfile"]["type"] == "Unconfined" {
        found.push(format!("seccompProfile ({name} must not set Unconfined)"));
    }
    if context["appArmorProfile"]["type"] == "Unconfined" {
        found.push(format!("appArmorProfile ({name} must not set Unconfined)"));
    }
    if context["windowsOptions"]["hostProcess"] == true {
        found.push(format!("hostProcess ({name} must not set it)"));
    }
    let selinux = &context["seLinuxOptions"];
    let class = crate::json::text(selinux, "/type");
    if !matches!(class, "" | "container_t" | "container_init_t" | "container_kvm_t" | "container_engine_t")
        || !crate::json::is_empty(selinux.get("user"))
        || !crate::json::is_empty(selinux.get("role"))
    {
        found.push(format!("seLinuxOptions ({name} set forbidden options)"));
    }
}

fn baseline(container: &Value, name: &str, found: &mut Vec<String>) {
    let context = &container["securityContext"];
    if context["privileged"] == true {
        found.push(format!("privileged ({name} must not set securityContext.privileged=true)"));
    }
    for capability in crate::json::strings(context, "/capabilities/add") {
        if !BASELINE_CAPABILITIES.contains(&capability.trim_start_matches("CAP_")) {
            found.push(format!(
                "non-default capabilities ({name} must not include {capability:?} in securityContext.capabilities.add)"
            ));
        }
    }
    if container["ports"].as_array().into_iter().flatten().any(|port| port["hostPort"].as_u64().unwrap_or(0) != 0) {
        found.push(format!("hostPort ({name} uses host ports)"));
    }
    if !matches!(crate::json::text(context, "/procMount"), "" | "Default") {
        found.push(format!("procMount ({name} must not set it)"));
    }
}

fn restricted(container: &Value, pod: &Value, name: &str, found: &mut Vec<String>) {
    let own = &container["securityContext"];
    let either = |field: &str| if own[field].is_null() { &pod[field] } else { &own[field] };
    if own["allowPrivilegeEscalation"] != false {
        found.push(format!("allowPrivilegeEscalation != false ({name} must set it to false)"));
    }
    if !crate::json::strings(own, "/capabilities/drop").iter().any(|capability| capability == "ALL") {
        found.push(format!("unrestricted capabilities ({name} must set securityContext.capabilities.drop=[\"ALL\"])"));
    }
    if crate::json::strings(own, "/capabilities/add").iter().any(|capability| capability != "NET_BIND_SERVICE") {
        found.push(format!("unrestricted capabilities ({name} may add only NET_BIND_SERVICE)"));
    }
    if *either("runAsNonRoot") != true {
        found.push(format!("runAsNonRoot != true (pod or {name} must set it)"));
    }
    if either("runAsUser").as_i64() == Some(0) {
        found.push(format!("runAsUser=0 ({name} must not run as root)"));
    }
    if !matches!(crate::json::text(either("seccompProfile"), "/type"), "RuntimeDefault" | "Localhost") {
        found.push(format!("seccompProfile (pod or {name} must set it to RuntimeDefault or Localhost)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value) -> (bool, bool) {
        let pod = json!({"spec": spec});
        (violations(&pod, Level::Baseline).is_empty(), violations(&pod, Level::Restricted).is_empty())
    }

    #[test]
    fn every_field_of_the_standards_is_looked_at() {
        let safe = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(check(json!({"containers": [{"name": "c", "securityContext": safe}]})), (true, true));
        assert_eq!(check(json!({"containers": [{"name": "c"}]})), (true, false));
        for bad in [
            json!({"hostNetwork": true}),
            json!({"hostPID": true}),
            json!({"hostIPC": true}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern"}]}}),
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            json!({"securityContext": {"seLinuxOptions": {"user": "x"}}}),
            json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
            json!({"initContainers": [{"name": "c", "securityContext": {"privileged": true}}]}),
            json!({"ephemeralContainers": [{"name": "c", "securityContext": {"privileged": true}}]}),
            json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
            json!({"containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
            json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}),
            json!({"containers": [{"name": "c", "securityContext": {"windowsOptions": {"hostProcess": true}}}]}),
        ] {
            assert_eq!(check(bad.clone()), (false, false), "{bad}");
        }
    }
}
