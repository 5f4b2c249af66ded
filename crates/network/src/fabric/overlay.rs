//! The default network across the machines of a pool: each has a part of it, reached over one VXLAN device. A workload asks by ARP
//! for an address of another part, this machine answers in its place (proxy ARP) and routes; so services are translated on the
//! machine of the client, and answers come back through it.
//!
//! What is told here is all that holds: nothing is learnt, nothing is flooded, and packets from any other address are dropped.

use std::net::Ipv4Addr;

use super::Fabric;
use super::inner::{Core, Inner, host_channel, netlink_error};
use crate::error::{Error, Result};
use crate::kernel::netlink::Channel;
use crate::kernel::overlay::{self, Device, Hop, Neighbour};
use crate::kernel::{announce, link, sysctl};
use crate::nft::elements::{Batch, Element, Family, Field};
use crate::subnet::Subnet;
use crate::types::{DEFAULT_NETWORK, Mac, Network};

/// The device.
pub(crate) const DEVICE: &str = "nuee-vx0";
/// UDP port of the overlay: not the usual one, which other software on the machine may use.
pub const PORT: u16 = 8473;
/// Network number of the default network.
const NUMBER: u32 = 1;
/// What VXLAN puts before a frame over IPv4. Units: bytes. `Source:` RFC 7348.
const HEADER_BYTES: u32 = 50;

/// Where a part of the default network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The addresses: a machine's part, or one address that has moved.
    pub addresses: Subnet,
    /// The machine's address on the overlay.
    pub inner: Ipv4Addr,
    /// The machine's address towards the other machines.
    pub outer: Ipv4Addr,
}

/// The pool as one of its machines sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// This machine.
    pub own: Option<Part>,
    /// Parts on other machines.
    pub elsewhere: Vec<Part>,
    /// Addresses of other machines' parts that have moved here.
    pub here: Vec<Ipv4Addr>,
}

/// What is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    own: Option<Part>,
    neighbours: Vec<Neighbour>,
    routes: Vec<(Subnet, Hop)>,
}

impl Installed {
    fn of(wanted: &Overlay) -> Installed {
        if wanted.own.is_none() {
            return Installed::default();
        }
        let mut neighbours: Vec<Neighbour> =
            wanted.elsewhere.iter().map(|part| Neighbour { inner: part.inner, outer: part.outer }).collect();
        neighbours.sort();
        neighbours.dedup();
        let mut routes: Vec<(Subnet, Hop)> =
            wanted.elsewhere.iter().map(|part| (part.addresses, Hop::Machine(part.inner))).collect();
        routes.extend(wanted.here.iter().map(|address| (Subnet::new_const(*address, 32), Hop::Here)));
        routes.sort();
        routes.dedup();
        Installed { own: wanted.own, neighbours, routes }
    }
}

impl Fabric {
    /// Tells the workloads on a network that this machine answers for addresses that are on other machines.
    pub async fn announce(&self, network: &str, addresses: Vec<Ipv4Addr>) -> Result<()> {
        let network = network.to_owned();
        self.run("an announcement", move |inner| {
            let found = inner.core().networks.get(&network).cloned();
            let found = found.ok_or(Error::NetworkNotFound(network))?;
            inner.announce_on(&found, &addresses);
            Ok(())
        })
        .await
    }

    /// Makes the overlay be exactly this. Without a machine of its own there is none.
    pub async fn sync_overlay(&self, wanted: Overlay) -> Result<()> {
        self.run("the overlay", move |inner| inner.sync_overlay(&wanted)).await
    }
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    netlink_error(format!("{what} the overlay"))
}

