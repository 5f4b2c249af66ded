//! `VirtualMachine`, and what it is made from: `DiskImage`, `Flavor`, `KeyPair`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::PortMapping;
use crate::interface::MachineInterface;
use crate::volume::VolumeLimits;

/// What the user wants of a virtual machine. `spec: {image, cpus, memory}` alone is enough.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "VirtualMachine",
    namespaced,
    status = "VirtualMachineStatus",
    shortname = "vm"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualMachineSpec {
    /// Name of the `DiskImage` that its disk is cloned from. Another one can be named together with a new `rebuildRequest`.
    pub image: String,
    /// Name of a `Flavor`, which gives what is not said here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flavor: String,
    /// Processors; 0 means the flavor's, or 1.
    pub cpus: u32,
    /// Memory; absent means the flavor's, or 512Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Size of its disk; absent means the flavor's, or the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
    /// Bounds of the use of its disk; absent means the flavor's, or none. They may change while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limits: Option<VolumeLimits>,
    /// Volumes that are further disks of it; they come and go while it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MachineDisk>,
    /// What it should be doing.
    pub desired: MachineDesired,
    /// Counts requests to start over; each is acted on once.
    pub restart_request: i64,
    /// Counts requests to make its disk anew from `image`; each is acted on once. What was on the disk is lost; address, name and
    /// volumes stay.
    pub rebuild_request: i64,
    /// Name of a `Snapshot` of it, or of one of its volumes, that `revertRequest` is about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revert_snapshot: String,
    /// Counts requests to take its disks back to `revertSnapshot`; each is acted on once. It is switched off first, and started again.
    /// What was written since is lost; disks of which the snapshot knows nothing stay as they are.
    pub revert_request: i64,
    /// Name of a `DiskImage` to boot from for as long as it is named, so that its own disk, then the second one, can be repaired.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rescue_image: String,
    /// When to start it again by itself.
    pub restart_policy: MachineRestartPolicy,
    /// How long it may take to switch itself off; absent means 30 s. Units: seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout_seconds: Option<i64>,
    /// How it boots; absent means as its image says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<MachineBoot>,
    /// Its network interfaces; they come and go while it runs. The default route leads through the first one. Empty means one interface,
    /// as `network`, `port` and `securityGroups` say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<MachineInterface>,
    /// Name of the `Network` that its first interface is on; empty means the default one, on which containers are too.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Name of the `Port` of the same namespace that its first interface is on, from its next start; it says network, addresses and security
    /// groups then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    /// Names of `SecurityGroup` objects that guard its first interface; without any, everything may reach it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    /// Host name; empty means the object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Names of `KeyPair` objects whose keys may log in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_pairs: Vec<String>,
    /// Given to the guest as it is: a script or cloud-config.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_data: String,
    /// Gives the guest a read-only disk with what the metadata service says (host name, keys, user data), as it is at each start: for
    /// networks without that service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<ConfigDrive>,
    /// Gives the guest a vsock device, by which programs on its host and in it reach each other without a network (`AF_VSOCK`), past all
    /// security groups; `status.vsockCID` is its address. A machine with it does not start on a host without `/dev/vhost-vsock`, and does not
    /// migrate. A change takes effect when it is stopped and started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub vsock: bool,
    /// Ports to publish on the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// Relative weight of its processors under contention; 0 means in proportion to their number.
    pub cpu_shares: i64,
    /// Host processors that it may use (`0-1`); empty means all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpu_set: String,
    /// Least memory that the pool may leave it, when others need some and it is idle. Absent means that nothing is taken from it; with
    /// it, `memoryTarget` is the pool's to set. What the guest uses, with a margin, is never taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_minimum: Option<Quantity>,
    /// The most memory that `memory` may be raised to while it runs; absent means that more needs a stop and a start. The guest's kernel
    /// must have a driver for virtio-mem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_maximum: Option<Quantity>,
    /// Memory that the balloon leaves it; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_target: Option<Quantity>,
    /// The machine that it is bound to; the scheduler fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// A volume as a machine's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineDisk {
    /// Name of a `Volume` of the same namespace with `mode: Block`.
    pub volume: String,
    /// The guest may not write to it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The form of a configuration drive; cloud-init reads both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConfigDrive {
    /// Labelled `config-2`: `openstack/latest/meta_data.json`, `network_data.json` and `user_data`.
    OpenStack,
    /// Labelled `cidata`: `meta-data`, `user-data` and `network-config`.
    NoCloud,
}

/// What the user wants the machine to be doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineDesired {
    /// Running.
    #[default]
    Running,
    /// Off; its disks stay.
    Stopped,
    /// Its processors stopped; its memory stays.
    Paused,
    /// Its memory on disk.
    Suspended,
}

/// When a machine that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineRestartPolicy {
    /// After a crash, and after it switched itself off.
    Always,
    /// After a crash.
    #[default]
    OnFailure,
    /// Never.
    Never,
}

