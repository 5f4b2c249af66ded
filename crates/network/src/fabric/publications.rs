//! Published ports and services.

use std::net::IpAddr;

use super::inner::{Core, Inner, netlink_error};
use crate::error::{Error, Result};
use crate::kernel::conntrack::{self, Frontends};
use crate::nft::elements::Batch;
use crate::nft::services::Tables;
use crate::nft::{process, ruleset};
use crate::types::{Attachment, CarriedPort, Network, PortMapping, Protocol, Publication, ServiceRule, Target};

impl Inner {
    pub(super) fn publish(&self, owner: &str, target: Target, ports: &[PortMapping]) -> Result<Vec<PortMapping>> {
        if ports.is_empty() {
            return self.unpublish(owner).map(|()| Vec::new());
        }
        let mut core = self.core();
        let ports = addressed(&core, target, ports);
        let target = Target { carries6: target.carries6 && may_be_carried(&core, target), ..target };
        let (before, now) = core.ports.publish(owner, target, &ports)?;
        let mut batch = Batch::default();
        before.iter().flat_map(ruleset::of_publication).for_each(|e| batch.delete(e));
        ruleset::of_publication(&now).into_iter().for_each(|e| batch.add(e));
        if let Err(error) = self.apply(&mut core, &batch) {
            core.ports.unpublish(owner)?;
            return Err(error);
        }
        drop(core);
        forget(&[before.as_ref().map(|p| datagrams(p, false)), Some(datagrams(&now, true))])?;
        Ok(now.ports)
    }

    pub(super) fn unpublish(&self, owner: &str) -> Result<()> {
        let mut core = self.core();
        let Some(gone) = core.ports.unpublish(owner)? else { return Ok(()) };
        let mut batch = Batch::default();
        ruleset::of_publication(&gone).into_iter().for_each(|e| batch.delete(e));
        self.apply(&mut core, &batch)?;
        drop(core);
        forget_datagrams(&gone)
    }

    pub(super) fn carried(&self, owner: &str) -> Result<Vec<CarriedPort>> {
        let core = self.core();
        let target = core.ports.of(owner).map(|one| one.target);
        match target.filter(|target| may_be_carried(&core, Target::from(*target))) {
            Some(_) => core.ports.carried(owner),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn sync_services(&self, rules: &[ServiceRule]) -> Result<()> {
        let new = Tables::compile(rules);
        let mut core = self.core();
        let frontends = match core.services.take() {
            Some(old) => {
                let script = new.script_from(&old);
                if script.is_empty() {
                    core.services = Some(old);
                    return Ok(());
                }
                let frontends = new.changed_datagrams(&old);
                if process::apply(&script).is_ok() {
                    core.services = Some(new);
                } else {
                    // Somebody changed our tables behind our back: install everything.
                    core.services = Some(new);
                    self.install(&mut core)?;
                }
                frontends
            }
            None => {
                let frontends = new.changed_datagrams(&Tables::default());
                core.services = Some(new);
                self.install(&mut core)?;
                frontends
            }
        };
        drop(core);
        conntrack::forget_stale(&frontends).map_err(netlink_error("forget stale UDP flows")).map(|_| ())
    }
}

/// Whose address a target has, and on which network: no two networks of a fabric share addresses, and a guest's interfaces may be
/// owned by other names than the one that it publishes by.
fn behind(core: &Core, target: Target) -> (Option<&Attachment>, Option<&Network>) {
    let place = core.addresses.all().find(|place| place.address == target.address);
    (place, place.and_then(|place| core.networks.get(&place.network)))
}

/// The ports with the address that the network of their target publishes on, where they name none.
fn addressed(core: &Core, target: Target, ports: &[PortMapping]) -> Vec<PortMapping> {
    let (_, network) = behind(core, target);
    let usual = network.and_then(|network| network.published_on).map(IpAddr::V4);
    ports.iter().map(|port| PortMapping { host_address: port.host_address.or(usual), ..*port }).collect()
}

/// Whether somebody on the machine may speak to a target in clients' place. Rules of its network and of security groups would see the
/// machine speak, and let it.
fn may_be_carried(core: &Core, target: Target) -> bool {
    let (place, network) = behind(core, target);
    place.is_none_or(|place| place.groups.is_empty()) && network.is_none_or(|network| !network.internal)
}

/// Forgets the UDP flows to ports that are not published any more.
pub(super) fn forget_datagrams(gone: &Publication) -> Result<()> {
    forget(&[Some(datagrams(gone, false))])
}

/// The UDP ports of a publication, and where they lead.
fn datagrams(publication: &Publication, is_published: bool) -> Frontends {
    let mut frontends = Frontends::default();
    let targets = || std::iter::once(IpAddr::V4(publication.target)).chain(publication.target6.map(IpAddr::V6));
    for mapping in publication.ports.iter().filter(|p| p.protocol == Protocol::Udp) {
        let address = mapping.host_address.filter(|a| !a.is_unspecified());
        let leads = |to: &IpAddr| is_published && mapping.host_address.is_none_or(|a| a.is_ipv4() == to.is_ipv4());
        let endpoints = targets().filter(leads).map(|to| (to, mapping.target_port).into());
        frontends.insert(address, mapping.host_port, endpoints);
    }
    frontends
}

fn forget(changes: &[Option<Frontends>]) -> Result<()> {
    for frontends in changes.iter().flatten() {
        conntrack::forget_stale(frontends)
            .map_err(|source| Error::Netlink { action: "forget stale UDP flows".into(), source })?;
    }
    Ok(())
}
