//! What a container may use at most, out of a create or update request. Pure, but for what this machine has.

use std::collections::BTreeSet;

use api::container::{DeviceRate, Resources};

use super::wire::HostConfig;
use crate::error::{Error, Result};

/// Least memory bound that Docker accepts. Units: bytes.
const MEMORY_MIN_BYTES: i64 = 6 << 20;

/// Bounds, with Docker's checks.
pub(crate) fn resources(host: &HostConfig) -> Result<Resources> {
    let invalid = |text: &str| Err(Error::Invalid(text.to_owned()));
    if host.memory != 0 && host.memory < MEMORY_MIN_BYTES {
        return invalid("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return invalid("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return invalid("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return invalid("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    check_processors(host)?;
    if host.nano_cpus > 0 && (host.cpu_quota > 0 || host.cpu_period > 0) {
        return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_shares < 0 {
        return Err(Error::Invalid(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        )));
    }
    let swappiness = host.memory_swappiness.filter(|value| *value != -1);
    if let Some(value) = swappiness.filter(|value| !(0..=100).contains(value)) {
        return Err(Error::Invalid(format!("Invalid value: {value}, valid memory swappiness range is 0-100")));
    }
    if host.shm_size < 0 {
        return invalid("SHM size can not be less than 0");
    }
    Ok(Resources {
        nano_cpus: host.nano_cpus,
        cpu_shares: host.cpu_shares,
        cpu_quota_us: host.cpu_quota,
        cpu_period_us: host.cpu_period,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        device_rates: device_rates(host),
        memory_bytes: host.memory,
        memory_swap_bytes: host.memory_swap,
        memory_reservation_bytes: host.memory_reservation,
        pids_limit: pids_limit(host.pids_limit),
        oom_kill_disable: host.oom_kill_disable,
        memory_swappiness: swappiness.and_then(|value| u8::try_from(value).ok()),
        cgroup_parent: cgroup_parent(&host.cgroup_parent)?,
        block_weight: 0,
    })
}

/// Most tasks as the spec has it: 0 leaves it to the machine, less than that asks for no bound.
pub(super) fn pids_limit(asked: i64) -> i64 {
    asked.max(-1)
}

/// The control group above the container's own, which stays within the hierarchy.
pub(crate) fn cgroup_parent(asked: &str) -> Result<String> {
    image::build::clean_cgroup_parent(asked).ok_or_else(|| Error::Invalid("invalid cgroup parent".into()))
}

/// The weight of input and output, where the kernel can weigh it. `Source:` moby, `verifyPlatformContainerResources`.
///
/// Errors: [`Error::Invalid`] out of its range.
pub(super) fn block_weight(
    host: &HostConfig,
    supported: bool,
    resources: &mut Resources,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const DISCARDED: &str =
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.";
    const DISCARDED_DEVICE: &str =
        "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.";
    if host.blkio_weight != 0 && !supported {
        warnings.push(DISCARDED.into());
    } else if host.blkio_weight != 0 && !(10..=1000).contains(&host.blkio_weight) {
        return Err(Error::Invalid("Range of blkio weight is from 10 to 1000".into()));
    } else {
        resources.block_weight = host.blkio_weight;
    }
    // The weights of single devices went from the kernel with its old scheduler.
    if !host.blkio_weight_device.is_empty() {
        warnings.push(DISCARDED_DEVICE.into());
    }
    Ok(())
}

/// How memory is taken back, and what becomes of who takes too much, where the kernel lets that be said: control groups v2 know
/// neither. `Source:` moby, `verifyPlatformContainerResources`.
pub(super) fn memory_behaviour(supported: bool, resources: &mut Resources, warnings: &mut Vec<String>) {
    const SWAPPINESS_DISCARDED: &str = "Your kernel does not support memory swappiness capabilities or the cgroup is not \
        mounted. Memory swappiness discarded.";
    const OOM_KILL_DISCARDED: &str = "Your kernel does not support OomKillDisable. OomKillDisable discarded.";
    if supported {
        return;
    }
    if resources.memory_swappiness.take().is_some() {
        warnings.push(SWAPPINESS_DISCARDED.into());
    }
    if std::mem::take(&mut resources.oom_kill_disable) {
        warnings.push(OOM_KILL_DISCARDED.into());
    }
}

/// The processors that this machine has bound what may be asked for.
fn check_processors(host: &HostConfig) -> Result<()> {
    let count = i64::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(i64::MAX);
    if host.nano_cpus < 0 || host.nano_cpus > count.saturating_mul(1_000_000_000) {
        return Err(Error::Invalid(format!(
            "Range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )));
    }
    for (name, kind, wanted, available) in [
        ("CPUs", "cpus", &host.cpuset_cpus, "/sys/devices/system/cpu/online"),
        ("memory nodes", "mems", &host.cpuset_mems, "/sys/devices/system/node/online"),
    ] {
        if wanted.is_empty() {
            continue;
        }
        let asked =
            number_list(wanted).ok_or_else(|| Error::Invalid(format!("Invalid value {wanted} for cpuset {kind}")))?;
        let there = std::fs::read_to_string(available).unwrap_or_else(|_| "0".into());
        let have = number_list(there.trim()).unwrap_or_default();
        if !asked.iter().all(|number| have.contains(number)) {
            return Err(Error::Invalid(format!(
                "Requested {name} are not available - requested {wanted}, available: {}",
                there.trim()
            )));
        }
    }
    Ok(())
}

/// Reads `0-2,5`; `None` when it is no such list, or one beyond any machine.
fn number_list(text: &str) -> Option<BTreeSet<u32>> {
    const HIGHEST: u32 = 8_192;
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last > HIGHEST || first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn device_rates(host: &HostConfig) -> Vec<DeviceRate> {
    let lists = [
        ("readBytes", &host.blkio_device_read_bps),
        ("writeBytes", &host.blkio_device_write_bps),
        ("readOperations", &host.blkio_device_read_iops),
        ("writeOperations", &host.blkio_device_write_iops),
    ];
    let rates = lists.into_iter().flat_map(|(kind, list)| {
        list.iter().map(move |one| DeviceRate { kind: kind.to_owned(), path: one.path.clone(), rate: one.rate })
    });
    rates.collect()
}

/// Whether this kernel can weigh input and output.
pub(super) fn block_weight_supported() -> bool {
    let files = ["/sys/fs/cgroup/blkio/blkio.weight", "/sys/fs/cgroup/blkio/blkio.bfq.weight"];
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    unified || files.iter().any(|file| std::path::Path::new(file).exists())
}

/// Whether this kernel lets both be said.
pub(super) fn memory_behaviour_supported() -> bool {
    let files = ["/sys/fs/cgroup/memory/memory.swappiness", "/sys/fs/cgroup/memory/memory.oom_control"];
    files.iter().all(|file| std::path::Path::new(file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_parent_stays_within_the_hierarchy() {
        for (asked, wanted) in [
            ("", ""),
            ("/", "/"),
            ("web", "/web"),
            ("/a//b/./c/", "/a/b/c"),
            ("../../etc", "/etc"),
            ("/a/../../b", "/b"),
            ("..", "/"),
        ] {
            assert_eq!(cgroup_parent(asked).unwrap(), wanted, "{asked}");
        }
        assert!(cgroup_parent("a\0b").is_err() && cgroup_parent(&"x/".repeat(4_000)).is_err());
    }

    #[test]
    fn what_the_kernel_cannot_do_with_memory_is_told() {
        let host = HostConfig { oom_kill_disable: true, memory_swappiness: Some(10), ..HostConfig::default() };
        for (supported, swappiness, told) in [(true, Some(10), 0), (false, None, 2)] {
            let (mut asked, mut warnings) = (resources(&host).unwrap(), Vec::new());
            memory_behaviour(supported, &mut asked, &mut warnings);
            assert_eq!((asked.memory_swappiness, warnings.len()), (swappiness, told));
            assert_eq!(asked.oom_kill_disable, supported);
        }
        let (mut asked, mut warnings) = (resources(&HostConfig::default()).unwrap(), Vec::new());
        memory_behaviour(false, &mut asked, &mut warnings);
        assert!(warnings.is_empty(), "nobody asked");
    }

    #[test]
    fn a_weight_counts_where_the_kernel_weighs_and_is_told_where_not() {
        let host = HostConfig { blkio_weight: 300, ..HostConfig::default() };
        for (supported, weight, told) in [(true, 300, 0), (false, 0, 1)] {
            let (mut resources, mut warnings) = (Resources::default(), Vec::new());
            block_weight(&host, supported, &mut resources, &mut warnings).unwrap();
            assert_eq!((resources.block_weight, warnings.len()), (weight, told));
        }
        let host = HostConfig { blkio_weight: 5, ..HostConfig::default() };
        let check = |supported| block_weight(&host, supported, &mut Resources::default(), &mut Vec::new());
        assert!(check(true).is_err() && check(false).is_ok());
    }
}
