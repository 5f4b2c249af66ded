//! Who may ask for what: one pure function from an endpoint and a container's configuration to a verdict. The same
//! function judges create, exec, update and build, so that a thing refused in one place is refused in all.

use api::ContainerSpec;
use api::container::DEFAULT_CAPABILITIES;

use crate::error::{Error, Result};
use crate::operation::Access;

/// Who stands behind a Docker socket. It comes from the socket (or later the client's certificate), never from a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The machine's own socket: whoever may open it is root here anyway.
    Machine,
    /// A tenant's endpoint: containers yes, the machine no.
    Tenant,
}

/// What a request asks of the machine beyond an ordinary container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// `--privileged`, in run or exec.
    Privileged,
    /// A path of the host, by `-v /path:…`, or a volume that is one in disguise.
    HostPath(String),
    /// A namespace of the host: which one.
    HostNamespace(&'static str),
    /// A device.
    Device(String),
    /// A capability beyond the usual.
    Capability(String),
    /// seccomp, AppArmor, masked paths or a systempath switched off.
    Unconfined(String),
    /// A parent cgroup of its own choice.
    CgroupParent(String),
    /// The machine's own journal.
    Journal,
    /// A kernel setting, a score, or a runtime of its own choice.
    Kernel(String),
}

impl std::fmt::Display for Privilege {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Privilege::Privileged => f.write_str("privileged mode"),
            Privilege::HostPath(path) => write!(f, "mounting the host path {path}"),
            Privilege::HostNamespace(kind) => write!(f, "the host's {kind} namespace"),
            Privilege::Device(device) => write!(f, "the device {device}"),
            Privilege::Capability(name) => write!(f, "the capability {name}"),
            Privilege::Unconfined(what) => write!(f, "switching off {what}"),
            Privilege::CgroupParent(parent) => write!(f, "the parent cgroup {parent}"),
            Privilege::Journal => f.write_str("the machine's journal"),
            Privilege::Kernel(what) => write!(f, "setting {what}"),
        }
    }
}

/// The verdict.
///
/// Errors: [`Error::Forbidden`] that names the first thing refused.
pub(crate) fn judge(endpoint: Endpoint, asked: &[Privilege]) -> Result<()> {
    match (endpoint, asked.first()) {
        (Endpoint::Machine, _) | (_, None) => Ok(()),
        (Endpoint::Tenant, Some(privilege)) => {
            Err(Error::Forbidden(format!("not allowed on this endpoint: {privilege}")))
        }
    }
}

/// Whether an endpoint may use an operation at all. What it may do to which *object* is the apiserver's to say; this
/// covers what is no object: the machine itself, and the images that all endpoints of a machine share.
pub(crate) fn judge_operation(endpoint: Endpoint, access: Access) -> Result<()> {
    let shared = access.kind == "plugins" && access.verb != "list" && access.verb != "get";
    // A swarm is the machines' own: its services run where they are told to, and publish ports on every machine.
    let shared = shared || access.kind == "swarm";
    let harms_others = access.kind == "images" && access.verb == "delete";
    match endpoint {
        Endpoint::Tenant if shared || harms_others => {
            Err(Error::Forbidden(format!("not allowed on this endpoint: {} {}", access.verb, access.kind)))
        }
        _ => Ok(()),
    }
}

/// Everything that a container's configuration asks for beyond the ordinary.
pub(crate) fn privileges(spec: &ContainerSpec) -> Vec<Privilege> {
    let mut asked = Vec::new();
    let security = &spec.security;
    if security.privileged {
        asked.push(Privilege::Privileged);
    }
    asked.extend(spec.mounts.iter().filter(|m| m.kind == "bind").map(|m| Privilege::HostPath(m.source.clone())));
    let host = |mode: &str| mode == "host" || mode.starts_with("host:");
    let modes = [
        ("network", &spec.network_mode),
        ("process", &security.pid_mode),
        ("IPC", &security.ipc_mode),
        ("UTS", &security.uts_mode),
    ];
    asked.extend(modes.into_iter().filter(|(_, mode)| host(mode)).map(|(kind, _)| Privilege::HostNamespace(kind)));
    if spec.networks.keys().any(|name| name == "host") {
        asked.push(Privilege::HostNamespace("network"));
    }
    asked.extend(security.devices.iter().map(|device| Privilege::Device(device.clone())));
    if !spec.resources.cgroup_parent.is_empty() {
        asked.push(Privilege::CgroupParent(spec.resources.cgroup_parent.clone()));
    }
    asked.extend(spec.resources.device_rates.iter().map(|rate| Privilege::Device(rate.path.clone())));
    for capability in &security.capabilities_add {
        let upper = capability.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        // A tenant may add what every container has anyway.
        if !DEFAULT_CAPABILITIES.contains(&name) {
            asked.push(Privilege::Capability(name.to_owned()));
        }
    }
    if !matches!(security.seccomp.as_str(), "" | "default") {
        asked.push(Privilege::Unconfined("or replacing the seccomp profile".into()));
    }
    if security.masked_paths.is_some() || security.readonly_paths.is_some() {
        asked.push(Privilege::Unconfined("the protection of /proc and /sys".into()));
    }
    if spec.log_driver == "journald" {
        asked.push(Privilege::Journal);
    }
    if security.oom_score_adj < 0 {
        asked.push(Privilege::Kernel("a negative OOM score".into()));
    }
    let own_network = |name: &str| name.starts_with("net.");
    asked.extend(spec.sysctls.keys().filter(|name| !own_network(name)).map(|name| Privilege::Kernel(name.clone())));
    asked
}