impl Inner {
    fn sync_overlay(&self, wanted: &Overlay) -> Result<()> {
        let mut core = self.core();
        let wanted = Installed::of(wanted);
        let installed = core.overlay.clone().unwrap_or_default();
        // After a restart of the daemon nothing is known of what an earlier one installed, so all is said again.
        if core.overlay.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let Some(own) = wanted.own else { return self.remove_overlay(&mut core) };
        let network = core.networks.get(DEFAULT_NETWORK).cloned();
        let network = network.ok_or_else(|| Error::NetworkNotFound(DEFAULT_NETWORK.into()))?;
        // Addresses that are elsewhere now are nobody else's here.
        let away = wanted.routes.iter().filter(|(part, hop)| part.prefix() == 32 && *hop != Hop::Here);
        let away = away.map(|(part, _)| part.address()).filter(|address| own.addresses.contains(*address));
        let away: Vec<Ipv4Addr> = away.collect();
        core.addresses.reserve(&network.id, away.iter().copied().chain([own.inner]));
        let mut channel = host_channel()?;
        // Who may send comes before what they send.
        let mut batch = Batch::default();
        for gone in installed.neighbours.iter().filter(|one| !wanted.neighbours.contains(one)) {
            batch.delete(of_neighbour(*gone));
        }
        wanted.neighbours.iter().for_each(|one| batch.add(of_neighbour(*one)));
        self.apply(&mut core, &batch)?;
        let device = ensure_device(&mut channel, own, &network)?;
        let bridge = link::find(&mut channel, &network.bridge).map_err(failed("look for"))?;
        let bridge = bridge.ok_or_else(|| Error::NetworkNotFound(network.id.clone()))?.index;
        let index = |hop: &Hop| if *hop == Hop::Here { bridge } else { device };
        let source = |hop: &Hop| if *hop == Hop::Here { network.gateway } else { own.inner };
        for neighbour in &wanted.neighbours {
            overlay::add_neighbour(&mut channel, device, *neighbour).map_err(failed("add a machine to"))?;
        }
        for (destination, hop) in &wanted.routes {
            overlay::add_route(&mut channel, index(hop), *destination, *hop, source(hop))
                .map_err(failed("route over"))?;
        }
        if core.overlay.is_none() {
            forget_strays(&mut channel, device, bridge, &wanted)?;
        }
        for (destination, hop) in installed.routes.iter().filter(|one| !wanted.routes.contains(one)) {
            // A destination that has moved has its new route already, by replacing this one.
            let replaced = wanted.routes.iter().any(|(other, _)| other == destination);
            if !replaced || *hop == Hop::Here {
                overlay::forget_route(&mut channel, index(hop), *destination).map_err(failed("stop routing over"))?;
            }
        }
        for gone in installed.neighbours.iter().filter(|one| !wanted.neighbours.contains(one)) {
            overlay::delete_neighbour(&mut channel, device, *gone).map_err(failed("remove a machine from"))?;
        }
        // Workloads here that spoke with what has moved find this machine in its place.
        let is_new = |address: &Ipv4Addr| !installed.routes.iter().any(|(part, _)| part.address() == *address);
        let gone: Vec<Ipv4Addr> = away.into_iter().filter(is_new).collect();
        self.announce_on(&network, &gone);
        core.overlay = Some(wanted);
        Ok(())
    }

    /// A courtesy: who does not hear it asks again later.
    fn announce_on(&self, network: &Network, addresses: &[Ipv4Addr]) {
        if addresses.is_empty() {
            return;
        }
        let sent = host_channel().and_then(|mut channel| {
            let bridge = link::find(&mut channel, &network.bridge).map_err(failed("look for"))?;
            let bridge = bridge.ok_or_else(|| Error::NetworkNotFound(network.id.clone()))?;
            let mac = Mac::from_address(network.gateway);
            let mut all = addresses.iter();
            all.try_for_each(|address| announce::send(bridge.index, *address, mac).map_err(failed("announce on")))
        });
        if let Err(error) = sent {
            tracing::debug!(network = network.id, %error, "addresses are not announced");
        }
    }

    fn remove_overlay(&self, core: &mut Core) -> Result<()> {
        let mut batch = Batch::default();
        for gone in core.overlay.iter().flat_map(|installed| &installed.neighbours) {
            batch.delete(of_neighbour(*gone));
        }
        self.apply(core, &batch)?;
        // Its routes and neighbours go with it.
        link::delete(&mut host_channel()?, DEVICE).map_err(failed("delete"))?;
        core.overlay = Some(Installed::default());
        Ok(())
    }
}

