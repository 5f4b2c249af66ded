//! `place` gives the answers of the slow and obvious way, whatever has happened to the pool before.

mod reference;

use std::collections::{BTreeMap, BTreeSet};

use placement::pool::LabelRequirement;
use placement::{
    Machine, Policy, Pool, Relation, Resources, Spread, Taint, TaintEffect, Toleration, Workload, place_by,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use reference::Reference;

#[derive(Clone, Debug)]
enum Event {
    SetMachine(Machine),
    RemoveMachine(String),
    Assign(String, Workload),
    Remove(String),
    /// Decide, and do as decided.
    Place(Workload, bool),
}

fn name() -> impl Strategy<Value = String> {
    // Names whose order is not that in which they come.
    (0u32..12).prop_map(|number| format!("m{}", number * 7 % 13))
}

/// Mostly small and alike, so that there are ties; now and then none, or more than anybody has.
fn amount(unit: u64) -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 10 => (1u64..6).prop_map(move |n| n * unit), 4 => 1..unit * 4, 1 => any::<u64>()]
}

fn resources(unit: u64) -> impl Strategy<Value = Resources> {
    let extended = proptest::collection::btree_map("gpu|fpga", 0u64..4, 0..3);
    (
        amount(unit * 250),
        amount(unit << 28),
        prop_oneof![3 => Just(0), 1 => amount(unit << 20)],
        prop_oneof![2 => Just(BTreeMap::new()), 1 => extended],
    )
        .prop_map(|(cpu_millis, memory_bytes, ephemeral_storage_bytes, extended)| Resources {
            cpu_millis,
            memory_bytes,
            ephemeral_storage_bytes,
            extended,
        })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("zone|host|rank", "[0-3]", 0..4)
}

fn effect() -> impl Strategy<Value = TaintEffect> {
    prop_oneof![Just(TaintEffect::NoSchedule), Just(TaintEffect::PreferNoSchedule), Just(TaintEffect::NoExecute)]
}

fn images() -> impl Strategy<Value = BTreeMap<String, u64>> {
    proptest::collection::btree_map("[ab]", prop_oneof![10u64 << 20..900 << 20, Just(u64::MAX)], 0..3)
}

prop_compose! {
    fn machine()(
        name in name(),
        labels in labels(),
        taints in proptest::collection::vec(("[kl]", "[vw]?", effect()), 0..3),
        is_tainted in proptest::bool::weighted(0.3),
        unschedulable in proptest::bool::weighted(0.1),
        allocatable in prop_oneof![3 => Just(Resources { cpu_millis: 4000, memory_bytes: 8 << 30, ..Resources::default() }), 2 => resources(8)],
        workloads_max in prop_oneof![5 => Just(110usize), 1 => 0usize..4],
        images in images(),
    ) -> Machine {
        let taints = taints.into_iter().map(|(key, value, effect)| Taint { key, value, effect });
        Machine {
            name, labels, unschedulable, allocatable, workloads_max, images, ready: true,
            taints: if is_tainted { taints.collect() } else { Vec::new() },
            ..Machine::default()
        }
    }
}

fn condition(key: &'static str, value: &'static str) -> impl Strategy<Value = LabelRequirement> {
    let values = || proptest::collection::vec(value, 0..3);
    prop_oneof![
        4 => (key, values()).prop_map(|(key, values)| LabelRequirement::In(key, values)),
        1 => (key, values()).prop_map(|(key, values)| LabelRequirement::NotIn(key, values)),
        1 => key.prop_map(LabelRequirement::Exists),
        1 => key.prop_map(LabelRequirement::DoesNotExist),
        1 => (key, -1i64..4).prop_map(|(key, bound)| LabelRequirement::GreaterThan(key, bound)),
        1 => (key, -1i64..4).prop_map(|(key, bound)| LabelRequirement::LessThan(key, bound)),
    ]
}

fn machine_conditions() -> impl Strategy<Value = Vec<LabelRequirement>> {
    proptest::collection::vec(condition("zone|host|rank", "[0-3]"), 0..3)
}

fn workload_conditions() -> impl Strategy<Value = Vec<LabelRequirement>> {
    proptest::collection::vec(condition("app|tier", "[ab]"), 0..3)
}

prop_compose! {
    fn relation()(
        selector in workload_conditions(),
        namespaces in prop_oneof![3 => Just(BTreeSet::new()), 1 => proptest::collection::btree_set("[no]", 1..3)],
        all_namespaces in proptest::bool::weighted(0.2),
        topology_key in "zone|host|none",
    ) -> Relation {
        Relation { selector, namespaces, all_namespaces, topology_key }
    }
}

