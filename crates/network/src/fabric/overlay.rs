//! Networks across the machines of a pool: each machine has parts of a network, reached over one VXLAN device for each network. A
//! workload asks by ARP for an address of another part, this machine answers in its place (proxy ARP) and routes; so services are
//! translated on the machine of the client, and answers come back through it. What passes between a network's device and its bridge
//! passes to and from no other network: the rules know them as a pair.
//!
//! What is told here is all that holds: nothing is learnt, nothing is flooded, and packets from any other address are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Fabric;
use super::inner::{Core, Inner, host_channel, netlink_error};
use crate::error::{Error, Result};
use crate::kernel::netlink::Channel;
use crate::kernel::overlay::{self, Device, Hop, Neighbour};
use crate::kernel::{announce, link, sysctl};
use crate::nft::elements::{Batch, Element, Family, Field};
use crate::nft::{process, ruleset};
use crate::subnet::Subnet;
use crate::types::{Mac, Network};

/// The device of the default network.
pub(crate) const DEVICE: &str = "nuee-vx0";
/// What the names of all devices begin with; the network's number follows.
const DEVICE_PREFIX: &str = "nuee-vx";
/// UDP port of the overlay: not the usual one, which other software on the machine may use.
pub const PORT: u16 = 8473;
/// Network number of the default network on the wire.
const DEFAULT_NUMBER: u32 = 1;
/// Network numbers are of 24 bits. `Source:` RFC 7348.
const NUMBER_MAX: u32 = (1 << 24) - 1;
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

/// A network as one of the machines that share it sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The network.
    pub network: String,
    /// Its number on the wire; 0 is that of the default network.
    pub number: u32,
    /// This machine; without a way to the others there is no overlay.
    pub own: Option<Part>,
    /// What this machine gives addresses from; `None` leaves that as it is.
    pub parts: Option<Vec<Subnet>>,
    /// Parts on other machines.
    pub elsewhere: Vec<Part>,
    /// Addresses of other machines' parts that have moved here.
    pub here: Vec<Ipv4Addr>,
}

/// What is installed for one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installed {
    number: u32,
    own: Part,
    parts: Vec<Subnet>,
    neighbours: BTreeSet<Neighbour>,
    routes: BTreeSet<(Subnet, Hop)>,
}

impl Installed {
    fn of(wanted: &Overlay) -> Option<Installed> {
        let own = wanted.own.filter(|_| wanted.number <= NUMBER_MAX)?;
        let neighbours = wanted.elsewhere.iter().map(|part| Neighbour { inner: part.inner, outer: part.outer });
        let mut routes: BTreeSet<(Subnet, Hop)> =
            wanted.elsewhere.iter().map(|part| (part.addresses, Hop::Machine(part.inner))).collect();
        routes.extend(wanted.here.iter().map(|address| (Subnet::new_const(*address, 32), Hop::Here)));
        let mut parts = wanted.parts.clone().unwrap_or_default();
        parts.push(own.addresses);
        Some(Installed { number: wanted.number, own, parts, neighbours: neighbours.collect(), routes })
    }

    fn device(&self) -> String {
        format!("{DEVICE_PREFIX}{}", self.number)
    }
}

