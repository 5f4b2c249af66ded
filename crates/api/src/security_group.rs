//! `SecurityGroup`: who may speak with the workloads that name it, and with whom they may. What a rule means is the pure
//! [`SecurityGroupRule::read`]. The model is Neutron's: rules only allow, and a workload in several groups has the rules of all.

use std::net::Ipv4Addr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Finalizer by which a group stays while anybody is in it.
pub const FINALIZER: &str = "nuee.dev/security-group";
/// Label of containers, and annotation of pods, with the names of their groups, separated by commas.
pub const LABEL: &str = "nuee.dev/security-groups";
/// Groups of one workload. `Source:` Amazon VPC allows 16 for an interface.
pub const GROUPS_MAX: usize = 16;
/// Rules of one group: each is looked at for packets that none before it allows.
pub const RULES_MAX: usize = 256;

/// What the members of a group may be told, and may say. A direction without any rule has the default: out to everywhere, in from
/// members of this very group.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "SecurityGroup",
    namespaced,
    status = "SecurityGroupStatus",
    shortname = "sg"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityGroupSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What is allowed; the rest is dropped. Answers to what is allowed are allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<SecurityGroupRule>,
}

/// Flows that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityGroupRule {
    /// Whether others begin to speak, or the members.
    pub direction: Direction,
    /// `IPv4`.
    pub ethertype: Ethertype,
    /// `tcp`, `udp`, `sctp`, `icmp`, or the number of a protocol; empty means all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// First port of who is spoken to, or the type of ICMP; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range_min: Option<u16>,
    /// Last port, or the code of ICMP; absent means the first port, or all codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range_max: Option<u16>,
    /// Addresses of the other side, such as `192.0.2.0/24`; empty means all.
    #[serde(rename = "remoteCIDR", skip_serializing_if = "String::is_empty")]
    pub remote_cidr: String,
    /// Name of a group of the same namespace whose members are the other side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_group: String,
}

/// Who begins to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Direction {
    /// Others.
    #[default]
    Ingress,
    /// Members.
    Egress,
}

/// Family of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ethertype {
    /// IPv4.
    #[default]
    IPv4,
    /// IPv6, which no guest has.
    IPv6,
}

/// Who is in a group; the pool's controllers write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityGroupStatus {
    /// Who is in it, such as `VirtualMachine/web`. While anybody is, the group stays.
    pub members: Vec<String>,
    /// Their addresses.
    pub addresses: Vec<String>,
}

/// What flows carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Anything.
    Any,
    /// A protocol.
    Protocol(u8),
    /// To ports of TCP, UDP or SCTP, by its number.
    Ports(u8, u16, u16),
    /// ICMP of a type, and perhaps a code.
    Icmp(u8, Option<u8>),
}

/// The other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Anybody.
    Anywhere,
    /// First address and prefix length.
    Addresses(Ipv4Addr, u8),
    /// Members of the group of this name.
    Group(String),
}

/// Why a rule means nothing: the field, and what is wrong with it.
pub type Flaw = (&'static str, &'static str);

impl SecurityGroupRule {
    /// What the rule means.
    ///
    /// # Errors
    /// The field that means nothing, and why.
    pub fn read(&self) -> Result<(Traffic, Remote), Flaw> {
        if self.ethertype == Ethertype::IPv6 {
            return Err(("ethertype", "must be IPv4: guests have no IPv6, and security groups do not guard it"));
        }
        Ok((self.traffic()?, self.remote()?))
    }

    fn traffic(&self) -> Result<Traffic, Flaw> {
        let protocol = match self.protocol.as_str() {
            "" | "any" => None,
            "icmp" => Some(1),
            "tcp" => Some(6),
            "udp" => Some(17),
            "sctp" => Some(132),
            number => match number.parse::<u8>() {
                Ok(number) if self.protocol.bytes().all(|b| b.is_ascii_digit()) => Some(number),
                _ => return Err(("protocol", "must be tcp, udp, sctp, icmp, or a number up to 255")),
            },
        };
        let range = (self.port_range_min, self.port_range_max);
        match (protocol, range) {
            (_, (None, Some(_))) => Err(("portRangeMax", "needs portRangeMin")),
            (None, (None, None)) => Ok(Traffic::Any),
            (Some(protocol), (None, None)) => Ok(Traffic::Protocol(protocol)),
            (Some(1), (Some(kind), code)) => {
                let byte = |field, value: u16| u8::try_from(value).map_err(|_| (field, "must be at most 255 for icmp"));
                let code = code.map(|code| byte("portRangeMax", code)).transpose()?;
                Ok(Traffic::Icmp(byte("portRangeMin", kind)?, code))
            }
            (Some(protocol @ (6 | 17 | 132)), (Some(first), last)) => {
                let last = last.unwrap_or(first);
                if last < first {
                    return Err(("portRangeMax", "must not be less than portRangeMin"));
                }
                Ok(Traffic::Ports(protocol, first, last))
            }
            (_, (Some(_), _)) => Err(("portRangeMin", "needs a protocol that has ports: tcp, udp, sctp or icmp")),
        }
    }

