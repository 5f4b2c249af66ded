//! The state behind a [`super::Fabric`], its networks, and the installation of the ruleset.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};

use super::attachments::delete_interfaces;
use crate::error::{Error, IoContext, Result};
use crate::kernel::link::ETHERNET_MTU;
use crate::kernel::netlink::Channel;
use crate::kernel::{link, namespace, sysctl};
use crate::names::{bridge_name, check_id, check_interface, hash, is_bridge_name};
use crate::nft::elements::{self, Batch, Family};
use crate::nft::groups::Guards;
use crate::nft::ruleset::{self, Fixed};
use crate::nft::{TABLE, process, services::Tables};
use crate::state::{addresses::AddressBook, files, ports::PortBook, reservations::Reservations};
use crate::subnet::{Subnet, first_free};
use crate::subnet6::{Subnet6, unique_local};
use crate::types::{
    DEFAULT_NETWORK, FabricOptions, Inventory, Ipv6Network, KernelSetting, Mac, Network, NetworkConfig, SecurityGroup,
};

/// The smallest MTU that IPv4 allows.
const MTU_MIN: u32 = 68;
/// The largest MTU of a bridge.
const MTU_MAX: u32 = 65_535;
/// Larger subnets take addresses away that others have a use for.
const PREFIX_MIN: u8 = 8;
/// A `/31` has no room for a gateway and a workload beside network and broadcast.
const PREFIX_MAX: u8 = 29;
/// The same for IPv6, which has no broadcast address.
const PREFIX6_MAX: u8 = 126;

/// The state behind a [`super::Fabric`].
pub(super) struct Inner {
    pub(super) options: FabricOptions,
    fixed: Fixed,
    mtu: u32,
    pub(super) settings: Vec<KernelSetting>,
    /// The machine's own network namespace.
    pub(super) host_namespace: File,
    core: Mutex<Core>,
}

/// What changes, under one lock: state and nftables always agree when it is free.
pub(super) struct Core {
    pub(super) networks: BTreeMap<String, Network>,
    pub(super) addresses: AddressBook,
    pub(super) ports: PortBook,
    /// Service objects in the kernel; `None`: those that an earlier process left there.
    pub(super) services: Option<Tables>,
    /// The overlays in the kernel.
    pub(super) overlays: super::overlay::Overlays,
    /// Security groups as they were told last.
    pub(super) groups: BTreeMap<String, SecurityGroup>,
    /// Their objects in the kernel; `None`: those that an earlier process left there.
    pub(super) guards: Option<Guards>,
    /// Floating addresses and where they lead.
    pub(super) floating: super::floating::Floating,
    /// This process has installed them.
    pub(super) floating_installed: bool,
    /// Pairs of networks that speak with each other.
    pub(super) links: super::routers::Links,
    /// This process has installed them.
    pub(super) links_installed: bool,
    destroyed: bool,
    /// Workloads' ports are off until the tables are back.
    pub(super) silenced: bool,
    /// For changes to elements.
    channel: Option<Channel>,
}

/// Wraps an error of netlink with what was being done.
pub(super) fn netlink_error(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let action = action.into();
    move |source| Error::Netlink { action, source }
}

/// A channel in the machine's namespace.
pub(super) fn host_channel() -> Result<Channel> {
    Channel::route().map_err(netlink_error("open netlink"))
}

