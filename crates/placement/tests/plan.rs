//! Plans hold what they promise: a replay does every step of a plan and checks the pool after each; golden scripts show what a
//! plan reads like; bad numbers are refused.

use std::collections::BTreeMap;

use placement::plan::explain::explain;
use placement::plan::snapshot::{CPU, Forecast, MEMORY, Machine, MachineState, Snapshot, SnapshotError, Workload};
use placement::plan::{Plan, Policy, Step, When, plan, plan_while};
use placement::power::PowerCurve;
use proptest::prelude::*;

fn machine(name: &str, cpu: f64, memory: f64) -> Machine {
    Machine {
        name: name.into(),
        capacity: [cpu, memory, 0.0, 0.0],
        core_cpu: cpu,
        power: PowerCurve::linear(90.0, 130.0).expect("a curve"),
        sleep_watts: 5.0,
        wake_seconds: 60.0,
        state: MachineState::On,
        labels: BTreeMap::new(),
        is_protected: false,
    }
}

fn workload(id: &str, machine: usize, cpu: f64, memory: f64) -> Workload {
    Workload {
        id: id.into(),
        machine: Some(machine),
        uses: [cpu, memory, 0.0, 0.0],
        forecast: Forecast { mean: cpu, deviation: cpu / 20.0 },
        memory_min: memory,
        is_movable: true,
        move_seconds: memory,
        ..Workload::default()
    }
}

/// Does the steps one by one. `Err` says which rule was broken.
fn replay(snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let mut place: Vec<Option<usize>> = snapshot.workloads().iter().map(|w| w.machine).collect();
    let mut memory: Vec<f64> = snapshot.workloads().iter().map(|w| w.uses[MEMORY]).collect();
    let mut awake: Vec<bool> = snapshot.machines().iter().map(|m| m.state != MachineState::Asleep).collect();
    for step in &plan.steps {
        match *step {
            Step::Balloon { workload, memory: left } => {
                if left < snapshot.workloads()[workload].memory_min {
                    return Err(format!("{step:?} takes more than it may"));
                }
                memory[workload] = left;
            }
            Step::Wake { machine } if awake[machine] => return Err(format!("{step:?}: it is awake")),
            Step::Wake { machine } => awake[machine] = true,
            Step::Sleep { machine } => {
                if place.contains(&Some(machine)) {
                    return Err(format!("{step:?}: there is work on it"));
                }
                if snapshot.machines()[machine].is_protected {
                    return Err(format!("{step:?}: it is protected"));
                }
                awake[machine] = false;
            }
            Step::Move { workload, from, to, .. } => {
                if place[workload] != Some(from) {
                    return Err(format!("{step:?}: it is not there"));
                }
                place[workload] = Some(to);
                check_arrival(snapshot, &place, &memory, &awake, workload, to)
                    .map_err(|rule| format!("{step:?}: {rule}"))?;
            }
        }
    }
    let lost = place.iter().zip(snapshot.workloads()).any(|(now, before)| now.is_some() != before.machine.is_some());
    if lost { Err("a workload is lost".into()) } else { Ok(()) }
}

fn check_arrival(
    snapshot: &Snapshot,
    place: &[Option<usize>],
    memory: &[f64],
    awake: &[bool],
    workload: usize,
    to: usize,
) -> Result<(), &'static str> {
    let (item, shape) = (&snapshot.workloads()[workload], &snapshot.machines()[to]);
    let here = || (0..place.len()).filter(|other| place[*other] == Some(to));
    if !awake[to] || matches!(shape.state, MachineState::Failed | MachineState::Draining) {
        return Err("the machine takes nobody");
    }
    if !item.is_movable {
        return Err("it must not move");
    }
    if here().map(|other| memory[other]).sum::<f64>() > shape.capacity[MEMORY] * (1.0 + 1e-6) {
        return Err("memory is overfull");
    }
    if item.selector.iter().any(|(key, value)| shape.labels.get(key) != Some(value)) {
        return Err("the labels do not match");
    }
    let clashes = |other: usize| {
        other != workload && snapshot.workloads()[other].apart.iter().any(|group| item.apart.contains(group))
    };
    if here().any(clashes) { Err("two that must be apart are together") } else { Ok(()) }
}

