//! The plain structs of the border: what the agent asks for, and what it gets. No I/O here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::Plan;
use crate::subnet::Subnet;
use crate::subnet6::Subnet6;

/// Id of the network that everything without a wish of its own is on.
pub const DEFAULT_NETWORK: &str = "default";
/// Where guests look for their metadata. `Source:` Amazon EC2, "Instance metadata"; OpenStack Nova, "Metadata service".
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Port on a network's gateway to which requests for metadata are led. `Source:` OpenStack Nova's own metadata port.
pub const METADATA_PORT: u16 = 8775;
/// Bridge of the default network.
pub const DEFAULT_BRIDGE: &str = "nuee0";

/// How to open a [`crate::Fabric`].
#[derive(Clone, Debug)]
pub struct FabricOptions {
    /// Where addresses and publications are kept (`D/network`).
    pub state_dir: PathBuf,
    /// Where network namespaces are pinned, under `netns/` (`D/run`).
    pub run_dir: PathBuf,
    /// Eight hexadecimal digits that tell this Nuée from others.
    pub instance: String,
    /// Range of the services' virtual addresses. What is sent there and belongs to no service is rejected.
    pub service_cidr: Subnet,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Ranges to cut free subnets from, each with the prefix length of the pieces.
    pub subnet_pools: Vec<(Subnet, u8)>,
    /// Destinations that see workloads' own addresses (other machines' pods); all else outside is masqueraded.
    pub unmasqueraded: Vec<Subnet>,
    /// MTU of bridges and interfaces. `None`: that of the interface with the default route.
    pub mtu: Option<u32>,
}

impl FabricOptions {
    /// The usual options for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        let data_dir = data_dir.into();
        FabricOptions {
            state_dir: data_dir.join("network"),
            run_dir: data_dir.join("run"),
            instance: instance.into(),
            service_cidr: Subnet::new_const(Ipv4Addr::new(10, 96, 0, 0), 12),
            node_ports: 30_000..=32_767,
            subnet_pools: vec![
                (Subnet::new_const(Ipv4Addr::new(10, 89, 0, 0), 16), 24),
                (Subnet::new_const(Ipv4Addr::new(172, 20, 0, 0), 14), 24),
                (Subnet::new_const(Ipv4Addr::new(192, 168, 128, 0), 17), 24),
            ],
            unmasqueraded: Vec::new(),
            mtu: None,
        }
    }
}

/// A network as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Id; at most 64 letters, digits, dashes and dots. [`DEFAULT_NETWORK`] is served by [`DEFAULT_BRIDGE`].
    pub id: String,
    /// Bridge name; empty means the usual one, see [`crate::bridge_name`].
    #[serde(default)]
    pub bridge: String,
    /// Subnet; `None` takes a free one.
    pub subnet: Option<Subnet>,
    /// Part of the subnet to allot from; `None` means all of it.
    #[serde(default)]
    pub ip_range: Option<Subnet>,
    /// Gateway; `None` means the first address.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 beside IPv4; `None`: without.
    #[serde(default)]
    pub ipv6: Option<Ipv6Config>,
    /// No way out, and none in.
    #[serde(default)]
    pub internal: bool,
    /// Reachable from outside by its own addresses (pods in a cluster), not only through published ports.
    #[serde(default)]
    pub routed: bool,
    /// Workloads are seen outside by their own addresses, and reached by them.
    #[serde(default)]
    pub plain: bool,
    /// Workloads are seen outside by their own addresses, but not reached by them.
    #[serde(default)]
    pub unmasqueraded: bool,
    /// Interface of the machine that the bridge has as a port: workloads are neighbours of what is there. The gateway is then another's,
    /// and the machine has no address on the network.
    #[serde(default)]
    pub uplink: Option<String>,
    /// Attached workloads may not talk to each other (Docker's `com.docker.network.bridge.enable_icc=false`).
    #[serde(default)]
    pub isolated_ports: bool,
    /// MTU; `None` means the fabric's.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Address of the machine that ports of workloads are published on where none is named; `None` means all.
    #[serde(default)]
    pub published_on: Option<Ipv4Addr>,
    /// What names of interfaces in namespaces begin with; empty means `eth`.
    #[serde(default)]
    pub interface_prefix: String,
    /// Addresses of the subnets that are others', and given to nobody.
    #[serde(default)]
    pub kept: Vec<IpAddr>,
    /// The network spans machines: this one gives addresses of parts of it alone, by [`crate::Fabric::share_network`].
    #[serde(default)]
    pub shared: bool,
    /// Refuse a subnet that the machine's own routes lead to, or that is public, unless it is seen outside by its own addresses: whoever
    /// asks for it is not the machine's operator.
    #[serde(default)]
    pub beside_routes: bool,
    /// What workloads are given and told beside the subnet.
    #[serde(default)]
    pub plan: Plan,
}

