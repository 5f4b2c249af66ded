//! Control groups, v1 (each controller its own mount, or hybrid) and v2 behind one type. Blocking: every call is a few
//! reads and writes of kernel files. Knows nothing of containers' lives.

mod device_filter;
mod limits;
mod v1;
mod v2;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use device_filter::DeviceRule;
pub use limits::Limits;

use crate::{Error, Result};

/// How long freezing or emptying a group may take before it counts as stuck.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at a group that is settling.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// Name of the v2 mount of a hybrid machine among the v1 ones.
const HYBRID_NAME: &str = "name=unified";
/// How deep groups made by the container itself are followed.
const DEPTH_MAX: usize = 32;

/// Where this machine mounts its control groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hierarchies {
    /// One mount per controller, or per several: names (`cpu`, `memory`, `name=systemd`) and directory.
    V1(Vec<(Vec<String>, PathBuf)>),
    /// The one unified mount.
    V2(PathBuf),
}

impl Hierarchies {
    /// Finds them in the text of `/proc/self/mountinfo`. A hybrid machine counts as v1: its v2 mount has no controller
    /// that limits containers. `None` when nothing is mounted.
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mut v1: Vec<(Vec<String>, PathBuf)> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(mount), Some(kind), Some(options)) =
                (left.split(' ').nth(4), right.split(' ').next(), right.split(' ').nth(2))
            else {
                continue;
            };
            match kind {
                "cgroup" => {
                    let names: Vec<String> = options
                        .split(',')
                        .filter(|word| !matches!(*word, "rw" | "ro" | "xattr" | "noprefix" | "clone_children"))
                        .filter(|word| !word.starts_with("release_agent="))
                        .map(str::to_owned)
                        .collect();
                    if !v1.iter().any(|(known, _)| *known == names) {
                        v1.push((names, PathBuf::from(mount)));
                    }
                }
                "cgroup2" => v2 = v2.or_else(|| Some(PathBuf::from(mount))),
                _ => {}
            }
        }
        let limits_with_v1 = v1.iter().any(|(names, _)| names.iter().any(|name| name == "memory" || name == "pids"));
        match v2 {
            Some(mount) if !limits_with_v1 => Some(Self::V2(mount)),
            _ if !v1.is_empty() => {
                // Without controllers, but runc uses it, and a process should not be told apart by where it stayed.
                v1.extend(v2.map(|mount| (vec![HYBRID_NAME.to_owned()], mount)));
                Some(Self::V1(v1))
            }
            _ => None,
        }
    }

    /// Those of this machine.
    ///
    /// Errors: `NotSupported` when none is mounted.
    pub fn of_this_machine() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text).ok_or_else(|| Error::NotSupported("no control groups are mounted".to_owned()))
    }
}

/// One control group (on v1: one per hierarchy, of the same path).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: String,
}

impl Cgroup {
    /// The group at `path` (absolute within the hierarchies). Touches nothing.
    pub fn new(hierarchies: Hierarchies, path: &str) -> Self {
        Self { hierarchies, path: format!("/{}", path.trim_matches('/')) }
    }

