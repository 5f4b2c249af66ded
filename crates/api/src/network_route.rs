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
    /// The network; `default` is that of pods.
    pub network: String,
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
}
