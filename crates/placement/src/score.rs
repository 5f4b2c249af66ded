//! How good a feasible machine is for a workload: the emptier and the better balanced the better, with the workload's own
//! wishes on top. All feasible machines are scored in one pass over the columns.

use crate::filter;
use crate::index::{Bits, RUN, Stocks, bits_of, number};
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
    /// What the neighbourhood and the images that are there already are worth, by their weights.
    around: Option<Vec<u32>>,
    /// Machines that would rather not.
    unwanted: Bits,
    /// What `around` and five times the rest are divided by.
    weights: u32,
}

impl Extras {
    fn new(pool: &Pool, workload: &Workload, eligible: Option<&Bits>) -> Extras {
        let relations = relations::scores(pool, workload, eligible);
        let weights = 5 + if relations.is_some() { 4 } else { 0 } + u32::from(!workload.images.is_empty());
        let around = match (relations, images(pool, workload)) {
            (Some(mut relations), images) => {
                relations.iter_mut().for_each(|share| *share *= 4);
                relations.iter_mut().zip(images.iter().flatten()).for_each(|(sum, share)| *sum += share);
                Some(relations)
            }
            (None, images) => images,
        };
        Extras { wishes: wishes(pool, workload), around, unwanted: unwanted(pool, workload), weights }
    }

    /// The whole score of a machine, times [`Extras::weights`], from what its resources are worth.
    #[inline]
    fn weighted(&self, slot: u32, resources: u32) -> u32 {
        let of = |column: &Option<Vec<u32>>, otherwise| column.as_ref().map_or(otherwise, |c| c[slot as usize]);
        let base = (resources + 2 * of(&self.wishes, BEST)) / 5;
        let base = if self.unwanted.contains(slot) { base / 2 } else { base };
        5 * base + of(&self.around, 0)
    }

    /// What no score of a machine of a run exceeds, when no more than this is what resources are worth.
    #[inline]
    fn bound(&self, run: usize, resources: u32) -> u32 {
        let most = |column: &Option<Vec<u32>>, otherwise| {
            column.as_ref().map_or(otherwise, |column| {
                let run: Option<&[u32; RUN]> = column.get(run * RUN..).and_then(|column| column.first_chunk());
                run.map_or(otherwise, |run| run.iter().fold(0, |most, value| most.max(*value)))
            })
        };
        let base = (resources + 2 * most(&self.wishes, BEST)) / 5;
        (5 * base + most(&self.around, 0)) / self.weights
    }
}

/// The best of some feasible machines and its score; the first in name order among equals.
///
/// The run of machines that could offer the most is looked at first, then those that could offer more than what is found.
pub(crate) fn best(
    pool: &Pool,
    workload: &Workload,
    policy: Policy,
    feasible: &Bits,
    eligible: Option<&Bits>,
) -> Option<(u32, u32)> {
    let scan = Scan {
        stocks: &pool.index.stocks,
        extras: Extras::new(pool, workload, eligible),
        cpu_asked: workload.requests.cpu_millis.max(DEFAULT_CPU_MILLIS),
        memory_asked: workload.requests.memory_bytes.max(DEFAULT_MEMORY_BYTES),
        policy,
    };
    let runs = scan.runs(feasible, &pool.index.present);
    let hopeful = runs.iter().max_by(|one, other| one.score.cmp(&other.score).then(other.first.cmp(&one.first)))?;
    let mut best = scan.best_of(hopeful, feasible, None);
    for run in &runs {
        if best.is_none_or(|found| run.score > found.score || run.score == found.score && run.first < found.order) {
            best = scan.best_of(run, feasible, best);
        }
    }
    best.map(|found| (found.slot, found.score))
}

/// The best machine so far.
#[derive(Clone, Copy)]
struct Found {
    score: u32,
    order: u64,
    slot: u32,
}

/// A run of machines, and what none of its feasible ones exceeds.
struct Run {
    place: usize,
    /// What their resources are worth.
    resources: u32,
    /// Their score.
    score: u32,
    /// The least order of any.
    first: u64,
}

