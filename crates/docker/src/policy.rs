//! Who may ask for what: one pure function from an endpoint and a container's configuration to a verdict. The same
//! function judges create, exec, update and build, so that a thing refused in one place is refused in all.

use api::ContainerSpec;
pub(crate) use api::privilege::{Privilege, of_container as privileges};

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

/// What a changed configuration asks for that the one before did not have.
pub(crate) fn added(before: &ContainerSpec, after: &ContainerSpec) -> Vec<Privilege> {
    let had = privileges(before);
    let mut asked = privileges(after);
    asked.retain(|privilege| !had.contains(privilege));
    asked
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
            ("cgroup host", make(|s| s.security.cgroup_mode = "host".into())),
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
            ("no oom kill", make(|s| s.resources.oom_kill_disable = true)),
            ("no bound on processes", make(|s| s.resources.pids_limit = -1)),
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
        spec.mounts.push(Mount { kind: "image".into(), source: "shop/data:1".into(), ..Mount::default() });
        spec.resources.pids_limit = 100;
        spec.security.capabilities_add.push("NET_RAW".into());
        spec.security.capabilities_drop.push("ALL".into());
        spec.security.no_new_privileges = true;
        spec.sysctls.insert("net.core.somaxconn".into(), "1024".into());
        assert_eq!(privileges(&spec), []);
        assert!(judge(Endpoint::Tenant, &privileges(&spec)).is_ok());
    }

    #[test]
    fn a_change_is_judged_by_what_it_adds() {
        let mut before = ContainerSpec::default();
        before.security.privileged = true;
        let mut after = before.clone();
        after.resources.memory_bytes = 64 << 20;
        assert_eq!(added(&before, &after), [], "what it has was judged when it was made");
        after.resources.pids_limit = -1;
        let asked = added(&before, &after);
        assert_eq!(asked.len(), 1);
        assert_eq!(judge(Endpoint::Tenant, &asked).unwrap_err().status(), 403);
        assert!(judge(Endpoint::Machine, &asked).is_ok());
        assert_eq!(added(&after, &after), []);
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
