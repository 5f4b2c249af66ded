//! When too little of the disk is left, how often to look, and which workload must end. Pure.

use std::time::Duration;

/// Reserve of small disks, where a percentage would be written before anybody looks. Units: bytes.
const RESERVE_LEAST: u64 = 2 << 30;
/// But never more than one of so many parts of the disk.
const RESERVE_PART: u64 = 5;
/// How fast a disk fills at most. Units: bytes per second.
const FILL_RATE: u64 = 4 << 30;
/// Shortest time between two looks.
const LOOK_SHORTEST: Duration = Duration::from_millis(50);
/// Longest time between two looks. Source: kubelet's `monitoringInterval` of the eviction manager.
pub const LOOK_LONGEST: Duration = Duration::from_secs(10);
/// Part of the reserve that a workload must have written to be blamed: what writes less does not fill the disk.
const BLAME_PART: u64 = 100;
/// Pods from this priority on are the cluster's own. Source: Kubernetes, `system-cluster-critical`.
const PRIORITY_CRITICAL: i32 = 2_000_000_000;

/// How full the disk is. Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Left for ordinary users.
    pub free: u64,
    /// To be kept free.
    pub reserve: u64,
}

impl Level {
    /// Of a disk of this size, of which so many percent are to be kept free.
    #[must_use]
    pub fn new(total: u64, free: u64, percent: u8) -> Self {
        let part = total / 100 * u64::from(percent.min(100));
        Self { free, reserve: part.max(RESERVE_LEAST.min(total / RESERVE_PART)) }
    }

    /// Whether the reserve is used; once it is, a fifth more must be free until it is not, so that it does not swing.
    #[must_use]
    pub fn is_pressed(self, was: bool) -> bool {
        self.free < if was { self.reserve + self.reserve / 5 } else { self.reserve }
    }

    /// Whether the reserve is near, and it is time to know who writes.
    #[must_use]
    pub fn is_near(self) -> bool {
        self.free / 2 < self.reserve
    }

    /// When to look again: before the fastest writer can have written half of what is left.
    #[must_use]
    pub fn next_look(self) -> Duration {
        Duration::from_millis(self.free / 2 / (FILL_RATE / 1_000)).clamp(LOOK_SHORTEST, LOOK_LONGEST)
    }
}

/// A workload as the choice sees it. Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it has on the disk now.
    pub uses: u64,
    /// What it had when the reserve was last whole, or when the last workload was ended.
    pub before: u64,
    /// What it asked for.
    pub requested: u64,
    /// Its priority.
    pub priority: i32,
    /// It is a pod, whose end frees what it uses.
    pub is_pod: bool,
}

