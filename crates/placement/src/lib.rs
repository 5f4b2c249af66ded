//! Placement: a snapshot of the pool in; a choice and its explanation out. Pure: no I/O, no clock, no async, and no kinds of
//! any dialect, only the plain structs below.

pub mod elasticity;
pub mod explain;
pub mod filter;
pub mod fuzzing;
mod index;
pub mod pack;
pub mod plan;
pub mod pool;
pub mod power;
pub mod predict;
pub mod relations;
pub mod score;

pub use explain::Unschedulable;
pub use pool::{Machine, Pool, Resources, Taint, TaintEffect, Toleration, Workload};
pub use relations::{Relation, Spread};
pub use score::Policy;

/// Where a workload goes, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The machine's name.
    pub machine: String,
    /// Its score among the feasible machines, 0 to 100.
    pub score: u32,
    /// How many machines would have done.
    pub feasible: usize,
}

/// Chooses a machine for one workload. Ties go to the first machine in name order, so the same snapshot always gives the
/// same answer.
///
/// `Errors:` [`Unschedulable`] counts, per reason, the machines that were refused.
pub fn place(pool: &Pool, workload: &Workload) -> Result<Choice, Unschedulable> {
    place_by(pool, workload, Policy::default())
}

/// The same, under a policy.
///
/// The pool's machines are columns, and a decision goes over whole columns: each filter narrows one set of machines, and what is
/// left is scored in one pass. So the count of feasible machines and the counts of refusals are exact, at a few nanoseconds for each
/// machine.
pub fn place_by(pool: &Pool, workload: &Workload, policy: Policy) -> Result<Choice, Unschedulable> {
    let eligible = filter::eligible(pool, workload);
    let (count, feasible) = filter::Sieve::new(pool, workload).run(eligible.as_ref())?;
    match score::best(pool, workload, policy, &feasible, eligible.as_ref()) {
        Some((slot, score)) => Ok(Choice { machine: pool.index.name(slot).to_owned(), score, feasible: count }),
        None => Err(Unschedulable::new(pool.index.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str, cpu_millis: u64, memory_bytes: u64) -> Machine {
        Machine {
            name: name.into(),
            allocatable: Resources { cpu_millis, memory_bytes, ..Resources::default() },
            workloads_max: 110,
            ..Machine::default()
        }
    }

    fn workload(name: &str, cpu_millis: u64, memory_bytes: u64) -> Workload {
        Workload {
            id: name.into(),
            requests: Resources { cpu_millis, memory_bytes, ..Resources::default() },
            ..Workload::default()
        }
    }

    #[test]
    fn the_emptier_machine_wins() {
        let mut pool = Pool::default();
        pool.set_machine(machine("a", 2000, 4 << 30));
        pool.set_machine(machine("b", 2000, 4 << 30));
        pool.assign("a", workload("first", 1000, 1 << 30));
        assert_eq!(place(&pool, &workload("second", 500, 1 << 20)).map(|choice| choice.machine), Ok("b".into()));
    }

    #[test]
    fn refusals_read_as_kubernetes_words_them() {
        let mut pool = Pool::default();
        pool.set_machine(machine("a", 100, 4 << 30));
        pool.set_machine(Machine { unschedulable: true, ..machine("b", 2000, 4 << 30) });
        pool.set_machine(Machine {
            taints: vec![Taint { key: "gpu".into(), value: "yes".into(), effect: TaintEffect::NoSchedule }],
            ..machine("c", 2000, 4 << 30)
        });
        let refused = place(&pool, &workload("w", 500, 0)).map(|choice| choice.machine);
        assert_eq!(
            refused.map_err(|refusal| refusal.to_string()),
            Err("0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}, \
                 1 node(s) were unschedulable."
                .into())
        );
    }

    #[test]
    fn a_removed_workload_gives_back_what_it_held() {
        let mut pool = Pool::default();
        pool.set_machine(machine("a", 1000, 1 << 30));
        pool.assign("a", workload("w", 1000, 0));
        assert!(place(&pool, &workload("x", 1, 0)).is_err());
        pool.remove("w");
        assert!(place(&pool, &workload("x", 1000, 0)).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_machine_is_ever_overcommitted(requests in proptest::collection::vec((0u64..1500, 0u64..(2 << 30)), 1..60)) {
            let mut pool = Pool::default();
            for name in ["a", "b", "c"] {
                pool.set_machine(machine(name, 4000, 4 << 30));
            }
            for (index, (cpu, memory)) in requests.into_iter().enumerate() {
                let item = workload(&index.to_string(), cpu, memory);
                if let Ok(choice) = place(&pool, &item) {
                    pool.assign(&choice.machine, item);
                }
                for machine in pool.machines() {
                    proptest::prop_assert!(machine.used.cpu_millis <= machine.allocatable.cpu_millis);
                    proptest::prop_assert!(machine.used.memory_bytes <= machine.allocatable.memory_bytes);
                }
            }
        }
    }
}
