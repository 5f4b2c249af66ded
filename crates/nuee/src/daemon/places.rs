//! The mounts that a daemon makes for itself: memory for what the OCI runtime keeps, which must not outlive the machine's run, and a mount
//! of their own for the containers' directories, from which the OCI runtime is kept away but for a container's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::destroy::{mount_table, mounts, unescape};
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
    let is_mounted = mounts.contains(&place);
    // What an older release has mounted there, maybe twice, ends as it began.
    let is_crowded = mounts.iter().any(|point| point != &place && point.starts_with(&place));
    if !is_mounted && is_crowded {
        return Ok(());
    }
    if !is_mounted {
        mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("cannot bind it")?;
    }
    // A daemon that was killed in between has left it as it came.
    if !is_mounted || (!is_crowded && follows_parent(&mount_table()?, &place)) {
        mount(None::<&str>, &place, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).context("cannot part it")?;
    }
    mount(None::<&str>, &place, None::<&str>, MsFlags::MS_SHARED, None::<&str>).context("cannot have it followed")
}

/// Whether what is mounted at a place follows the same others as what it lies on, by the kernel's list: each line has the mount, its
/// parent, three more words of which the last is the place, options, and whom it follows (`shared:1`) up to a `-`. Pure.
fn follows_parent(table: &str, place: &Path) -> bool {
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(' ').collect()).collect();
    let groups = |line: &[&str]| -> Vec<String> {
        line.iter().skip(6).take_while(|word| **word != "-").map(|word| (*word).to_owned()).collect()
    };
    let own = lines.iter().rfind(|line| line.get(4).is_some_and(|point| Path::new(&unescape(point)) == place));
    let parent = own.and_then(|own| lines.iter().find(|line| line.first() == own.get(1)));
    let (Some(own), Some(parent)) = (own, parent) else { return false };
    let parents = groups(parent);
    groups(own).iter().any(|group| parents.contains(group))
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
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_crowd_whose_mount_was_cut_off_half_way_is_parted_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let body = move || {
            let change = |place: &Path, flags| mount(None::<&str>, place, None::<&str>, flags, None::<&str>).unwrap();
            let bind = |from: &Path, to: &Path| {
                mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            };
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            // The data is on a shared mount, as systemd has them.
            bind(&top, &top);
            change(&top, MsFlags::MS_SHARED);
            let times = |place: &Path| mounts().unwrap().iter().filter(|point| *point == place).count();
            for name in ["new", "half made"] {
                let (crowd, one) = (top.join(name), top.join(name).join("one"));
                fs::create_dir_all(&one).unwrap();
                if name == "half made" {
                    bind(&crowd, &crowd);
                    assert!(follows_parent(&mount_table().unwrap(), &crowd));
                }
                for _ in 0..2 {
                    prepare_crowd(&crowd).unwrap();
                    assert!(!follows_parent(&mount_table().unwrap(), &crowd), "{name}");
                }
                bind(&one, &one);
                assert_eq!([times(&crowd), times(&one)], [1, 1], "{name}");
                // With something in it, all stays.
                prepare_crowd(&crowd).unwrap();
                assert_eq!([times(&crowd), times(&one)], [1, 1], "{name}");
            }
        };
        std::thread::spawn(body).join().unwrap();
    }

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