/// The IPv6 part of a network as wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Config {
    /// Subnet; `None` takes a unique local one.
    pub subnet: Option<Subnet6>,
    /// Part of the subnet to allot from; `None` means all of it.
    pub range: Option<Subnet6>,
    /// Gateway; `None` means the first address.
    pub gateway: Option<Ipv6Addr>,
}

/// The IPv6 part of a network as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Network {
    /// Subnet in force.
    pub subnet: Subnet6,
    /// Part of the subnet to allot from.
    pub range: Option<Subnet6>,
    /// Gateway in force: the bridge's own address.
    pub gateway: Ipv6Addr,
}

/// The IPv6 part of a place on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Place {
    /// Address.
    pub address: Ipv6Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// Gateway.
    pub gateway: Ipv6Addr,
}

/// A network as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Id.
    pub id: String,
    /// Bridge on the machine.
    pub bridge: String,
    /// Subnet in force.
    pub subnet: Subnet,
    /// Part of the subnet to allot from.
    pub ip_range: Option<Subnet>,
    /// Gateway in force: the bridge's own address.
    pub gateway: Ipv4Addr,
    /// IPv6 beside IPv4.
    #[serde(default)]
    pub ipv6: Option<Ipv6Network>,
    /// No way out, and none in.
    pub internal: bool,
    /// Reachable from outside by its own addresses.
    pub routed: bool,
    /// Seen outside by its own addresses.
    #[serde(default)]
    pub plain: bool,
    /// Interface of the machine that is a port of the bridge.
    #[serde(default)]
    pub uplink: Option<String>,
    /// Attached workloads may not talk to each other.
    pub isolated_ports: bool,
    /// MTU in force.
    pub mtu: u32,
    /// Address of the machine that ports of workloads are published on where none is named.
    #[serde(default)]
    pub published_on: Option<Ipv4Addr>,
    /// What names of interfaces in namespaces begin with; empty means `eth`.
    #[serde(default)]
    pub interface_prefix: String,
    /// Addresses that are given to nobody.
    #[serde(default)]
    pub kept: Vec<IpAddr>,
    /// The network spans machines, and this one gives addresses of these parts alone.
    #[serde(default)]
    pub parts: Option<Vec<Subnet>>,
    /// What workloads are given and told beside the subnet.
    #[serde(default)]
    pub plan: Plan,
}

impl Network {
    /// The machine's own address in one of its parts, which is given to nobody: the last that is neither the broadcast address nor the
    /// network's gateway. Who leads the other machines here goes by the same rule.
    pub fn own_address(&self, part: &Subnet) -> Ipv4Addr {
        let is_free = |address: &Ipv4Addr| *address != self.subnet.last() && *address != self.gateway;
        let back = |by: u32| Ipv4Addr::from_bits(part.last().to_bits().saturating_sub(by));
        // Two may be taken, so one of three is free.
        (0..3).map(back).find(is_free).unwrap_or_else(|| part.last())
    }
}

