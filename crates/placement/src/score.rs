//! How good a feasible machine is for a workload: the emptier and the better balanced the better, with the workload's own
//! wishes on top.

use crate::pool::{Machine, TaintEffect, Workload};

/// Highest score.
pub const BEST: u32 = 100;
/// What a workload counts for when it asks for nothing, so that such workloads spread too. Units: thousandths of a CPU.
/// `Source:` Kubernetes scheduler, DefaultMilliCPURequest.
const DEFAULT_CPU_MILLIS: u64 = 100;
/// The same for memory. Units: bytes.
const DEFAULT_MEMORY_BYTES: u64 = 200 << 20;

/// What an image must weigh in all to count in full: the time that a pull of it takes. Units: bytes.
/// `Source:` Kubernetes scheduler, ImageLocality (23 MiB to 1,000 MiB per container).
const IMAGE_BYTES_MIN: u64 = 23 << 20;
/// See [`IMAGE_BYTES_MIN`]. Units: bytes.
const IMAGE_BYTES_MAX: u64 = 1000 << 20;

/// Whether to use few machines or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The emptier the machine the better.
    #[default]
    Spread,
    /// The fuller the machine the better, so that others can be switched off.
    Pack,
}

/// Scores one feasible machine, 0 to [`BEST`]. `relations` is what the neighbourhood is worth, when the workload has wishes
/// about it.
pub fn score(machine: &Machine, workload: &Workload, policy: Policy, relations: Option<u32>) -> u32 {
    let mut sum = 5 * resources(machine, workload, policy);
    let mut weights = 5;
    if let Some(relations) = relations {
        sum += 4 * relations;
        weights += 4;
    }
    if let Some(images) = image_share(machine, workload) {
        sum += images;
        weights += 1;
    }
    sum / weights
}

/// Share of the workload's images that is there already, by size; `None` when it names none.
fn image_share(machine: &Machine, workload: &Workload) -> Option<u32> {
    let count = u64::try_from(workload.images.len()).ok().filter(|c| *c > 0)?;
    let present: u64 = workload.images.iter().filter_map(|image| machine.images.get(image)).sum();
    let (low, high) = (IMAGE_BYTES_MIN, IMAGE_BYTES_MAX.saturating_mul(count));
    let part = present.clamp(low, high) - low;
    u32::try_from(u128::from(part) * u128::from(BEST) / u128::from(high - low)).ok()
}

fn resources(machine: &Machine, workload: &Workload, policy: Policy) -> u32 {
    let count = machine.workloads as u64;
    let cpu = free_share(
        machine.allocatable.cpu_millis,
        machine.used.cpu_millis.max(count * DEFAULT_CPU_MILLIS),
        workload.requests.cpu_millis.max(DEFAULT_CPU_MILLIS),
    );
    let memory = free_share(
        machine.allocatable.memory_bytes,
        machine.used.memory_bytes.max(count * DEFAULT_MEMORY_BYTES),
        workload.requests.memory_bytes.max(DEFAULT_MEMORY_BYTES),
    );
    let free = (cpu + memory) / 2;
    let allocation = match policy {
        Policy::Spread => free,
        Policy::Pack => BEST - free,
    };
    let balanced = BEST - cpu.abs_diff(memory);
    let unwanted = machine
        .taints
        .iter()
        .filter(|taint| taint.effect == TaintEffect::PreferNoSchedule)
        .any(|taint| !workload.tolerations.iter().any(|leave| leave.covers(taint)));
    let wishes = wish_share(machine, workload);
    let base = (2 * allocation + balanced + 2 * wishes) / 5;
    if unwanted { base / 2 } else { base }
}

/// Share of the machine that stays free, 0 to [`BEST`].
fn free_share(total: u64, used: u64, asked: u64) -> u32 {
    let free = total.saturating_sub(used).saturating_sub(asked);
    let share = u128::from(free) * u128::from(BEST) / u128::from(total.max(1));
    u32::try_from(share).unwrap_or(BEST).min(BEST)
}

/// Share of the workload's wishes that the machine meets, by weight; [`BEST`] when it has none.
fn wish_share(machine: &Machine, workload: &Workload) -> u32 {
    let total: u64 = workload.preferences.iter().map(|(weight, _)| u64::from(*weight)).sum();
    if total == 0 {
        return BEST;
    }
    let met: u64 = workload
        .preferences
        .iter()
        .filter(|(_, conditions)| conditions.iter().all(|condition| condition.met_by(&machine.labels)))
        .map(|(weight, _)| u64::from(*weight))
        .sum();
    u32::try_from(met * u64::from(BEST) / total).unwrap_or(BEST)
}
