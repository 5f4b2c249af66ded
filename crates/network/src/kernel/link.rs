//! Bridges, veth pairs, addresses and routes, by rtnetlink messages on a blocking channel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::kernel::netlink::Channel;
use crate::subnet::Subnet;
use crate::types::Mac;

/// Loopback is the first interface of every namespace.
pub(crate) const LOOPBACK_INDEX: u32 = 1;

/// MTU when nothing tells a better one.
pub(crate) const ETHERNET_MTU: u32 = 1500;

/// `RT_TABLE_LOCAL`: the machine's own addresses.
const TABLE_LOCAL: u8 = 255;

/// What we want to know of an interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) is_bridge: bool,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: String,
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        is_bridge: false,
        mac: None,
        alias: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}

/// Finds an interface by name.
pub(crate) fn find(channel: &mut Channel, name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match channel.get(RouteNetlinkMessage::GetLink(message))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Ok(Some(link_of(&message))),
        _ => Ok(None),
    }
}

/// All interfaces.
pub(crate) fn list(channel: &mut Channel) -> io::Result<Vec<Link>> {
    let found = channel.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(found
        .iter()
        .filter_map(|m| match m {
            RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
            _ => None,
        })
        .collect())
}

fn change(channel: &mut Channel, index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    channel.execute(RouteNetlinkMessage::NewLink(message), 0)
}

/// Brings an interface up.
pub(crate) fn set_up(channel: &mut Channel, index: u32) -> io::Result<()> {
    change(channel, index, LinkFlags::Up, Vec::new())
}

/// Gives an interface an MTU.
pub(crate) fn set_mtu(channel: &mut Channel, index: u32, mtu: u32) -> io::Result<()> {
    change(channel, index, LinkFlags::empty(), vec![LinkAttribute::Mtu(mtu)])
}

/// Notes something on an interface.
pub(crate) fn set_alias(channel: &mut Channel, index: u32, alias: &str) -> io::Result<()> {
    change(channel, index, LinkFlags::empty(), vec![LinkAttribute::IfAlias(alias.to_owned())])
}

/// An address of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) interface: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// The machine's IPv4 addresses.
pub(crate) fn addresses(channel: &mut Channel) -> io::Result<Vec<Address>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let found = channel.dump(RouteNetlinkMessage::GetAddress(message))?;
    let address = |answer: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })?;
        Some(Address { interface: message.header.index, address: local, prefix: message.header.prefix_len })
    };
    Ok(found.iter().filter_map(address).collect())
}

/// Takes an address from an interface; it may be gone already.
pub(crate) fn delete_address(channel: &mut Channel, gone: &Address) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = gone.prefix;
    message.header.index = gone.interface;
    message.attributes = vec![AddressAttribute::Local(IpAddr::V4(gone.address))];
    match channel.execute(RouteNetlinkMessage::DelAddress(message), 0) {
        Err(e) if e.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) => Ok(()),
        other => other,
    }
}

/// MTU of the interface that has this address of ours; the usual one when there is none.
pub(crate) fn mtu_towards(channel: &mut Channel, own: Ipv4Addr) -> io::Result<u32> {
    let index = addresses(channel)?.iter().find(|one| one.address == own).map(|one| one.interface);
    let links = list(channel)?;
    Ok(links.iter().find(|link| Some(link.index) == index).map_or(ETHERNET_MTU, |link| link.mtu))
}

/// Makes a bridge. Its MAC is set, so that it does not change with its ports.
pub(crate) fn create_bridge(channel: &mut Channel, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    channel.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Lets bridged IPv4 pass the IP hooks, so that answers of a service's endpoint on the same bridge are translated back.
/// Fails where the kernel has no `br_netfilter`.
pub(crate) fn filter_bridged(channel: &mut Channel, index: u32) -> io::Result<()> {
    let data = InfoData::Bridge(vec![InfoBridge::NfCallIpTables(true)]);
    let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
    change(channel, index, LinkFlags::empty(), vec![LinkAttribute::LinkInfo(info)])
}

/// A veth pair to be made.
pub(crate) struct VethPair<'a> {
    /// Name on the side of the channel that makes it.
    pub(crate) inner_name: &'a str,
    pub(crate) inner_mac: Mac,
    pub(crate) outer_name: &'a str,
    /// Namespace of the other side.
    pub(crate) outer_namespace: BorrowedFd<'a>,
    pub(crate) mtu: u32,
}

/// Makes a veth pair, the inner end in the channel's namespace.
pub(crate) fn create_veth(channel: &mut Channel, pair: &VethPair<'_>) -> io::Result<()> {
    let mut outer = LinkMessage::default();
    outer.attributes = vec![
        LinkAttribute::IfName(pair.outer_name.to_owned()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::NetNsFd(pair.outer_namespace.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(pair.inner_name.to_owned()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::Address(pair.inner_mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(outer))),
        ]),
    ];
    channel.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Plugs an interface into a bridge: in hairpin mode, so that a workload can reach itself through a service, and apart
/// from other such ports when `isolated`. Then brings it up.
pub(crate) fn plug(channel: &mut Channel, index: u32, bridge: u32, isolated: bool) -> io::Result<()> {
    change(channel, index, LinkFlags::empty(), vec![LinkAttribute::Controller(bridge)])?;
    let data = vec![InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(isolated)];
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(InfoPortData::BridgePort(data))];
    change(channel, index, LinkFlags::Up, vec![LinkAttribute::LinkInfo(info)])
}

