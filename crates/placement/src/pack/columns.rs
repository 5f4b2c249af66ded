//! Column generation where items are of few types: a linear program over the patterns that fill a bin, its proven bound, and
//! packings rounded from it.
//!
//! ```text
//! least Σ_p x_p  such that  Σ_p a_pi x_p >= demand_i,  x >= 0
//! ```
//!
//! Patterns enter the basis when they are worth more than 1 at its prices. At any prices, no bin is worth more than the proven
//! answer `most` of the pricing, so `Σ demand · price / most` bins are needed (Farley's bound); it is computed in whole numbers.
//!
//! `Source:` P. Gilmore, R. Gomory, "A linear programming approach to the cutting-stock problem", Operations Research 9, 1961;
//! A. Farley, "A note on bounding a class of linear programming problems", Operations Research 38, 1990.

use super::effort::Effort;
use super::knapsack::{Knapsack, ONE};
use super::pairs::whole;

/// Least gain for which a pattern enters, and steps of one search for it, stage by stage: when there is no more to gain at one, the
/// next looks closer.
const STAGES: [(f64, u64); 4] = [(1e-2, 4_000), (1e-3, 20_000), (1e-4, 200_000), (1e-5, 1_000_000)];
/// Stages of a relaxation that is only dived into: nothing is proven there.
const DIVE_STAGES: usize = 2;
/// What counts as zero in the basis.
const TINY: f64 = 1e-9;
/// Most pivots; each pattern of the final basis enters a few times over.
const PIVOTS_PER_TYPE: usize = 60;

/// A pattern: how many of each type.
pub type Pattern = Vec<u32>;

/// The linear program solved, as far as the effort went.
#[derive(Clone, Debug, Default)]
pub struct Relaxed {
    /// Patterns of the basis and how often they are used.
    pub patterns: Vec<(Pattern, f64)>,
    /// The proven bound.
    pub bound: usize,
}

struct Basis {
    inverse: Vec<Vec<f64>>,
    /// The pattern of each row; none where the row's demand is more than met.
    patterns: Vec<Option<Pattern>>,
    values: Vec<f64>,
}

impl Basis {
    /// Each type in bins of its own.
    fn new(knapsack: &Knapsack) -> Self {
        let count = knapsack.sizes().len();
        let mut basis = Self { inverse: vec![vec![0.0; count]; count], patterns: Vec::new(), values: Vec::new() };
        for (kind, (size, &demand)) in knapsack.sizes().iter().zip(knapsack.demands()).enumerate() {
            let rooms = (0..3).filter(|&axis| size[axis] > 0).map(|axis| knapsack.capacity()[axis] / size[axis]);
            let most = u32::try_from(rooms.min().unwrap_or(1)).unwrap_or(u32::MAX).min(demand).max(1);
            let mut pattern = vec![0; count];
            pattern[kind] = most;
            basis.inverse[kind][kind] = 1.0 / f64::from(most);
            basis.values.push(f64::from(demand) / f64::from(most));
            basis.patterns.push(Some(pattern));
        }
        basis
    }

    fn prices(&self) -> Vec<f64> {
        let mut prices = vec![0.0; self.values.len()];
        for (row, _) in self.inverse.iter().zip(&self.patterns).filter(|(_, pattern)| pattern.is_some()) {
            for (price, part) in prices.iter_mut().zip(row) {
                *price += part;
            }
        }
        prices
    }

    /// Lets a column in for whichever it drives to zero first. False when numbers are too small to go on.
    fn enter(&mut self, column: &[f64], pattern: Option<Pattern>) -> bool {
        let turn: Vec<f64> =
            self.inverse.iter().map(|row| row.iter().zip(column).map(|(part, entry)| part * entry).sum()).collect();
        let mut leaves: Option<(f64, usize)> = None;
        for (row, &pace) in turn.iter().enumerate().filter(|(_, pace)| **pace > TINY) {
            let ratio = self.values[row].max(0.0) / pace;
            let is_better = leaves
                .is_none_or(|(least, other)| ratio < least - TINY || (ratio < least + TINY && pace > turn[other]));
            if is_better {
                leaves = Some((ratio, row));
            }
        }
        let Some((ratio, row)) = leaves else { return false };
        let pivot = turn[row];
        for part in &mut self.inverse[row] {
            *part /= pivot;
        }
        let leading = self.inverse[row].clone();
        for (other, &pace) in turn.iter().enumerate().filter(|(other, pace)| *other != row && **pace != 0.0) {
            for (part, lead) in self.inverse[other].iter_mut().zip(&leading) {
                *part -= pace * lead;
            }
            self.values[other] -= pace * ratio;
        }
        self.values[row] = ratio;
        self.patterns[row] = pattern;
        true
    }
}

/// Solves the relaxation.
pub fn relax(knapsack: &Knapsack, effort: &mut Effort<'_>) -> Relaxed {
    relax_by(knapsack, &STAGES, effort)
}

