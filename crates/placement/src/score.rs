//! How good a feasible machine is for a workload: the emptier and the better balanced the better, with the workload's own
//! wishes on top. All feasible machines are scored in one pass over the columns.

use crate::filter;
use crate::index::Bits;
use crate::pool::{Pool, TaintEffect, Workload};
use crate::relations;

/// Highest score.
pub const BEST: u32 = 100;
/// What a workload counts for when it asks for nothing, so that such workloads spread too. Units: thousandths of a CPU.
/// `Source:` Kubernetes scheduler, DefaultMilliCPURequest.
pub(crate) const DEFAULT_CPU_MILLIS: u64 = 100;
/// The same for memory. Units: bytes.
pub(crate) const DEFAULT_MEMORY_BYTES: u64 = 200 << 20;

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

/// What is worth something beside resources, by slot; `None` where it is the same for all.
struct Extras {
    /// Share of the workload's wishes that are met; [`BEST`] when it has none.
    wishes: Option<Vec<u32>>,
    /// What the neighbourhood is worth, when the workload has wishes about it.
    relations: Option<Vec<u32>>,
    /// Share of the workload's images that is there already.
    images: Option<Vec<u32>>,
    /// Machines that would rather not.
    unwanted: Bits,
    weights: u32,
}

impl Extras {
    fn new(pool: &Pool, workload: &Workload, eligible: Option<&Bits>) -> Extras {
        let relations = relations::scores(pool, workload, eligible);
        let weights = 5 + if relations.is_some() { 4 } else { 0 } + u32::from(!workload.images.is_empty());
        Extras {
            wishes: wishes(pool, workload),
            relations,
            images: images(pool, workload),
            unwanted: unwanted(pool, workload),
            weights,
        }
    }

    fn are_plain(&self) -> bool {
        self.wishes.is_none() && self.relations.is_none() && self.images.is_none() && self.unwanted.is_empty()
    }

    /// The whole score, 0 to [`BEST`], from what the resources are worth.
    #[inline]
    fn total(&self, slot: u32, resources: u32) -> u32 {
        let of = |column: &Option<Vec<u32>>, otherwise| column.as_ref().map_or(otherwise, |c| c[slot as usize]);
        let base = (resources + 2 * of(&self.wishes, BEST)) / 5;
        let base = if self.unwanted.contains(slot) { base / 2 } else { base };
        (5 * base + 4 * of(&self.relations, 0) + of(&self.images, 0)) / self.weights
    }
}

/// The best of some feasible machines and its score; the first in name order among equals.
pub(crate) fn best(
    pool: &Pool,
    workload: &Workload,
    policy: Policy,
    feasible: &Bits,
    eligible: Option<&Bits>,
) -> Option<(u32, u32)> {
    let extras = Extras::new(pool, workload, eligible);
    let weights = extras.weights;
    match (policy, extras.are_plain()) {
        (Policy::Spread, true) => {
            scan::<true>(pool, workload, feasible, |_, value| 5 * ((value + 2 * BEST) / 5) / weights)
        }
        (Policy::Pack, true) => {
            scan::<false>(pool, workload, feasible, |_, value| 5 * ((value + 2 * BEST) / 5) / weights)
        }
        (Policy::Spread, false) => scan::<true>(pool, workload, feasible, |slot, value| extras.total(slot, value)),
        (Policy::Pack, false) => scan::<false>(pool, workload, feasible, |slot, value| extras.total(slot, value)),
    }
}

/// One pass over the feasible machines. `total` makes a score from what the resources are worth.
fn scan<const SPREAD: bool>(
    pool: &Pool,
    workload: &Workload,
    feasible: &Bits,
    total: impl Fn(u32, u32) -> u32,
) -> Option<(u32, u32)> {
    let (stocks, order) = (&pool.index.stocks, &pool.index.order);
    let cpu_asked = workload.requests.cpu_millis.max(DEFAULT_CPU_MILLIS);
    let memory_asked = workload.requests.memory_bytes.max(DEFAULT_MEMORY_BYTES);
    let mut best: Option<(u32, u32)> = None;
    for slot in feasible.iter() {
        let (cpu, memory) = &stocks[slot as usize];
        let (cpu, memory) = (cpu.share_without(cpu_asked), memory.share_without(memory_asked));
        let free = (cpu + memory) / 2;
        let allocation = if SPREAD { free } else { BEST - free };
        let balanced = BEST - cpu.abs_diff(memory);
        let score = total(slot, 2 * allocation + balanced);
        let is_better = best.is_none_or(|(known, first)| {
            score > known || score == known && order[slot as usize] < order[first as usize]
        });
        if is_better {
            best = Some((score, slot));
        }
    }
    best.map(|(score, slot)| (slot, score))
}

/// A part of a whole, 0 to [`BEST`].
pub(crate) fn share(part: i128, whole: i128) -> u32 {
    if whole <= 0 { BEST } else { u32::try_from(part * i128::from(BEST) / whole).unwrap_or(0).min(BEST) }
}

/// Share of the workload's images that is on each machine, by size; `None` when that is nothing on all.
fn images(pool: &Pool, workload: &Workload) -> Option<Vec<u32>> {
    let count = workload.images.len() as u64;
    let mut present: Option<Vec<u64>> = None;
    for machines in workload.images.iter().filter_map(|image| pool.index.images.get(image)) {
        let present = present.get_or_insert_with(|| vec![0; pool.index.order.len()]);
        for (slot, size) in machines {
            present[*slot as usize] = present[*slot as usize].saturating_add(*size);
        }
    }
    let (low, high) = (IMAGE_BYTES_MIN, IMAGE_BYTES_MAX.saturating_mul(count));
    let part = |bytes: u64| share(i128::from(bytes.clamp(low, high) - low), i128::from(high - low));
    Some(mapped(&present?, part))
}

/// Share of the workload's wishes that each machine meets, by weight; `None` when it has none.
fn wishes(pool: &Pool, workload: &Workload) -> Option<Vec<u32>> {
    let total: u64 = workload.preferences.iter().map(|(weight, _)| u64::from(*weight)).sum();
    if total == 0 {
        return None;
    }
    let mut met = vec![0; pool.index.order.len()];
    for (weight, conditions) in &workload.preferences {
        let machines = filter::meeting(pool, &pool.index.present, conditions);
        machines.iter().for_each(|slot| met[slot as usize] += u64::from(*weight));
    }
    Some(mapped(&met, |met| share(i128::from(met), i128::from(total))))
}

/// A function of each value; neighbours are often alike.
fn mapped(values: &[u64], part: impl Fn(u64) -> u32) -> Vec<u32> {
    let mut last = (0, part(0));
    let next = |value: &u64| {
        if *value != last.0 {
            last = (*value, part(*value));
        }
        last.1
    };
    values.iter().map(next).collect()
}

/// Machines with a taint that only discourages, and that the workload does not tolerate.
fn unwanted(pool: &Pool, workload: &Workload) -> Bits {
    let mut machines = Bits::default();
    for (taints, tainted) in &pool.index.taints {
        let mut soft = taints.iter().filter(|taint| taint.effect == TaintEffect::PreferNoSchedule);
        if soft.any(|taint| !workload.tolerations.iter().any(|leave| leave.covers(taint))) {
            tainted.add_to(&mut machines);
        }
    }
    machines
}