/// Who must end. First those that fill the disk: over their request, of the lowest priority, the fastest. When nobody does
/// and half of the reserve is gone, the pod over its request whose end frees most. `None` when no end would help.
#[must_use]
pub fn choose(candidates: &[Candidate], level: Level) -> Option<usize> {
    let blame = level.reserve / BLAME_PART;
    let all = || candidates.iter().enumerate().filter(|(_, c)| c.priority < PRIORITY_CRITICAL);
    let grown = |c: &Candidate| c.uses.saturating_sub(c.before);
    let over = |c: &Candidate| c.uses.saturating_sub(c.requested);
    let growing = all().filter(|(_, c)| grown(c) >= blame);
    let fastest = growing.max_by_key(|(_, c)| (over(c) > 0, std::cmp::Reverse(c.priority), grown(c)));
    let largest = || {
        let pods = all().filter(|(_, c)| c.is_pod && over(c) >= blame && level.free < level.reserve / 2);
        pods.max_by_key(|(_, c)| (std::cmp::Reverse(c.priority), over(c)))
    };
    fastest.or_else(largest).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn container(uses: u64, before: u64) -> Candidate {
        Candidate { uses, before, requested: 0, priority: 0, is_pod: false }
    }

    fn pod(uses: u64, before: u64) -> Candidate {
        Candidate { is_pod: true, ..container(uses, before) }
    }

    #[test]
    fn the_reserve_is_a_part_of_large_disks_and_more_of_small_ones() {
        assert_eq!(Level::new(1_000 * GIB, 0, 5).reserve, 50 * GIB);
        assert_eq!(Level::new(20 * GIB, 0, 5).reserve, 2 * GIB);
        assert_eq!(Level::new(GIB, 0, 5).reserve, GIB / 5);
    }

    #[test]
    fn pressure_ends_later_than_it_begins() {
        let level = |free| Level { free, reserve: 100 };
        assert!(!level(100).is_pressed(false) && level(99).is_pressed(false));
        assert!(level(119).is_pressed(true) && !level(120).is_pressed(true));
    }

    #[test]
    fn who_fills_the_disk_ends_and_the_neighbour_stays() {
        let level = Level { free: GIB, reserve: 2 * GIB };
        let check = |candidates: &[Candidate], expected| assert_eq!(choose(candidates, level), expected);
        // A large neighbour that writes nothing, one that writes a little, and the one that fills the disk.
        check(&[container(50 * GIB, 50 * GIB), pod(10 * MIB, 5 * MIB), container(3 * GIB, GIB)], Some(2));
        check(&[pod(50 * GIB, 50 * GIB), container(10 * MIB, 0)], None);
        let asked = Candidate { requested: 9 * GIB, ..pod(8 * GIB, 0) };
        check(&[asked, container(3 * GIB, GIB)], Some(1));
        let dear = Candidate { priority: 7, ..pod(8 * GIB, 0) };
        check(&[dear, pod(3 * GIB, 2 * GIB)], Some(1));
        check(&[Candidate { priority: PRIORITY_CRITICAL, ..pod(8 * GIB, 0) }], None);
        check(&[], None);
    }

    #[test]
    fn when_nobody_writes_only_a_pod_frees_space_and_only_when_half_the_reserve_is_gone() {
        let (half, less) = (Level { free: GIB, reserve: 2 * GIB }, Level { free: GIB - 1, reserve: 2 * GIB });
        let still = [container(50 * GIB, 50 * GIB), pod(GIB, GIB), pod(2 * GIB, 2 * GIB), pod(MIB, MIB)];
        assert_eq!(choose(&still, half), None);
        assert_eq!(choose(&still, less), Some(2));
        assert_eq!(choose(&still[..1], less), None);
    }

    proptest! {
        #[test]
        fn the_fastest_disk_never_passes_the_reserve_unseen(total in GIB..1 << 50, part in 0_u64..1_000, percent in 1..50_u8) {
            let level = Level::new(total, total / 1_000 * part, percent);
            let pause = level.next_look();
            let written = FILL_RATE / 1_000 * u64::try_from(pause.as_millis()).unwrap();
            prop_assert!(pause == LOOK_SHORTEST || written <= level.free / 2 + FILL_RATE / 1_000);
        }

        #[test]
        fn nobody_who_asked_for_what_he_uses_ends_before_one_who_did_not(
            uses in prop::collection::vec((0_u64..8 * GIB, 0_u64..8 * GIB, 0_u64..8 * GIB), 1..8), free in 0..2 * GIB
        ) {
            let list: Vec<Candidate> = uses.iter().map(|(uses, before, requested)| {
                Candidate { uses: *uses, before: *before, requested: *requested, priority: 0, is_pod: true }
            }).collect();
            let level = Level { free, reserve: 2 * GIB };
            let blamed = |c: &Candidate| c.uses.saturating_sub(c.before) >= level.reserve / BLAME_PART;
            if let Some(chosen) = choose(&list, level).map(|index| list[index])
                && blamed(&chosen) && chosen.uses <= chosen.requested
            {
                prop_assert!(!list.iter().any(|c| blamed(c) && c.uses > c.requested));
            }
        }
    }
}
