//! Namespaces, and interfaces in them.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::inner::{Core, Inner, host_channel, netlink_error};
use super::publications::forget_datagrams;
use crate::error::{Error, Result};
use crate::kernel::{link, namespace, netlink::Channel, sysctl, tap};
use crate::names::{check_id, check_interface, port_name};
use crate::nft::elements::Batch;
use crate::nft::ruleset;
use crate::types::{AttachRequest, Attachment, Mac, Network};

impl Inner {
    pub(super) fn namespace_path(&self, id: &str) -> PathBuf {
        self.options.run_dir.join("netns").join(id)
    }

    pub(super) fn namespaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.options.run_dir.join("netns")) else { return Vec::new() };
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
    }

    pub(super) fn create_namespace(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        let path = self.namespace_path(id);
        if !namespace::is_pinned(&path) {
            namespace::create(&path)?;
        }
        Ok(path)
    }

    pub(super) fn remove_namespace(&self, id: &str) -> Result<()> {
        check_id(id)?;
        namespace::remove(&self.namespace_path(id))
    }

    pub(super) fn attach(&self, request: &AttachRequest) -> Result<Attachment> {
        check_id(&request.owner)?;
        let found = self.core().addresses.find(&request.owner, &request.network).cloned();
        if found.is_some_and(|found| found.port != request.port) {
            self.detach(&request.owner, &request.network)?;
        }
        let (network, attachment, is_new) = self.reserve(request)?;
        let plugged = match attachment.tap {
            true => plug_tap(&network, &attachment),
            false => self.plug_in(request, &network, &attachment),
        };
        if plugged.is_err() && is_new {
            // The first error is the one to tell; what cannot be undone now is garbage for later.
            if let Err(error) = self.detach(&request.owner, &request.network) {
                tracing::warn!(owner = request.owner, %error, "left over from a failed attachment");
            }
        }
        plugged.map(|()| attachment)
    }

    /// Takes an address, and lets it speak before the interface exists: so there is no first packet without a check.
    fn reserve(&self, request: &AttachRequest) -> Result<(Network, Attachment, bool)> {
        let mut core = self.core();
        let network = core.networks.get(&request.network).cloned();
        let network = network.ok_or_else(|| Error::NetworkNotFound(request.network.clone()))?;
        if let Some(found) = core.addresses.find(&request.owner, &request.network).cloned() {
            let (namespace, groups) = (request.namespace.clone(), request.groups.clone());
            let attachment = Attachment { namespace, groups, ..found.clone() };
            self.check_guard(&core, &attachment.groups, &attachment)?;
            if attachment != found {
                self.regroup(&mut core, attachment.clone(), &found)?;
            }
            self.apply_guards(&mut core)?;
            return Ok((network, attachment, false));
        }
        let interface = free_interface(&core, request, &network.interface_prefix)?;
        self.check_bridge_mac(&network, request.mac)?;
        core.addresses.check_wishes(request)?;
        let attachment = core.addresses.take(&network, request.address, request.address6, |address| Attachment {
            owner: request.owner.clone(),
            network: network.id.clone(),
            namespace: request.namespace.clone(),
            interface: interface.clone(),
            host_interface: port_name(&request.owner, &network.id),
            address,
            prefix: network.subnet.prefix(),
            gateway: network.gateway,
            ipv6: None,
            mac: request.mac.unwrap_or_else(|| Mac::from_address(address)),
            tap: request.tap,
            groups: request.groups.clone(),
            port: request.port.clone(),
        })?;
        let mut batch = Batch::default();
        ruleset::of_attachment(&attachment).into_iter().for_each(|e| batch.add(e));
        let checked = self.check_guard(&core, &attachment.groups, &attachment);
        let guarded = checked.and_then(|()| self.apply_guards(&mut core));
        if let Err(error) = guarded.and_then(|()| self.apply(&mut core, &batch)) {
            core.addresses.release(&network.id, attachment.address)?;
            return Err(error);
        }
        Ok((network, attachment, true))
    }

    /// Makes the interfaces, as far as they are missing.
    fn plug_in(&self, request: &AttachRequest, network: &Network, attachment: &Attachment) -> Result<()> {
        let failed = |what: &str| netlink_error(format!("{what} for {} on {}", attachment.owner, network.id));
        let mut host = host_channel()?;
        namespace::run_inside(&request.namespace, || {
            let mut inside = Channel::route().map_err(failed("open netlink"))?;
            let mut inner = link::find(&mut inside, &attachment.interface).map_err(failed("look for an interface"))?;
            if inner.is_none() {
                namespace::harden();
                // A crash in between, or a namespace that is gone, may have left the other end.
                link::delete(&mut host, &attachment.host_interface).map_err(failed("delete an old interface"))?;
                let pair = link::VethPair {
                    inner_name: &attachment.interface,
                    inner_mac: attachment.mac,
                    outer_name: &attachment.host_interface,
                    outer_namespace: self.host_namespace.as_fd(),
                    mtu: network.mtu,
                };
                link::create_veth(&mut inside, &pair).map_err(failed("make an interface"))?;
                inner = link::find(&mut inside, &attachment.interface).map_err(failed("look for an interface"))?;
            }
            let inner = inner.ok_or_else(|| Error::Invalid(format!("interface {} vanished", attachment.interface)))?;
            plug_outer(&mut host, network, attachment)?;
            link::add_address(&mut inside, inner.index, attachment.address, &network.subnet)
                .map_err(failed("address"))?;
            if let Some(place) = attachment.ipv6 {
                namespace::allow_ipv6(&attachment.interface);
                link::add_address6(&mut inside, inner.index, place.address, place.prefix)
                    .map_err(failed("give an IPv6 address"))?;
            }
            link::set_up(&mut inside, inner.index).map_err(failed("bring up an interface"))?;
            if network.internal {
                // There is no way out, but one to the virtual addresses of services on this very network.
                let services = self.options.service_cidr;
                link::add_route(&mut inside, services, network.gateway).map_err(failed("set the route to services"))?;
            } else if !request.without_default_route && !network.plan.without_gateway {
                link::add_default_route(&mut inside, network.gateway).map_err(failed("set the default route"))?;
            }
            for route in network.plan.routes.iter().filter(|route| route.next_hop != attachment.address) {
                // Another network of the same workload may lead there already, and stays in front.
                if let Err(error) = link::add_route(&mut inside, route.destination, route.next_hop) {
                    tracing::warn!(owner = attachment.owner, to = %route.destination, %error, "a route is not set");
                }
            }
            // The first network with IPv6 gives this one, whichever gives the other.
            if let Some(place) = attachment.ipv6.filter(|_| !network.internal) {
                link::add_default_route6(&mut inside, inner.index, place.gateway)
                    .map_err(failed("set the IPv6 default route"))?;
            }
            Ok(())
        })
    }

    pub(super) fn detach(&self, owner: &str, network: &str) -> Result<()> {
        let found = self.core().addresses.find(owner, network).cloned();
        let mut host = host_channel()?;
        found.iter().try_for_each(|attachment| delete_interface(&mut host, attachment))?;
        self.withdraw(found.as_slice(), None)
    }

    /// Takes an owner off all networks. The kernel takes several milliseconds to delete a pair of interfaces, and nobody
    /// needs to wait for them: without its elements a port lets no packet through. The caller gets the interfaces, and
    /// hands them to [`delete_interfaces`]; what a crash leaves of them, the next start finds.
    pub(super) fn release(&self, owner: &str) -> Result<Vec<u32>> {
        let (attachments, publishes) = {
            let core = self.core();
            let own: Vec<Attachment> = core.addresses.all().filter(|a| a.owner == owner).cloned().collect();
            (own, core.ports.all().any(|published| published.owner == owner))
        };
        if attachments.is_empty() && !publishes {
            return Ok(Vec::new());
        }
        let mut host = host_channel()?;
        let mut left = Vec::new();
        for attachment in &attachments {
            // A guest's tap has nothing behind it whose end could be awaited elsewhere.
            if attachment.tap {
                delete_interface(&mut host, attachment)?;
                continue;
            }
            let found = link::find(&mut host, &attachment.host_interface);
            left.extend(found.map_err(netlink_error(format!("look for the interface of {owner}")))?.map(|l| l.index));
        }
        self.withdraw(&attachments, Some(owner))?;
        Ok(left)
    }

    /// Withdraws what lets attachments speak, and the ports of `publisher`, all elements in one batch; frees addresses.
    fn withdraw(&self, attachments: &[Attachment], publisher: Option<&str>) -> Result<()> {
        let mut core = self.core();
        let mut batch = Batch::default();
        let publication = publisher.map_or(Ok(None), |owner| core.ports.unpublish(owner))?;
        publication.iter().flat_map(ruleset::of_publication).for_each(|e| batch.delete(e));
        attachments.iter().flat_map(ruleset::of_attachment).for_each(|e| batch.delete(e));
        self.apply(&mut core, &batch)?;
        // Last: as long as the address is taken, nobody can get the elements that were just deleted.
        for attachment in attachments {
            core.addresses.release(&attachment.network, attachment.address)?;
        }
        self.apply_guards(&mut core)?;
        drop(core);
        publication.map_or(Ok(()), |gone| forget_datagrams(&gone))
    }
}

