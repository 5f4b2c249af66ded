//! Pricing: which items of given worths make one bin worth most, and a proven upper bound on that.
//!
//! Where a bin has few states, by dynamic programming; else by branch and bound in order of worth for room, bounded by the
//! fractional relaxation of four weighted sums of the dimensions.

use super::instance::{DIMENSIONS_MAX, Vector, give, take};

/// Worth 1, in the whole numbers that worths are counted in.
pub const ONE: u64 = 1 << 32;
/// Most states of the dynamic program: a few milliseconds for some dozens of types.
const STATES_MAX: u64 = 40_000;
/// What bounds in floating point are raised by, far more than they can be off by rounding.
const SAFETY: f64 = 1.0 + 1e-9;

/// What a bin can be worth.
#[derive(Clone, Debug, Default)]
pub struct Priced {
    /// How many of each type make the best bin that was found.
    pub pattern: Vec<u32>,
    /// Its worth.
    pub worth: u64,
    /// No bin is worth more: proven.
    pub most: u64,
    /// Steps that it took.
    pub steps: u64,
}

/// Types of items, each of which takes something, and the bin.
pub struct Knapsack {
    capacity: Vector,
    sizes: Vec<Vector>,
    demands: Vec<u32>,
    /// Smallest common steps of the sizes, where the dynamic program is small enough.
    grid: Option<Vector>,
}

impl Knapsack {
    /// For types of which so many are demanded.
    pub fn new(capacity: Vector, sizes: Vec<Vector>, demands: Vec<u32>) -> Self {
        let step: Vector = std::array::from_fn(|axis| sizes.iter().fold(0, |step, size| divisor(step, size[axis])));
        let cells = |axis: usize| capacity[axis].checked_div(step[axis]).unwrap_or(0) + 1;
        let states = (0..DIMENSIONS_MAX).fold(1, |product: u64, axis| product.saturating_mul(cells(axis)));
        // Where no type takes anything there is one state, however much a bin holds.
        let one_cell = |axis: usize| if step[axis] == 0 { capacity[axis] + 1 } else { step[axis] };
        let grid = (states <= STATES_MAX).then(|| std::array::from_fn(one_cell));
        Self { capacity, sizes, demands, grid }
    }

    /// The same with some of the types, priced by branch and bound, which never takes more than is demanded.
    pub fn restricted(&self, kinds: &[usize], demands: &[u32]) -> Self {
        Self {
            capacity: self.capacity,
            sizes: kinds.iter().map(|&kind| self.sizes[kind]).collect(),
            demands: kinds.iter().map(|&kind| demands[kind]).collect(),
            grid: None,
        }
    }

    /// What a bin holds.
    pub fn capacity(&self) -> &Vector {
        &self.capacity
    }

    /// The types' sizes.
    pub fn sizes(&self) -> &[Vector] {
        &self.sizes
    }

    /// How many of each are demanded.
    pub fn demands(&self) -> &[u32] {
        &self.demands
    }

    /// The best bin. Branch and bound takes `steps_max` nodes at most, and passes over what is not worth more than `enough`: then
    /// `most` is `enough` when nothing better was found.
    pub fn price(&self, worths: &[u64], enough: u64, steps_max: u64) -> Priced {
        match &self.grid {
            Some(grid) => self.by_states(worths, grid),
            None => self.by_branches(worths, enough, steps_max),
        }
    }