    fn remote(&self) -> Result<Remote, Flaw> {
        match (self.remote_cidr.as_str(), self.remote_group.as_str()) {
            ("", "") => Ok(Remote::Anywhere),
            ("", group) => Ok(Remote::Group(group.to_owned())),
            (text, "") => {
                let (address, prefix) =
                    parse_cidr(text).ok_or(("remoteCIDR", "must be an IPv4 subnet such as 192.0.2.0/24"))?;
                Ok(if prefix == 0 { Remote::Anywhere } else { Remote::Addresses(address, prefix) })
            }
            _ => Err(("remoteGroup", "cannot go with remoteCIDR")),
        }
    }
}

/// An IPv4 subnet without host bits: first address and prefix length. A lone address is a subnet of one.
pub fn parse_cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let plain = prefix.len() <= 2 && prefix.bytes().all(|b| b.is_ascii_digit());
    let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok().filter(|_| plain)?);
    if prefix > 32 {
        return None;
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (address.to_bits() & !mask == 0).then_some((address, prefix))
}

/// The names in a [`LABEL`].
pub fn names(label: &str) -> Vec<String> {
    label.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: &str, min: Option<u16>, max: Option<u16>) -> SecurityGroupRule {
        let protocol = protocol.to_owned();
        SecurityGroupRule { protocol, port_range_min: min, port_range_max: max, ..Default::default() }
    }

    #[test]
    fn what_rules_mean() {
        for (protocol, min, max, expected) in [
            ("", None, None, Ok(Traffic::Any)),
            ("tcp", Some(22), None, Ok(Traffic::Ports(6, 22, 22))),
            ("udp", Some(1), Some(9), Ok(Traffic::Ports(17, 1, 9))),
            ("icmp", Some(8), None, Ok(Traffic::Icmp(8, None))),
            ("icmp", Some(3), Some(1), Ok(Traffic::Icmp(3, Some(1)))),
            ("icmp", None, None, Ok(Traffic::Protocol(1))),
            ("47", None, None, Ok(Traffic::Protocol(47))),
            ("+47", None, None, Err("protocol")),
            ("256", None, None, Err("protocol")),
            ("47", Some(1), None, Err("portRangeMin")),
            ("", Some(1), None, Err("portRangeMin")),
            ("tcp", Some(9), Some(1), Err("portRangeMax")),
            ("tcp", None, Some(1), Err("portRangeMax")),
            ("icmp", Some(256), None, Err("portRangeMin")),
            ("icmp", Some(8), Some(256), Err("portRangeMax")),
        ] {
            let read = rule(protocol, min, max).read().map(|(traffic, _)| traffic).map_err(|(field, _)| field);
            assert_eq!(read, expected, "{protocol} {min:?} {max:?}");
        }
    }

    #[test]
    fn the_other_side_is_addresses_or_a_group() {
        let of = |cidr: &str, group: &str| {
            let (remote_cidr, remote_group) = (cidr.to_owned(), group.to_owned());
            SecurityGroupRule { remote_cidr, remote_group, ..Default::default() }.read().map(|(_, remote)| remote)
        };
        assert_eq!(of("", ""), Ok(Remote::Anywhere));
        assert_eq!(of("0.0.0.0/0", ""), Ok(Remote::Anywhere));
        assert_eq!(of("192.0.2.0/24", ""), Ok(Remote::Addresses(Ipv4Addr::new(192, 0, 2, 0), 24)));
        assert_eq!(of("", "web"), Ok(Remote::Group("web".into())));
        for bad in ["192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/+4", "::/0", "x", "192.0.2.0/"] {
            assert!(of(bad, "").is_err(), "{bad}");
        }
        assert!(of("192.0.2.0/24", "web").is_err());
        let six = SecurityGroupRule { ethertype: Ethertype::IPv6, ..Default::default() };
        assert_eq!(six.read().unwrap_err().0, "ethertype");
        assert_eq!(names(" a,b ,,c"), ["a", "b", "c"]);
    }
}
