//! Security groups: who is in which, and what they let through.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Fabric;
use super::inner::{Core, Inner};
use crate::error::{Error, Result};
use crate::nft::elements::Batch;
use crate::nft::groups::Guards;
use crate::nft::{process, ruleset};
use crate::state::files;
use crate::types::{Attachment, SecurityGroup};

/// Name of the one file in the groups' directory: they change together.
const FILE: &str = "groups";

impl Fabric {
    /// Makes these, and no others, the security groups that ports may name. Flows that stay allowed go on; those that are not
    /// end.
    pub async fn sync_security_groups(&self, groups: Vec<SecurityGroup>) -> Result<()> {
        self.run("security groups", move |inner| inner.sync_groups(groups)).await
    }

    /// Puts an owner under these security groups, in place of those it had; without any, everything may reach it.
    ///
    /// `Errors:` [`Error::Invalid`] where the machine cannot guard a port.
    pub async fn guard(&self, owner: &str, groups: Vec<String>) -> Result<()> {
        let owner = owner.to_owned();
        self.run("security groups", move |inner| inner.guard(&owner, &groups)).await
    }
}

/// Reads the groups that an earlier daemon was told.
pub(super) fn read(state_dir: &std::path::Path) -> Result<BTreeMap<String, SecurityGroup>> {
    let found = files::read_all::<Vec<SecurityGroup>>(&state_dir.join("groups"))?;
    Ok(found.into_iter().flat_map(|(_, groups)| groups).map(|group| (group.id.clone(), group)).collect())
}

impl Inner {
    fn groups_path(&self) -> PathBuf {
        self.options.state_dir.join("groups").join(FILE)
    }

    fn sync_groups(&self, groups: Vec<SecurityGroup>) -> Result<()> {
        let mut core = self.core();
        let new: BTreeMap<_, _> = groups.into_iter().map(|group| (group.id.clone(), group)).collect();
        if new != core.groups {
            files::replace(&self.groups_path(), &new.values().collect::<Vec<_>>())?;
            core.groups = new;
        }
        self.apply_guards(&mut core)
    }

    fn guard(&self, owner: &str, groups: &[String]) -> Result<()> {
        let mut core = self.core();
        let own: Vec<Attachment> = core.addresses.all().filter(|one| one.owner == owner).cloned().collect();
        for attachment in own.into_iter().filter(|one| one.groups != groups) {
            self.check_guard(&core, groups, &attachment)?;
            self.regroup(&mut core, Attachment { groups: groups.to_vec(), ..attachment.clone() }, &attachment)?;
        }
        self.apply_guards(&mut core)
    }

    /// Changes the groups of a port that is there; the rules themselves are the caller's to apply.
    pub(super) fn regroup(&self, core: &mut Core, now: Attachment, before: &Attachment) -> Result<()> {
        core.addresses.update(&now)?;
        let mut batch = Batch::default();
        let (old, new) = (ruleset::of_guard(before), ruleset::of_guard(&now));
        old.iter().filter(|element| !new.contains(element)).for_each(|element| batch.delete(element.clone()));
        new.into_iter().for_each(|element| batch.add(element));
        self.apply(core, &batch)
    }

    /// Refuses what could not be kept: rules that packets would pass by.
    pub(super) fn check_guard(&self, core: &Core, groups: &[String], attachment: &Attachment) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        if self.masquerades_within() {
            return Err(Error::Invalid("security groups need the kernel module br_netfilter".into()));
        }
        let has_ipv6 = core.networks.get(&attachment.network).is_some_and(|network| network.ipv6.is_some());
        if has_ipv6 && !attachment.tap {
            return Err(Error::Invalid("security groups know no IPv6: the network must be without it".into()));
        }
        Ok(())
    }

    /// Brings the kernel's rules to what is known, in one transaction.
    pub(super) fn apply_guards(&self, core: &mut Core) -> Result<()> {
        let new = compile(core);
        let script = new.script(core.guards.as_ref());
        if script.is_empty() {
            return Ok(());
        }
        match process::apply(&script) {
            Ok(()) => {
                core.guards = Some(new);
                Ok(())
            }
            // Somebody changed our tables behind our back: install everything.
            Err(error) => {
                tracing::warn!(%error, "installing all tables again");
                core.guards = None;
                self.install(core)
            }
        }
    }
}

/// What is known, as nftables objects.
pub(super) fn compile(core: &Core) -> Guards {
    let attachments: Vec<&Attachment> = core.addresses.all().collect();
    Guards::compile(&core.groups, &attachments)
}
