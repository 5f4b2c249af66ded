//! `Volume`: a directory or a disk that outlives the workloads that use it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::whole;

/// What the user wants of a volume. `metadata.name` is Docker's name when that is a DNS subdomain, else a hash of it.
/// `spec: {mode: Block, size: 10Gi}` alone is a disk for a virtual machine.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Volume", namespaced, status = "VolumeStatus", shortname = "vol")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// Name as Docker shows it; unique in its namespace. Absent means the object's name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Labels as Docker has them.
    pub labels: BTreeMap<String, String>,
    /// Driver options as Docker has them.
    pub options: BTreeMap<String, String>,
    /// What it is: a directory for containers, or a disk for virtual machines.
    #[serde(skip_serializing_if = "VolumeMode::is_filesystem")]
    pub mode: VolumeMode,
    /// Size of a disk. It may grow, also while it is used, and never shrinks. Absent means its source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// What a disk holds at first; absent means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
    /// Bounds of a disk's use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<VolumeLimits>,
    /// The machine that holds it; filled when it is first used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// What a volume is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMode {
    /// A directory.
    #[default]
    Filesystem,
    /// A disk.
    Block,
}

impl VolumeMode {
    /// Whether it is a directory.
    #[must_use]
    pub fn is_filesystem(&self) -> bool {
        *self == VolumeMode::Filesystem
    }
}

/// What a disk holds at first: exactly one of snapshot, volume, upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSource {
    /// Name of a `Snapshot` of the same namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub snapshot: String,
    /// Which disk of the snapshot: `root` or a volume's name. Empty means its only one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub disk: String,
    /// Name of a `Volume` of the same namespace, as it is at this instant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// Name of a directory that was put into the data directory's `uploads`, with `disk` in it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upload: String,
}

/// Bounds of a disk's use; absent means none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeLimits {
    /// Reads and writes together. Units: operations per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<i64>,
    /// Reads and writes together. Units: bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Quantity>,
}

/// What the agent made of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeStatus {
    /// Directory on the machine.
    pub path: String,
    /// `Ready`, `Pending` or `Failed`.
    pub phase: String,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Size of the disk as it is. Units: bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// The bounds that hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<VolumeLimits>,
    /// The machine that has the disk to itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<VolumeAttachment>,
    /// The host that it went to with its machine, until `spec.nodeName` says so too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
}

/// Who has a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeAttachment {
    /// Name of the `VirtualMachine`.
    pub virtual_machine: String,
    /// Its uid.
    pub uid: String,
    /// There is no such machine any more; the volume's host gives it back when nothing of it is left there.
    #[serde(skip_serializing_if = "is_false")]
    pub gone: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Volume {
    /// Whether it is a disk.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.spec.mode == VolumeMode::Block
    }

    /// The size that its spec asks for. Units: bytes.
    #[must_use]
    pub fn wanted_bytes(&self) -> Option<u64> {
        let size = self.spec.size.as_ref().and_then(|size| whole(&size.0))?;
        u64::try_from(size).ok().map(round_up)
    }
}

/// A disk's size in whole sectors. Units: bytes.
#[must_use]
pub fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES)
}

/// What disks are counted in. Units: bytes.
const SECTOR_BYTES: u64 = 512;