    fn by_states(&self, worths: &[u64], grid: &Vector) -> Priced {
        let cells: [usize; 3] = std::array::from_fn(|axis| index(self.capacity[axis] / grid[axis]) + 1);
        let moves: Vec<([usize; 3], usize, u64)> = self
            .sizes
            .iter()
            .zip(worths)
            .map(|(size, &worth)| {
                let by: [usize; 3] = std::array::from_fn(|axis| index(size[axis] / grid[axis]));
                (by, (by[0] * cells[1] + by[1]) * cells[2] + by[2], worth)
            })
            .collect();
        let states = cells.iter().product::<usize>();
        let (mut most, mut last) = (vec![0u64; states], vec![usize::MAX; states]);
        let mut state = 0;
        for x in 0..cells[0] {
            for y in 0..cells[1] {
                for z in 0..cells[2] {
                    for (kind, (by, back, worth)) in moves.iter().enumerate() {
                        if by[0] <= x && by[1] <= y && by[2] <= z && *back > 0 {
                            let found = most[state - back] + worth;
                            if found > most[state] {
                                (most[state], last[state]) = (found, kind);
                            }
                        }
                    }
                    state += 1;
                }
            }
        }
        let mut pattern = vec![0; worths.len()];
        let mut state = states - 1;
        while last[state] != usize::MAX {
            pattern[last[state]] += 1;
            state -= moves[last[state]].1;
        }
        let worth = most[states - 1];
        Priced { pattern, worth, most: worth, steps: (states * moves.len() / 10) as u64 }
    }

    fn by_branches(&self, worths: &[u64], enough: u64, steps_max: u64) -> Priced {
        let shares: Vec<[f64; 3]> = self.sizes.iter().map(|size| self.shares(size)).collect();
        let weights = multipliers(&shares, worths);
        let measures = [weights, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let mut order: Vec<usize> = (0..worths.len()).filter(|&kind| worths[kind] > 0).collect();
        let rate = |kind: usize, weights: &[f64; 3]| worths[kind] as f64 / measure(weights, &shares[kind]);
        order.sort_by(|&one, &other| rate(other, &weights).total_cmp(&rate(one, &weights)));
        // The best rate by each measure among this type and those after it.
        let mut best_rates = vec![[0.0f64; 4]; order.len() + 1];
        for place in (0..order.len()).rev() {
            best_rates[place] =
                std::array::from_fn(|by| best_rates[place + 1][by].max(rate(order[place], &measures[by])));
        }
        let mut search = Branches {
            knapsack: self,
            worths,
            order: &order,
            weights,
            best_rates: &best_rates,
            room: self.capacity,
            counts: vec![0; worths.len()],
            best: Priced { pattern: vec![0; worths.len()], most: enough, ..Priced::default() },
            steps_max,
        };
        let unsearched = search.visit(0, 0);
        let mut best = search.best;
        best.most = best.worth.max(enough).max(unsearched);
        best
    }

    fn shares(&self, size: &Vector) -> [f64; 3] {
        std::array::from_fn(|axis| size[axis] as f64 / self.capacity[axis] as f64)
    }
}

struct Branches<'a> {
    knapsack: &'a Knapsack,
    worths: &'a [u64],
    order: &'a [usize],
    weights: [f64; 3],
    best_rates: &'a [[f64; 4]],
    room: Vector,
    counts: Vec<u32>,
    best: Priced,
    steps_max: u64,
}

impl Branches<'_> {
    /// Looks at all that may follow, unless out of steps. Returns a bound on what it did not look at.
    fn visit(&mut self, place: usize, worth: u64) -> u64 {
        self.best.steps += 2;
        if worth > self.best.worth {
            self.best.worth = worth;
            self.best.pattern.clone_from(&self.counts);
        }
        if place == self.order.len() {
            return 0;
        }
        let bound = worth.saturating_add(self.bound(place));
        if bound <= self.best.worth.max(self.best.most) {
            return 0;
        }
        if self.best.steps >= self.steps_max {
            return bound;
        }
        let kind = self.order[place];
        let size = self.knapsack.sizes[kind];
        let rooms = (0..DIMENSIONS_MAX).filter(|&axis| size[axis] > 0).map(|axis| self.room[axis] / size[axis]);
        let demand = self.knapsack.demands[kind];
        let mut taken = u32::try_from(rooms.min().unwrap_or(0)).unwrap_or(u32::MAX).min(demand);
        take(&mut self.room, &size.map(|part| part * u64::from(taken)));
        let mut unsearched = 0;
        loop {
            self.counts[kind] = taken;
            unsearched = unsearched.max(self.visit(place + 1, worth + u64::from(taken) * self.worths[kind]));
            if taken > 0 && self.best.steps >= self.steps_max {
                give(&mut self.room, &size.map(|part| part * u64::from(taken)));
                self.counts[kind] = 0;
                return bound;
            }
            if taken == 0 {
                return unsearched;
            }
            give(&mut self.room, &size);
            taken -= 1;
        }
    }

    fn bound(&self, place: usize) -> u64 {
        let room = self.knapsack.shares(&self.room);
        let rates = &self.best_rates[place];
        let single = (rates[1] * room[0]).min(rates[2] * room[1]).min(rates[3] * room[2]);
        // A rate is infinite where a type takes nothing; times no room it is no number, which `min` passes over.
        above((rates[0] * measure(&self.weights, &room)).min(single))
    }
}

