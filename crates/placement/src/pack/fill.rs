//! Bins filled one at a time, each by the best of many random beginnings with the best two items for what they leave.

use super::effort::{Effort, Random};
use super::greedy::Bins;
use super::instance::{Instance, Vector, fits, take};
use super::pairs::{NOBODY, Pairs, Shares, sample};

/// How hard each bin is tried.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// Items whose pairs are looked at.
    pub pool: usize,
    /// Beginnings of each bin.
    pub tries: usize,
    /// Items that it may stop before.
    pub left_over: usize,
}

/// Waste that is as good as none. Units: share of a bin.
const WASTE_MIN: f32 = 2e-4;
/// A dimension that falls behind the scarcest by this share of it counts e times less.
const SCARCITY: f64 = 0.02;
/// What it is worth to be rid of an item twice as large: large ones are harder to place later.
const SIZE_BONUS: f32 = 0.02;

/// Weighs the dimensions by how scarce they are: what is wasted in one of which there is plenty costs nothing.
pub fn scarcity(total: &[f64; 3]) -> Shares {
    let most = total.iter().fold(0.0, |most: f64, &sum| most.max(sum));
    if most <= 0.0 {
        return [1.0; 3];
    }
    let raw = total.map(|sum| if sum > 0.0 { ((sum / most - 1.0) / SCARCITY).exp() } else { 0.0 });
    let sum: f64 = raw.iter().sum();
    raw.map(|weight| narrow(weight / sum))
}

/// Fills bins.
pub struct Filler<'a> {
    instance: &'a Instance,
    shares: Vec<Shares>,
    pairs: Pairs,
    /// Which items are yet to place, and in which beginning an item was last used.
    is_left: Vec<bool>,
    stamp: Vec<u64>,
    now: u64,
}

/// A bin as far as it is chosen.
#[derive(Clone, Default)]
struct Draft {
    items: Vec<usize>,
    room: Vector,
    score: f32,
    waste: f32,
}

/// What is left to place.
struct Rest {
    /// From the largest to the least; may hold some that are placed.
    items: Vec<usize>,
    first: usize,
    count: usize,
    total: [f64; 3],
}

impl<'a> Filler<'a> {
    /// For the items of an instance.
    pub fn new(instance: &'a Instance) -> Self {
        let shares = instance.sizes().iter().map(|size| instance.shares(size).map(narrow)).collect();
        let count = instance.sizes().len();
        Self { instance, shares, pairs: Pairs::default(), is_left: vec![false; count], stamp: vec![0; count], now: 0 }
    }

    /// Shares of a bin that an item takes.
    pub fn share(&self, item: usize) -> &Shares {
        &self.shares[item]
    }

    /// Packs items into bins, at most `bins_max` of them, and returns what is left over beside.
    pub fn fill(
        &mut self,
        items: &[usize],
        bins_max: usize,
        care: Care,
        random: &mut Random,
        effort: &mut Effort<'_>,
    ) -> (Bins, Vec<usize>) {
        let mut rest = self.rest(items);
        let mut bins = Bins::new();
        let (mut pool, mut used) = (Vec::new(), usize::MAX);
        while rest.count > care.left_over && bins.len() < bins_max && !effort.is_spent() {
            if used >= care.pool / 3 {
                rest.items.retain(|&item| self.is_left[item]);
                rest.first = 0;
                sample(&rest.items, care.pool, random, &mut pool);
                effort.spend(3 * self.pairs.build(&pool, &self.shares) as u64 + rest.count as u64);
                used = 0;
            }
            let bin = self.fill_one(&mut rest, care.tries, random, effort);
            used += bin.len() * care.pool.min(rest.count + bin.len()) / (rest.count + bin.len()) + 1;
            bins.push(bin);
        }
        rest.items.retain(|&item| self.is_left[item]);
        for &item in &rest.items {
            self.is_left[item] = false;
        }
        (bins, rest.items)
    }

    fn rest(&mut self, items: &[usize]) -> Rest {
        let mut rest = Rest { items: items.to_vec(), first: 0, count: items.len(), total: [0.0; 3] };
        let shares = &self.shares;
        rest.items.sort_by(|&one, &other| sum(&shares[other]).total_cmp(&sum(&shares[one])));
        for &item in items {
            self.is_left[item] = true;
            for (total, share) in rest.total.iter_mut().zip(shares[item]) {
                *total += f64::from(share);
            }
        }
        rest
    }