/// What does not change while machines are scored.
struct Scan<'a> {
    stocks: &'a Stocks,
    extras: Extras,
    cpu_asked: u64,
    memory_asked: u64,
    policy: Policy,
}

impl Scan<'_> {
    /// The runs that have feasible machines.
    fn runs(&self, feasible: &Bits, present: &Bits) -> Vec<Run> {
        let runs = feasible.runs().zip(present.runs()).enumerate().filter(|(_, (some, _))| *some != 0);
        let bound = |(place, (some, all))| {
            let resources = self.most(place, some == all);
            let score = self.extras.bound(place, resources);
            Run { place, resources, score, first: self.stocks.first(place) }
        };
        runs.map(bound).collect()
    }

    /// What the resources of no feasible machine of a run are worth more than.
    #[inline]
    fn most(&self, run: usize, all_are_feasible: bool) -> u32 {
        let (cpu, memory) = (self.cpu_asked as f64, self.memory_asked as f64);
        match self.policy {
            // Twice the mean of two shares, less their difference, is twice the smaller one.
            Policy::Spread => BEST + 2 * self.stocks.smaller_share_most(run, cpu, memory),
            // Those that are too full to be feasible would be the bound.
            Policy::Pack if !all_are_feasible => 3 * BEST,
            // The mean is rounded down, which may count one more.
            Policy::Pack => (3 * BEST + 1 - 2 * self.stocks.larger_share_least(run, cpu, memory)).min(3 * BEST),
        }
    }

    /// The better of a machine and the best feasible one of a run.
    fn best_of(&self, run: &Run, feasible: &Bits, mut best: Option<Found>) -> Option<Found> {
        for slot in bits_of(feasible.run(run.place)).map(|bit| number(run.place * RUN) + bit) {
            let needed = best.map_or(0, |known| known.score * self.extras.weights);
            // What it is worth by all but its resources rules out most.
            if self.extras.weighted(slot, run.resources) < needed {
                continue;
            }
            let weighted = self.extras.weighted(slot, self.resources(slot));
            if weighted < needed {
                continue;
            }
            let (score, order) = (weighted / self.extras.weights, self.stocks.order(slot));
            if best.is_none_or(|known| score > known.score || order < known.order) {
                best = Some(Found { score, order, slot });
            }
        }
        best
    }

    /// What the resources of a machine are worth, 0 to three times [`BEST`].
    #[inline]
    fn resources(&self, slot: u32) -> u32 {
        let (cpu, memory) = self.stocks.pair(slot);
        let (cpu, memory) = (cpu.share_without(self.cpu_asked), memory.share_without(self.memory_asked));
        let free = (cpu + memory) / 2;
        let allocation = match self.policy {
            Policy::Spread => free,
            Policy::Pack => BEST - free,
        };
        2 * allocation + BEST - cpu.abs_diff(memory)
    }
}

/// A part of a whole, 0 to [`BEST`].
pub(crate) fn share(part: i128, whole: i128) -> u32 {
    if whole <= 0 {
        return BEST;
    }
    // The short division where it suffices, which is nearly always.
    let short = || Some(u64::try_from(part).ok()?.checked_mul(u64::from(BEST))? / u64::try_from(whole).ok()?);
    let percent = short().map_or_else(|| part * i128::from(BEST) / whole, i128::from);
    u32::try_from(percent).unwrap_or(0).min(BEST)
}

/// Share of the workload's images that is on each machine, by size; `None` when that is nothing on all.
fn images(pool: &Pool, workload: &Workload) -> Option<Vec<u32>> {
    let count = workload.images.len() as u64;
    let mut present: Option<Vec<u64>> = None;
    for machines in workload.images.iter().filter_map(|image| pool.index.images.get(image)) {
        let present = present.get_or_insert_with(|| vec![0; pool.index.stocks.len()]);
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
    let mut met = vec![0; pool.index.stocks.len()];
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
