//! One bin fewer, by search: its items are left over; a few bins at a time are taken apart and filled again together with what is
//! left over, until nothing is.

use super::effort::{Effort, Random};
use super::fill::{Care, Filler, dot, narrow, scarcity};
use super::greedy::Bins;
use super::instance::Instance;
use super::pairs::Shares;

/// Most bins that are taken apart at once.
const BINS_AT_ONCE: usize = 8;
/// Most items that are filled again at once.
const ITEMS_AT_ONCE: usize = 120;

/// Takes bins away as long as it can, down to `floor` of them. Returns the best packing found.
pub fn remove_bins(
    instance: &Instance,
    filler: &mut Filler<'_>,
    mut best: Bins,
    floor: usize,
    random: &mut Random,
    effort: &mut Effort<'_>,
) -> Bins {
    let total = instance.total();
    let weights = scarcity(&std::array::from_fn(|axis| total[axis] as f64 / instance.capacity()[axis] as f64));
    while best.len() > floor.max(1) && !effort.is_spent() {
        let mut search = Search { filler: &mut *filler, weights, bins: best.clone(), left: Vec::new(), load: 0.0 };
        search.drop_one();
        if !search.run(random, effort) {
            break;
        }
        best = search.bins;
    }
    best
}

struct Search<'s, 'a> {
    filler: &'s mut Filler<'a>,
    weights: Shares,
    bins: Bins,
    left: Vec<usize>,
    load: f32,
}

impl Search<'_, '_> {
    fn weight(&self, items: &[usize]) -> f32 {
        items.iter().map(|&item| dot(&self.weights, self.filler.share(item))).sum()
    }

    fn drop_one(&mut self) {
        let weights: Vec<f32> = self.bins.iter().map(|bin| self.weight(bin)).collect();
        let least = (0..weights.len()).min_by(|&one, &other| weights[one].total_cmp(&weights[other]));
        if let Some(least) = least {
            self.left = self.bins.swap_remove(least);
            self.load = self.weight(&self.left);
        }
    }

    /// Whether all found a place before the effort was spent.
    fn run(&mut self, random: &mut Random, effort: &mut Effort<'_>) -> bool {
        let mut waste: Vec<f32> = self.bins.iter().map(|bin| 1.0 - self.weight(bin)).collect();
        while !self.left.is_empty() && !effort.is_spent() {
            let picked = self.pick(&waste, random);
            let mut items = self.left.clone();
            items.extend(picked.iter().flat_map(|&bin| &self.bins[bin]));
            let care = Care { pool: ITEMS_AT_ONCE, tries: 8 + random.below(24), left_over: 0 };
            let (bins, left) = self.filler.fill(&items, picked.len(), care, random, effort);
            let load = self.weight(&left);
            // Equal is welcome, and a little worse now and then, so that it does not stay where it is.
            if load <= self.load + 0.01 * narrow(random.share()) * self.load {
                let mut bins = bins.into_iter();
                for &bin in &picked {
                    self.bins[bin] = bins.next().unwrap_or_default();
                    waste[bin] = 1.0 - self.weight(&self.bins[bin]);
                }
                (self.left, self.load) = (left, load);
            }
        }
        self.left.is_empty()
    }

    /// A few bins, those with more waste more often.
    fn pick(&self, waste: &[f32], random: &mut Random) -> Vec<usize> {
        let count = (1 + random.below(BINS_AT_ONCE)).min(self.bins.len());
        let mut picked: Vec<usize> = Vec::with_capacity(count);
        let mut items = self.left.len();
        for _ in 0..2 * count {
            let (one, other) = (random.below(waste.len()), random.below(waste.len()));
            let bin = if waste[one] > waste[other] { one } else { other };
            if picked.len() < count
                && !picked.contains(&bin)
                && (picked.is_empty() || items + self.bins[bin].len() <= ITEMS_AT_ONCE)
            {
                items += self.bins[bin].len();
                picked.push(bin);
            }
        }
        picked
    }
}
