//! Networks that routers connect: packets between them are let through, as they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Fabric;
use super::inner::{Core, Inner, netlink_error};
use crate::error::Result;
use crate::kernel::conntrack;
use crate::nft::{process, ruleset};
use crate::state::files;

/// Name of the one file in the routers' directory.
const FILE: &str = "links";

/// Pairs of networks, by id.
pub(super) type Links = BTreeSet<(String, String)>;

impl Fabric {
    /// Lets these pairs of networks, and no others, speak with each other. One that is not here yet is connected when it comes.
    pub async fn sync_links(&self, pairs: Vec<(String, String)>) -> Result<()> {
        self.run("routers", move |inner| inner.sync_links(pairs.into_iter().collect())).await
    }
}

/// Reads what an earlier daemon was told.
pub(super) fn read(state_dir: &Path) -> Result<Links> {
    let found = files::read_all::<Links>(&state_dir.join("routers"))?;
    Ok(found.into_iter().flat_map(|(_, links)| links).collect())
}

/// Pairs of interfaces between which packets pass: the bridges, and from each bridge to where the other network is led to other machines.
pub(super) fn bridges(core: &Core) -> BTreeSet<(&str, &str)> {
    let bridge = |id: &String| core.networks.get(id).map(|network| network.bridge.as_str());
    let mut pairs = BTreeSet::new();
    for (one, other) in core.links.iter().flat_map(|(one, other)| [(one, other), (other, one)]) {
        if let (Some(from), Some(to)) = (bridge(one), bridge(other))
            && from != to
        {
            pairs.insert((from, to));
            pairs.extend(core.overlays.device_of(other).map(|device| (from, device)));
        }
    }
    pairs
}

impl Inner {
    fn links_path(&self) -> PathBuf {
        self.options.state_dir.join("routers").join(FILE)
    }

    fn sync_links(&self, links: Links) -> Result<()> {
        let mut core = self.core();
        let subnet = |id: &String| core.networks.get(id).map(|network| network.subnet);
        let gone = core.links.difference(&links);
        let apart: Vec<_> = gone.filter_map(|(one, other)| Some((subnet(one)?, subnet(other)?))).collect();
        if links != core.links {
            files::replace(&self.links_path(), &links)?;
            core.links = links;
            core.links_installed = false;
        }
        if core.links_installed {
            return Ok(());
        }
        self.apply_links(&mut core)?;
        drop(core);
        // What has begun would otherwise go on.
        conntrack::forget_between(&apart).map_err(netlink_error("forget flows between networks")).map(|_| ())
    }

    /// Brings the kernel's pairs to what is known.
    pub(super) fn apply_links(&self, core: &mut Core) -> Result<()> {
        if let Err(error) = process::apply(&ruleset::joined(&bridges(core))) {
            // Somebody changed our tables behind our back: install everything.
            tracing::warn!(%error, "installing all tables again");
            self.install(core)?;
        }
        core.links_installed = true;
        Ok(())
    }
}
