//! `Router`: lets networks of a namespace speak with each other, which they do not by themselves.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Networks that one router may connect: each pair is an element of a set.
pub const NETWORKS_MAX: usize = 32;

/// Which networks are connected.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Router", namespaced, status = "RouterStatus")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct RouterSpec {
    /// Names of `Network` objects of the same namespace.
    pub networks: Vec<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterStatus {
    /// Networks that are connected.
    pub connected: Vec<String>,
    /// Why others are not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}