/// Solves it roughly, and proves nothing.
pub fn sketch(knapsack: &Knapsack, effort: &mut Effort<'_>) -> Relaxed {
    relax_by(knapsack, &STAGES[..DIVE_STAGES], effort)
}

fn relax_by(knapsack: &Knapsack, stages: &[(f64, u64)], effort: &mut Effort<'_>) -> Relaxed {
    let count = knapsack.sizes().len();
    let mut basis = Basis::new(knapsack);
    let mut bound = 0;
    let mut stages = stages.iter();
    let mut stage = stages.next();
    for _ in 0..PIVOTS_PER_TYPE * count.max(1) {
        let Some((gain, steps_max)) = stage.filter(|_| !effort.is_spent()) else { break };
        effort.spend((count * count / 5) as u64);
        let prices = basis.prices();
        let negative = prices.iter().enumerate().min_by(|(_, one), (_, other)| one.total_cmp(other));
        if let Some((kind, _)) = negative.filter(|(_, price)| **price < -TINY) {
            let mut column = vec![0.0; count];
            column[kind] = -1.0;
            if !basis.enter(&column, None) {
                break;
            }
            continue;
        }
        let worths: Vec<u64> = prices.iter().map(|&price| whole(price * ONE as f64) as u64).collect();
        let enough = ONE + whole(gain * ONE as f64) as u64;
        let priced = knapsack.price(&worths, enough, *steps_max);
        effort.spend(priced.steps);
        bound = bound.max(farley(knapsack.demands(), &worths, priced.most));
        let objective: f64 = basis
            .values
            .iter()
            .zip(&basis.patterns)
            .filter(|(_, pattern)| pattern.is_some())
            .map(|(value, _)| value)
            .sum();
        if bound as f64 >= objective - 1e-6 {
            break;
        }
        let column: Vec<f64> = priced.pattern.iter().map(|&part| f64::from(part)).collect();
        if priced.worth <= enough || !basis.enter(&column, Some(priced.pattern)) {
            stage = stages.next();
        }
    }
    let patterns = basis.patterns.into_iter().zip(basis.values);
    Relaxed { patterns: patterns.filter_map(|(pattern, value)| Some((pattern?, value.max(0.0)))).collect(), bound }
}

/// The bound that prices prove when no bin is worth more than `most` at them.
fn farley(demands: &[u32], worths: &[u64], most: u64) -> usize {
    let sum: u128 = demands.iter().zip(worths).map(|(&demand, &worth)| u128::from(demand) * u128::from(worth)).sum();
    usize::try_from(sum.div_ceil(u128::from(most.max(1)))).unwrap_or(usize::MAX)
}

/// Packs all that is demanded: rounds the relaxation down, or its largest part up when that leaves all, and solves what is left
/// again. Calls `used` with each pattern and how often it is used.
pub fn dive(knapsack: &Knapsack, effort: &mut Effort<'_>, mut used: impl FnMut(&Pattern, u32)) {
    let mut demands = knapsack.demands().to_vec();
    while demands.iter().any(|&demand| demand > 0) && !effort.is_spent() {
        let kinds: Vec<usize> = (0..demands.len()).filter(|&kind| demands[kind] > 0).collect();
        let relaxed = sketch(&knapsack.restricted(&kinds, &demands), effort);
        let whole_again = |pattern: &Pattern| {
            let mut wide = vec![0; demands.len()];
            for (&kind, &part) in kinds.iter().zip(pattern) {
                wide[kind] = part;
            }
            wide
        };
        let mut patterns: Vec<(Pattern, f64)> =
            relaxed.patterns.iter().map(|(pattern, value)| (whole_again(pattern), *value)).collect();
        patterns.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let before = demands.clone();
        for (pattern, value) in &patterns {
            use_pattern(pattern, whole(value + 1e-6), &mut demands, &mut used);
        }
        let Some((pattern, _)) = patterns.first().filter(|_| demands == before) else { continue };
        let clipped: Pattern = pattern.iter().zip(&demands).map(|(&part, &demand)| part.min(demand)).collect();
        use_pattern(&clipped, 1, &mut demands, &mut used);
        if demands == before {
            return;
        }
    }
}

/// Uses a pattern so many times, or as often as there is demand for all of it.
fn use_pattern(pattern: &Pattern, times: usize, demands: &mut [u32], used: &mut impl FnMut(&Pattern, u32)) {
    let covered = pattern.iter().zip(&*demands).filter(|(part, _)| **part > 0).map(|(part, demand)| demand / part);
    let times = covered.min().unwrap_or(0).min(u32::try_from(times).unwrap_or(u32::MAX));
    if times > 0 {
        used(pattern, times);
        for (demand, part) in demands.iter_mut().zip(pattern) {
            *demand -= part * times;
        }
    }
}
