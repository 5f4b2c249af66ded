//! The kinds: Rust types of Nuée's own objects (group `nuee.dev/v1`), and names that the whole house shares. Kubernetes'
//! own kinds come from `k8s-openapi`. No I/O here.

pub mod bootstrap_token;
pub mod container;
pub mod cron;
pub mod floating_ip;
pub mod interface;
pub mod log_tag;
pub mod migration;
pub mod names;
pub mod network;
pub mod network_options;
pub mod network_route;
pub mod port;
pub mod privilege;
pub mod quantity;
pub mod requests;
pub mod router;
pub mod security_group;
pub mod share;
pub mod snapshot;
pub mod subnet;
pub mod swarm;
pub mod virtual_machine;
pub mod volume;

pub use container::{Container, ContainerSpec, ContainerStatus};
pub use floating_ip::{FloatingIP, FloatingIPPhase, FloatingIPRefusal, FloatingIPSpec, FloatingIPStatus};
pub use interface::MachineInterface;
pub use migration::{Migration, MigrationPhase, MigrationSpec, MigrationStatus};
pub use network::{Network, NetworkSpec, NetworkStatus};
pub use network_route::{NetworkMember, NetworkRoute, NetworkRouteSpec};
pub use port::{Port, PortPhase, PortSpec, PortStatus};
pub use router::{Router, RouterSpec, RouterStatus};
pub use security_group::{SecurityGroup, SecurityGroupRule, SecurityGroupSpec, SecurityGroupStatus};
pub use snapshot::{Backup, BackupSpec, BackupStatus, Snapshot, SnapshotSpec, SnapshotStatus};
pub use subnet::{AddressPlan, Subnet, SubnetSpec, SubnetStatus};
pub use swarm::{SwarmService, SwarmServiceSpec, SwarmServiceStatus};
pub use virtual_machine::{
    DiskImage, DiskImageSpec, DiskImageStatus, Flavor, FlavorSpec, KeyPair, KeyPairSpec, VirtualMachine,
    VirtualMachineSpec, VirtualMachineStatus,
};
pub use volume::{Volume, VolumeSpec, VolumeStatus};