/// Whether an interface's name is that of one of these devices.
pub(super) fn is_device(name: &str) -> bool {
    let digits = name.strip_prefix(DEVICE_PREFIX);
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What is installed, by network.
#[derive(Default)]
pub(super) struct Overlays {
    installed: BTreeMap<String, (Installed, String)>,
    /// Devices and routes are as they should be. If not, what another process or a failure left is looked for.
    settled: bool,
}

impl Overlays {
    /// The device of a network.
    pub(super) fn device_of(&self, network: &str) -> Option<&str> {
        self.installed.get(network).map(|(_, device)| device.as_str())
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

    /// Makes the overlays be exactly these. Networks that are not here are left out; say it again when one has been made.
    pub async fn sync_overlays(&self, wanted: Vec<Overlay>) -> Result<()> {
        self.run("the overlays", move |inner| inner.sync_overlays(&wanted)).await
    }
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    netlink_error(format!("{what} the overlay"))
}

impl Inner {
    fn sync_overlays(&self, wanted: &[Overlay]) -> Result<()> {
        let mut core = self.core();
        for overlay in wanted.iter().filter(|overlay| core.networks.contains_key(&overlay.network)).collect::<Vec<_>>()
        {
            if let Some(parts) = &overlay.parts {
                self.share_network(&mut core, &overlay.network, parts)?;
            }
            // Whatever fails below, the machine's own address is given to nobody.
            if let Some(own) = overlay.own.filter(|_| !core.overlays.installed.contains_key(&overlay.network)) {
                core.addresses.reserve(&overlay.network, std::iter::once(own.inner));
            }
        }
        let here = wanted.iter().filter(|overlay| core.networks.contains_key(&overlay.network));
        let next: BTreeMap<String, (Installed, String)> = here
            .filter_map(|overlay| {
                let installed = Installed::of(overlay)?;
                let device = installed.device();
                Some((overlay.network.clone(), (installed, device)))
            })
            .collect();
        if core.overlays.settled && core.overlays.installed == next {
            return Ok(());
        }
        // Who may send comes before what they send.
        let before = elements(&core);
        let settled = std::mem::replace(&mut core.overlays.settled, false);
        let old = std::mem::replace(&mut core.overlays.installed, next);
        match settled {
            true => self.exchange(&mut core, &before)?,
            false => self.replace(&mut core)?,
        }
        let mut channel = host_channel()?;
        let devices: BTreeSet<&String> = core.overlays.installed.values().map(|(_, device)| device).collect();
        for link in link::list(&mut channel).map_err(netlink_error("list interfaces"))? {
            if is_device(&link.name) && !devices.contains(&link.name) {
                link::delete(&mut channel, &link.name).map_err(failed("delete"))?;
            }
        }
        // One network that cannot be led keeps none of the others from it.
        let mut led = Ok(());
        for (id, (installed, device)) in core.overlays.installed.clone() {
            let known =
                old.get(&id).map(|(known, _)| known).filter(|known| settled && known.number == installed.number);
            if known != Some(&installed) {
                let this = self.lead(&mut core, &mut channel, &id, &device, known, &installed);
                if let Err(error) = &this {
                    tracing::warn!(network = id, %error, "a network is not led to the other machines");
                }
                led = led.and(this);
            }
        }
        core.overlays.settled = led.is_ok();
        match core.links.is_empty() {
            true => led,
            false => led.and(self.apply_links(&mut core)),
        }
    }

    /// Brings the elements from what they were to what goes with the overlays.
    fn exchange(&self, core: &mut Core, before: &BTreeSet<Element>) -> Result<()> {
        let now = elements(core);
        let mut batch = Batch::default();
        before.difference(&now).cloned().for_each(|gone| batch.delete(gone));
        now.into_iter().for_each(|element| batch.add(element));
        self.apply(core, &batch)
    }

    /// Makes the elements be exactly those that go with the overlays, whatever an earlier process left: in one transaction.
    fn replace(&self, core: &mut Core) -> Result<()> {
        let own = core.networks.values().flat_map(ruleset::of_network);
        let script = ruleset::overlays(own.chain(elements(core)));
        process::apply(&script).or_else(|error| {
            // Somebody changed our tables behind our back: install everything.
            tracing::warn!(%error, "installing all tables again");
            self.install(core)
        })
    }

    /// Leads one network to the other machines.
    fn lead(
        &self,
        core: &mut Core,
        channel: &mut Channel,
        id: &str,
        device_name: &str,
        known: Option<&Installed>,
        wanted: &Installed,
    ) -> Result<()> {
        let network = core.networks.get(id).cloned().ok_or_else(|| Error::NetworkNotFound(id.to_owned()))?;
        let own = wanted.own;
        let is_own = |address: &Ipv4Addr| wanted.parts.iter().any(|part| part.contains(*address));
        // Addresses that are elsewhere now are nobody else's here.
        let away = wanted.routes.iter().filter(|(part, hop)| part.prefix() == 32 && *hop != Hop::Here);
        let away: Vec<Ipv4Addr> = away.map(|(part, _)| part.address()).filter(is_own).collect();
        core.addresses.reserve(&network.id, away.iter().copied().chain([own.inner]));
        let device = ensure_device(channel, device_name, wanted, &network)?;
        let bridge = link::find(channel, &network.bridge).map_err(failed("look for"))?;
        let bridge = bridge.ok_or_else(|| Error::NetworkNotFound(network.id.clone()))?.index;
        let index = |hop: &Hop| if *hop == Hop::Here { bridge } else { device };
        let source = |hop: &Hop| if *hop == Hop::Here { network.gateway } else { own.inner };
        for neighbour in &wanted.neighbours {
            overlay::add_neighbour(channel, device, *neighbour).map_err(failed("add a machine to"))?;
        }
        for (destination, hop) in &wanted.routes {
            overlay::add_route(channel, index(hop), *destination, *hop, source(hop)).map_err(failed("route over"))?;
        }
        let Some(known) = known else {
            // After a restart of the daemon nothing is known of what an earlier one installed, so all is said again.
            forget_strays(channel, device, bridge, wanted)?;
            self.announce_on(&network, &away);
            return Ok(());
        };
        for (destination, hop) in known.routes.difference(&wanted.routes) {
            // A destination that has moved has its new route already, by replacing this one.
            let replaced = wanted.routes.iter().any(|(other, _)| other == destination);
            if !replaced || *hop == Hop::Here {
                overlay::forget_route(channel, index(hop), *destination).map_err(failed("stop routing over"))?;
            }
        }
        for gone in known.neighbours.difference(&wanted.neighbours) {
            overlay::delete_neighbour(channel, device, *gone).map_err(failed("remove a machine from"))?;
        }
        // Workloads here that spoke with what has moved find this machine in its place.
        let is_new = |address: &Ipv4Addr| !known.routes.iter().any(|(part, _)| part.address() == *address);
        let gone: Vec<Ipv4Addr> = away.into_iter().filter(is_new).collect();
        self.announce_on(&network, &gone);
        Ok(())
    }

    /// Leads a network nowhere any more.
    pub(super) fn remove_overlay(&self, core: &mut Core, network: &Network) -> Result<()> {
        let before = elements(core);
        let Some((_, device)) = core.overlays.installed.remove(&network.id) else { return Ok(()) };
        self.exchange(core, &before)?;
        // Its routes and neighbours go with it.
        link::delete(&mut host_channel()?, &device).map_err(failed("delete"))
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

/// The elements that go with the overlays.
pub(super) fn elements(core: &Core) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    for (id, (installed, device)) in &core.overlays.installed {
        let Some(network) = core.networks.get(id) else { continue };
        elements.extend(installed.neighbours.iter().map(|neighbour| of_neighbour(*neighbour)));
        elements.extend(ruleset::of_overlay(network, device));
    }
    elements
}

/// Packets from this machine are let in.
fn of_neighbour(neighbour: Neighbour) -> Element {
    Element { family: Family::Inet, set: "machines", key: vec![Field::Address(neighbour.outer)], value: Vec::new() }
}

/// The device's index; it is made, or made anew when it is of another address.
fn ensure_device(channel: &mut Channel, name: &str, wanted: &Installed, network: &Network) -> Result<u32> {
    let own = wanted.own;
    let mac = Mac::from_address(own.inner);
    let mtu = network
        .mtu
        .min(link::mtu_towards(channel, own.outer).map_err(failed("look for"))?.saturating_sub(HEADER_BYTES));
    let found = link::find(channel, name).map_err(failed("look for"))?;
    // The hardware address follows from the machine's part, and the local one cannot be changed: what is not certain is made anew.
    let marker = own.outer.to_string();
    let fits = found.as_ref().is_some_and(|found| found.alias == marker && found.mac == Some(mac));
    if !fits {
        link::delete(channel, name).map_err(failed("delete"))?;
        let number = if wanted.number == 0 { DEFAULT_NUMBER } else { wanted.number };
        let device = Device { name, number, underlay: own.outer, port: PORT, mac, mtu };
        overlay::create(channel, device).map_err(failed("make"))?;
    }
    let device = link::find(channel, name).map_err(failed("look for"))?;
    let device = device.ok_or_else(|| Error::Invalid("the overlay's device vanished".into()))?;
    if device.mtu != mtu {
        link::set_mtu(channel, device.index, mtu).map_err(failed("set the MTU of"))?;
    }
    link::set_alias(channel, device.index, &marker).map_err(failed("mark"))?;
    for (path, wanted) in [
        (format!("net/ipv6/conf/{name}/disable_ipv6"), "1"),
        (format!("net/ipv4/conf/{name}/send_redirects"), "0"),
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
    fn the_device_of_an_internal_network_has_no_way_out_either() {
        let internal = |internal: bool| {
            let network = Network {
                id: "a".into(),
                bridge: "br-a".into(),
                subnet: "10.89.0.0/24".parse().unwrap(),
                ip_range: None,
                gateway: Ipv4Addr::new(10, 89, 0, 1),
                ipv6: None,
                internal,
                routed: false,
                plain: false,
                uplink: None,
                isolated_ports: false,
                mtu: 1500,
                published_on: None,
                interface_prefix: String::new(),
                kept: Vec::new(),
                parts: None,
                plan: crate::Plan::default(),
            };
            let elements = ruleset::of_overlay(&network, "nuee-vx2");
            elements.iter().any(|element| element.set == "internal")
        };
        assert!(internal(true) && !internal(false));
    }

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
            ..Overlay::default()
        };
        let installed = Installed::of(&wanted).unwrap();
        assert_eq!((installed.neighbours.len(), installed.routes.len()), (1, 3));
        assert_eq!(installed.device(), DEVICE);
        assert_eq!(Installed::of(&Overlay { own: None, ..wanted.clone() }), None);
        assert_eq!(Installed::of(&Overlay { number: NUMBER_MAX + 1, ..wanted.clone() }), None);
        let longest = Installed::of(&Overlay { number: NUMBER_MAX, ..wanted }).unwrap().device();
        assert!(is_device(&longest) && longest.len() <= crate::names::INTERFACE_CHARACTERS_MAX);
        assert!(!is_device("nuee-vx") && !is_device("nuee-lan"));
    }
}
