//! The greedy rules of the literature: where the search starts from, and what it is compared with.
//!
//! `Source:` R. Panigrahy, K. Talwar, L. Uyeda, U. Wieder, "Heuristics for Vector Bin Packing", Microsoft Research, 2011.

use std::collections::HashMap;

use super::instance::{DIMENSIONS_MAX, Instance, Vector, fits, take};

/// Items of each bin.
pub type Bins = Vec<Vec<usize>>;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greedy {
    /// Each item, as they come, into the first bin that has room.
    FirstFit,
    /// The same, largest sum of shares first.
    FirstFitDecreasing,
    /// Largest first, into the bin that is fullest after it.
    BestFitDecreasing,
    /// Bin by bin: the item of the largest product with the room left, dimensions weighted by mean demand.
    DotProduct,
    /// Bin by bin: the item that is nearest to the room left, in the same weights.
    Norm,
}

impl Greedy {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::FirstFit, Self::FirstFitDecreasing, Self::BestFitDecreasing, Self::DotProduct, Self::Norm];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstFit => "FF",
            Self::FirstFitDecreasing => "FFD",
            Self::BestFitDecreasing => "BFD",
            Self::DotProduct => "dot",
            Self::Norm => "norm",
        }
    }

    /// About how many steps it takes.
    pub fn steps(self, items: usize, types: usize, bins: usize) -> u64 {
        let steps = match self {
            Self::FirstFit | Self::FirstFitDecreasing => items * bins / 100,
            Self::BestFitDecreasing => items * bins / 50,
            Self::DotProduct | Self::Norm => items * types / 10,
        };
        steps as u64
    }

    /// Packs by it.
    pub fn pack(self, instance: &Instance) -> Bins {
        match self {
            Self::FirstFit => first_fit(instance, &(0..instance.sizes().len()).collect::<Vec<_>>()),
            Self::FirstFitDecreasing => first_fit(instance, &decreasing(instance)),
            Self::BestFitDecreasing => best_fit(instance, &decreasing(instance)),
            Self::DotProduct => bin_by_bin(instance, |weights, room, share| {
                (0..DIMENSIONS_MAX).map(|axis| weights[axis] * room[axis] * share[axis]).sum()
            }),
            Self::Norm => bin_by_bin(instance, |weights, room, share| {
                -(0..DIMENSIONS_MAX).map(|axis| weights[axis] * (room[axis] - share[axis]).powi(2)).sum::<f64>()
            }),
        }
    }
}

/// Items from the largest sum of shares to the least.
pub fn decreasing(instance: &Instance) -> Vec<usize> {
    let sum = |size: &Vector| instance.shares(size).iter().sum::<f64>();
    let keys: Vec<f64> = instance.sizes().iter().map(sum).collect();
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&one, &other| keys[other].total_cmp(&keys[one]));
    order
}

/// A bin that still has room for the least that items take in each dimension.
struct Open {
    room: Vector,
    /// The sum of the room left, in shares.
    shares: f64,
    bin: usize,
}

/// Each item into the open bin that `choose` names, or a new one.
fn item_by_item(instance: &Instance, order: &[usize], choose: impl Fn(&[Open], &Vector) -> Option<usize>) -> Bins {
    let sizes = instance.sizes();
    let mut least = *instance.capacity();
    for &item in order {
        least = std::array::from_fn(|axis| least[axis].min(sizes[item][axis]));
    }
    let mut bins = Bins::new();
    let mut open: Vec<Open> = Vec::new();
    for &item in order {
        let place = choose(&open, &sizes[item]).unwrap_or_else(|| {
            open.push(Open { room: *instance.capacity(), shares: 0.0, bin: bins.len() });
            bins.push(Vec::new());
            open.len() - 1
        });
        let chosen = &mut open[place];
        bins[chosen.bin].push(item);
        take(&mut chosen.room, &sizes[item]);
        if fits(&least, &chosen.room) {
            chosen.shares = instance.shares(&chosen.room).iter().sum();
        } else {
            open.remove(place);
        }
    }
    bins
}

/// Items, in the order given, each into the first bin that has room.
pub fn first_fit(instance: &Instance, order: &[usize]) -> Bins {
    item_by_item(instance, order, |open, size| open.iter().position(|bin| fits(size, &bin.room)))
}

fn best_fit(instance: &Instance, order: &[usize]) -> Bins {
    item_by_item(instance, order, |open, size| {
        let fitting = open.iter().enumerate().filter(|(_, bin)| fits(size, &bin.room));
        fitting.min_by(|(_, one), (_, other)| one.shares.total_cmp(&other.shares)).map(|(place, _)| place)
    })
}

/// Items of one size, and how they are grouped.
pub struct Types {
    /// The sizes, from the largest sum of shares to the least.
    pub sizes: Vec<Vector>,
    /// The items of each.
    pub items: Vec<Vec<usize>>,
}

/// Groups items by size.
pub fn types(instance: &Instance) -> Types {
    let mut found = Types { sizes: Vec::new(), items: Vec::new() };
    let mut indices: HashMap<Vector, usize> = HashMap::new();
    for item in decreasing(instance) {
        let size = instance.sizes()[item];
        let index = *indices.entry(size).or_insert_with(|| {
            found.sizes.push(size);
            found.items.push(Vec::new());
            found.sizes.len() - 1
        });
        found.items[index].push(item);
    }
    found
}

type Shares = [f64; DIMENSIONS_MAX];

fn bin_by_bin(instance: &Instance, score: impl Fn(&Shares, &Shares, &Shares) -> f64) -> Bins {
    let types = types(instance);
    let count = instance.sizes().len().max(1) as f64;
    let total = instance.total();
    let weights: Shares = std::array::from_fn(|axis| total[axis] as f64 / instance.capacity()[axis] as f64 / count);
    let mut left: Vec<(Vector, Shares, Vec<usize>)> = Vec::new();
    for (size, mut items) in types.sizes.iter().zip(types.items) {
        items.reverse();
        left.push((*size, instance.shares(size), items));
    }
    let mut bins = Bins::new();
    while !left.is_empty() {
        let mut room = *instance.capacity();
        let mut bin = Vec::new();
        loop {
            let shares = instance.shares(&room);
            let mut best: Option<(f64, usize)> = None;
            for (index, (size, share, _)) in left.iter().enumerate() {
                if fits(size, &room) {
                    let found = score(&weights, &shares, share);
                    if best.is_none_or(|(highest, _)| found > highest) {
                        best = Some((found, index));
                    }
                }
            }
            let Some((_, index)) = best else { break };
            take(&mut room, &left[index].0);
            bin.extend(left[index].2.pop());
            if left[index].2.is_empty() {
                left.remove(index);
            }
        }
        bins.push(bin);
    }
    bins
}