prop_compose! {
    fn spread()(selector in workload_conditions(), topology_key in "zone|host|none", max_skew in 0u64..4, required: bool) -> Spread {
        Spread { selector, topology_key, max_skew, required }
    }
}

fn rarely<T: Clone + std::fmt::Debug + 'static>(
    item: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(item, 1..3)]
}

prop_compose! {
    fn choosy()(
        selector in prop_oneof![4 => Just(BTreeMap::new()), 1 => labels()],
        affinity in rarely(machine_conditions()),
        preferences in rarely((0u32..100, machine_conditions())),
        tolerations in rarely((proptest::option::of("[kl]"), proptest::option::of("[vw]?"), proptest::option::of(effect()))),
        host_ports in prop_oneof![3 => Just(BTreeSet::new()), 1 => proptest::collection::btree_set(("TCP|UDP", 1u16..4), 1..3)],
        machine in proptest::option::weighted(0.1, name()),
        images in proptest::collection::vec("[abc]", 0..3),
    ) -> Workload {
        let tolerations = tolerations.into_iter().map(|(key, value, effect)| Toleration { key, value, effect }).collect();
        Workload { selector, affinity, preferences, tolerations, host_ports, machine, images, ..Workload::default() }
    }
}

prop_compose! {
    fn workload()(
        id in 0u32..40,
        requests in resources(1),
        namespace in "[no]",
        labels in proptest::collection::btree_map("app|tier", "[ab]", 0..3),
        near in rarely(relation()),
        apart in rarely(relation()),
        near_preferences in rarely((-100i32..100, relation())),
        spread in rarely(spread()),
        choosy in prop_oneof![Just(Workload::default()), choosy()],
    ) -> Workload {
        Workload { id: format!("w{id}"), requests, namespace, labels, near, apart, near_preferences, spread, ..choosy }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => machine().prop_map(Event::SetMachine),
        1 => name().prop_map(Event::RemoveMachine),
        3 => (name(), workload()).prop_map(|(name, workload)| Event::Assign(name, workload)),
        2 => (0u32..40).prop_map(|id| Event::Remove(format!("w{id}"))),
        8 => (workload(), any::<bool>()).prop_map(|(workload, pack)| Event::Place(workload, pack)),
    ]
}

/// Both ways side by side.
#[derive(Default)]
struct Both {
    pool: Pool,
    reference: Reference,
}

impl Both {
    fn apply(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::SetMachine(machine) => {
                self.reference.machines.insert(machine.name.clone(), machine.clone());
                self.pool.set_machine(machine);
            }
            Event::RemoveMachine(name) => {
                self.reference.machines.remove(&name);
                self.pool.remove_machine(&name);
            }
            Event::Assign(machine, workload) => self.assign(&machine, workload),
            Event::Remove(id) => {
                self.reference.placed.remove(&id);
                self.pool.remove(&id);
            }
            Event::Place(workload, pack) => {
                let policy = if pack { Policy::Pack } else { Policy::Spread };
                let chosen = place_by(&self.pool, &workload, policy);
                prop_assert_eq!(&chosen, &self.reference.place_by(&workload, policy));
                if let Ok(choice) = chosen {
                    self.assign(&choice.machine, workload);
                }
            }
        }
        Ok(())
    }

    fn assign(&mut self, machine: &str, workload: Workload) {
        self.reference.placed.insert(workload.id.clone(), (machine.to_owned(), workload.clone()));
        self.pool.assign(machine, workload);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 20_000 }))]

    #[test]
    fn every_answer_is_that_of_the_slow_way(
        machines in proptest::collection::vec(machine(), 0..12),
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut both = Both::default();
        for event in machines.into_iter().map(Event::SetMachine).chain(events) {
            both.apply(event)?;
        }
    }
}

#[test]
fn the_same_holds_for_hundreds_of_machines() {
    // Enough for dense sets and for several words of bits.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut both = Both::default();
    for number in 0..400 {
        let machine = machine().new_tree(&mut runner).map(|tree| tree.current()).expect("a machine");
        let name = format!("m{}", number * 177 % 400);
        both.apply(Event::SetMachine(Machine { name, ..machine })).expect("machines are taken in");
    }
    for id in 0..1500 {
        let workload = workload().new_tree(&mut runner).map(|tree| tree.current()).expect("a workload");
        let workload = Workload { id: format!("w{id}"), ..workload };
        both.apply(Event::Place(workload, id % 3 == 0)).expect("the same answer");
        if id % 5 == 0 {
            both.apply(Event::Remove(format!("w{}", id / 2))).expect("workloads go");
        }
    }
}
