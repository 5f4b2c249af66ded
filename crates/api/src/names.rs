//! Names that more than one crate must spell the same way.

/// API group of Nuée's own kinds.
pub const GROUP: &str = "nuee.dev";
/// Finalizer by which the agent holds a `Container` until everything of it is gone from the machine.
pub const AGENT_FINALIZER: &str = "nuee.dev/agent";
/// Namespace that the machine-wide Docker socket belongs to.
pub const DOCKER_NAMESPACE: &str = "default";
/// The network on which pods, and containers that name no other, live.
pub const DEFAULT_NETWORK: &str = "bridge";
/// Namespace of cluster-wide parts such as DNS.
pub const SYSTEM_NAMESPACE: &str = "kube-system";
/// User name of the in-process controllers.
pub const CONTROLLER_USER: &str = "system:nuee-controllers";
/// User name of the in-process scheduler.
pub const SCHEDULER_USER: &str = "system:kube-scheduler";
/// Group whose members may do everything.
pub const ADMIN_GROUP: &str = "system:masters";

/// An object name for a name that a user chose: the name itself when it is a DNS subdomain, else a hash of it.
#[must_use]
pub fn object_name(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_dns = name.len() <= 63
        && name.bytes().all(|b| plain(b) || b == b'-' || b == b'.')
        && name
            .split('.')
            .all(|label| label.bytes().next().is_some_and(plain) && label.bytes().last().is_some_and(plain));
    if is_dns {
        return name.to_owned();
    }
    let digest = <sha2::Sha256 as sha2::Digest>::digest(name.as_bytes());
    let digits: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("x-{digits}")
}