impl Inner {
    pub(super) fn open(options: FabricOptions) -> Result<Inner> {
        namespace::prepare_directory(&options.run_dir.join("netns"))?;
        let networks: BTreeMap<String, Network> =
            files::read_all::<Network>(&options.state_dir.join("networks"))?.into_iter().collect();
        let core = Core {
            networks,
            addresses: AddressBook::open(&options.state_dir.join("addresses"))?
                .keeping(Reservations::open(&options.state_dir.join("ports"))?),
            ports: PortBook::open(&options.state_dir.join("publications"))?,
            services: None,
            overlays: super::overlay::Overlays::default(),
            groups: super::guards::read(&options.state_dir)?,
            guards: None,
            floating: super::floating::read(&options.state_dir)?,
            floating_installed: false,
            links: super::routers::read(&options.state_dir)?,
            links_installed: false,
            destroyed: false,
            silenced: false,
            channel: None,
        };
        let settings = vec![sysctl::ensure("net/ipv4/ip_forward", "1")];
        let fixed = Fixed {
            service_cidr: options.service_cidr.to_string(),
            node_ports: format!("{}-{}", options.node_ports.start(), options.node_ports.end()),
            unmasqueraded: options.unmasqueraded.iter().map(Subnet::to_string).collect(),
            masquerade_within: !Path::new("/proc/sys/net/bridge").exists(),
            loopback6: sysctl::read("net/bridge/bridge-nf-call-ip6tables").is_ok_and(|value| value != "1")
                || !Path::new("/proc/sys/net/bridge").exists(),
        };
        let mtu = match options.mtu {
            Some(mtu) => mtu.clamp(MTU_MIN, MTU_MAX),
            None => default_mtu(&mut host_channel()?)?,
        };
        let inner =
            Inner { options, fixed, mtu, settings, host_namespace: namespace::current()?, core: Mutex::new(core) };
        inner.restore_links(&inner.core())?;
        Ok(inner)
    }

    /// Bridged packets do not pass the IP hooks.
    pub(super) fn masquerades_within(&self) -> bool {
        self.fixed.masquerade_within
    }

    /// The hardware address of a network's bridge.
    pub(super) fn bridge_mac(&self, network: &Network) -> Mac {
        // Where the gateway is another's, so is its hardware address.
        match &network.uplink {
            None => Mac::from_address(network.gateway),
            Some(_) => own_mac(&self.options.instance, &network.id),
        }
    }

