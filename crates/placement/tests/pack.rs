//! Static packing: every packing is one, none is worse than the greedy rules or better than its bound, and tiny ones are the best.

use placement::pack::effort::Effort;
use placement::pack::generator::{Distribution, generate};
use placement::pack::greedy::Greedy;
use placement::pack::instance::{CAPACITY_MAX, InstanceError};
use placement::pack::{Instance, Packing, pack, pack_within};
use proptest::prelude::*;

/// Panics unless each item is in one of the bins and no bin is overfull.
fn check(instance: &Instance, packing: &Packing) {
    assert_eq!(packing.bin_of.len(), instance.sizes().len());
    let mut loads = vec![[0u128; 3]; packing.bins];
    for (&bin, size) in packing.bin_of.iter().zip(instance.sizes()) {
        for (load, &part) in loads[bin].iter_mut().zip(size) {
            *load += u128::from(part);
        }
    }
    for load in loads {
        for (load, &capacity) in load.iter().zip(instance.capacity()) {
            assert!(*load <= u128::from(capacity), "{load} in a bin of {capacity}");
        }
    }
    assert!(packing.bound <= packing.bins, "{} bins, fewer than {}", packing.bins, packing.bound);
}

fn within(instance: &Instance, steps: u64) -> Packing {
    pack_within(instance, &mut Effort::new(steps, &mut || false))
}

/// The fewest bins, by trying all: item after item into each open bin, or a new one.
fn fewest(instance: &Instance) -> usize {
    fn place(instance: &Instance, item: usize, rooms: &mut Vec<[u64; 3]>, best: &mut usize) {
        if rooms.len() >= *best {
            return;
        }
        let Some(size) = instance.sizes().get(item) else {
            *best = rooms.len();
            return;
        };
        for bin in 0..=rooms.len() {
            if bin == rooms.len() {
                rooms.push(*instance.capacity());
            }
            if (0..3).all(|axis| size[axis] <= rooms[bin][axis]) {
                let before = rooms[bin];
                rooms[bin] = std::array::from_fn(|axis| before[axis] - size[axis]);
                place(instance, item + 1, rooms, best);
                rooms[bin] = before;
            }
        }
        rooms.pop();
    }
    let mut best = instance.sizes().len() + 1;
    place(instance, 0, &mut Vec::new(), &mut best);
    best
}

