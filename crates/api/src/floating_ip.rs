//! `FloatingIP`: an address of the operator's pool that leads to one workload, and is what the workload shows outside. It moves
//! between workloads while they run.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address of the pool. Whose it is changes with `virtualMachine` or `container`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "FloatingIP",
    namespaced,
    status = "FloatingIPStatus",
    shortname = "fip"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct FloatingIPSpec {
    /// Which address of the pool; empty takes a free one. It is given once.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Name of the `VirtualMachine` of the same namespace that it leads to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_machine: String,
    /// Name, as Docker shows it (`spec.name`), of the `Container` of the same namespace that it leads to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
}

/// What became of it; the pool's controllers write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FloatingIPStatus {
    /// The address, kept until the object is deleted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// The workload's own address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fixed_address: String,
    /// The machine of the workload, which answers for the address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Where it is in its life.
    pub phase: FloatingIPPhase,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Why the machine of the workload does not answer for it, and which machine and address that was: the machine's own word, which
    /// holds while it is of `nodeName` and `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<FloatingIPRefusal>,
}

/// A machine does not answer for an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FloatingIPRefusal {
    /// The machine.
    pub node_name: String,
    /// The address.
    pub address: String,
    /// Why.
    pub message: String,
}

/// Life of a floating address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FloatingIPPhase {
    /// It has no address: the message says why.
    #[default]
    Pending,
    /// It has an address, and leads nowhere.
    Available,
    /// It leads to a workload.
    Active,
    /// It would lead to a workload, but its machine does not answer for it: the message says why.
    Refused,
}
