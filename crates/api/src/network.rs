//! `Network`: a layer-2 segment with one IPv4 subnet, and one of IPv6 if wanted, that containers, pods and VMs share.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network_options::{NetworkOptions, OptionError};
use crate::share::{self, Range};
use crate::subnet::AddressPlan;

/// Most addresses of a network that are others': whoever looks for a free one passes them all.
pub const AUXILIARY_MAX: usize = 256;

/// What the user wants of a network. `metadata.name` is a DNS label; `spec.name` is what Docker shows.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Network", namespaced, status = "NetworkStatus", shortname = "net")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// Name as Docker shows it; unique in its namespace.
    pub name: String,
    /// Docker's id: 64 hexadecimal digits.
    pub id: String,
    /// `bridge`, `host`, `none`, or `overlay` for those of a swarm.
    pub driver: String,
    /// IPv4 subnet (`10.89.0.0/24`); empty: the agent takes a free one and writes it to the status.
    pub subnet: String,
    /// Range inside the subnet to allot from; empty means all of it.
    pub ip_range: String,
    /// Gateway; empty means the first address.
    pub gateway: String,
    /// IPv6 beside IPv4.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// IPv6 subnet (`fd00:1::/64`); empty: the agent takes a unique local one and writes it to the status.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_subnet: String,
    /// Range inside the IPv6 subnet to allot from; empty means all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_range: String,
    /// IPv6 gateway; empty means the first address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_gateway: String,
    /// Addresses of the subnets that are used by others, by what they are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary_addresses: BTreeMap<String, String>,
    /// No way out.
    pub internal: bool,
    /// How its workloads are seen outside.
    #[serde(skip_serializing_if = "NetworkMode::is_default")]
    pub mode: NetworkMode,
    /// With mode `bridged`: the machine's interface that the network is on, one of `bridgedInterfaces` in its settings.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uplink: String,
    /// Containers may be attached by hand.
    pub attachable: bool,
    /// Tasks with published ports and no network of their own are on it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ingress: bool,
    /// Labels as Docker has them.
    pub labels: BTreeMap<String, String>,
    /// Driver options as Docker has them.
    pub options: BTreeMap<String, String>,
}

impl NetworkSpec {
    /// Whether the network is one for the whole pool: on each machine that has a workload on it, all of them neighbours. What Docker
    /// makes with its driver `bridge` is each machine's own, and so is what is known outside by its own addresses, which are routed to
    /// one machine.
    pub fn spans(&self) -> bool {
        matches!(self.driver.as_str(), "" | "overlay") && self.mode == NetworkMode::Nat
    }

    /// What the driver options ask for.
    ///
    /// Errors: those of [`NetworkOptions::read`].
    pub fn read_options(&self) -> Result<NetworkOptions, OptionError> {
        NetworkOptions::read(&self.options, self.spans())
    }

    /// The range that machines share, when the network is of this subnet; `None` when it is too small for that.
    pub fn shared(&self, subnet: &str) -> Option<Range> {
        let range = if self.ip_range.is_empty() { subnet } else { &self.ip_range };
        range.parse().ok().filter(|range| self.spans() && share::first(*range).is_some())
    }

    /// The addresses that are others', in the order of their names. On a network of which machines share a range, none may be one that a
    /// machine could take for itself.
    ///
    /// Errors: the text says which is no address, or cannot be kept, or that they are too many.
    pub fn read_auxiliary(&self, shared: Option<Range>) -> Result<Vec<IpAddr>, String> {
        if self.auxiliary_addresses.len() > AUXILIARY_MAX {
            return Err(format!("network {} has more than {AUXILIARY_MAX} auxiliary addresses", self.name));
        }
        let read = |(name, text): (&String, &String)| {
            let none = || format!("non parsable secondary ip address ({name}:{text}) passed for network {}", self.name);
            let address = text.parse::<IpAddr>().map_err(|_| none())?;
            match (address, shared) {
                (IpAddr::V4(four), Some(range)) if share::may_be_own(range, four) => Err(format!(
                    "auxiliary address {name}:{text} is one that a machine of the pool takes for itself: the network spans them"
                )),
                _ => Ok(address),
            }
        };
        self.auxiliary_addresses.iter().map(read).collect()
    }

    /// Whether it leaves its addresses to a `Subnet`; without one, it takes a free subnet.
    pub fn is_open(&self) -> bool {
        let says_none = self.subnet.is_empty() && self.ip_range.is_empty() && self.gateway.is_empty();
        says_none && self.mode == NetworkMode::Nat && !matches!(self.driver.as_str(), "host" | "none" | "null")
    }
}

/// How workloads of a network are seen outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// By the machine's address, and reached by published ports and floating addresses.
    #[default]
    Nat,
    /// By their own addresses, which must be of `routedAddresses` in the machine's settings, and reached by them.
    Routed,
    /// As neighbours on the network of an interface of the machine.
    Bridged,
}

impl NetworkMode {
    /// Whether it is the usual one.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What the agent made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkStatus {
    /// The subnet in force.
    pub subnet: String,
    /// The gateway in force.
    pub gateway: String,
    /// The IPv6 subnet in force.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_subnet: String,
    /// The IPv6 gateway in force.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ipv6_gateway: String,
    /// What its `Subnet` says of its addresses; nothing without one.
    pub plan: Option<AddressPlan>,
    /// Name of the bridge on the machine.
    pub bridge: String,
    /// `Ready`, `Pending` or `Failed`.
    pub phase: String,
    /// Why it failed, or which of its wishes do not hold: what an older release made of it stays.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_addresses_have_a_bound() {
        let read = |count: usize| {
            let auxiliary_addresses = (0..count).map(|at| (format!("k{at}"), format!("10.9.{}.9", at % 256))).collect();
            NetworkSpec { auxiliary_addresses, ..NetworkSpec::default() }.read_auxiliary(None)
        };
        assert_eq!(read(AUXILIARY_MAX).map(|all| all.len()), Ok(AUXILIARY_MAX));
        assert!(read(AUXILIARY_MAX + 1).unwrap_err().ends_with("has more than 256 auxiliary addresses"));
    }
}