fn sizes(most: u64, count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<[u64; 3]>> {
    proptest::collection::vec([0..=most, 0..=most, 0..=most], count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_tiny_packing_is_the_best_there_is(sizes in sizes(100, 0..9), capacity in 100u64..200) {
        let instance = Instance::new([capacity; 3], &sizes).expect("an instance");
        let packing = within(&instance, 300_000);
        check(&instance, &packing);
        let fewest = fewest(&instance);
        prop_assert!(packing.bound <= fewest, "bound {} of {fewest}", packing.bound);
        prop_assert_eq!(packing.bins, fewest);
    }

    #[test]
    fn no_greedy_rule_is_better(sizes in sizes(400, 1..300), steps in 0u64..3_000_000) {
        let instance = Instance::new([1000; 3], &sizes).expect("an instance");
        let packing = within(&instance, steps);
        check(&instance, &packing);
        for rule in Greedy::ALL {
            prop_assert!(packing.bins <= rule.pack(&instance).len(), "{}", rule.name());
        }
    }

    #[test]
    fn few_types_are_packed_and_bounded_too(
        types in sizes(60, 1..8),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let sizes: Vec<[u64; 3]> = picks.iter().map(|pick| types[pick.index(types.len())]).collect();
        let instance = Instance::new([100, 90, 80], &sizes).expect("an instance");
        let packing = within(&instance, 300_000);
        check(&instance, &packing);
        prop_assert_eq!(packing.bins, fewest(&instance));
    }

    #[test]
    fn sizes_of_any_scale_are_counted_exactly(
        sizes in proptest::collection::vec([1..=CAPACITY_MAX, 0..=7, 0..=CAPACITY_MAX / 3], 1..40),
    ) {
        let instance = Instance::new([CAPACITY_MAX, 7, CAPACITY_MAX - 1], &sizes).expect("an instance");
        check(&instance, &within(&instance, 500_000));
    }

    #[test]
    fn greedy_packings_are_packings(sizes in sizes(500, 0..120)) {
        let instance = Instance::new([500; 3], &sizes).expect("an instance");
        for rule in Greedy::ALL {
            let bins = rule.pack(&instance);
            let mut bin_of = vec![usize::MAX; sizes.len()];
            for (bin, items) in bins.iter().enumerate() {
                for &item in items {
                    prop_assert_eq!(bin_of[item], usize::MAX, "{} places {} twice", rule.name(), item);
                    bin_of[item] = bin;
                }
            }
            check(&instance, &Packing { bin_of, bins: bins.len(), bound: 0 });
        }
    }
}

#[test]
fn generated_instances_are_within_one_percent_of_their_bound() {
    for distribution in Distribution::ALL {
        for dimensions in [2, 3] {
            for count in [200, 1_000] {
                let instance = generate(distribution, dimensions, count, 11).expect("an instance");
                let packing = pack(&instance);
                check(&instance, &packing);
                let allowed = packing.bound + (packing.bound / 100).max(1);
                assert!(packing.bins <= allowed, "{distribution:?} {dimensions} {count}: {packing:?}");
            }
        }
    }
}

#[test]
fn the_same_instance_is_packed_the_same_way() {
    let instance = generate(Distribution::Uniform, 3, 600, 5).expect("an instance");
    assert_eq!(within(&instance, 2_000_000), within(&instance, 2_000_000));
}

#[test]
fn a_caller_can_stop_it_and_has_a_packing_all_the_same() {
    let instance = generate(Distribution::Uniform, 3, 3_000, 5).expect("an instance");
    let mut asked = 0;
    let mut stop = || {
        asked += 1;
        asked > 3
    };
    let packing = pack_within(&instance, &mut Effort::new(u64::MAX, &mut stop));
    check(&instance, &packing);
    assert!(asked <= 4, "it went on after it was told to stop: {asked}");
}

#[test]
fn nothing_and_items_of_no_size_are_no_trouble() {
    let empty = pack(&Instance::new([5, 5], &[]).expect("an instance"));
    assert_eq!(empty, Packing { bin_of: vec![], bins: 0, bound: 0 });
    let nothings = pack(&Instance::new([5, 5], &[[0, 0], [0, 0]]).expect("an instance"));
    assert_eq!(nothings, Packing { bin_of: vec![0, 0], bins: 1, bound: 1 });
    let mixed = pack(&Instance::new([5, 5], &[[0, 0], [5, 1], [1, 5], [0, 0]]).expect("an instance"));
    assert_eq!((mixed.bins, mixed.bound), (2, 2));
}

#[test]
fn a_million_grains_of_dust_are_packed() {
    let instance = Instance::new([CAPACITY_MAX, 1 << 20], &vec![[1, 1]; 1 << 20]).expect("an instance");
    assert_eq!(pack(&instance).bins, 1);
    let two = Instance::new([CAPACITY_MAX, (1 << 20) - 1], &vec![[1, 1]; 1 << 20]).expect("an instance");
    assert_eq!((pack(&two).bins, pack(&two).bound), (2, 2));
}

#[test]
fn bad_input_is_refused() {
    let too_large = Instance::new([10, 10, 10], &[[1, 1, 1], [3, 11, 3]]);
    assert_eq!(too_large, Err(InstanceError::ItemTooLarge { item: 1, dimension: 1, size: 11, capacity: 10 }));
    assert_eq!(Instance::new([10, 0], &[[1, 0]]), Err(InstanceError::ZeroCapacity(1)));
    assert_eq!(Instance::new([CAPACITY_MAX + 1], &[]), Err(InstanceError::CapacityTooLarge(0)));
    assert_eq!(Instance::new([], &[[]]), Err(InstanceError::Dimensions(0)));
}