    /// Refuses the bridge's own hardware address: it would draw all of its traffic to one port.
    pub(super) fn check_bridge_mac(&self, network: &Network, mac: Option<Mac>) -> Result<()> {
        match mac.filter(|mac| *mac == self.bridge_mac(network)) {
            Some(mac) => Err(Error::Invalid(format!("MAC address {mac} is in use on the network"))),
            None => Ok(()),
        }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    fn network_path(&self, id: &str) -> PathBuf {
        self.options.state_dir.join("networks").join(id)
    }

    pub(super) fn ensure_network(&self, config: &NetworkConfig) -> Result<Network> {
        check_id(&config.id)?;
        let mut core = self.core();
        let old = core.networks.get(&config.id).cloned();
        let network = self.resolve(&core, config, old.as_ref())?;
        if let Some(old) = old.as_ref().filter(|o| **o != network) {
            let at = |n: &Network| (n.subnet, n.gateway, n.ipv6, n.bridge.clone(), n.uplink.clone());
            let moved = at(old) != at(&network);
            if moved && core.addresses.is_in_use(&config.id) {
                return Err(Error::NetworkInUse(config.id.clone()));
            }
            if moved {
                link::delete(&mut host_channel()?, &old.bridge).map_err(netlink_error("delete a bridge"))?;
            }
        }
        if old.is_none() {
            check_bridge(&network)?;
        }
        self.ensure_bridge(&network)?;
        if old.as_ref() != Some(&network) {
            let mut batch = Batch::default();
            old.iter().flat_map(ruleset::of_network).for_each(|e| batch.delete(e));
            ruleset::of_network(&network).into_iter().for_each(|e| batch.add(e));
            if let Some(device) = core.overlays.device_of(&network.id) {
                old.iter().flat_map(|old| ruleset::of_overlay(old, device)).for_each(|e| batch.delete(e));
                ruleset::of_overlay(&network, device).into_iter().for_each(|e| batch.add(e));
            }
            files::replace(&self.network_path(&network.id), &network)?;
            core.networks.insert(network.id.clone(), network.clone());
            self.apply(&mut core, &batch)?;
            if core.links.iter().any(|(one, other)| *one == network.id || *other == network.id) {
                self.apply_links(&mut core)?;
            }
        }
        Ok(network)
    }

    /// Fills in what the wish leaves open, and refuses what cannot be.
    fn resolve(&self, core: &Core, config: &NetworkConfig, old: Option<&Network>) -> Result<Network> {
        let subnet = match (config.subnet, old) {
            (Some(subnet), _) => subnet,
            (None, Some(old)) => old.subnet,
            (None, None) => self.free_subnet(core)?,
        };
        let is_new = old.is_none_or(|old| old.subnet != subnet);
        if is_new && subnet.prefix() < PREFIX_MIN {
            return Err(Error::Invalid(format!("subnet {subnet} is too large: take /{PREFIX_MIN} or a longer prefix")));
        }
        if subnet.prefix() > PREFIX_MAX {
            return Err(Error::Invalid(format!("subnet {subnet} is too small: at most /{PREFIX_MAX}")));
        }
        let others = core.networks.values().filter(|n| n.id != config.id);
        if let Some(other) = others.clone().find(|n| n.subnet.overlaps(&subnet)) {
            let other = format!("{} of network {}", other.subnet, other.id);
            return Err(Error::SubnetOverlap { subnet: subnet.to_string(), other });
        }
        if subnet.overlaps(&self.options.service_cidr) {
            let other = format!("{} of services", self.options.service_cidr);
            return Err(Error::SubnetOverlap { subnet: subnet.to_string(), other });
        }
        if config.beside_routes && config.uplink.is_none() && !config.plain && is_new {
            // Addresses that are to be seen outside are those that the operator has routed to the machine.
            if !config.unmasqueraded {
                check_private(subnet, &self.options.subnet_pools)?;
                self.check_routes(core, subnet)?;
            }
            check_floating(subnet, core.floating.keys())?;
        }
        let kept = old.filter(|o| o.subnet == subnet).map(|o| o.gateway);
        let gateway = config.gateway.or(kept).unwrap_or_else(|| subnet.first_host());
        if !subnet.is_host(gateway) {
            return Err(Error::Invalid(format!("no matching subnet for gateway {gateway}")));
        }
        if let Some(range) = config.ip_range.filter(|r| !subnet.contains(r.address()) || r.prefix() < subnet.prefix()) {
            return Err(Error::Invalid(format!("no matching subnet for range {range}")));
        }
        let ipv6 = self.resolve6(core, config, old)?;
        super::kept::check(subnet, gateway, ipv6, &config.kept)?;
        let bridge = if config.bridge.is_empty() { bridge_name(&config.id) } else { config.bridge.clone() };
        check_interface(&bridge)?;
        if others.clone().any(|n| n.bridge == bridge) {
            return Err(Error::Invalid(format!("bridge name {bridge} is in use by another network")));
        }
        Ok(Network {
            id: config.id.clone(),
            bridge,
            subnet,
            ip_range: config.ip_range,
            gateway,
            ipv6,
            internal: config.internal,
            routed: config.routed || config.plain,
            plain: config.plain || config.unmasqueraded,
            uplink: self.check_uplink(core, config)?,
            isolated_ports: config.isolated_ports,
            mtu: config.mtu.unwrap_or(self.mtu).clamp(MTU_MIN, MTU_MAX),
            published_on: config.published_on,
            interface_prefix: config.interface_prefix.clone(),
            kept: config.kept.clone(),
            // Parts of another subnet are nobody's here.
            parts: config.shared.then(|| old.filter(|_| !is_new).and_then(|old| old.parts.clone()).unwrap_or_default()),
            plan: config.plan.clone(),
        })
    }

    /// Refuses a subnet that routes of the machine lead to, but for the default route and those of our own networks.
    fn check_routes(&self, core: &Core, subnet: Subnet) -> Result<()> {
        let mut channel = host_channel()?;
        let links = link::list(&mut channel).map_err(netlink_error("list interfaces"))?;
        let is_own = |name: &str| {
            super::overlay::is_device(name) || core.networks.values().any(|network| network.bridge == name)
        };
        let routes = link::routes(&mut channel).map_err(netlink_error("list routes"))?;
        for route in routes.iter().filter(|route| route.destination.prefix() > 0 && route.destination.overlaps(&subnet))
        {
            let name = links.iter().find(|link| link.index == route.interface).map_or("", |link| link.name.as_str());
            if !is_own(name) {
                let other = format!("{}, to which a route of the machine leads", route.destination);
                return Err(Error::SubnetOverlap { subnet: subnet.to_string(), other });
            }
        }
        Ok(())
    }

    /// The IPv6 part of [`Inner::resolve`].
    fn resolve6(&self, core: &Core, config: &NetworkConfig, old: Option<&Network>) -> Result<Option<Ipv6Network>> {
        let Some(wanted) = config.ipv6 else { return Ok(None) };
        let others = core.networks.values().filter(|n| n.id != config.id).filter_map(|n| Some((n, n.ipv6?.subnet)));
        let used: Vec<Subnet6> = others.clone().map(|(_, subnet)| subnet).collect();
        let kept = old.and_then(|o| o.ipv6);
        let subnet = wanted.subnet.or_else(|| Some(kept?.subnet));
        let subnet = subnet.or_else(|| unique_local(&self.options.instance, &config.id, &used));
        let subnet = subnet.ok_or(Error::SubnetsExhausted)?;
        if !subnet.is_usable() || subnet.prefix() > PREFIX6_MAX {
            return Err(Error::Invalid(format!("subnet {subnet} cannot carry a network: at most /{PREFIX6_MAX}")));
        }
        if config.beside_routes && !subnet.is_unique_local() && kept.is_none_or(|kept| kept.subnet != subnet) {
            let text = "is not unique local: take one of fc00::/7, or name none and get a free one";
            return Err(Error::Invalid(format!("IPv6 subnet {subnet} {text}")));
        }
        if let Some((other, taken)) = others.clone().find(|(_, taken)| taken.overlaps(&subnet)) {
            let other = format!("{taken} of network {}", other.id);
            return Err(Error::SubnetOverlap { subnet: subnet.to_string(), other });
        }
        let kept = kept.filter(|k| k.subnet == subnet).map(|k| k.gateway);
        let gateway = wanted.gateway.or(kept).or_else(|| subnet.nth(1)).filter(|g| subnet.is_host(*g));
        let gateway = gateway.ok_or_else(|| Error::Invalid(format!("no matching gateway for subnet {subnet}")))?;
        if let Some(range) = wanted.range.filter(|r| !subnet.contains(r.address()) || r.prefix() < subnet.prefix()) {
            return Err(Error::Invalid(format!("no matching subnet for range {range}")));
        }
        Ok(Some(Ipv6Network { subnet, range: wanted.range, gateway }))
    }

    /// Refuses interfaces that cannot be a port of a bridge, or that others need.
    fn check_uplink(&self, core: &Core, config: &NetworkConfig) -> Result<Option<String>> {
        let Some(uplink) = &config.uplink else { return Ok(None) };
        check_interface(uplink)?;
        let mut others = core.networks.values().filter(|network| network.id != config.id);
        if let Some(other) = others.find(|network| network.uplink.as_ref() == Some(uplink)) {
            return Err(Error::Invalid(format!("interface {uplink} is in use by network {}", other.id)));
        }
        if config.ipv6.is_some() {
            return Err(Error::Invalid("a bridged network has IPv4 alone".into()));
        }
        let mut channel = host_channel()?;
        let failed = |what: &str| netlink_error(format!("{what} interface {uplink}"));
        let found = link::find(&mut channel, uplink).map_err(failed("look for"))?;
        let found = found.ok_or_else(|| Error::Invalid(format!("there is no interface {uplink}")))?;
        let addresses = link::addresses(&mut channel).map_err(failed("look for addresses of"))?;
        match found.is_bridge || addresses.iter().any(|one| one.interface == found.index) {
            // In a bridge it would not be heard by them any more.
            true => Err(Error::Invalid(format!("interface {uplink} has addresses of the machine, or is a bridge"))),
            false => Ok(Some(uplink.clone())),
        }
    }

    /// Makes the bridge as it should be, whatever is there of it.
    fn ensure_bridge(&self, network: &Network) -> Result<()> {
        let failed = |what: &str| netlink_error(format!("{what} bridge {}", network.bridge));
        let mut channel = host_channel()?;
        let found = link::find(&mut channel, &network.bridge).map_err(failed("look for"))?;
        if found.as_ref().is_some_and(|l| !l.is_bridge) {
            return Err(Error::Invalid(format!("interface {} is there and is no bridge", network.bridge)));
        }
        if found.is_none() {
            link::create_bridge(&mut channel, &network.bridge, self.bridge_mac(network), network.mtu)
                .map_err(failed("make"))?;
            let made = link::find(&mut channel, &network.bridge).map_err(failed("look for"))?;
            if let Some(made) = made {
                link::set_alias(&mut channel, made.index, &network.id).map_err(failed("mark"))?;
            }
        }
        let bridge = link::find(&mut channel, &network.bridge).map_err(failed("look for"))?;
        let bridge = bridge.ok_or_else(|| Error::NetworkNotFound(network.id.clone()))?;
        if bridge.mtu != network.mtu {
            link::set_mtu(&mut channel, bridge.index, network.mtu).map_err(failed("set the MTU of"))?;
        }
        if !self.fixed.masquerade_within {
            link::filter_bridged(&mut channel, bridge.index).map_err(failed("filter"))?;
        }
        for (path, wanted) in [
            // Published ports can be reached by 127.0.0.1; the ruleset keeps everybody else out of 127.0.0.0/8.
            (format!("net/ipv4/conf/{}/route_localnet", network.bridge), "1"),
            (format!("net/ipv4/conf/{}/send_redirects", network.bridge), "0"),
            (format!("net/ipv6/conf/{}/accept_ra", network.bridge), "0"),
            (format!("net/ipv6/conf/{}/accept_dad", network.bridge), "0"),
            (format!("net/ipv6/conf/{}/disable_ipv6", network.bridge), if network.ipv6.is_some() { "0" } else { "1" }),
        ] {
            if let Some(problem) = sysctl::ensure(&path, wanted).problem {
                tracing::debug!(path, problem, "kernel setting left alone");
            }
        }
        if let Some(uplink) = &network.uplink {
            link::set_up(&mut channel, bridge.index).map_err(failed("bring up"))?;
            return plug_uplink(&mut channel, uplink, bridge.index);
        }
        link::add_address(&mut channel, bridge.index, network.gateway, &network.subnet).map_err(failed("address"))?;
        if let Some(six) = network.ipv6 {
            sysctl::forward_ipv6();
            link::add_address6(&mut channel, bridge.index, six.gateway, six.subnet.prefix())
                .map_err(failed("give an IPv6 address to"))?;
        }
        link::set_up(&mut channel, bridge.index).map_err(failed("bring up"))?;
        if network.ipv6.is_some() && self.fixed.loopback6 {
            link::accept_loopback6(&mut channel, bridge.index).map_err(failed("lead ::1 to"))?;
        }
        if network.id == DEFAULT_NETWORK {
            // Gives the machine itself a route to services even where it has no default route, and an address to come from.
            link::add_link_route(&mut channel, self.options.service_cidr, bridge.index, network.gateway)
                .map_err(failed("route services over"))?;
        }
        Ok(())
    }

    /// Notes which parts of a network that spans machines this one gives addresses from.
    pub(super) fn share_network(&self, core: &mut Core, id: &str, parts: &[Subnet]) -> Result<()> {
        let network = core.networks.get_mut(id).ok_or_else(|| Error::NetworkNotFound(id.to_owned()))?;
        // Whoever says them may not know yet that the network has another subnet by now.
        if !parts.iter().all(|part| may_be_part(network.subnet, *part)) {
            return Ok(());
        }
        if network.parts.as_deref() != Some(parts) {
            let next = Network { parts: Some(parts.to_vec()), ..network.clone() };
            files::replace(&self.options.state_dir.join("networks").join(id), &next)?;
            *network = next;
        }
        Ok(())
    }

    pub(super) fn remove_network(&self, id: &str) -> Result<()> {
        let mut core = self.core();
        let Some(network) = core.networks.get(id).cloned() else { return Ok(()) };
        if core.addresses.is_in_use(id) {
            return Err(Error::NetworkInUse(id.to_owned()));
        }
        self.remove_overlay(&mut core, &network)?;
        link::delete(&mut host_channel()?, &network.bridge).map_err(netlink_error("delete a bridge"))?;
        files::remove(&self.network_path(id))?;
        core.addresses.forget(id)?;
        core.networks.remove(id);
        let mut batch = Batch::default();
        ruleset::of_network(&network).into_iter().for_each(|e| batch.delete(e));
        self.apply(&mut core, &batch)
    }

    pub(super) fn free_subnet(&self, core: &Core) -> Result<Subnet> {
        let routes = link::routes(&mut host_channel()?).map_err(netlink_error("list routes"))?;
        let mut used: Vec<Subnet> = routes.iter().map(|r| r.destination).filter(|d| d.prefix() > 0).collect();
        used.extend(core.networks.values().map(|n| n.subnet));
        used.push(self.options.service_cidr);
        used.extend(core.floating.keys().map(|address| Subnet::new_const(*address, 32)));
        first_free(&self.options.subnet_pools, &used).ok_or(Error::SubnetsExhausted)
    }

    /// Applies changes to elements. When our tables are gone (somebody flushed them), installs everything instead.
    pub(super) fn apply(&self, core: &mut Core, batch: &Batch) -> Result<()> {
        match batch.apply(&mut core.channel) {
            Err(Error::Netlink { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => self.install(core),
            other => other,
        }
    }

    /// Replaces both tables in one transaction.
    pub(super) fn install(&self, core: &mut Core) -> Result<()> {
        let mut all = Vec::new();
        core.networks.values().for_each(|n| all.extend(ruleset::of_network(n)));
        core.addresses.all().for_each(|a| all.extend(ruleset::of_attachment(a)));
        core.ports.all().for_each(|p| all.extend(ruleset::of_publication(p)));
        all.extend(super::overlay::elements(core));
        let services = core.services.take().unwrap_or_default();
        let guards = super::guards::compile(core);
        let floating = &core.floating;
        let joined = super::routers::bridges(core);
        let input = ruleset::Input {
            elements: all,
            services: &services,
            guards: &guards,
            floating,
            joined,
            fixed: &self.fixed,
        };
        let result = process::apply(&ruleset::full(&input));
        core.guards = result.is_ok().then_some(guards);
        // On failure the kernel keeps what it had: unknown to us, so the next attempt installs everything again.
        core.services = result.is_ok().then_some(services);
        if result.is_ok() {
            self.unsilence(core);
        }
        result
    }

    /// Brings the tables back when they are missing or of another layout.
    pub(super) fn heal(&self) -> Result<()> {
        let mut core = self.core();
        if core.destroyed || self.is_installed()? {
            return Ok(());
        }
        tracing::info!("installing nftables tables");
        // Tables of another layout still filter, and are replaced in one transaction; missing ones do not.
        if !(elements::table_exists(Family::Inet)? && elements::table_exists(Family::Bridge)?) {
            self.silence(&mut core);
        }
        self.install(&mut core)
    }

    fn is_installed(&self) -> Result<bool> {
        Ok(elements::chain_exists(Family::Inet, &self.fixed.marker())? && elements::table_exists(Family::Bridge)?)
    }

    pub(super) fn reconcile(&self) -> Result<()> {
        let mut core = self.core();
        self.restore_links(&core)?;
        // Services that an earlier process left must stay until we are told what they are.
        if core.services.is_none() && self.is_installed()? {
            let mut batch = Batch::default();
            core.networks.values().flat_map(ruleset::of_network).for_each(|e| batch.add(e));
            core.addresses.all().flat_map(ruleset::of_attachment).for_each(|e| batch.add(e));
            core.ports.all().flat_map(ruleset::of_publication).for_each(|e| batch.add(e));
            self.apply(&mut core, &batch)?;
            return self.apply_guards(&mut core);
        }
        self.install(&mut core)
    }

    /// Bridges with their addresses, and attached interfaces on their bridges.
    fn restore_links(&self, core: &Core) -> Result<()> {
        for network in core.networks.values() {
            self.ensure_bridge(network)?;
        }
        let mut channel = host_channel()?;
        let links = link::list(&mut channel).map_err(netlink_error("list interfaces"))?;
        self.delete_strays(core, &mut channel, &links)?;
        let index = |name: &str| links.iter().find(|l| l.name == name).map(|l| l.index);
        for attachment in core.addresses.all() {
            let Some(network) = core.networks.get(&attachment.network) else { continue };
            if let (Some(port), Some(bridge)) = (index(&attachment.host_interface), index(&network.bridge)) {
                link::plug(&mut channel, port, bridge, network.isolated_ports)
                    .map_err(netlink_error(format!("plug {}", attachment.host_interface)))?;
            }
        }
        Ok(())
    }

    /// Deletes interfaces with our names that nothing on disk speaks of: a crash came between the two.
    fn delete_strays(&self, core: &Core, channel: &mut Channel, links: &[link::Link]) -> Result<()> {
        let ports: HashSet<&str> = core.addresses.all().map(|a| a.host_interface.as_str()).collect();
        let bridges: HashSet<&str> = core.networks.values().map(|n| n.bridge.as_str()).collect();
        for found in links {
            let name = found.name.as_str();
            let is_stray = (name.starts_with(ruleset::PORT_PREFIX) && !ports.contains(name))
                || (found.is_bridge && is_bridge_name(name) && !bridges.contains(name));
            if is_stray {
                tracing::info!(name, "deleting an interface that was left over");
                link::delete(channel, name).map_err(netlink_error(format!("delete {name}")))?;
            }
        }
        Ok(())
    }

    pub(super) fn list(&self) -> Inventory {
        let core = self.core();
        Inventory {
            networks: core.networks.values().cloned().collect(),
            attachments: core.addresses.all().cloned().collect(),
            reservations: core.addresses.reservations().cloned().collect(),
            publications: core.ports.all().cloned().collect(),
            namespaces: self.namespaces(),
        }
    }

    pub(super) fn collect_garbage(&self, live: &HashSet<String>) -> Result<Vec<String>> {
        let inventory = self.list();
        let mut dead: Vec<String> = inventory.attachments.into_iter().map(|a| a.owner).collect();
        dead.extend(inventory.publications.into_iter().map(|p| p.owner));
        dead.extend(inventory.namespaces);
        dead.retain(|owner| !live.contains(owner));
        dead.sort_unstable();
        dead.dedup();
        for owner in &dead {
            delete_interfaces(&self.release(owner)?)?;
            self.remove_namespace(owner)?;
        }
        Ok(dead)
    }

    pub(super) fn destroy_all(&self) -> Result<()> {
        let mut core = self.core();
        core.destroyed = true;
        let mut channel = host_channel()?;
        let links = link::list(&mut channel).map_err(netlink_error("list interfaces"))?;
        let bridges: HashSet<&str> = core.networks.values().map(|n| n.bridge.as_str()).collect();
        for found in links {
            if found.name.starts_with(ruleset::PORT_PREFIX)
                || super::overlay::is_device(&found.name)
                || bridges.contains(found.name.as_str())
            {
                link::delete(&mut channel, &found.name).map_err(netlink_error(format!("delete {}", found.name)))?;
            }
        }
        self.drop_floating(&mut core)?;
        for id in self.namespaces() {
            namespace::remove(&self.namespace_path(&id))?;
        }
        namespace::abandon_directory(&self.options.run_dir.join("netns"))?;
        for family in [Family::Inet, Family::Bridge] {
            process::apply(&format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n"))?;
        }
        let owners: Vec<String> = core.ports.all().map(|p| p.owner.clone()).collect();
        owners.iter().try_for_each(|owner| core.ports.unpublish(owner).map(|_| ()))?;
        core.networks.clear();
        core.services = None;
        match fs::remove_dir_all(&self.options.state_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", &self.options.state_dir),
            _ => Ok(()),
        }
    }
}

/// Whether this may be a part of a subnet: one of an earlier, larger subnet would be all of it, or more. Pure.
fn may_be_part(subnet: Subnet, part: Subnet) -> bool {
    subnet.contains(part.address()) && part.prefix() > subnet.prefix()
}

/// Refuses addresses that are others' on the internet: they would not be reached. What the operator's pools hold is for networks.
fn check_private(subnet: Subnet, pools: &[(Subnet, u8)]) -> Result<()> {
    let is_inside = |pool: &Subnet| pool.contains(subnet.address()) && pool.contains(subnet.last());
    if !subnet.is_private() && !pools.iter().any(|(pool, _)| is_inside(pool)) {
        let text = "is not private: take one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10, or name none \
                    and get a free one";
        return Err(Error::Invalid(format!("subnet {subnet} {text}")));
    }
    Ok(())
}

/// Refuses addresses that this machine answers for: those of a network would not be reached.
fn check_floating<'a>(subnet: Subnet, mut floating: impl Iterator<Item = &'a Ipv4Addr>) -> Result<()> {
    match floating.find(|address| subnet.contains(**address)) {
        Some(address) => {
            Err(Error::SubnetOverlap { subnet: subnet.to_string(), other: format!("floating address {address}") })
        }
        None => Ok(()),
    }
}

/// Refuses to take over a bridge that somebody else made: it would be given our addresses, and deleted with the network.
fn check_bridge(network: &Network) -> Result<()> {
    let found = link::find(&mut host_channel()?, &network.bridge).map_err(netlink_error("look for a bridge"))?;
    // One with our own kind of name, or our mark, is left from a crash.
    match found.filter(|found| !is_bridge_name(&found.name) && found.alias != network.id) {
        Some(found) => Err(Error::Invalid(format!("interface {} is there, and is not of this network", found.name))),
        None => Ok(()),
    }
}

/// A hardware address of a network that is ours alone: locally administered, the same in every run.
fn own_mac(instance: &str, network: &str) -> Mac {
    let [.., a, b, c, d, e] = hash(&format!("{instance}/{network}")).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

/// Makes the operator's interface a port.
fn plug_uplink(channel: &mut Channel, uplink: &str, bridge: u32) -> Result<()> {
    let failed = |what: &str| netlink_error(format!("{what} interface {uplink}"));
    let Some(found) = link::find(channel, uplink).map_err(failed("look for"))? else {
        // The other networks are not to suffer for it.
        tracing::warn!(uplink, "the interface of a bridged network is missing");
        return Ok(());
    };
    link::plug_uplink(channel, found.index, bridge).map_err(failed("plug"))
}

/// MTU of the interface that leads out.
fn default_mtu(channel: &mut Channel) -> Result<u32> {
    let routes = link::routes(channel).map_err(netlink_error("list routes"))?;
    let Some(way_out) = routes.iter().find(|r| r.destination.prefix() == 0) else { return Ok(ETHERNET_MTU) };
    let links = link::list(channel).map_err(netlink_error("list interfaces"))?;
    Ok(links.iter().find(|l| l.index == way_out.interface).map_or(ETHERNET_MTU, |l| l.mtu.clamp(MTU_MIN, MTU_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_of_tenants_is_private_and_holds_no_floating_address() {
        let floating = [Ipv4Addr::new(192, 168, 7, 9)];
        let pools = [("198.18.0.0/15".parse().unwrap(), 24)];
        let check = |text: &str| {
            let subnet = text.parse().unwrap();
            check_private(subnet, &pools).and_then(|()| check_floating(subnet, floating.iter())).is_ok()
        };
        assert!(check("10.89.0.0/24") && check("192.168.6.0/24") && check("198.19.4.0/24"));
        assert!(!check("1.1.1.0/24") && !check("32.0.0.0/3") && !check("192.168.7.0/24"));
    }

    #[test]
    fn a_part_is_less_than_its_subnet() {
        let check = |part: &str| may_be_part("10.90.0.0/24".parse().unwrap(), part.parse().unwrap());
        assert!(check("10.90.0.0/25") && check("10.90.0.240/28"));
        assert!(!check("10.90.0.0/24") && !check("10.90.0.0/17") && !check("10.90.1.0/28"));
    }
}