fn delete_interface(host: &mut Channel, attachment: &Attachment) -> Result<()> {
    link::delete(host, &attachment.host_interface)
        .map_err(netlink_error(format!("delete the interface of {}", attachment.owner)))
}

/// Deletes what [`Inner::release`] left. By index: by now the owner may have new interfaces with the names of the old.
pub(super) fn delete_interfaces(left: &[u32]) -> Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    let mut host = host_channel()?;
    left.iter().try_for_each(|index| {
        link::delete_index(&mut host, *index).map_err(netlink_error(format!("delete interface {index}")))
    })
}

/// The wished name, or the first one with a number (`eth<n>`) that the owner has not.
fn free_interface(core: &Core, request: &AttachRequest, prefix: &str) -> Result<String> {
    let used = |name: &str| core.addresses.all().any(|a| a.owner == request.owner && a.interface == name);
    if !request.interface.is_empty() {
        check_interface(&request.interface)?;
        if used(&request.interface) {
            return Err(Error::Invalid(format!("interface {} is in use", request.interface)));
        }
        return Ok(request.interface.clone());
    }
    let prefix = if prefix.is_empty() { "eth" } else { prefix };
    let mut names = (0u16..=u16::MAX).map(|n| format!("{prefix}{n}"));
    let name = names.find(|name| !used(name)).ok_or_else(|| Error::Invalid("too many interfaces".into()))?;
    check_interface(&name)?;
    Ok(name)
}