#[cfg(test)]
mod tests {
    use api::container::{Mount, NetworkEndpoint};

    use super::*;

    /// Each way to ask for a piece of the machine, alone.
    fn matrix() -> Vec<(&'static str, ContainerSpec)> {
        let make = |change: fn(&mut ContainerSpec)| {
            let mut spec = ContainerSpec::default();
            change(&mut spec);
            spec
        };
        vec![
            ("privileged", make(|s| s.security.privileged = true)),
            ("bind", make(|s| s.mounts.push(Mount { kind: "bind".into(), source: "/".into(), ..Mount::default() }))),
            ("network host", make(|s| s.network_mode = "host".into())),
            (
                "network host by endpoint",
                make(|s| {
                    s.networks.insert("host".into(), NetworkEndpoint::default());
                }),
            ),
            ("journal", make(|s| s.log_driver = "journald".into())),
            ("pid host", make(|s| s.security.pid_mode = "host".into())),
            ("ipc host", make(|s| s.security.ipc_mode = "host".into())),
            ("uts host", make(|s| s.security.uts_mode = "host".into())),
            ("device", make(|s| s.security.devices.push("/dev/sda:/dev/sda:rwm".into()))),
            ("device rate", make(|s| s.resources.device_rates.push(api::container::DeviceRate::default()))),
            ("parent cgroup", make(|s| s.resources.cgroup_parent = "/machine".into())),
            ("capability", make(|s| s.security.capabilities_add.push("SYS_ADMIN".into()))),
            ("capability with prefix", make(|s| s.security.capabilities_add.push("CAP_sys_admin".into()))),
            ("all capabilities", make(|s| s.security.capabilities_add.push("ALL".into()))),
            ("seccomp off", make(|s| s.security.seccomp = "unconfined".into())),
            ("own seccomp", make(|s| s.security.seccomp = "{}".into())),
            ("masked paths", make(|s| s.security.masked_paths = Some(Vec::new()))),
            ("read-only paths", make(|s| s.security.readonly_paths = Some(Vec::new()))),
            ("oom score", make(|s| s.security.oom_score_adj = -500)),
            (
                "sysctl",
                make(|s| {
                    s.sysctls.insert("kernel.core_pattern".into(), "|/x".into());
                }),
            ),
        ]
    }

    #[test]
    fn a_tenant_is_refused_each_way_to_the_machine_and_the_machine_itself_none() {
        for (name, spec) in matrix() {
            let asked = privileges(&spec);
            assert!(!asked.is_empty(), "{name} is not seen as a privilege");
            assert!(judge(Endpoint::Machine, &asked).is_ok(), "{name}");
            let refusal = judge(Endpoint::Tenant, &asked).unwrap_err();
            assert_eq!(refusal.status(), 403, "{name}");
        }
    }

    #[test]
    fn an_ordinary_container_asks_for_nothing() {
        let mut spec = ContainerSpec { network_mode: "bridge".into(), ..ContainerSpec::default() };
        spec.mounts.push(Mount { kind: "volume".into(), source: "data".into(), ..Mount::default() });
        spec.security.capabilities_add.push("NET_RAW".into());
        spec.security.capabilities_drop.push("ALL".into());
        spec.security.no_new_privileges = true;
        spec.sysctls.insert("net.core.somaxconn".into(), "1024".into());
        assert_eq!(privileges(&spec), []);
        assert!(judge(Endpoint::Tenant, &privileges(&spec)).is_ok());
    }

    #[test]
    fn a_tenant_has_no_part_in_the_swarm() {
        for verb in ["get", "list", "create", "update", "delete"] {
            let access = Access { verb, kind: "swarm" };
            assert_eq!(judge_operation(Endpoint::Tenant, access).map_err(|error| error.status().as_u16()), Err(403));
            assert!(judge_operation(Endpoint::Machine, access).is_ok());
        }
    }

    #[test]
    fn every_row_of_swarm_mode_is_judged_as_swarm() {
        let rows = crate::operation::operations();
        let paths = ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"];
        let own = rows.iter().filter(|row| paths.iter().any(|path| row.path.starts_with(path)));
        assert!(own.clone().count() >= 30 && own.clone().all(|row| row.access.kind == "swarm"));
    }

    #[test]
    fn a_tenant_cannot_delete_what_all_endpoints_share() {
        let delete = Access { verb: "delete", kind: "images" };
        assert!(judge_operation(Endpoint::Tenant, delete).is_err());
        assert!(judge_operation(Endpoint::Machine, delete).is_ok());
        assert!(judge_operation(Endpoint::Tenant, Access { verb: "list", kind: "images" }).is_ok());
    }
}