/// Plugs the interface of a network outside into a bridge, and brings it up.
pub(crate) fn plug_uplink(channel: &mut Channel, index: u32, bridge: u32) -> io::Result<()> {
    change(channel, index, LinkFlags::Up, vec![LinkAttribute::Controller(bridge)])
}

/// Brings an interface up or down, by its name.
pub(crate) fn switch(channel: &mut Channel, name: &str, on: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.flags = if on { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    channel.execute(RouteNetlinkMessage::NewLink(message), 0)
}

/// Deletes an interface, and with it the other end of a veth pair. Deleting what is not there is fine.
pub(crate) fn delete(channel: &mut Channel, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    delete_link(channel, message)
}

/// The same by its index.
pub(crate) fn delete_index(channel: &mut Channel, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    delete_link(channel, message)
}

fn delete_link(channel: &mut Channel, message: LinkMessage) -> io::Result<()> {
    match channel.execute(RouteNetlinkMessage::DelLink(message), 0) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
        other => other,
    }
}

/// Gives an interface an address; it is fine when it has it.
pub(crate) fn add_address(channel: &mut Channel, index: u32, address: Ipv4Addr, subnet: &Subnet) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = subnet.prefix();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Broadcast(subnet.last()),
    ];
    channel.execute(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Gives an interface an IPv6 address that may be used at once; it is fine when it has it. Nobody else can have it: we
/// allot them, and a port in hairpin mode would hear its own question for duplicates.
pub(crate) fn add_address6(channel: &mut Channel, index: u32, address: Ipv6Addr, prefix: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V6(address)),
        AddressAttribute::Address(IpAddr::V6(address)),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    channel.execute(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A route of the main table, everywhere when there is no destination.
pub(crate) fn route(destination: Option<Subnet>, attributes: Vec<RouteAttribute>, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes = attributes;
    if let Some(subnet) = destination {
        message.header.destination_prefix_length = subnet.prefix();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(subnet.address())));
    }
    message
}

/// Sets the default route.
pub(crate) fn add_default_route(channel: &mut Channel, gateway: Ipv4Addr) -> io::Result<()> {
    let message = route(None, vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))], RouteScope::Universe);
    channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Sets the IPv6 default route, unless there is one.
pub(crate) fn add_default_route6(channel: &mut Channel, index: u32, gateway: Ipv6Addr) -> io::Result<()> {
    let attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Gateway(RouteAddress::Inet6(gateway))];
    let mut message = route(None, attributes, RouteScope::Universe);
    message.header.address_family = AddressFamily::Inet6;
    match channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Lets answers to `::1` come in by an interface: the kernel looks for such a route on the interface itself. Packets that
/// claim to come from or go to `::1` are dropped before, so only what is translated back gets here. IPv4's
/// `route_localnet` has no counterpart.
pub(crate) fn accept_loopback6(channel: &mut Channel, index: u32) -> io::Result<()> {
    /// Behind that of the loopback interface; each bridge has its own, as routes of the same metric replace each other.
    const METRIC: u32 = 4096;
    let mut message = route(
        None,
        vec![RouteAttribute::Oif(index), RouteAttribute::Priority(METRIC.saturating_add(index))],
        RouteScope::Host,
    );
    message.header.address_family = AddressFamily::Inet6;
    message.header.kind = RouteType::Local;
    message.header.table = TABLE_LOCAL;
    message.header.destination_prefix_length = 128;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(Ipv6Addr::LOCALHOST)));
    channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Says that a subnet is reached by a gateway. What leads there already stays in front; this one leads when that is gone.
pub(crate) fn add_route(channel: &mut Channel, subnet: Subnet, gateway: Ipv4Addr) -> io::Result<()> {
    let attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    let message = route(Some(subnet), attributes, RouteScope::Universe);
    match channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_APPEND) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Says that a subnet lies behind an interface, and which of our addresses to show there.
pub(crate) fn add_link_route(channel: &mut Channel, subnet: Subnet, index: u32, source: Ipv4Addr) -> io::Result<()> {
    let attributes = vec![RouteAttribute::Oif(index), RouteAttribute::PrefSource(RouteAddress::Inet(source))];
    let message = route(Some(subnet), attributes, RouteScope::Link);
    channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A route of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) destination: Subnet,
    pub(crate) interface: u32,
}

/// The machine's IPv4 routes, of all tables but the local one. The default route has prefix length 0.
pub(crate) fn routes(channel: &mut Channel) -> io::Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let mut found = Vec::new();
    for answer in channel.dump(RouteNetlinkMessage::GetRoute(message))? {
        let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
        if message.header.kind != RouteType::Unicast || message.header.table == TABLE_LOCAL {
            continue;
        }
        let mut address = Ipv4Addr::UNSPECIFIED;
        let mut interface = 0;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(a)) => address = *a,
                RouteAttribute::Oif(index) => interface = *index,
                _ => {}
            }
        }
        if let Ok(destination) = Subnet::containing(address, message.header.destination_prefix_length) {
            found.push(Route { destination, interface });
        }
    }
    Ok(found)
}
