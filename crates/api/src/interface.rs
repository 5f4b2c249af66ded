//! Network interfaces of virtual machines: what is wished of them, and where a machine is. The single fields of the specification are a
//! shorthand for the first one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::DEFAULT_NETWORK;
use crate::virtual_machine::{VirtualMachine, VirtualMachineSpec};

/// The most interfaces of one machine: each has a place of its own on the guest's bus.
pub const INTERFACES_MAX: usize = 5;

/// A network interface as wished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineInterface {
    /// Name of the `Network` of the same namespace that it is on; empty means the default one, unless a port says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Name of the `Port` of the same namespace that it is on; it says network, addresses and security groups then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    /// Hardware address; empty makes one from the address. It cannot be chosen on the default network. A host gives none twice on a network.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// Names of `SecurityGroup` objects that guard it; without any, everything may reach it. They may change while it is in use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
}

impl MachineInterface {
    /// Name of its network; `None` when its port says it.
    pub fn network(&self) -> Option<&str> {
        match (self.port.as_str(), self.network.as_str()) {
            ("", "") => Some(DEFAULT_NETWORK),
            ("", name) => Some(name),
            _ => None,
        }
    }
}

impl VirtualMachineSpec {
    /// Its interfaces, at least one, the first one first.
    pub fn interfaces(&self) -> Vec<MachineInterface> {
        if !self.interfaces.is_empty() {
            return self.interfaces.clone();
        }
        let (network, port, security_groups) = (self.network.clone(), self.port.clone(), self.security_groups.clone());
        vec![MachineInterface { network, port, security_groups, mac_address: String::new() }]
    }

    /// Whether one of its interfaces is to be on a port of this name.
    pub fn names_port(&self, name: &str) -> bool {
        self.port == name || self.interfaces.iter().any(|one| one.port == name)
    }
}

impl VirtualMachine {
    /// The networks that it is on, or will be on, each with its address there, if it has one. A port that has not told yet is left out.
    pub fn seats(&self) -> Vec<(String, Option<String>)> {
        let addresses = self.status.iter().flat_map(|status| &status.addresses);
        let mut seats: Vec<_> = addresses.map(|one| (one.network.clone(), Some(one.ip.clone()))).collect();
        let mut told = seats.clone();
        for wish in self.spec.interfaces() {
            let Some(network) = wish.network() else { continue };
            match told.iter().position(|(name, _)| name == network) {
                Some(at) => drop(told.swap_remove(at)),
                None => seats.push((network.to_owned(), None)),
            }
        }
        seats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_machine::{MachineAddress, VirtualMachineStatus};

    fn machine(interfaces: &[&str], on: &[&str]) -> VirtualMachine {
        let interface = |name: &&str| MachineInterface { network: (*name).to_owned(), ..Default::default() };
        let spec = VirtualMachineSpec { interfaces: interfaces.iter().map(interface).collect(), ..Default::default() };
        let address =
            |name: &&str| MachineAddress { network: (*name).to_owned(), ip: "10.0.0.2".into(), ..Default::default() };
        let status = VirtualMachineStatus { addresses: on.iter().map(address).collect(), ..Default::default() };
        VirtualMachine { status: Some(status), ..VirtualMachine::new("a", spec) }
    }

    #[test]
    fn a_machine_has_a_seat_for_each_interface_once() {
        let seats = |interfaces: &[&str], on: &[&str]| {
            let seats = machine(interfaces, on).seats().into_iter();
            seats
                .map(|(name, address)| format!("{name}{}", if address.is_some() { "!" } else { "" }))
                .collect::<Vec<_>>()
        };
        assert_eq!(seats(&[], &[]), ["bridge"]);
        assert_eq!(seats(&[], &["a"]), ["a!", "bridge"]);
        assert_eq!(seats(&["a", "b"], &["a"]), ["a!", "b"]);
        assert_eq!(seats(&["a", "a"], &["a"]), ["a!", "a"], "twice on one network");
        assert_eq!(seats(&["a"], &["a", "b"]), ["a!", "b!"], "b is on its way out");
    }
}
