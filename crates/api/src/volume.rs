//! `Volume`: a directory (later: a disk) that outlives the workloads that mount it.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the user wants of a volume. `metadata.name` is Docker's name when that is a DNS subdomain, else a hash of it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Volume", namespaced, status = "VolumeStatus", shortname = "vol")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// Name as Docker shows it; unique in its namespace.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Labels as Docker has them.
    pub labels: BTreeMap<String, String>,
    /// Driver options as Docker has them.
    pub options: BTreeMap<String, String>,
    /// The machine that holds it; filled when it is first used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// What the agent made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeStatus {
    /// Directory on the machine.
    pub path: String,
    /// `Ready`, `Pending` or `Failed`.
    pub phase: String,
}
