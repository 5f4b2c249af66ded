//! Control groups v2: files, and the conversions from the v1 scales that OCI uses. Source:
//! Documentation/admin-guide/cgroup-v2.rst of the kernel; the OCI runtime specification for the weights.

use std::path::Path;

use super::{DeviceRule, Limits, device_filter, keyed, number, read, write};
use crate::{Error, Result};

/// Controllers handed down to containers, as far as this machine has them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];
/// Period of the processor quota when only the quota is given.
const DEFAULT_PERIOD_US: u64 = 100_000;

pub(super) fn create(mount: &Path, path: &str, devices: &[DeviceRule]) -> Result<()> {
    let mut directory = mount.to_path_buf();
    for part in path.trim_matches('/').split('/') {
        for controller in CONTROLLERS {
            // Each by itself: one that this kernel lacks must not keep the others away.
            let _ = write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
        directory.push(part);
        match std::fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("create control group", &directory)(source)),
        }
    }
    if devices.is_empty() {
        return Ok(());
    }
    device_filter::attach(&directory, devices)
}

pub(super) fn apply(directory: &Path, limits: &Limits) -> Result<()> {
    let set = |file: &str, value: Option<String>| -> Result<()> {
        value.map_or(Ok(()), |value| write(&directory.join(file), &value))
    };
    let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    set("cpu.weight", limits.cpu_shares.map(|shares| weight_of_shares(shares).to_string()))?;
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        set("cpu.max", Some(cpu_max(&read(&directory.join("cpu.max")), limits)))?;
    }
    set("cpuset.cpus", limits.cpuset_cpus.clone())?;
    set("cpuset.mems", limits.cpuset_mems.clone())?;
    set("memory.low", limits.memory_reservation_bytes.map(|value| value.max(0).to_string()))?;
    set("memory.max", limits.memory_bytes.map(or_max))?;
    if let Some(together) = limits.memory_swap_bytes {
        let value = match limits.memory_bytes {
            _ if together < 0 => "max".to_owned(),
            Some(memory) if memory > 0 => together.saturating_sub(memory).max(0).to_string(),
            _ => "max".to_owned(),
        };
        match set("memory.swap.max", Some(value)) {
            // The kernel was built or started without swap: nothing to limit.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    set("pids.max", limits.pids.map(or_max))?;
    for throttle in &limits.throttles {
        let rate = if throttle.rate == 0 { "max".to_owned() } else { throttle.rate.to_string() };
        set("io.max", Some(format!("{} {}={rate}", throttle.device, throttle.v2_key)))?;
    }
    if let Some(weight) = limits.block_weight {
        // Only with the BFQ scheduler or a cost model; Docker ignores its absence as well.
        let _ = set("io.bfq.weight", Some(weight.to_string()))
            .or_else(|_| set("io.weight", Some(weight_of_block_weight(weight).to_string())));
    }
    Ok(())
}

/// `cpu.max` after a change of quota, period or both.
fn cpu_max(current: &str, limits: &Limits) -> String {
    let mut words = current.split_whitespace();
    let old_quota = words.next().unwrap_or("max").to_owned();
    let old_period = words.next().and_then(|word| word.parse().ok()).unwrap_or(DEFAULT_PERIOD_US);
    let quota = match limits.cpu_quota_us {
        None => old_quota,
        Some(quota) if quota < 0 => "max".to_owned(),
        Some(quota) => quota.to_string(),
    };
    format!("{quota} {}", limits.cpu_period_us.unwrap_or(old_period))
}

/// 2..262,144 to 1..10,000, as the OCI specification says.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// 10..1,000 to 1..10,000.
fn weight_of_block_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1_000) - 10) * 9_999 / 990
}

pub(super) fn statistics(directory: &Path) -> node::Statistics {
    let entry = |file: &str, key: &str| keyed(&directory.join(file), key).unwrap_or(0);
    let microseconds = |key: &str| entry("cpu.stat", key).saturating_mul(1_000);
    let pids_limit = number(&directory.join("pids.max")).unwrap_or(u64::MAX);
    let (block_read_bytes, block_write_bytes) = block_bytes(&read(&directory.join("io.stat")));
    node::Statistics {
        cpu_ns: microseconds("usage_usec"),
        cpu_kernel_ns: microseconds("system_usec"),
        cpu_user_ns: microseconds("user_usec"),
        throttled_periods: entry("cpu.stat", "nr_throttled"),
        memory_bytes: number(&directory.join("memory.current")).unwrap_or(0),
        memory_inactive_file_bytes: entry("memory.stat", "inactive_file"),
        memory_limit_bytes: number(&directory.join("memory.max")).unwrap_or(u64::MAX),
        pids: number(&directory.join("pids.current")).unwrap_or(0),
        pids_limit: if pids_limit == u64::MAX { 0 } else { pids_limit },
        block_read_bytes,
        block_write_bytes,
        network: std::collections::BTreeMap::new(),
    }
}

/// Sums `8:0 rbytes=1 wbytes=2 …` lines.
fn block_bytes(text: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for word in text.split_whitespace() {
        if let Some(bytes) = word.strip_prefix("rbytes=") {
            sums.0 = sums.0.saturating_add(bytes.parse().unwrap_or(0));
        } else if let Some(bytes) = word.strip_prefix("wbytes=") {
            sums.1 = sums.1.saturating_add(bytes.parse().unwrap_or(0));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_ends_and_the_default() {
        assert_eq!((weight_of_shares(2), weight_of_shares(1_024), weight_of_shares(262_144)), (1, 39, 10_000));
        assert_eq!((weight_of_block_weight(10), weight_of_block_weight(1_000)), (1, 10_000));
    }

    #[test]
    fn a_changed_quota_keeps_the_period() {
        let limits = Limits { cpu_quota_us: Some(50_000), ..Limits::default() };
        assert_eq!(cpu_max("max 200000\n", &limits), "50000 200000");
        let limits = Limits { cpu_quota_us: Some(-1), cpu_period_us: Some(10_000), ..Limits::default() };
        assert_eq!(cpu_max("", &limits), "max 10000");
    }
}
