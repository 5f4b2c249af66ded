//! Whom to ask to leave, so that a workload of higher priority has a place. Pure. `Source:` Kubernetes, "Pod Priority and
//! Preemption".

use std::collections::BTreeMap;

use placement::{Pool, Workload};

/// Somebody who has a place.
#[derive(Clone, Debug)]
pub struct Holder {
    /// What it is.
    pub workload: Workload,
    /// Who goes for whom: the lower one for the higher one.
    pub priority: i32,
    /// Where it is.
    pub machine: String,
}

/// Machines that are looked at. `Source:` kube-scheduler `minCandidateNodesAbsolute`.
const CANDIDATES_MAX: usize = 100;

/// What is lost: the priority of the most important victim, the sum of all, their number.
type Cost = (i32, i64, usize);

/// The machine on which the least is lost, and who has to leave it. The pool is as before when this returns.
///
/// The best machine is the one whose most important victim is the least important; then the one with the least important victims in
/// all; then the one with the fewest.
pub fn victims(
    pool: &mut Pool,
    workload: &Workload,
    priority: i32,
    holders: &BTreeMap<String, Holder>,
) -> Option<(String, Vec<String>)> {
    let mut lower: BTreeMap<&str, Vec<&Holder>> = BTreeMap::new();
    for holder in holders.values().filter(|holder| holder.priority < priority) {
        lower.entry(&holder.machine).or_default().push(holder);
    }
    let mut best: Option<(Cost, String, Vec<String>)> = None;
    for (machine, mut candidates) in lower.into_iter().take(CANDIDATES_MAX) {
        // The most important ones stay if they can.
        candidates.sort_by_key(|holder| std::cmp::Reverse(holder.priority));
        let gone = on(pool, machine, workload, &candidates);
        if gone.is_empty() {
            continue;
        }
        let highest = gone.iter().map(|holder| holder.priority).max().unwrap_or(i32::MIN);
        let sum = gone.iter().map(|holder| i64::from(holder.priority) - i64::from(i32::MIN)).sum();
        let cost = (highest, sum, gone.len());
        if best.as_ref().is_none_or(|(known, ..)| cost < *known) {
            let ids = gone.iter().map(|holder| holder.workload.id.clone()).collect();
            best = Some((cost, machine.to_owned(), ids));
        }
    }
    best.map(|(_, machine, ids)| (machine, ids))
}

/// Who must leave this machine; nobody when that would not help.
fn on<'a>(pool: &mut Pool, machine: &str, workload: &Workload, candidates: &[&'a Holder]) -> Vec<&'a Holder> {
    let wanted = Workload { machine: Some(machine.to_owned()), ..workload.clone() };
    for holder in candidates {
        pool.remove(&holder.workload.id);
    }
    let mut gone = Vec::new();
    let helps = placement::place(pool, &wanted).is_ok();
    for holder in candidates {
        pool.assign(machine, holder.workload.clone());
        if helps && placement::place(pool, &wanted).is_err() {
            pool.remove(&holder.workload.id);
            gone.push(*holder);
        }
    }
    for holder in &gone {
        pool.assign(machine, holder.workload.clone());
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use placement::{Machine, Resources};
    use proptest::prelude::*;

    fn workload(id: &str, cpu_millis: u64) -> Workload {
        Workload { id: id.into(), requests: Resources { cpu_millis, ..Resources::default() }, ..Workload::default() }
    }

    fn world(held: &[(&str, &str, u64, i32)]) -> (Pool, BTreeMap<String, Holder>) {
        let mut pool = Pool::default();
        for name in ["a", "b"] {
            let allocatable = Resources { cpu_millis: 1000, memory_bytes: 1 << 30, ..Resources::default() };
            let machine =
                Machine { name: name.into(), allocatable, workloads_max: 10, ready: true, ..Machine::default() };
            pool.set_machine(machine);
        }
        let mut holders = BTreeMap::new();
        for (id, machine, cpu, priority) in held {
            let workload = workload(id, *cpu);
            pool.assign(machine, workload.clone());
            holders.insert((*id).to_owned(), Holder { workload, priority: *priority, machine: (*machine).to_owned() });
        }
        (pool, holders)
    }

    fn check(held: &[(&str, &str, u64, i32)], cpu: u64, priority: i32, expected: Option<(&str, &[&str])>) {
        let (mut pool, holders) = world(held);
        let before = format!("{:?}", pool.machines().collect::<Vec<_>>());
        let found = victims(&mut pool, &workload("new", cpu), priority, &holders);
        let found =
            found.as_ref().map(|(machine, ids)| (machine.as_str(), ids.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(found, expected.map(|(machine, ids)| (machine, ids.to_vec())));
        assert_eq!(format!("{:?}", pool.machines().collect::<Vec<_>>()), before, "the pool is as before");
    }

    #[test]
    fn the_least_important_leave_and_no_more_than_needed() {
        check(&[("x", "a", 900, 5), ("y", "b", 900, 1)], 500, 10, Some(("b", &["y"])));
        check(&[("x", "a", 400, 1), ("y", "a", 400, 2), ("z", "b", 900, 3)], 500, 10, Some(("a", &["x"])));
        check(&[("x", "a", 900, 10), ("y", "b", 900, 11)], 500, 10, None);
        check(&[("x", "a", 900, 1)], 2000, 10, None);
    }

    proptest! {
        #[test]
        fn nobody_leaves_for_an_equal_and_the_place_suffices(
            held in proptest::collection::vec((0usize..2, 1u64..600, 0i32..6), 0..8),
            cpu in 1u64..1200,
            priority in 0i32..6,
        ) {
            let names: Vec<String> = (0..held.len()).map(|n| n.to_string()).collect();
            let held: Vec<(&str, &str, u64, i32)> = held.iter().zip(&names).map(|((m, c, p), n)| (n.as_str(), ["a", "b"][*m], *c, *p)).collect();
            let (mut pool, holders) = world(&held);
            if let Some((machine, ids)) = victims(&mut pool, &workload("new", cpu), priority, &holders) {
                for id in &ids {
                    prop_assert!(holders[id].priority < priority && holders[id].machine == machine);
                    pool.remove(id);
                }
                let wanted = Workload { machine: Some(machine), ..workload("new", cpu) };
                prop_assert!(placement::place(&pool, &wanted).is_ok());
            }
        }
    }
}
