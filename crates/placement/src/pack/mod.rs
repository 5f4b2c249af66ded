//! Static vector bin packing: the fewest bins, all alike, that hold items of up to three whole-numbered sizes each, with a proven
//! lower bound beside the result.
//!
//! [`pack`] starts from the greedy rules of the literature and takes the best of all that it tries: column generation where items
//! are of few sizes ([`columns`]), bins filled one at a time where they are of many ([`fill`]), and a search that takes bins away
//! ([`repair`]). The same instance and budget give the same packing.

pub mod bound;
pub mod columns;
pub mod effort;
pub mod fill;
pub mod generator;
pub mod greedy;
pub mod instance;
pub mod knapsack;
pub mod pairs;
pub mod repair;

use columns::{Pattern, dive, relax};
use effort::{Effort, Random};
use fill::{Care, Filler};
use greedy::{Bins, Greedy, Types};
pub use instance::{Instance, InstanceError};
use knapsack::Knapsack;

/// Where the search's pseudo-random numbers start.
const SEED: u64 = 0x006e_7565_6500;
/// Steps of a budget that names none: these, and so many for each item. Some 0.6 s for 5,000 items, 3 s for 100,000.
const STEPS_BASE: u64 = 30_000_000;
const STEPS_PER_ITEM: u64 = 2_000;
/// A greedy rule that takes more steps is not tried: beyond some 10,000 items of different sizes it costs more than it can give.
const GREEDY_STEPS_MAX: u64 = 10_000_000;
/// Most types for column generation: a pivot costs their square.
const TYPES_MAX: usize = 128;
/// One part in so many of the effort is for the relaxation, and as much for what its rounding leaves.
const COLUMNS_SHARE: u64 = 3;
/// Items that are packed together where there are more, and how many of them are left for the next to choose from.
const CHUNK: usize = 6_000;
const CARRIED: usize = 600;
/// Steps of one beginning of a bin, as measured.
const STEPS_PER_TRY: u64 = 260;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The bin of each item.
    pub bin_of: Vec<usize>,
    /// How many bins are used.
    pub bins: usize,
    /// No packing needs fewer bins than this: proven.
    pub bound: usize,
}

/// Packs, with the effort that suits the number of items.
pub fn pack(instance: &Instance) -> Packing {
    pack_within(instance, &mut Effort::new(default_steps(instance.sizes().len()), &mut || false))
}

/// Steps that suit a number of items.
pub fn default_steps(items: usize) -> u64 {
    STEPS_BASE + STEPS_PER_ITEM * items as u64
}

/// Packs within an effort. It always returns a packing: with none at all that of first fit decreasing.
pub fn pack_within(instance: &Instance, effort: &mut Effort<'_>) -> Packing {
    // What takes nothing goes into the first bin; behind here every item takes something.
    let takes: Vec<usize> = (0..instance.sizes().len()).filter(|&item| instance.sizes()[item] != [0; 3]).collect();
    if takes.is_empty() || takes.len() == instance.sizes().len() {
        return pack_solid(instance, effort);
    }
    let solid = pack_solid(&instance.restricted(&takes), effort);
    let mut bin_of = vec![0; instance.sizes().len()];
    for (&item, &bin) in takes.iter().zip(&solid.bin_of) {
        bin_of[item] = bin;
    }
    Packing { bin_of, ..solid }
}

fn pack_solid(instance: &Instance, effort: &mut Effort<'_>) -> Packing {
    let types = greedy::types(instance);
    let mut search = Search {
        instance,
        filler: Filler::new(instance),
        random: Random::new(SEED),
        bound: bound::quick(instance),
        best: Greedy::FirstFitDecreasing.pack(instance),
    };
    search.try_greedy(types.sizes.len(), effort);
    if !search.is_done() && types.sizes.len() <= TYPES_MAX {
        search.try_columns(&types, effort);
    }
    if !search.is_done() {
        let all: Vec<usize> = (0..instance.sizes().len()).collect();
        let bins = search.fill(&all, effort);
        search.keep_better(bins);
    }
    if !search.is_done() {
        let best = std::mem::take(&mut search.best);
        let (filler, random) = (&mut search.filler, &mut search.random);
        search.best = repair::remove_bins(instance, filler, best, search.bound, random, effort);
    }
    numbered(instance, &search.best, search.bound)
}

struct Search<'a> {
    instance: &'a Instance,
    filler: Filler<'a>,
    random: Random,
    bound: usize,
    best: Bins,
}

