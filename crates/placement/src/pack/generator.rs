//! Instances to measure on, made from a seed: what "Static packing" in `docs/consolidation.md` is printed from.

use super::effort::Random;
use super::instance::{Instance, InstanceError};

/// What a host holds in the made-up instances without a catalogue. Units: thousandths of a host.
const HOST: u64 = 1000;

/// How sizes are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Each size uniform from 2 to 30 % of a host.
    Uniform,
    /// 1 to 16 virtual processors with 2, 4 or 8 GiB each, all three alike often; hosts of 64 and 256 GiB. Memory dominates.
    Catalogue,
    /// The same with 2, 4 and 8 GiB as 2 : 2 : 1, which asks for as much of the memory as of the processors.
    Balanced,
    /// What is large in one dimension is small in another; all dimensions with the same mean.
    AntiCorrelated,
    /// 42 sizes, each dimension uniform from 2 to 30 %; every item is one of them.
    FortyTwo,
}

impl Distribution {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Uniform, Self::Catalogue, Self::Balanced, Self::AntiCorrelated, Self::FortyTwo];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Catalogue => "catalogue",
            Self::Balanced => "balanced",
            Self::AntiCorrelated => "anti-correlated",
            Self::FortyTwo => "42 types",
        }
    }
}

/// An instance of so many items in 2 (processor, memory) or 3 (and network) dimensions.
///
/// `Errors:` other numbers of dimensions are refused.
pub fn generate(
    distribution: Distribution,
    dimensions: usize,
    items: usize,
    seed: u64,
) -> Result<Instance, InstanceError> {
    let mut random = Random::new(seed);
    // Drawn in 3 dimensions always, so that the stream does not depend on their number.
    let mut types = Vec::new();
    if distribution == Distribution::FortyTwo {
        types.extend((0..42).map(|_| uniform(&mut random)));
    }
    let capacity = match distribution {
        Distribution::Catalogue | Distribution::Balanced => [64, 256, 128],
        _ => [HOST; 3],
    };
    let sizes: Vec<[u64; 3]> = (0..items)
        .map(|_| match distribution {
            Distribution::Uniform => uniform(&mut random),
            Distribution::Catalogue => catalogue(&mut random, [1, 1, 1]),
            Distribution::Balanced => catalogue(&mut random, [2, 2, 1]),
            Distribution::AntiCorrelated => anti_correlated(&mut random),
            Distribution::FortyTwo => types[random.below(types.len())],
        })
        .collect();
    match dimensions {
        2 => {
            let flat: Vec<[u64; 2]> = sizes.iter().map(|size| [size[0], size[1]]).collect();
            Instance::new([capacity[0], capacity[1]], &flat)
        }
        3 => Instance::new(capacity, &sizes),
        other => Err(InstanceError::Dimensions(other)),
    }
}

fn from_to(random: &mut Random, low: u64, high: u64) -> u64 {
    low + random.below(usize::try_from(high - low + 1).unwrap_or(1)) as u64
}

fn uniform(random: &mut Random) -> [u64; 3] {
    std::array::from_fn(|_| from_to(random, HOST / 50, HOST * 3 / 10))
}

/// An index, as often as its weight says.
fn pick(random: &mut Random, weights: &[usize]) -> usize {
    let mut drawn = random.below(weights.iter().sum());
    weights
        .iter()
        .position(|&weight| {
            let found = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            found
        })
        .unwrap_or(0)
}

/// Virtual processors, GiB, and network in quarters of a Gbit/s: ¼, ½ or 1 for each processor as 2 : 2 : 1.
fn catalogue(random: &mut Random, memory_weights: [usize; 3]) -> [u64; 3] {
    let cpus = 1 << pick(random, &[40, 30, 18, 9, 3]);
    let memory = cpus << (1 + pick(random, &memory_weights));
    let network = cpus << pick(random, &[2, 2, 1]);
    [cpus, memory, network]
}

/// Large in one dimension, small in another: the sum of the first two is about constant, and the third, where there is one, takes
/// part of what is drawn from them by turns.
fn anti_correlated(random: &mut Random) -> [u64; 3] {
    let (low, high) = (HOST / 50, HOST * 3 / 10);
    let first = from_to(random, low, high);
    let noise = from_to(random, 0, HOST / 25);
    let second = (low + high - first + noise).saturating_sub(HOST / 50).clamp(low, high);
    let third = if random.below(2) == 0 { first } else { second };
    [first, second, (low + high - third).clamp(low, high)]
}
