//! `nuee down --all`: ends every workload and removes what is left of them on the machine. Works without a daemon, also after
//! one was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::hands;
use crate::config::Config;
use crate::instance::Instance;

/// Rounds of unmounting; mounts may lie on mounts.
const UNMOUNT_ROUNDS: usize = 8;

/// Ends and removes everything but the data.
pub fn destroy_workloads(instance: &Instance, config: &Config) -> Result<()> {
    let held = instance.lock()?;
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stuck = threads.block_on(async {
        let mut stuck = Vec::new();
        let runtime = hands::open_runtime(instance)?;
        for container in runtime.list().await.context("cannot list the containers")? {
            // One that does not end keeps nothing else.
            if let Err(error) = runtime.delete(&container.id).await {
                stuck.push(format!("{} ({error})", container.id));
            }
        }
        for guest in fs::read_dir(instance.path("run/guests")).into_iter().flatten().flatten() {
            hypervisor::qemu::driver::kill(&guest.path()).await.context("cannot end a guest")?;
            fs::remove_dir_all(guest.path()).with_context(|| format!("cannot remove {}", guest.path().display()))?;
        }
        let fabric = hands::open_fabric(instance, config).await?;
        fabric.destroy_all().await.context("cannot remove the network")?;
        anyhow::Ok(stuck)
    })?;
    let directory = fs::canonicalize(instance.directory()).context("cannot resolve the data directory")?;
    unmount_below(&directory)?;
    remove_control_groups(&format!("nuee-{}", instance.id()));
    let group_copy = super::share::DEFAULT_PLACE.into();
    for path in [instance.path("docker.sock"), crate::instance::DEFAULT_SOCKET.into(), group_copy] {
        let ours = path.starts_with(instance.directory()) || instance.is_default();
        if ours && path.exists() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    drop(held);
    anyhow::ensure!(stuck.is_empty(), "cannot remove all of the containers {}", stuck.join(", "));
    Ok(())
}

/// Unmounts all that is mounted below the directory, each with what lies on it.
fn unmount_below(directory: &Path) -> Result<()> {
    for _ in 0..UNMOUNT_ROUNDS {
        let mut points = mounts()?;
        points.retain(|path| path.starts_with(directory) && path != directory);
        if points.is_empty() {
            return Ok(());
        }
        points.sort();
        for point in &points {
            image::mounts::detach(point).with_context(|| format!("cannot unmount {}", point.display()))?;
        }
    }
    Ok(())
}

/// The mounts of this thread's namespace, as the kernel lists them. `Source:` proc_pid_mountinfo(5).
pub(super) fn mount_table() -> Result<String> {
    // Names need not be text: the kernel escapes a few letters only.
    let table = fs::read("/proc/thread-self/mountinfo").context("cannot read the mounts")?;
    Ok(String::from_utf8_lossy(&table).into_owned())
}

/// Where something is mounted there.
pub(super) fn mounts() -> Result<Vec<PathBuf>> {
    let points = mount_table()?;
    Ok(points.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| PathBuf::from(unescape(path))).collect())
}

/// Undoes the kernel's octal escapes. `Source:` proc_pid_mountinfo(5).
pub(super) fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// Removes this instance's control groups from every hierarchy.
fn remove_control_groups(name: &str) {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(hierarchies.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()));
    for root in roots {
        remove_group(&root.join(name));
    }
}

fn remove_group(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(group) {
        eprintln!("nuee: cannot remove control group {}: {error}", group.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read_right() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
