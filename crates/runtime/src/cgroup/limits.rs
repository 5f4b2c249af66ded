//! Limits of a control group as plain numbers, taken from an OCI specification.

use oci_spec::runtime::LinuxResources;

use super::DeviceRule;

/// What a group may use; `None` leaves a setting as it is, -1 lifts a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight as v1 counts it, 2 to 262,144.
    pub cpu_shares: Option<u64>,
    /// Processor time per period.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period.
    pub cpu_period_us: Option<u64>,
    /// Processors, `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Memory.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together.
    pub memory_swap_bytes: Option<i64>,
    /// Memory below which nothing is reclaimed while others have more.
    pub memory_reservation_bytes: Option<i64>,
    /// How readily memory is swapped out.
    pub memory_swappiness: Option<u64>,
    /// Whether processes wait, rather than end, when memory runs out.
    pub oom_kill_disable: bool,
    /// Tasks.
    pub pids: Option<i64>,
    /// Weight of block input and output, 10 to 1,000.
    pub block_weight: Option<u16>,
    /// Bounds on block devices.
    pub throttles: Vec<Throttle>,
    /// Devices, in order; the last rule that matches decides.
    pub devices: Vec<DeviceRule>,
}

/// A bound on the rate of a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Name of the bound in `io.max`: `rbps`, `wbps`, `riops`, `wiops`.
    pub v2_key: &'static str,
    /// File of the bound in v1.
    pub v1_file: &'static str,
    /// `major:minor`.
    pub device: String,
    /// Units: per second; 0 lifts it.
    pub rate: u64,
}

fn throttles(resources: &LinuxResources) -> Vec<Throttle> {
    let Some(block) = resources.block_io() else { return Vec::new() };
    let lists = [
        ("rbps", "blkio.throttle.read_bps_device", block.throttle_read_bps_device()),
        ("wbps", "blkio.throttle.write_bps_device", block.throttle_write_bps_device()),
        ("riops", "blkio.throttle.read_iops_device", block.throttle_read_iops_device()),
        ("wiops", "blkio.throttle.write_iops_device", block.throttle_write_iops_device()),
    ];
    let all = lists.into_iter().flat_map(|(v2_key, v1_file, list)| {
        list.iter().flatten().map(move |one| Throttle {
            v2_key,
            v1_file,
            device: format!("{}:{}", one.major(), one.minor()),
            rate: one.rate(),
        })
    });
    all.collect()
}

impl From<&LinuxResources> for Limits {
    fn from(resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let memory = resources.memory().as_ref();
        Self {
            cpu_shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares != 0),
            cpu_quota_us: cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota != 0),
            cpu_period_us: cpu.and_then(|cpu| cpu.period()).filter(|period| *period != 0),
            cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()).filter(|list| !list.is_empty()),
            cpuset_mems: cpu.and_then(|cpu| cpu.mems().clone()).filter(|list| !list.is_empty()),
            memory_bytes: memory.and_then(|memory| memory.limit()).filter(|bytes| *bytes != 0),
            memory_swap_bytes: memory.and_then(|memory| memory.swap()).filter(|bytes| *bytes != 0),
            memory_reservation_bytes: memory.and_then(|memory| memory.reservation()).filter(|bytes| *bytes != 0),
            memory_swappiness: memory.and_then(|memory| memory.swappiness()),
            oom_kill_disable: memory.and_then(|memory| memory.disable_oom_killer()).unwrap_or(false),
            pids: resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0),
            block_weight: resources.block_io().as_ref().and_then(|block| block.weight()).filter(|weight| *weight != 0),
            throttles: throttles(resources),
            devices: resources.devices().iter().flatten().map(DeviceRule::from).collect(),
        }
    }
}
