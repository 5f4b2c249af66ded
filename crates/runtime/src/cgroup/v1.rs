//! Control groups v1: files and their order. Source: Documentation/admin-guide/cgroup-v1 of the kernel.

use std::path::{Path, PathBuf};

use super::{DeviceRule, Limits, keyed, number, read, write};
use crate::{Error, Result};

/// Ticks per second of `cpuacct.stat`; the kernel's user-visible HZ, 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;
/// Limits at or above this mean "none": the kernel rounds `i64::MAX` down to pages.
const UNLIMITED_FROM: u64 = 1 << 62;

type DirectoryOf<'a> = &'a dyn Fn(&str) -> Option<PathBuf>;
/// Writes a value, if there is one, to a controller's file.
type SetFile<'a> = &'a dyn Fn(&str, &str, Option<String>) -> Result<()>;

pub(super) fn create(mounts: &[(Vec<String>, PathBuf)], path: &str, devices: &[DeviceRule]) -> Result<()> {
    for (names, mount) in mounts {
        let mut directory = mount.clone();
        for part in path.trim_matches('/').split('/') {
            let parent = directory.clone();
            directory.push(part);
            match std::fs::create_dir(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(Error::io("create control group", &directory)(source)),
            }
            if names.iter().any(|name| name == "cpuset") {
                // Nobody may enter a new cpuset before it has processors and memory.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    write(&directory.join(file), read(&parent.join(file)).trim())?;
                }
            }
            if names.iter().any(|name| name == "memory") {
                // Absent, or refused below a group that does it already.
                let _ = write(&directory.join("memory.use_hierarchy"), "1");
            }
        }
        if !devices.is_empty() && names.iter().any(|name| name == "devices") {
            set_devices(&directory, devices)?;
        }
    }
    Ok(())
}

fn set_devices(directory: &Path, rules: &[DeviceRule]) -> Result<()> {
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        write(&directory.join(file), &rule.to_string())?;
    }
    Ok(())
}

pub(super) fn apply(directory_of: DirectoryOf, limits: &Limits) -> Result<()> {
    let set = |controller: &str, file: &str, value: Option<String>| -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let directory = directory_of(controller)
            .ok_or_else(|| Error::NotSupported(format!("the {controller} control group is not mounted")))?;
        write(&directory.join(file), &value)
    };
    set("cpu", "cpu.shares", limits.cpu_shares.map(|value| value.to_string()))?;
    set("cpu", "cpu.cfs_period_us", limits.cpu_period_us.map(|value| value.to_string()))?;
    set("cpu", "cpu.cfs_quota_us", limits.cpu_quota_us.map(|value| value.to_string()))?;
    set("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone())?;
    set("cpuset", "cpuset.mems", limits.cpuset_mems.clone())?;
    set("memory", "memory.soft_limit_in_bytes", limits.memory_reservation_bytes.map(|value| value.to_string()))?;
    apply_memory(&set, limits)?;
    set("memory", "memory.swappiness", limits.memory_swappiness.map(|value| value.to_string()))?;
    set("memory", "memory.oom_control", limits.oom_kill_disable.then(|| "1".to_owned()))?;
    set("pids", "pids.max", limits.pids.map(|value| if value < 0 { "max".to_owned() } else { value.to_string() }))?;
    for throttle in &limits.throttles {
        set("blkio", throttle.v1_file, Some(format!("{} {}", throttle.device, throttle.rate)))?;
    }
    if let Some(weight) = limits.block_weight {
        // Only some schedulers have it, under either name; Docker ignores its absence as well.
        let weight = weight.to_string();
        let _ = set("blkio", "blkio.weight", Some(weight.clone()))
            .or_else(|_| set("blkio", "blkio.bfq.weight", Some(weight)));
    }
    Ok(())
}

/// Memory must stay below memory-and-swap at each step, so the order depends on the direction of the change.
fn apply_memory(set: SetFile, limits: &Limits) -> Result<()> {
    let memory = || set("memory", "memory.limit_in_bytes", limits.memory_bytes.map(|value| value.to_string()));
    let swap = || {
        let result =
            set("memory", "memory.memsw.limit_in_bytes", limits.memory_swap_bytes.map(|value| value.to_string()));
        match result {
            // The kernel was started without swap accounting: nothing to limit.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    };
    if memory().is_ok() {
        return swap();
    }
    swap()?;
    memory()
}

pub(super) fn statistics(directory_of: DirectoryOf) -> node::Statistics {
    let file = |controller: &str, name: &str| directory_of(controller).map(|directory| directory.join(name));
    let value = |controller: &str, name: &str| file(controller, name).and_then(|path| number(&path)).unwrap_or(0);
    let entry = |controller: &str, name: &str, key: &str| {
        file(controller, name).and_then(|path| keyed(&path, key)).unwrap_or(0)
    };
    let ticks_ns = |ticks: u64| ticks.saturating_mul(1_000_000_000 / TICKS_PER_SECOND);
    let limit = value("memory", "memory.limit_in_bytes");
    let pids_limit = value("pids", "pids.max");
    let (block_read_bytes, block_write_bytes) =
        file("blkio", "blkio.throttle.io_service_bytes_recursive").map_or((0, 0), |path| block_bytes(&read(&path)));
    node::Statistics {
        cpu_ns: value("cpuacct", "cpuacct.usage"),
        cpu_kernel_ns: ticks_ns(entry("cpuacct", "cpuacct.stat", "system")),
        cpu_user_ns: ticks_ns(entry("cpuacct", "cpuacct.stat", "user")),
        throttled_periods: entry("cpu", "cpu.stat", "nr_throttled"),
        memory_bytes: value("memory", "memory.usage_in_bytes"),
        memory_inactive_file_bytes: entry("memory", "memory.stat", "total_inactive_file"),
        memory_limit_bytes: if limit >= UNLIMITED_FROM || limit == 0 { u64::MAX } else { limit },
        pids: value("pids", "pids.current"),
        pids_limit: if pids_limit == u64::MAX { 0 } else { pids_limit },
        block_read_bytes,
        block_write_bytes,
        network: std::collections::BTreeMap::new(),
    }
}

/// Sums `8:0 Read 123` lines.
fn block_bytes(text: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(_), Some(operation), Some(bytes)) = (words.next(), words.next(), words.next()) else { continue };
        let bytes: u64 = bytes.parse().unwrap_or(0);
        match operation {
            "Read" => sums.0 = sums.0.saturating_add(bytes),
            "Write" => sums.1 = sums.1.saturating_add(bytes),
            _ => {}
        }
    }
    sums
}