prop_compose! {
    fn pools()(
        machines in proptest::collection::vec((4u32..16, 8u32..64, 0u8..12, 0u8..3), 2..9),
        workloads in proptest::collection::vec((0usize..9, 1u32..60, 1u32..16, 0u8..8, 0u8..8, 0u8..5), 0..40),
    ) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (index, (cpu, memory, state, zone)) in machines.iter().enumerate() {
            let mut machine = machine(&format!("m{index}"), f64::from(*cpu), f64::from(*memory));
            machine.state = match state { 0 => MachineState::Asleep, 1 => MachineState::Draining, 2 => MachineState::Failed, _ => MachineState::On };
            machine.is_protected = *state == 3;
            machine.labels.insert("zone".into(), zone.to_string());
            snapshot.add_machine(machine).expect("good numbers");
        }
        let mut held = vec![0.0; machines.len()];
        for (index, (place, cpu, memory, group, kind, zone)) in workloads.iter().enumerate() {
            let place = place % machines.len();
            let memory = f64::from(*memory);
            // Where it is now is no concern of the plan's, as long as memory holds and it is awake.
            if held[place] + memory > f64::from(machines[place].1) || machines[place].2 == 0 { continue; }
            held[place] += memory;
            let mut item = workload(&format!("w{index}"), place, f64::from(*cpu) / 10.0, memory);
            item.is_movable = *kind != 0;
            item.memory_min = if *kind < 3 { memory / 2.0 } else { memory };
            if *group < 2 { item.apart.push(u32::from(*group)); }
            if *zone == 0 { item.selector.insert("zone".into(), machines[place].3.to_string()); }
            snapshot.add_workload(item).expect("good numbers");
        }
        snapshot
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_step_of_every_plan_can_be_done(snapshot in pools(), balloon: bool, overlap: bool, ahead: bool, moves in 0usize..30) {
        let policy = Policy { use_balloon: balloon, moves_overlap: overlap, wake_ahead: ahead, moves_max: moves, ..Policy::default() };
        let made = plan(&snapshot, &policy, 0);
        prop_assert_eq!(replay(&snapshot, &made), Ok(()));
        // The bound is that of serving everything: who is held back by the size of a core is not served.
        let held_back = snapshot.workloads().iter().any(|item| {
            item.machine.is_some_and(|machine| item.uses[CPU] > snapshot.machines()[machine].core_cpu)
        });
        prop_assert!(made.watts_bound <= made.watts_after + 1e-6 || !made.overloaded.is_empty() || made.given_up > 0 || held_back
            || snapshot.machines().iter().any(|m| m.state == MachineState::Failed), "{:?}", made);
        prop_assert_eq!(plan(&snapshot, &policy, 0).steps, made.steps, "the same snapshot gives the same plan");
    }

    #[test]
    fn a_plan_that_is_cut_short_can_be_done_too(snapshot in pools(), steady in 0usize..4, searches in 0usize..60) {
        let policy = Policy { steady_spares_max: steady, ..Policy::default() };
        let mut left = searches;
        let made = plan_while(&snapshot, &policy, 0, &mut || { left = left.saturating_sub(1); left > 0 });
        prop_assert_eq!(replay(&snapshot, &made), Ok(()));
        let whole = plan(&snapshot, &policy, 0);
        prop_assert!(whole.is_complete && (!made.is_complete || made.steps == whole.steps));
        // Without relief nothing moves but off machines that are left by all.
        let is_calm = plan(&snapshot, &Policy { when: When::Never, ..policy }, 0).steps.is_empty();
        for step in made.steps.iter().filter(|_| is_calm && !made.is_complete) {
            if let Step::Move { from, .. } = step {
                let stays = |index: usize| !made.steps.iter().any(|step| matches!(step, Step::Move { workload, .. } if *workload == index));
                let others = (0..).zip(snapshot.workloads()).filter(|(_, workload)| workload.machine == Some(*from));
                prop_assert!(!others.into_iter().any(|(index, _)| stays(index)), "{from} is half emptied: {:?}", made.steps);
            }
        }
    }

    #[test]
    fn bad_numbers_are_refused(value in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(-f64::MIN_POSITIVE), Just(1e300)], field in 0usize..6) {
        let mut snapshot = Snapshot::default();
        let mut bad = machine("m", 4.0, 8.0);
        match field { 0 => bad.capacity[CPU] = value, 1 => bad.capacity[MEMORY] = value, 2 => bad.core_cpu = value, 3 => bad.sleep_watts = value, 4 => bad.wake_seconds = value, _ => bad.capacity[3] = value }
        prop_assert!(matches!(snapshot.add_machine(bad), Err(SnapshotError::BadNumber { .. })), "a bad number was taken in");
        snapshot.add_machine(machine("m", 4.0, 8.0)).expect("good numbers");
        let mut bad = workload("w", 0, 1.0, 1.0);
        match field { 0 => bad.uses[CPU] = value, 1 => bad.uses[MEMORY] = value, 2 => bad.forecast.mean = value, 3 => bad.forecast.deviation = value, 4 => bad.memory_min = value, _ => bad.move_seconds = value }
        prop_assert!(matches!(snapshot.add_workload(bad), Err(SnapshotError::BadNumber { .. })), "a bad number was taken in");
        prop_assert!(snapshot.workloads().is_empty());
    }
}

