//! The device that carries a network to other machines (VXLAN, RFC 7348), and who is where on it: no packet is flooded, and
//! nothing is learnt from packets.

use std::io;
use std::net::Ipv4Addr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::kernel::link;
use crate::kernel::netlink::Channel;
use crate::subnet::Subnet;
use crate::types::Mac;

/// What a device is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u32,
    /// This machine's address towards the others.
    pub(crate) underlay: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// Makes the device.
pub(crate) fn create(channel: &mut Channel, device: Device<'_>) -> io::Result<()> {
    let vxlan = vec![
        InfoVxlan::Id(device.number),
        InfoVxlan::Local(device.underlay),
        InfoVxlan::Port(device.port),
        InfoVxlan::Learning(false),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.to_owned()),
        LinkAttribute::Mtu(device.mtu),
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan))]),
    ];
    channel.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// A machine on the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    /// Its address on the overlay.
    pub(crate) inner: Ipv4Addr,
    /// Its address towards the other machines.
    pub(crate) outer: Ipv4Addr,
}

/// Where frames for a hardware address go, and which hardware address an address has.
fn entries(index: u32, neighbour: Neighbour) -> [NeighbourMessage; 2] {
    let mac = Mac::from_address(neighbour.inner).0.to_vec();
    let mut forwarding = NeighbourMessage::default();
    forwarding.header.family = AddressFamily::Bridge;
    forwarding.header.ifindex = index;
    forwarding.header.state = NeighbourState::Permanent;
    forwarding.header.flags = NeighbourFlags::Own;
    forwarding.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.clone()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(neighbour.outer)),
    ];
    let mut resolution = NeighbourMessage::default();
    resolution.header.family = AddressFamily::Inet;
    resolution.header.ifindex = index;
    resolution.header.state = NeighbourState::Permanent;
    resolution.header.kind = RouteType::Unicast;
    resolution.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(neighbour.inner)),
        NeighbourAttribute::LinkLayerAddress(mac),
    ];
    [forwarding, resolution]
}

/// Says where a machine is.
pub(crate) fn add_neighbour(channel: &mut Channel, index: u32, neighbour: Neighbour) -> io::Result<()> {
    for message in entries(index, neighbour) {
        channel.execute(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)?;
    }
    Ok(())
}

/// Forgets a machine; it may be forgotten already.
pub(crate) fn delete_neighbour(channel: &mut Channel, index: u32, neighbour: Neighbour) -> io::Result<()> {
    for message in entries(index, neighbour) {
        absent_is_fine(channel.execute(RouteNetlinkMessage::DelNeighbour(message), 0))?;
    }
    Ok(())
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOENT | Errno::ESRCH)) => Ok(()),
        other => other,
    }
}

/// Where a part of a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hop {
    /// Behind a machine of the overlay.
    Machine(Ipv4Addr),
    /// Right behind this interface.
    Here,
}

fn route(index: u32, destination: Subnet, hop: Hop, source: Ipv4Addr) -> RouteMessage {
    let mut attributes = vec![RouteAttribute::Oif(index), RouteAttribute::PrefSource(RouteAddress::Inet(source))];
    let Hop::Machine(gateway) = hop else { return link::route(Some(destination), attributes, RouteScope::Link) };
    attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    let mut message = link::route(Some(destination), attributes, RouteScope::Universe);
    message.header.flags = RouteFlags::Onlink;
    message
}

/// Leads a part of a network somewhere.
pub(crate) fn add_route(
    channel: &mut Channel,
    index: u32,
    destination: Subnet,
    hop: Hop,
    source: Ipv4Addr,
) -> io::Result<()> {
    let message = route(index, destination, hop, source);
    channel.execute(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Leads a part of a network over an interface no more, whatever the hop was; it may be gone already.
pub(crate) fn forget_route(channel: &mut Channel, index: u32, destination: Subnet) -> io::Result<()> {
    let message = link::route(Some(destination), vec![RouteAttribute::Oif(index)], RouteScope::NoWhere);
    absent_is_fine(channel.execute(RouteNetlinkMessage::DelRoute(message), 0))
}