impl Search<'_> {
    fn is_done(&self) -> bool {
        self.best.len() <= self.bound
    }

    fn keep_better(&mut self, other: Bins) {
        if other.len() < self.best.len() {
            self.best = other;
        }
    }

    fn try_greedy(&mut self, types: usize, effort: &mut Effort<'_>) {
        let count = self.instance.sizes().len();
        for rule in Greedy::ALL {
            let steps = rule.steps(count, types, self.best.len());
            if !self.is_done() && steps <= GREEDY_STEPS_MAX {
                self.keep_better(rule.pack(self.instance));
                effort.spend(steps);
            }
        }
    }

    /// Fills bins with half of the effort, some thousands of items at a time, so that they stay in the processor's cache; what the
    /// effort does not reach goes by first fit.
    fn fill(&mut self, items: &[usize], effort: &mut Effort<'_>) -> Bins {
        let share = self.bound as f64 * items.len() as f64 / self.instance.sizes().len().max(1) as f64;
        let tries = effort.steps_left() as f64 / 2.0 / (share.max(1.0) * STEPS_PER_TRY as f64);
        let mut care = Care { pool: 300, tries: pairs::whole(tries).clamp(8, 200), left_over: CARRIED };
        let mut shuffled = Vec::new();
        pairs::sample(items, items.len(), &mut self.random, &mut shuffled);
        let mut bins = Bins::new();
        let mut rest: Vec<usize> = Vec::new();
        let parts = shuffled.len().div_ceil(CHUNK).max(1);
        for part in 1..=parts {
            rest.extend(&shuffled[(part - 1) * shuffled.len() / parts..part * shuffled.len() / parts]);
            care.left_over = if part == parts { 0 } else { CARRIED };
            let (more, left) = self.filler.fill(&rest, usize::MAX, care, &mut self.random, effort);
            bins.extend(more);
            rest = left;
        }
        bins.extend(greedy::first_fit(self.instance, &rest));
        bins
    }

    fn try_columns(&mut self, types: &Types, effort: &mut Effort<'_>) {
        let count = |items: &Vec<usize>| u32::try_from(items.len()).unwrap_or(u32::MAX);
        let demands: Vec<u32> = types.items.iter().map(count).collect();
        let knapsack = Knapsack::new(*self.instance.capacity(), types.sizes.clone(), demands);
        let relaxed = effort.part(COLUMNS_SHARE, |effort| relax(&knapsack, effort));
        self.bound = self.bound.max(relaxed.bound);
        if self.is_done() {
            return;
        }
        let mut left = types.items.clone();
        let mut bins = Bins::new();
        for (pattern, value) in &relaxed.patterns {
            bins.extend((0..pairs::whole(value + 1e-6)).map(|_| draw(pattern, &mut left)));
        }
        bins.retain(|bin| !bin.is_empty());
        let demands: Vec<u32> = left.iter().map(count).collect();
        let kinds: Vec<usize> = (0..demands.len()).filter(|&kind| demands[kind] > 0).collect();
        let mut rest = Bins::new();
        effort.part(COLUMNS_SHARE, |effort| {
            let mut left: Vec<Vec<usize>> = kinds.iter().map(|&kind| left[kind].clone()).collect();
            dive(&knapsack.restricted(&kinds, &demands), effort, |pattern, times| {
                rest.extend((0..times).map(|_| draw(pattern, &mut left)));
            });
            rest.extend(greedy::first_fit(self.instance, &left.concat()));
        });
        let items = left.concat();
        let filled = self.fill(&items, effort);
        if filled.len() < rest.len() {
            rest = filled;
        }
        let floor = self.bound.saturating_sub(bins.len());
        let (filler, random) = (&mut self.filler, &mut self.random);
        bins.extend(
            effort
                .part(COLUMNS_SHARE, |effort| repair::remove_bins(self.instance, filler, rest, floor, random, effort)),
        );
        self.keep_better(bins);
    }
}

fn draw(pattern: &Pattern, left: &mut [Vec<usize>]) -> Vec<usize> {
    let mut bin = Vec::new();
    for (&part, items) in pattern.iter().zip(left) {
        bin.extend(items.split_off(items.len().saturating_sub(part as usize)));
    }
    bin
}

fn numbered(instance: &Instance, bins: &Bins, bound: usize) -> Packing {
    let mut bin_of = vec![0; instance.sizes().len()];
    for (bin, items) in bins.iter().enumerate() {
        for &item in items {
            bin_of[item] = bin;
        }
    }
    Packing { bin_of, bins: bins.len(), bound }
}