/// A wish to be on a network.
#[derive(Clone, Debug, Default)]
pub struct AttachRequest {
    /// Who asks: container id or pod uid. Attaching the same owner to the same network again gives the same answer.
    pub owner: String,
    /// Path of the network namespace, from [`crate::Fabric::create_namespace`] or `/proc/<pid>/ns/net`.
    pub namespace: PathBuf,
    /// Which network.
    pub network: String,
    /// Name of the interface inside; empty means the first free `eth<n>`.
    pub interface: String,
    /// Wanted address.
    pub address: Option<Ipv4Addr>,
    /// Wanted IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// Wanted MAC; `None` derives it from the address.
    pub mac: Option<Mac>,
    /// Leave the default route alone (another network gives it). Internal networks never give one.
    pub without_default_route: bool,
    /// A guest's tap device instead of an interface in a namespace; `namespace` and `interface` are not looked at then.
    pub tap: bool,
    /// Security groups that guard it; without any, everything may reach it.
    pub groups: Vec<String>,
    /// Whose [`Reservation`] its addresses are of. With another one than before, the owner's place is made anew.
    pub port: Option<String>,
}

/// Addresses that are kept for whoever names `owner` as its port, and given to nobody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Whose they are.
    pub owner: String,
    /// Which network.
    pub network: String,
    /// Address.
    pub address: Ipv4Addr,
    /// Hardware address.
    pub mac: Mac,
}

/// A place on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose it is.
    pub owner: String,
    /// Which network.
    pub network: String,
    /// The namespace it is in.
    pub namespace: PathBuf,
    /// Interface inside the namespace.
    pub interface: String,
    /// Its other end on the machine.
    pub host_interface: String,
    /// Address.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// Gateway.
    pub gateway: Ipv4Addr,
    /// IPv6 beside IPv4. Guests have none: nothing tells it to them.
    #[serde(default)]
    pub ipv6: Option<Ipv6Place>,
    /// Hardware address.
    pub mac: Mac,
    /// `host_interface` is a tap device, and its other end a guest that asks for its address.
    #[serde(default)]
    pub tap: bool,
    /// Security groups that guard it.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whose [`Reservation`] its addresses are of.
    #[serde(default)]
    pub port: Option<String>,
}

/// Who may speak with the members of a group, and with whom they may. Everything else is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Id; whatever the caller calls it.
    pub id: String,
    /// Flows to members.
    pub ingress: Vec<SecurityRule>,
    /// Flows from members.
    pub egress: Vec<SecurityRule>,
    /// Addresses of members on other machines; those here are known from their attachments.
    pub members: Vec<Ipv4Addr>,
}

/// Flows that a group lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityRule {
    /// What they carry.
    pub traffic: Traffic,
    /// The other side.
    pub remote: Remote,
}

/// What flows carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Traffic {
    /// Anything.
    Any,
    /// A protocol by its number.
    Protocol(u8),
    /// A protocol with ports, to these ports of who is spoken to.
    Ports {
        /// The protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// ICMP that begins a flow, such as echo requests (8).
    Icmp {
        /// Type.
        kind: u8,
        /// Code; `None`: any.
        code: Option<u8>,
    },
}

/// The other side of flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remote {
    /// Anybody.
    Anywhere,
    /// Addresses.
    Subnet(Subnet),
    /// Members of a group.
    Group(String),
}

/// Hardware address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The locally administered address that Docker too derives from an IPv4 address.
    pub fn from_address(address: Ipv4Addr) -> Mac {
        let [a, b, c, d] = address.octets();
        Mac([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mac, Error> {
        let invalid = || Error::Invalid(format!("invalid MAC address {text:?}"));
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(invalid());
        }
        Ok(Mac(bytes))
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Protocol, Error> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" | "" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(Error::Invalid(format!("invalid proto: {text}"))),
        }
    }
}