/// Takes away routes that an earlier daemon installed and that hold no more.
fn forget_strays(channel: &mut Channel, device: u32, bridge: u32, wanted: &Installed) -> Result<()> {
    for found in link::routes(channel).map_err(netlink_error("list routes"))? {
        let ours = found.interface == device || (found.interface == bridge && found.destination.prefix() == 32);
        let hop_fits = |hop: &Hop| (*hop == Hop::Here) == (found.interface == bridge);
        let holds = wanted.routes.iter().any(|(destination, hop)| *destination == found.destination && hop_fits(hop));
        if ours && !holds {
            overlay::forget_route(channel, found.interface, found.destination).map_err(failed("stop routing over"))?;
        }
    }
    Ok(())
}

/// The elements that go with the overlay, when everything is installed anew.
pub(super) fn elements(core: &Core) -> Vec<Element> {
    let known = core.overlay.iter().flat_map(|installed| &installed.neighbours);
    known.map(|neighbour| of_neighbour(*neighbour)).collect()
}

/// Packets from this machine are let in.
fn of_neighbour(neighbour: Neighbour) -> Element {
    Element { family: Family::Inet, set: "machines", key: vec![Field::Address(neighbour.outer)], value: Vec::new() }
}

/// The device's index; it is made, or made anew when it is of another address.
fn ensure_device(channel: &mut Channel, own: Part, network: &Network) -> Result<u32> {
    let mac = Mac::from_address(own.inner);
    let mtu = network
        .mtu
        .min(link::mtu_towards(channel, own.outer).map_err(failed("look for"))?.saturating_sub(HEADER_BYTES));
    let found = link::find(channel, DEVICE).map_err(failed("look for"))?;
    // The hardware address follows from the machine's part, and the local one cannot be changed: what is not certain is made anew.
    let marker = own.outer.to_string();
    let fits = found.as_ref().is_some_and(|found| found.alias == marker && found.mac == Some(mac));
    if !fits {
        link::delete(channel, DEVICE).map_err(failed("delete"))?;
        let device = Device { name: DEVICE, number: NUMBER, underlay: own.outer, port: PORT, mac, mtu };
        overlay::create(channel, device).map_err(failed("make"))?;
    }
    let device = link::find(channel, DEVICE).map_err(failed("look for"))?;
    let device = device.ok_or_else(|| Error::Invalid("the overlay's device vanished".into()))?;
    if device.mtu != mtu {
        link::set_mtu(channel, device.index, mtu).map_err(failed("set the MTU of"))?;
    }
    link::set_alias(channel, device.index, &marker).map_err(failed("mark"))?;
    for (path, wanted) in [
        (format!("net/ipv6/conf/{DEVICE}/disable_ipv6"), "1"),
        (format!("net/ipv4/conf/{DEVICE}/send_redirects"), "0"),
        // This machine answers for addresses of other parts, at once.
        (format!("net/ipv4/conf/{}/proxy_arp", network.bridge), "1"),
        (format!("net/ipv4/neigh/{}/proxy_delay", network.bridge), "0"),
    ] {
        if let Some(problem) = sysctl::ensure(&path, wanted).problem {
            tracing::debug!(path, problem, "kernel setting left alone");
        }
    }
    link::add_address(channel, device.index, own.inner, &Subnet::new_const(own.inner, 32))
        .map_err(failed("address"))?;
    link::set_up(channel, device.index).map_err(failed("bring up"))?;
    Ok(device.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_one_neighbour_however_many_parts_it_has() {
        let part = |text: &str| Part {
            addresses: text.parse().unwrap(),
            inner: Ipv4Addr::new(10, 88, 128, 255),
            outer: Ipv4Addr::new(192, 0, 2, 2),
        };
        let wanted = Overlay {
            own: Some(Part {
                addresses: "10.88.0.0/17".parse().unwrap(),
                inner: Ipv4Addr::new(10, 88, 127, 255),
                outer: Ipv4Addr::new(192, 0, 2, 1),
            }),
            elsewhere: vec![part("10.88.128.0/24"), part("10.88.0.7/32")],
            here: vec![Ipv4Addr::new(10, 88, 128, 9)],
        };
        let installed = Installed::of(&wanted);
        assert_eq!((installed.neighbours.len(), installed.routes.len()), (1, 3));
        assert_eq!(Installed::of(&Overlay { own: None, ..wanted }), Installed::default());
    }
}