/// How a machine boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineBoot {
    /// From its disk, by BIOS.
    #[default]
    Bios,
    /// From its disk, by UEFI.
    Uefi,
    /// Straight into the image's kernel.
    Kernel,
}

/// What the agent saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualMachineStatus {
    /// Where it is in its life.
    pub phase: MachinePhase,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Conditions; `Ready`: it runs and its guest has taken its address; `DisksAttached`: its guest has the volumes that it
    /// should have, there when that is not so or volumes are named; `InterfacesAttached`: the same of `spec.interfaces`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Its addresses, one for each interface that its guest has or is just given, in the order of the interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<MachineAddress>,
    /// Published ports as they were bound.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// Volumes that its guest has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<AttachedDisk>,
    /// `hardware` or `emulation`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub acceleration: String,
    /// Process on the machine; 0 when it does not run.
    pub pid: u32,
    /// Its context id, by which programs on its host reach its guest over vsock, while it runs there.
    #[serde(rename = "vsockCID", skip_serializing_if = "Option::is_none")]
    pub vsock_cid: Option<u32>,
    /// What its host wrote when it made a move of it void. See [`crate::migration`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub handover: String,
    /// The restart request that was acted on last.
    pub observed_restart: i64,
    /// The rebuild request that was acted on last.
    pub observed_rebuild: i64,
    /// The request to take its disks back that was acted on last.
    pub observed_revert: i64,
    /// The image that it was booted from to be rescued.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rescue_image: String,
    /// Starts by policy.
    pub restart_count: i64,
    /// Start of this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Processors that it has.
    pub cpus: u32,
    /// Memory that the guest uses and could not do without, where `memoryMinimum` is set. Units: bytes.
    pub memory_used: i64,
    /// Memory that the balloon leaves it. Units: bytes.
    pub memory_bytes: i64,
}

/// Life of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachinePhase {
    /// Not on a host yet.
    #[default]
    Pending,
    /// Its disk is made, or it is on its way up.
    Starting,
    /// Running.
    Running,
    /// Its processors are stopped.
    Paused,
    /// On its way down.
    Stopping,
    /// Its memory is on disk.
    Suspended,
    /// Off.
    Stopped,
    /// It ended by itself and waits for its next start.
    Crashed,
    /// It cannot be started; the message says why.
    Failed,
}

/// A volume that a guest has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachedDisk {
    /// The volume's name.
    pub volume: String,
    /// Serial number by which the guest finds it (`/dev/disk/by-id/virtio-SERIAL`).
    pub serial: String,
}

/// An address of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineAddress {
    /// The `Network`'s name.
    pub network: String,
    /// Address.
    pub ip: String,
    /// Hardware address.
    pub mac: String,
    /// Name of the `Port` that gives it; empty: its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    /// Names of the security groups that guard it, where no port says them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
}

/// A disk that machines are cloned from.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "DiskImage",
    namespaced,
    status = "DiskImageStatus",
    shortname = "dimg"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct DiskImageSpec {
    /// Where it comes from.
    pub source: DiskImageSource,
    /// How machines made from it boot.
    pub boot: MachineBoot,
    /// Command line of its kernel.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command_line: String,
    /// The machine that it is on; the scheduler or the first agent fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// Where a disk image comes from: exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DiskImageSource {
    /// Name of a directory that was put into the data directory's `uploads`, with `disk` and perhaps `kernel` and `initrd`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upload: String,
    /// Name of a `VirtualMachine` of the same namespace, whose disk is copied as it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_machine: String,
    /// Where it is fetched from, by HTTP or HTTPS. It must be a public address, or one of the operator's `diskImageNetworks`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// `raw` or `qcow2`; empty takes either.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// SHA-256 that the uploaded or fetched file must have, in hexadecimal; empty does not check.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// SHA-512, likewise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha512: String,
}

/// What became of a disk image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DiskImageStatus {
    /// `Pending`, `Ready` or `Failed`.
    pub phase: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Conditions; `Ready`: machines can be made from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What of `source.url` has been fetched. Units: bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub fetched_bytes: i64,
    /// How much there is to fetch, when its server says so. Units: bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_bytes: i64,
    /// Size of the disk as a guest sees it. Units: bytes.
    pub virtual_bytes: i64,
    /// The layer that holds it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub layer: String,
    /// It has a kernel for direct boot.
    pub kernel: bool,
}

/// A size of machine.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Flavor")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct FlavorSpec {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Quantity,
    /// Size of the disk; absent means the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
    /// Bounds of the disk's use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limits: Option<VolumeLimits>,
    /// Free-form properties.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// A public key that may log in.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "KeyPair", namespaced)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct KeyPairSpec {
    /// One line as in `authorized_keys`.
    pub public_key: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_zero(number: &i64) -> bool {
    *number == 0
}
