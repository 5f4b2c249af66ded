//! `Snapshot`: disks as they were at one instant. `Backup`: copies of a machine's disks, made to be carried away.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is kept: exactly one of volume and virtual machine.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "Snapshot",
    namespaced,
    status = "SnapshotStatus",
    shortname = "snap"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSpec {
    /// Name of a `Volume` with `mode: Block`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// Name of a `VirtualMachine`, of which all disks are kept, at the same instant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_machine: String,
    /// The machine that has the disks; whoever makes it fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    /// `Pending`, `Ready` or `Failed`.
    pub phase: String,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Volumes can be made from it.
    pub ready_to_use: bool,
    /// Size of its disks together as a guest sees them. Units: bytes.
    pub size_bytes: i64,
    /// The instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// The guest's agent had written everything and held its file systems still then. Otherwise the disks are as a power cut leaves them.
    pub quiesced: bool,
    /// Its disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<SnapshotDisk>,
}

/// A disk of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotDisk {
    /// `root`, or the volume's name.
    pub name: String,
    /// The layer that holds it.
    pub layer: String,
    /// Its size as a guest sees it. Units: bytes.
    pub size_bytes: i64,
}

/// A machine whose disks are copied at one instant, while it runs. The copies wait in the data directory until somebody carries them
/// away; they go with the object.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Backup", namespaced, status = "BackupStatus")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct BackupSpec {
    /// Name of the `VirtualMachine`.
    pub virtual_machine: String,
    /// Copy only what was written since the backup that set this mark, where the mark still stands.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// The machine that makes it; whoever does fills it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// How far a backup is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupStatus {
    /// `Pending`, `Copying`, `Ready` or `Failed`.
    pub phase: String,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// To be copied. Units: bytes.
    pub total_bytes: i64,
    /// Copied so far. Units: bytes.
    pub copied_bytes: i64,
    /// The instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// The guest's agent had written everything and held its file systems still then. Otherwise the disks are as a power cut leaves them.
    pub quiesced: bool,
    /// The mark that it set, from which a later one may go on; empty when the machine did not run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mark: String,
    /// Its disks, the boot disk first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<BackupDisk>,
}

/// A copied disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupDisk {
    /// `root`, or the volume's name.
    pub name: String,
    /// Its size as a guest sees it. Units: bytes.
    pub size_bytes: i64,
    /// Only what was written since the mark is in it.
    pub incremental: bool,
    /// Why it is whole although less was asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
