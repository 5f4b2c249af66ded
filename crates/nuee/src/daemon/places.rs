//! The mounts that a daemon makes for itself: memory for what the OCI runtime keeps, which must not outlive the machine's run, and a mount
//! of their own for the containers' directories, from which the OCI runtime is kept away but for a container's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::destroy::mounts;
use crate::instance::Instance;

/// What the mount in memory may hold: what the OCI runtime keeps of containers that run. Each is bounded (`runtime`,
/// `SPEC_MAX_BYTES`), and most take 32 KiB.
const RUN_OPTIONS: &str = "mode=0700,size=1g,nr_inodes=256k";
/// How deep files of that directory lie.
const RUN_DEPTH: usize = 4;

/// Directories with the mounts of single containers, see [`runtime::RuntimeOptions::crowds`].
pub fn crowds(instance: &Instance) -> Vec<PathBuf> {
    vec![instance.path("containers"), instance.path("run/netns")]
}

/// Makes both mounts, where they are not there yet and nothing is in use below them: what an older release has started keeps its
/// places until it ends. A machine that refuses does without.
pub fn prepare(instance: &Instance) {
    for (name, prepare) in [("run/oci", prepare_memory as fn(&Path) -> Result<()>), ("containers", prepare_crowd)] {
        let place = instance.path(name);
        if let Err(error) = prepare(&place) {
            tracing::warn!(place = %place.display(), error = format!("{error:#}"), "no mount of its own");
        }
    }
}

fn prepare_memory(place: &Path) -> Result<()> {
    fs::create_dir_all(place).context("cannot make it")?;
    let place = fs::canonicalize(place).context("cannot resolve it")?;
    if !mounts()?.iter().any(|point| point.starts_with(&place)) && !is_used(&place, booted_at()?, 0) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount(Some("nuee"), &place, Some("tmpfs"), flags, Some(RUN_OPTIONS)).context("cannot mount memory there")?;
    }
    Ok(())
}

/// A mount of its own, which follows none: what is mounted below it would be mounted twice. Others follow it: who has copies of
/// the machine's mounts (a service with a private `/tmp`) must lose those of a container that ends.
fn prepare_crowd(place: &Path) -> Result<()> {
    let place = fs::canonicalize(place).context("cannot resolve it")?;
    let mounts = mounts()?;
    if !mounts.contains(&place) {
        if mounts.iter().any(|point| point.starts_with(&place)) {
            return Ok(());
        }
        mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cannot bind it")?;
        mount(None::<&str>, &place, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).context("cannot part it")?;
    }
    mount(None::<&str>, &place, None::<&str>, MsFlags::MS_SHARED, None::<&str>).context("cannot have it followed")
}

/// Whether something was written there since the machine started.
fn is_used(directory: &Path, since: i64, depth: usize) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => depth >= RUN_DEPTH || is_used(&entry.path(), since, depth + 1),
        Ok(found) => found.ctime() >= since,
        Err(_) => false,
    })
}

/// Seconds since the Unix epoch at which the machine started. `Source:` proc_stat(5), `btime`.
fn booted_at() -> Result<i64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read when the machine started")?;
    let found = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    found.context("/proc/stat does not say when the machine started")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_run_of_the_machine_left_is_not_in_use() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("oci/oci/one")).unwrap();
        assert!(!is_used(directory.path(), 0, 0), "directories alone");
        fs::write(directory.path().join("oci/oci/one/status"), "{}").unwrap();
        assert!(is_used(directory.path(), booted_at().unwrap(), 0), "written now");
        assert!(!is_used(directory.path(), i64::MAX, 0), "written before");
    }
}