#[test]
fn a_machine_with_nothing_and_a_place_that_is_none_are_refused() {
    let mut snapshot = Snapshot::default();
    let nothing = snapshot.add_machine(machine("m", 0.0, 8.0)).map_err(|error| error.to_string());
    assert_eq!(nothing, Err("m: it has no cpu at all".into()));
    let nowhere = snapshot.add_workload(workload("w", 3, 1.0, 1.0)).map_err(|error| error.to_string());
    assert_eq!(nowhere, Err("w: there is no machine 3".into()));
    assert!(plan(&snapshot, &Policy::default(), 0).steps.is_empty(), "an empty pool needs nothing");
}

fn check(machines: Vec<Machine>, workloads: Vec<Workload>, policy: &Policy, expected: &str) {
    let mut snapshot = Snapshot::default();
    for machine in machines {
        snapshot.add_machine(machine).expect("good numbers");
    }
    for item in workloads {
        snapshot.add_workload(item).expect("good numbers");
    }
    let made = plan(&snapshot, policy, 0);
    assert_eq!(replay(&snapshot, &made), Ok(()));
    assert_eq!(explain(&snapshot, &made), expected);
}

#[test]
fn two_half_empty_machines_become_one() {
    let machines = vec![machine("a", 10.0, 64.0), machine("b", 10.0, 64.0)];
    let workloads = vec![workload("web", 0, 3.0, 8.0), workload("job", 1, 1.0, 8.0)];
    check(
        machines,
        workloads,
        &Policy::default(),
        "   1. move job from b to a: the others can do without b\n   \
         2. send b to sleep: nothing is left on it\n\
         power 196 W, after the plan 111 W; no placement can draw less than 60 W\n",
    );
}

#[test]
fn a_hot_machine_wakes_another_when_nobody_has_room() {
    let mut asleep = machine("b", 10.0, 64.0);
    asleep.state = MachineState::Asleep;
    let workloads = vec![workload("one", 0, 7.0, 8.0), workload("two", 0, 5.0, 8.0)];
    let made = "   1. wake b\n   2. move two from a to b: a has more to do than it can\n\
         power 135 W, after the plan 228 W; no placement can draw less than 160 W\n";
    check(vec![machine("a", 10.0, 64.0), asleep], workloads, &Policy::default(), made);
}

#[test]
fn outside_the_planned_hours_only_relief_is_given() {
    let night = When::PlannedHours { from: 22 * 60, to: 6 * 60 };
    assert!(night.allows(0) && night.allows(23 * 60) && !night.allows(12 * 60) && !When::Never.allows(0));
    let machines = vec![machine("a", 10.0, 64.0), machine("b", 10.0, 64.0)];
    let workloads = vec![workload("web", 0, 3.0, 8.0), workload("job", 1, 1.0, 8.0)];
    let policy = Policy { when: When::PlannedHours { from: 60, to: 120 }, ..Policy::default() };
    let made = "power 196 W, after the plan 196 W; no placement can draw less than 60 W\n";
    check(machines, workloads, &policy, made);
}