fn measure(weights: &[f64; 3], shares: &[f64; 3]) -> f64 {
    weights[0] * shares[0] + weights[1] * shares[1] + weights[2] * shares[2]
}

/// Weights of the dimensions by which the best worth for room is least: the prices of room in the fractional relaxation.
fn multipliers(shares: &[[f64; 3]], worths: &[u64]) -> [f64; 3] {
    const ROUNDS: u32 = 200;
    let mut weights = [1.0 / 3.0; 3];
    let mut best = (f64::INFINITY, weights);
    for round in 0..ROUNDS {
        let rates = shares.iter().zip(worths).map(|(share, &worth)| worth as f64 / measure(&weights, share));
        let worst = rates.enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other));
        let Some((kind, rate)) = worst else { break };
        if rate < best.0 {
            best = (rate, weights);
        }
        let share = &shares[kind];
        let size = measure(&weights, share).max(1e-12);
        let pace = 0.5 / f64::from(1 + round).sqrt();
        weights = std::array::from_fn(|axis| weights[axis] * (pace * (share[axis] / size - 1.0)).exp());
        let sum: f64 = weights.iter().sum();
        weights = weights.map(|weight| weight / sum);
    }
    best.1
}

fn divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { divisor(other, one % other) }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A whole number that is no less.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates: a bound too high is a bound
fn above(value: f64) -> u64 {
    (value * SAFETY).ceil() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn states_and_branches_agree(
            types in proptest::collection::vec(([1u64..9, 0u64..9, 0u64..9], 0u64..ONE), 1..7),
            capacity in [8u64..24, 8u64..24, 8u64..24],
        ) {
            let sizes: Vec<Vector> = types.iter().map(|(size, _)| *size).collect();
            let worths: Vec<u64> = types.iter().map(|(_, worth)| *worth).collect();
            let knapsack = Knapsack::new(capacity, sizes.clone(), vec![100; sizes.len()]);
            prop_assert!(knapsack.grid.is_some());
            let states = knapsack.price(&worths, 0, 0);
            let kinds: Vec<usize> = (0..sizes.len()).collect();
            let branching = knapsack.restricted(&kinds, &vec![100; sizes.len()]);
            let branches = branching.price(&worths, 0, u64::MAX);
            prop_assert_eq!(states.most, branches.most);
            for found in [&states, &branches] {
                let worth = found.pattern.iter().zip(&worths).map(|(&part, worth)| u64::from(part) * worth);
                prop_assert_eq!(worth.sum::<u64>(), found.worth);
                for axis in 0..DIMENSIONS_MAX {
                    let load = found.pattern.iter().zip(&sizes).map(|(&part, size)| u64::from(part) * size[axis]);
                    prop_assert!(load.sum::<u64>() <= capacity[axis]);
                }
            }
            // Cut short, or content with what is enough, it may not know, but never says too little.
            for steps in [1, 5, 30] {
                prop_assert!(branching.price(&worths, 0, steps).most >= states.most);
            }
            prop_assert!(branching.price(&worths, states.most / 2, u64::MAX).most >= states.most);
        }
    }
}