    fn fill_one(&mut self, rest: &mut Rest, tries: usize, random: &mut Random, effort: &mut Effort<'_>) -> Vec<usize> {
        while !self.is_left[rest.items[rest.first]] {
            rest.first += 1;
        }
        let seed = rest.items[rest.first];
        let weights = scarcity(&rest.total);
        let mean = rest.total.map(|sum| narrow(sum / rest.count as f64));
        let mut best: Option<Draft> = None;
        let mut draft = Draft::default();
        let mut steps = 0;
        for _ in 0..tries {
            if best.is_some() && steps > effort.steps_left() {
                break;
            }
            self.begin(&mut draft, seed, rest, &mean, random, &mut steps);
            self.finish(&mut draft, &weights, &mut steps);
            if best.as_ref().is_none_or(|best| draft.score > best.score) {
                best = Some(draft.clone());
            }
            if draft.waste < WASTE_MIN {
                break;
            }
        }
        effort.spend(steps);
        let bin = best.map_or_else(|| vec![seed], |best| best.items);
        for &item in &bin {
            self.is_left[item] = false;
            for (total, share) in rest.total.iter_mut().zip(self.shares[item]) {
                *total -= f64::from(share);
            }
        }
        rest.count -= bin.len();
        bin
    }

    /// The seed, and random items until there is room for two more.
    fn begin(
        &mut self,
        draft: &mut Draft,
        seed: usize,
        rest: &Rest,
        mean: &Shares,
        random: &mut Random,
        steps: &mut u64,
    ) {
        self.now += 1;
        draft.items.clear();
        draft.room = *self.instance.capacity();
        self.put(draft, seed);
        let slots_max = 2.0 + narrow(random.share());
        let places = rest.items.len() - rest.first;
        let mut misses = 0;
        while misses < 6 {
            let room = self.instance.shares(&draft.room).map(narrow);
            let slots = (0..3).filter(|&axis| mean[axis] > 0.0).map(|axis| room[axis] / mean[axis]);
            if slots.fold(f32::INFINITY, f32::min) < slots_max {
                break;
            }
            // Large ones more often than small ones.
            let drawn = random.share();
            let item = rest.items[rest.first + super::pairs::whole(drawn * drawn.sqrt() * places as f64)];
            *steps += 8;
            if self.is_free(item) && fits(&self.instance.sizes()[item], &draft.room) {
                self.put(draft, item);
            } else {
                misses += 1;
            }
        }
    }

    /// The best two for the room that is left, as long as there are any.
    fn finish(&mut self, draft: &mut Draft, weights: &Shares, steps: &mut u64) {
        loop {
            let room = self.instance.shares(&draft.room).map(narrow);
            let found = self.pairs.best(&room, weights, |item| self.is_free(item), steps);
            let Some(found) = found else { break };
            let before = draft.items.len();
            for item in [found.one, found.other] {
                // Shares are rounded; the whole numbers decide.
                if item != NOBODY && fits(&self.instance.sizes()[item], &draft.room) {
                    self.put(draft, item);
                }
            }
            if draft.items.len() == before {
                break;
            }
        }
        let room = self.instance.shares(&draft.room).map(narrow);
        draft.waste = (0..3).map(|axis| weights[axis] * room[axis]).sum();
        let large: f32 = draft.items.iter().map(|&item| dot(&self.shares[item], &self.shares[item])).sum();
        draft.score = SIZE_BONUS * large - draft.waste;
    }

    fn is_free(&self, item: usize) -> bool {
        self.is_left[item] && self.stamp[item] != self.now
    }

    fn put(&mut self, draft: &mut Draft, item: usize) {
        take(&mut draft.room, &self.instance.sizes()[item]);
        draft.items.push(item);
        self.stamp[item] = self.now;
    }
}

fn sum(shares: &Shares) -> f32 {
    shares.iter().sum()
}

/// The product of two vectors.
pub fn dot(one: &Shares, other: &Shares) -> f32 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

/// Half the digits are enough to compare by.
#[allow(clippy::cast_possible_truncation)] // rounds
pub fn narrow(value: f64) -> f32 {
    value as f32
}
