//! `NetworkRoute`: where a part of a network is. Written by the pool's controllers alone, read by every machine.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a part of a network is.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "NetworkRoute")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkRouteSpec {
    /// The network: `default` is that of pods, others are named by the uid of their `Network`.
    pub network: String,
    /// Namespace of the `Network`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the `Network`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What tells the network's packets from others between machines (its VXLAN network identifier), no two networks' the same; absent for the pods'.
    #[serde(skip_serializing_if = "is_zero")]
    pub number: u32,
    /// The addresses: a machine's part (`10.88.128.0/24`), or one that has moved (`10.88.0.7/32`).
    pub destination: String,
    /// The machine.
    pub node_name: String,
    /// The machine's address towards the other machines.
    pub machine_address: String,
    /// The port at which the machine takes calls of the others.
    pub machine_port: u16,
    /// The machine's address on the network, by which its parts are reached.
    pub gateway: String,
    /// Workloads there, with their names if they have any; of the pods' network none are told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<NetworkMember>,
}

/// Most members that one route tells of; the names of others are not known on other machines.
pub const MEMBERS_MAX: usize = 1024;

/// Most names of one member that are told.
pub const MEMBER_NAMES_MAX: usize = 16;
/// Longest name that is told: a label of DNS. Units: bytes. `Source:` RFC 1035, 2.3.4.
pub const MEMBER_NAME_BYTES_MAX: usize = 63;

/// A workload's place on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkMember {
    /// Its address.
    pub address: String,
    /// Its names, if it has any; the first one is that which reverse look-ups give.
    pub names: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_zero(number: &u32) -> bool {
    *number == 0
}