    /// Its path within the hierarchies.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directories, one per hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        let below = self.path.trim_start_matches('/');
        match &self.hierarchies {
            Hierarchies::V1(mounts) => mounts.iter().map(|(_, mount)| mount.join(below)).collect(),
            Hierarchies::V2(mount) => vec![mount.join(below)],
        }
    }

    /// The directory in which `controller`'s files are; `None` when that controller is not mounted.
    fn directory(&self, controller: &str) -> Option<PathBuf> {
        Some(self.mount(controller)?.join(self.path.trim_start_matches('/')))
    }

    /// Where the hierarchy of a controller is mounted.
    fn mount(&self, controller: &str) -> Option<&Path> {
        match &self.hierarchies {
            Hierarchies::V1(mounts) => {
                let found = mounts.iter().find(|(names, _)| names.iter().any(|name| name == controller));
                found.map(|(_, mount)| mount.as_path())
            }
            Hierarchies::V2(mount) => Some(mount),
        }
    }

    /// Makes it, with room for processes to enter, and sets which devices they may use.
    pub fn create(&self, devices: &[DeviceRule]) -> Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(mounts) => v1::create(mounts, &self.path, devices),
            Hierarchies::V2(mount) => v2::create(mount, &self.path, devices),
        }
    }

    /// Sets what `limits` names and leaves the rest.
    pub fn apply(&self, limits: &Limits) -> Result<()> {
        match &self.hierarchies {
            Hierarchies::V1(_) => v1::apply(&|controller| self.directory(controller), limits),
            Hierarchies::V2(mount) => v2::apply(&mount.join(self.path.trim_start_matches('/')), limits),
        }
    }

    /// The files into which any process writes `0` to enter it.
    pub fn entry_files(&self) -> Vec<PathBuf> {
        self.directories().into_iter().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// The files of the v1 hierarchies into which a process of one thread writes `0` to enter it. Those of threads, not
    /// `cgroup.procs`: a process that moves all of its threads waits for an RCU grace period, some 5 ms.
    /// `Source:` cgroup_procs_write_start in the kernel's kernel/cgroup/cgroup.c.
    pub(crate) fn thread_files(&self) -> Vec<PathBuf> {
        let below = self.path.trim_start_matches('/');
        match &self.hierarchies {
            Hierarchies::V1(mounts) => {
                let v1 = mounts.iter().filter(|(names, _)| !names.iter().any(|name| name == HYBRID_NAME));
                v1.map(|(_, mount)| mount.join(below).join("tasks")).collect()
            }
            Hierarchies::V2(_) => Vec::new(),
        }
    }

    /// The directory of the v2 hierarchy, in which processes are born rather than moved into, for the same reason.
    pub(crate) fn unified_directory(&self) -> Option<PathBuf> {
        self.directory(HYBRID_NAME)
    }

    /// The directory in the v2 hierarchy of a process of it, which may have made itself one further below.
    pub(crate) fn unified_directory_of(&self, pid: u32) -> Option<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(self.mount(HYBRID_NAME)?.join(path))
    }

    /// Reads the figures; what is missing stays 0. The network part is not in control groups.
    pub fn statistics(&self) -> node::Statistics {
        match &self.hierarchies {
            Hierarchies::V1(_) => v1::statistics(&|controller| self.directory(controller)),
            Hierarchies::V2(mount) => v2::statistics(&mount.join(self.path.trim_start_matches('/'))),
        }
    }

    /// How often the OOM killer struck in it.
    pub fn out_of_memory_kills(&self) -> u64 {
        let file = match &self.hierarchies {
            Hierarchies::V1(_) => "memory.oom_control",
            Hierarchies::V2(_) => "memory.events",
        };
        self.directory("memory").map_or(0, |directory| keyed(&directory.join(file), "oom_kill").unwrap_or(0))
    }

    /// Process ids in it and in groups below it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        if let Some(directory) = self.any_directory() {
            walk(&directory, 0, &mut |group| pids.extend(pids_in(group)));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn any_directory(&self) -> Option<PathBuf> {
        self.directory("pids").or_else(|| self.directories().into_iter().next())
    }

    /// Stops all its processes from being scheduled.
    ///
    /// Errors: `Timeout` when they do not come to rest.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while !self.frozen_settled() {
            if Instant::now() > deadline {
                self.thaw()?;
                return Err(Error::Timeout(format!("freezing control group {}", self.path)));
            }
            // On v1 a group can stay FREEZING while processes fork; asking again moves it on.
            self.set_frozen(true)?;
            std::thread::sleep(SETTLE_PAUSE);
        }
        Ok(())
    }

    /// Lets its processes run again.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (file, text) = match (&self.hierarchies, frozen) {
            (Hierarchies::V1(_), true) => ("freezer.state", "FROZEN"),
            (Hierarchies::V1(_), false) => ("freezer.state", "THAWED"),
            (Hierarchies::V2(_), true) => ("cgroup.freeze", "1"),
            (Hierarchies::V2(_), false) => ("cgroup.freeze", "0"),
        };
        let directory = self
            .directory("freezer")
            .ok_or_else(|| Error::NotSupported("the freezer control group is not mounted".to_owned()))?;
        write(&directory.join(file), text)
    }

    fn frozen_settled(&self) -> bool {
        let Some(directory) = self.directory("freezer") else { return false };
        match &self.hierarchies {
            Hierarchies::V1(_) => read(&directory.join("freezer.state")).trim() == "FROZEN",
            Hierarchies::V2(_) => keyed(&directory.join("cgroup.events"), "frozen") == Some(1),
        }
    }

    /// Whether it is frozen, or about to be.
    pub fn is_frozen(&self) -> bool {
        let Some(directory) = self.directory("freezer") else { return false };
        match &self.hierarchies {
            Hierarchies::V1(_) => read(&directory.join("freezer.state")).trim().starts_with('F'),
            Hierarchies::V2(_) => read(&directory.join("cgroup.freeze")).trim() == "1",
        }
    }

    /// Kills everything in it, also what forks as fast as it can, and waits until it is empty.
    ///
    /// Errors: `Timeout` when something cannot be killed (stuck in the kernel).
    pub fn kill_all(&self) -> Result<()> {
        self.kill_all_until(Instant::now() + SETTLE_TIMEOUT)
    }

    /// The same, with this much patience.
    pub(crate) fn kill_all_until(&self, deadline: Instant) -> Result<()> {
        let Some(directory) = self.any_directory() else { return Ok(()) };
        let mut rounds = 0_u32;
        while !self.pids().is_empty() {
            if let Hierarchies::V2(_) = self.hierarchies {
                walk(&directory, 0, &mut |group| {
                    // Older kernels lack the file; the loop below does the same more slowly.
                    let _ = write(&group.join("cgroup.kill"), "1");
                });
            }
            // One plain round first: freezing is needed only against those who fork while they are killed.
            let freeze = rounds > 0 && self.set_frozen(true).is_ok();
            for pid in self.pids() {
                crate::sys::kill(pid, libc::SIGKILL);
            }
            if freeze || self.is_frozen() {
                self.thaw()?;
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(format!("emptying control group {}", self.path)));
            }
            if rounds > 0 {
                std::thread::sleep(SETTLE_PAUSE);
            }
            rounds += 1;
        }
        Ok(())
    }

    /// Removes it with all groups below it; no error when it is not there.
    ///
    /// Errors: `Timeout` while processes are in it.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        for directory in self.directories() {
            loop {
                match remove_tree(&directory, 0) {
                    Ok(()) => break,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        std::thread::sleep(SETTLE_PAUSE);
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        return Err(Error::Timeout(format!("removing control group {}", directory.display())));
                    }
                    Err(error) => return Err(Error::io("remove control group", &directory)(error)),
                }
            }
        }
        Ok(())
    }
}

/// Calls `visit` for a group and those below it.
fn walk(directory: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) {
    visit(directory);
    if depth < DEPTH_MAX {
        for child in child_groups(directory) {
            walk(&child, depth + 1, visit);
        }
    }
}

fn child_groups(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(directory: &Path, depth: usize) -> std::io::Result<()> {
    match std::fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if depth >= DEPTH_MAX => return Err(error),
        Err(_) => {}
    }
    for child in child_groups(directory) {
        remove_tree(&child, depth + 1)?;
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn pids_in(group: &Path) -> Vec<u32> {
    read(&group.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// Writes one value to a kernel file in one write.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    file.write_all(text.as_bytes()).map_err(Error::io("write", path))
}

/// Reads a kernel file; empty when it is not there.
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The number in a file that holds one; `max` is `u64::MAX`.
fn number(path: &Path) -> Option<u64> {
    match read(path).trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// The number after `key` in a file of `key number` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = read(path);
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