/// A port of the machine that leads to a port of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Address of the machine; 0.0.0.0 and `::` mean all of their family, `None` all of both.
    pub host_address: Option<IpAddr>,
    /// Port of the machine; 0 lets the fabric choose one.
    pub host_port: u16,
    /// Last port of a range to choose the host port from; 0 means `host_port` itself.
    #[serde(default)]
    pub host_port_end: u16,
    /// Port of the workload.
    pub target_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// The workload behind published ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// Whether somebody carries from IPv6 addresses of the machine to its IPv4 address (see [`crate::Fabric::carried`]), where it has no
    /// IPv6 address and the machine has: the kernel translates no family to the other.
    pub carries6: bool,
}

/// A socket that holds a published port on IPv6 and leads to an IPv4 address: somebody must carry what comes to it.
#[derive(Debug)]
pub struct CarriedPort {
    /// Address and port of the machine.
    pub host: std::net::SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it leads.
    pub target: std::net::SocketAddrV4,
    /// Bound, and not listening.
    pub socket: std::os::fd::OwnedFd,
}

impl From<Ipv4Addr> for Target {
    fn from(address: Ipv4Addr) -> Target {
        Target { address, address6: None, carries6: false }
    }
}

impl From<&Attachment> for Target {
    fn from(place: &Attachment) -> Target {
        Target { address: place.address, address6: place.ipv6.map(|six| six.address), carries6: false }
    }
}

/// Where a service leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: u16,
}

impl From<SocketAddrV4> for Endpoint {
    fn from(socket: SocketAddrV4) -> Endpoint {
        Endpoint { address: *socket.ip(), port: socket.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.address, self.port)
    }
}

/// One port of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRule {
    /// A name that stays the same while the service lives, such as `namespace/name:port`; unique in one call.
    pub name: String,
    /// Virtual address. `None` for a headless service, for which nothing is installed.
    pub cluster_ip: Option<Ipv4Addr>,
    /// More addresses that lead to it: `externalIPs`, load balancer addresses.
    pub external_addresses: Vec<Ipv4Addr>,
    /// Port on these addresses; 0 means all of them, each leading to the same port of an endpoint: for those of
    /// `from_network` and the machine itself.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on every address of the machine.
    pub node_port: Option<u16>,
    /// Ready endpoints. Without any, connections are refused.
    pub endpoints: Vec<Endpoint>,
    /// Endpoints for traffic from outside (node port, external addresses) where they differ:
    /// `externalTrafficPolicy: Local`.
    pub external_endpoints: Option<Vec<Endpoint>>,
    /// Only who is on this network reaches the virtual address.
    pub from_network: Option<String>,
    /// Session affinity `ClientIP`: for so many seconds a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
}

/// What [`crate::Fabric::list`] shows.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Networks.
    pub networks: Vec<Network>,
    /// Attachments.
    pub attachments: Vec<Attachment>,
    /// Addresses that are kept for ports.
    pub reservations: Vec<Reservation>,
    /// Publications: owner, target address, ports.
    pub publications: Vec<Publication>,
    /// Ids of pinned namespaces.
    pub namespaces: Vec<String>,
}

/// The published ports of one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Whose they are.
    pub owner: String,
    /// Where they lead.
    pub target: Ipv4Addr,
    /// Where they lead by IPv6.
    #[serde(default)]
    pub target6: Option<Ipv6Addr>,
    /// Whether what comes by IPv6 is carried to the IPv4 address.
    #[serde(default)]
    pub carried6: bool,
    /// The ports, with chosen host ports.
    pub ports: Vec<PortMapping>,
}

/// A kernel setting that the fabric needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSetting {
    /// Path under `/proc/sys`.
    pub path: String,
    /// What it should be.
    pub wanted: &'static str,
    /// What it was before.
    pub before: Option<String>,
    /// Why it could not be set.
    pub problem: Option<String>,
}
