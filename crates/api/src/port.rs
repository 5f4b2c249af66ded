//! `Port`: a place on a network that is there before its workload and outlives it: address, hardware address and security groups. One
//! workload at a time is on it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keeps a port until its address is given back.
pub const FINALIZER: &str = "nuee.dev/port";
/// First bytes of the hardware addresses that are made from IPv4 addresses.
pub const DERIVED: [u8; 2] = [0x02, 0x42];

/// Label of a container, and annotation of a pod, that names the port that it is on.
pub const LABEL: &str = "nuee.dev/port";

/// A place on a network. A virtual machine names it in `spec.port` or `spec.interfaces`, a container or pod by [`LABEL`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "nuee.dev", version = "v1", kind = "Port", namespaced, status = "PortStatus")]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct PortSpec {
    /// Name of the `Network` of the same namespace; empty means the default one. It stays as it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Which address of the network; empty takes a free one. It is given once, and kept until the object is deleted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Hardware address; empty makes one from the address. No two on a network are the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// Names of `SecurityGroup` objects that guard whoever is on it; without any, everything may reach it. They may change while it is in use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
}

impl PortSpec {
    /// Name of its network.
    pub fn network(&self) -> &str {
        if self.network.is_empty() { crate::names::DEFAULT_NETWORK } else { &self.network }
    }
}

/// What became of it; the pool's first machine writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortStatus {
    /// Its address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// Where it is in its life.
    pub phase: PortPhase,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Who is on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<PortAttachment>,
    /// The machine of that workload.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
}

/// The workload that is on a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortAttachment {
    /// Name of the `VirtualMachine` of the same namespace; empty: it is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_machine: String,
    /// Name of the `Container` of the same namespace; empty: it is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Name of the `Pod` of the same namespace; empty: it is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Its uid: another one of the same name is another one.
    pub uid: String,
}

/// Life of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PortPhase {
    /// It has no address: the message says why.
    #[default]
    Pending,
    /// It has an address, and nobody is on it.
    Available,
    /// A workload is on it.
    Active,
}

/// The bytes of a hardware address that an interface may have: six pairs of hexadecimal digits with colons between them, neither zero nor
/// a group's. `Source:` IEEE 802, 8.2.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_one_interfaces() {
        assert_eq!(mac("52:54:00:aB:00:01"), Some([0x52, 0x54, 0, 0xab, 0, 1]));
        for bad in [
            "",
            "52:54:00:ab:00",
            "52:54:00:ab:00:01:02",
            "52-54-00-ab-00-01",
            "01:00:5e:00:00:01",
            "+2:54:00:ab:00:01",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
        assert_eq!((mac("ff:ff:ff:ff:ff:ff"), mac("00:00:00:00:00:00")), (None, None));
    }
}