/// Makes a guest's tap device, and plugs it in.
fn plug_tap(network: &Network, attachment: &Attachment) -> Result<()> {
    let failed = |what: &str| netlink_error(format!("{what} {}", attachment.host_interface));
    let mut host = host_channel()?;
    let find = |host: &mut Channel| link::find(host, &attachment.host_interface).map_err(failed("look for"));
    if find(&mut host)?.is_none() {
        tap::create(&attachment.host_interface).map_err(failed("make tap"))?;
    }
    let made = find(&mut host)?.ok_or_else(|| Error::Invalid("a tap device vanished".into()))?;
    link::set_mtu(&mut host, made.index, network.mtu).map_err(failed("set the MTU of"))?;
    plug_outer(&mut host, network, attachment)
}

/// Plugs the machine's end into the bridge, without IPv6.
fn plug_outer(host: &mut Channel, network: &Network, attachment: &Attachment) -> Result<()> {
    let failed = |what: &str| netlink_error(format!("{what} {}", attachment.host_interface));
    let find = |host: &mut Channel, name: &str| {
        let found = link::find(host, name).map_err(failed("plug"))?;
        found.ok_or_else(|| Error::Invalid(format!("interface {name} is missing")))
    };
    let bridge = find(host, &network.bridge)?;
    let outer = find(host, &attachment.host_interface)?;
    if let Err(error) = sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", attachment.host_interface), "1") {
        tracing::debug!(%error, "no IPv6 to disable");
    }
    link::plug(host, outer.index, bridge.index, network.isolated_ports).map_err(failed("plug"))
}
