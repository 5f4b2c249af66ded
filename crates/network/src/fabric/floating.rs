//! Floating addresses: each leads to one workload, and is what the workload shows outside. This machine answers for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::Fabric;
use super::inner::{Core, Inner, host_channel, netlink_error};
use crate::error::{Error, Result};
use crate::kernel::netlink::Channel;
use crate::kernel::{announce, conntrack, link};
use crate::nft::process;
use crate::nft::ruleset;
use crate::state::files;

/// Name of the one file in the directory of floating addresses.
const FILE: &str = "addresses";

/// Floating addresses and where they lead.
pub(super) type Floating = BTreeMap<Ipv4Addr, Ipv4Addr>;

impl Fabric {
    /// Makes exactly these floating addresses lead to exactly these workloads, and this machine answer for them. Flows to where an
    /// address does not lead any more end. Returns the addresses that cannot be: the machine's own, and those of its networks.
    pub async fn sync_floating_addresses(&self, wanted: Vec<(Ipv4Addr, Ipv4Addr)>) -> Result<Vec<Ipv4Addr>> {
        self.run("floating addresses", move |inner| inner.sync_floating(wanted)).await
    }
}

/// Reads what an earlier daemon had.
pub(super) fn read(state_dir: &Path) -> Result<Floating> {
    let found = files::read_all::<Vec<(Ipv4Addr, Ipv4Addr)>>(&state_dir.join("floating"))?;
    Ok(found.into_iter().flat_map(|(_, addresses)| addresses).collect())
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    netlink_error(format!("{what} a floating address"))
}

impl Inner {
    fn floating_path(&self) -> PathBuf {
        self.options.state_dir.join("floating").join(FILE)
    }

    fn keep_floating(&self, floating: &Floating) -> Result<()> {
        files::replace(&self.floating_path(), &floating.iter().collect::<Vec<_>>())
    }

    fn sync_floating(&self, wanted: Vec<(Ipv4Addr, Ipv4Addr)>) -> Result<Vec<Ipv4Addr>> {
        let mut core = self.core();
        let mut channel = host_channel()?;
        let own = link::addresses(&mut channel).map_err(failed("look for"))?;
        let is_taken = |address: Ipv4Addr| {
            let is_own = own.iter().any(|one| one.address == address) && !core.floating.contains_key(&address);
            is_own || core.networks.values().any(|network| network.subnet.contains(address))
        };
        let (refused, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(address, _)| is_taken(*address));
        let wanted: Floating = wanted.into_iter().collect();
        let refused = refused.into_iter().map(|(address, _)| address).collect();
        if core.floating_installed && core.floating == wanted {
            return Ok(refused);
        }
        let old = std::mem::take(&mut core.floating);
        // Both, until the old ones are gone: whoever comes after a crash knows which of the machine's addresses are ours.
        core.floating = old.iter().chain(&wanted).map(|(address, target)| (*address, *target)).collect();
        self.keep_floating(&core.floating)?;
        let gone: Vec<Ipv4Addr> = old.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        self.translate(&mut core, &wanted)?;
        delete(&mut channel, &gone)?;
        let is_new = |(address, target): &(&Ipv4Addr, &Ipv4Addr)| old.get(address) != Some(target);
        let moved: BTreeSet<Ipv4Addr> = wanted.iter().filter(is_new).map(|(address, _)| *address).chain(gone).collect();
        for address in wanted.keys() {
            let uplink = self.uplink(&core, &mut channel, *address)?;
            link::add_address(&mut channel, uplink, *address, &crate::Subnet::new_const(*address, 32))
                .map_err(failed("take"))?;
            if moved.contains(address) {
                tell(&mut channel, uplink, *address);
            }
        }
        self.keep_floating(&wanted)?;
        core.floating = wanted;
        core.floating_installed = true;
        drop(core);
        conntrack::forget_addresses(&moved).map_err(netlink_error("forget flows of floating addresses"))?;
        Ok(refused)
    }

    /// The translations in one transaction.
    fn translate(&self, core: &mut Core, wanted: &Floating) -> Result<()> {
        match process::apply(&ruleset::floating(wanted)) {
            Ok(()) => Ok(()),
            // Somebody changed our tables behind our back: install everything.
            Err(error) => {
                tracing::warn!(%error, "installing all tables again");
                core.floating.clone_from(wanted);
                self.install(core)
            }
        }
    }

    /// The interface that an address is looked for on: that of its subnet, else that of the default route, else loopback.
    fn uplink(&self, core: &Core, channel: &mut Channel, address: Ipv4Addr) -> Result<u32> {
        let links = link::list(channel).map_err(failed("look for the interface of"))?;
        let is_bridge = |index: u32| {
            let name = links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
            core.networks.values().any(|network| Some(network.bridge.as_str()) == name)
        };
        let routes = link::routes(channel).map_err(failed("look for the interface of"))?;
        let leads = routes.iter().filter(|route| route.destination.contains(address) && !is_bridge(route.interface));
        let best = leads.max_by_key(|route| route.destination.prefix());
        Ok(best.map_or(link::LOOPBACK_INDEX, |route| route.interface))
    }

    /// Gives up all addresses, at the end.
    pub(super) fn drop_floating(&self, core: &mut Core) -> Result<()> {
        let all: Vec<Ipv4Addr> = std::mem::take(&mut core.floating).into_keys().collect();
        delete(&mut host_channel()?, &all)
    }
}

fn delete(channel: &mut Channel, gone: &[Ipv4Addr]) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    for found in link::addresses(channel).map_err(failed("look for"))? {
        if gone.contains(&found.address) {
            link::delete_address(channel, &found).map_err(failed("give up"))?;
        }
    }
    Ok(())
}

/// Tells the neighbours. A courtesy: who does not hear it asks again later.
fn tell(channel: &mut Channel, uplink: u32, address: Ipv4Addr) {
    let links = link::list(channel).unwrap_or_default();
    let Some(mac) = links.iter().find(|link| link.index == uplink).and_then(|link| link.mac) else { return };
    if uplink != link::LOOPBACK_INDEX
        && let Err(error) = announce::send(uplink, address, mac)
    {
        tracing::debug!(%address, %error, "a floating address is not announced");
    }
}
