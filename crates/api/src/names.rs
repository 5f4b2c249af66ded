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
