//! The administrator's kubeconfig for members of the group: whoever may use the Docker socket can already do everything, so this
//! gives nobody more than they have.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::instance::{GROUP, Instance};

/// Where the group finds its copy when the data directory is the default one.
pub const DEFAULT_PLACE: &str = "/run/nuee/kubeconfig";

/// The kubeconfig to tell users of: the group's copy when there is such a group, root's own otherwise.
pub fn kubeconfig_path(instance: &Instance) -> PathBuf {
    if group().is_none() {
        return instance.path("kubeconfig");
    }
    if instance.is_default() { DEFAULT_PLACE.into() } else { instance.path("kubeconfig.group") }
}

/// Writes the group's copy, readable by root and the group alone.
pub fn share_kubeconfig(instance: &Instance) -> Result<()> {
    let Some(group) = group() else { return Ok(()) };
    let path = kubeconfig_path(instance);
    let text = std::fs::read(instance.path("kubeconfig")).context("cannot read the kubeconfig")?;
    write(&path, &text, group).with_context(|| format!("cannot write {}", path.display()))
}

fn write(path: &Path, text: &[u8], group: nix::unistd::Gid) -> Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("new");
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    nix::unistd::fchown(&file, None, Some(group))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    file.write_all(text)?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

fn group() -> Option<nix::unistd::Gid> {
    nix::unistd::Group::from_name(GROUP).ok().flatten().map(|group| group.gid)
}
