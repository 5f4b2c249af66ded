//! Proven lower bounds on the number of bins that need no search, in whole numbers throughout.
//!
//! A weighted sum of the dimensions is a size too: what does not fit by it does not fit. On each such sum, as a share x of the same
//! sum of a bin, dual feasible functions are tried, which never add up to more than 1 over what fits a bin:
//!
//! ```text
//! f(x) = 1 when x > 1 - e, x when e <= x <= 1 - e, 0 below      for each e up to 1/2
//! u(x) = x when (k + 1) x is whole, else floor((k + 1) x) / k     for each k
//! ```
//!
//! The second with k = 6 says, for instance, that of items larger than a seventh at most six share a bin.
//!
//! `Source:` S. Martello, P. Toth, "Lower bounds and reduction procedures for the bin packing problem", Discrete Applied
//! Mathematics 28, 1990; S. Fekete, J. Schepers, "New classes of fast lower bounds for bin packing problems", Mathematical
//! Programming 91, 2001.

use super::instance::{CAPACITY_MAX, DIMENSIONS_MAX, Instance};

/// How much each dimension counts in a sum; those of one dimension alone come first.
const WEIGHTS: [[u64; DIMENSIONS_MAX]; 16] = [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
    [1, 1, 0],
    [1, 0, 1],
    [0, 1, 1],
    [1, 1, 1],
    [2, 1, 0],
    [1, 2, 0],
    [2, 0, 1],
    [1, 0, 2],
    [0, 2, 1],
    [0, 1, 2],
    [2, 1, 1],
    [1, 2, 1],
    [1, 1, 2],
];
/// Largest k of the second function; more changes nothing for items of 5 % and more.
const STEPS_MAX: u64 = 20;

/// The volume bound: in no dimension can bins hold more than they have.
pub fn volume(instance: &Instance) -> usize {
    let total = instance.total();
    let needed = |axis: usize| total[axis].div_ceil(u128::from(instance.capacity()[axis]));
    let most = (0..DIMENSIONS_MAX).map(needed).max().unwrap_or(0);
    let least = usize::from(!instance.sizes().is_empty());
    count(most).max(least)
}

/// The best bound of the volume and both functions.
pub fn quick(instance: &Instance) -> usize {
    let mut most = volume(instance);
    for weights in WEIGHTS {
        if (instance.dimensions()..DIMENSIONS_MAX).any(|axis| weights[axis] > 0) {
            continue;
        }
        // Every factor is valid; these make the dimensions about equal, and sums of 4 capacities at most fit 64 bits.
        let factors: [u64; DIMENSIONS_MAX] =
            std::array::from_fn(|axis| weights[axis] * (CAPACITY_MAX / instance.capacity()[axis]));
        let sum = |size: &[u64; DIMENSIONS_MAX]| (0..DIMENSIONS_MAX).map(|axis| factors[axis] * size[axis]).sum();
        let mut sums: Vec<u64> = instance.sizes().iter().map(sum).collect();
        let whole: u64 = sum(instance.capacity());
        sums.sort_unstable();
        most = most.max(clipped(&sums, whole));
        for steps in 1..=STEPS_MAX {
            most = most.max(rounded(&sums, whole, steps));
        }
    }
    most
}

/// The first function, for every e at which it changes; sizes ascend.
fn clipped(sums: &[u64], whole: u64) -> usize {
    let mut most = 0;
    let mut behind: u128 = sums.iter().map(|&sum| u128::from(sum)).sum();
    // Items from `large` on are larger than whole - e; those before `first` are smaller than e.
    let mut large = sums.len();
    for (first, &least) in sums.iter().enumerate() {
        if 2 * least > whole {
            break;
        }
        while large > first && sums[large - 1] > whole - least {
            large -= 1;
            behind -= u128::from(sums[large]);
        }
        most = most.max(count(behind.div_ceil(u128::from(whole))) + sums.len() - large);
        behind -= if first < large { u128::from(least) } else { 0 };
    }
    most
}

/// The second function.
fn rounded(sums: &[u64], whole: u64, steps: u64) -> usize {
    let worth = |&sum: &u64| {
        let scaled = (steps + 1) * sum;
        // In units of 1 / (k (k + 1)).
        u128::from(scaled / whole * if scaled.is_multiple_of(whole) { steps } else { steps + 1 })
    };
    count(sums.iter().map(worth).sum::<u128>().div_ceil(u128::from(steps * (steps + 1))))
}

fn count(bins: u128) -> usize {
    usize::try_from(bins).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(capacity: [u64; 2], sizes: &[[u64; 2]], volume_bound: usize, quick_bound: usize) {
        let instance = Instance::new(capacity, sizes).expect("an instance");
        assert_eq!((volume(&instance), quick(&instance)), (volume_bound, quick_bound));
    }

    #[test]
    fn halves_and_a_little_do_not_share_a_bin() {
        check([100, 100], &[[51, 0]; 10], 6, 10);
    }

    #[test]
    fn two_dimensions_together_can_say_more_than_each() {
        // Nine items of 41 in a sum of 200: four share a bin at most, although each dimension alone would have room for more.
        check([100, 100], &[[8, 33], [33, 8], [8, 33], [33, 8], [8, 33], [33, 8], [8, 33], [33, 8], [8, 33]], 2, 3);
    }

    #[test]
    fn nothing_needs_no_bin_and_nothings_need_one() {
        check([5, 5], &[], 0, 0);
        check([5, 5], &[[0, 0]; 3], 1, 1);
    }
}
