//! Memory between guests: what idle ones give away so that something else has a place, and what they get back. Pure.
//!
//! A guest takes part when its object says how little it may be left with (`spec.memoryMinimum`) and its balloon says how much it uses.
//! It is never asked for its working set, nor for a margin above that, in which its next moments fit. What it was asked for counts as
//! free when it has really let go of it.
//!
//! `Source:` C. A. Waldspurger, "Memory resource management in VMware ESX Server", OSDI 2002, sections 3 and 6.

use std::collections::BTreeMap;

use api::VirtualMachine;
use api::virtual_machine::MachinePhase;
use placement::{Machine, Pool, Workload};

use crate::quantity;

/// A guest keeps this part of what it uses on top of it…
const MARGIN_DIVISOR: u64 = 4;
/// … and this much. Units: bytes.
const MARGIN_BYTES: u64 = 32 << 20;
/// Targets are whole multiples of this. Units: bytes.
const GRAIN_BYTES: u64 = 4 << 20;

/// A guest whose memory may be taken and given.
#[derive(Clone, Debug)]
pub struct Balloon {
    /// It, with what it takes of its machine now.
    pub workload: Workload,
    /// Where it is.
    pub machine: String,
    /// All of its memory. Units: bytes.
    pub size: u64,
    /// What it must be left with, whatever it uses. Units: bytes.
    pub minimum: u64,
    /// What it is to be left with. Units: bytes.
    pub target: u64,
    /// What it uses and cannot do without. Units: bytes.
    pub used: u64,
}

/// A new target for a guest: its id and bytes.
pub type Target = (String, u64);

impl Balloon {
    /// A guest that runs, has a place and takes part. `workload` is it with all of its memory.
    pub fn of(guest: &VirtualMachine, workload: &Workload) -> Option<Self> {
        let bytes = |quantity: &Option<_>| quantity.as_ref().and_then(quantity::units).filter(|bytes| *bytes > 0);
        let status = guest.status.as_ref()?;
        let known = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
        let size = workload.requests.memory_bytes;
        let runs = status.phase == MachinePhase::Running && guest.metadata.deletion_timestamp.is_none();
        let (left, target) = (known(status.memory_bytes)?, bytes(&guest.spec.memory_target).unwrap_or(size).min(size));
        let mut workload = workload.clone();
        workload.requests.memory_bytes = left.max(target).min(size);
        runs.then_some(Self {
            workload,
            machine: guest.spec.node_name.clone().filter(|name| !name.is_empty())?,
            size,
            minimum: bytes(&guest.spec.memory_minimum)?,
            target,
            used: known(status.memory_used)?,
        })
    }

    /// The least that it may be left with.
    fn floor(&self) -> u64 {
        let needed = self.used.saturating_add(self.used / MARGIN_DIVISOR).saturating_add(MARGIN_BYTES);
        up(needed.max(self.minimum)).min(self.size)
    }

    fn held(&self) -> u64 {
        self.workload.requests.memory_bytes
    }

    fn slack(&self) -> u64 {
        self.held().saturating_sub(self.floor())
    }
}

fn up(bytes: u64) -> u64 {
    bytes.div_ceil(GRAIN_BYTES).saturating_mul(GRAIN_BYTES)
}

fn down(bytes: u64) -> u64 {
    bytes / GRAIN_BYTES * GRAIN_BYTES
}

/// So many parts of so many of an amount, rounded down.
fn share(amount: u64, parts: u64, of: u64) -> u64 {
    let share = u128::from(amount) * u128::from(parts) / u128::from(of.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

fn free(machine: &Machine) -> u64 {
    machine.allocatable.memory_bytes.saturating_sub(machine.used.memory_bytes)
}

fn by_machine(balloons: &BTreeMap<String, Balloon>) -> BTreeMap<&str, Vec<&Balloon>> {
    let mut found: BTreeMap<&str, Vec<&Balloon>> = BTreeMap::new();
    for balloon in balloons.values() {
        found.entry(&balloon.machine).or_default().push(balloon);
    }
    found
}

/// What the guests of one machine are to be left with so that the workload has a place there: on the machine where the smallest part
/// of what they could give is enough. `None` when that helps nowhere. The pool is as before when this returns.
pub fn squeeze(pool: &mut Pool, workload: &Workload, balloons: &BTreeMap<String, Balloon>) -> Option<Vec<Target>> {
    let mut best: Option<((u64, u64), Vec<Target>)> = None;
    for (name, guests) in by_machine(balloons) {
        let slack: u64 = guests.iter().map(|guest| guest.slack()).sum();
        let Some(machine) = pool.machines().find(|machine| machine.name == name) else { continue };
        let needed = workload.requests.memory_bytes.saturating_sub(free(machine));
        if needed == 0 || needed > slack {
            continue;
        }
        let is_no_less =
            |(least, of): (u64, u64)| u128::from(needed) * u128::from(of) >= u128::from(least) * u128::from(slack);
        if best.as_ref().is_some_and(|(least, _)| is_no_less(*least)) {
            continue;
        }
        let targets: Vec<Target> = guests
            .iter()
            .filter(|guest| guest.slack() > 0)
            .map(|guest| {
                let kept = down(share(guest.slack(), slack - needed, slack));
                (guest.workload.id.clone(), guest.floor().saturating_add(kept))
            })
            .collect();
        if would_fit(pool, name, workload, &guests, &targets) {
            best = Some(((needed, slack), targets));
        }
    }
    best.map(|(_, targets)| targets)
}

fn would_fit(pool: &mut Pool, machine: &str, workload: &Workload, guests: &[&Balloon], targets: &[Target]) -> bool {
    for guest in guests {
        let Some((_, target)) = targets.iter().find(|(id, _)| *id == guest.workload.id) else { continue };
        let mut smaller = guest.workload.clone();
        smaller.requests.memory_bytes = *target;
        pool.assign(machine, smaller);
    }
    let wanted = Workload { machine: Some(machine.to_owned()), ..workload.clone() };
    let fits = placement::place(pool, &wanted).is_ok_and(|choice| choice.machine == machine);
    guests.iter().for_each(|guest| pool.assign(machine, guest.workload.clone()));
    fits
}

/// What guests are to get back: at once those that need more than they are left with, whether or not their machine has it, for the
/// alternative is that they die; and when `all`, the others as much as is free, each the same part of what it lacks.
pub fn give_back(pool: &Pool, balloons: &BTreeMap<String, Balloon>, all: bool) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, guests) in by_machine(balloons) {
        let mut free = pool.machines().find(|machine| machine.name == name).map_or(0, free);
        let mut rest: Vec<(&Balloon, u64)> = Vec::new();
        for guest in guests {
            let target = guest.target.max(guest.floor());
            free = free.saturating_sub(target.saturating_sub(guest.held()));
            rest.push((guest, target));
        }
        let missing: u64 = rest.iter().map(|(guest, target)| guest.size - target).sum();
        let given = if all { free.min(missing) } else { 0 };
        for (guest, target) in rest {
            let lacks = guest.size - target;
            let more = if given == missing { lacks } else { down(share(lacks, given, missing)) };
            if target + more > guest.target {
                targets.push((guest.workload.id.clone(), target + more));
            }
        }
    }
    targets
}

/// The workload of a guest's object, of which no more counts than it is left with.
pub fn workload(guest: &VirtualMachine, whole: Workload) -> (Workload, Option<Balloon>) {
    match Balloon::of(guest, &whole) {
        Some(balloon) => (balloon.workload.clone(), Some(balloon)),
        None => (whole, None),
    }
}

/// Namespace and name out of a guest's id.
pub fn place_of(id: &str) -> Option<(&str, &str)> {
    id.strip_prefix("guest/")?.split_once('/')
}

#[cfg(test)]
mod tests {
    use placement::Resources;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(name: &str, mib: u64) -> Machine {
        let allocatable = Resources { cpu_millis: 64_000, memory_bytes: mib * MIB, ..Resources::default() };
        Machine { name: name.into(), allocatable, workloads_max: 110, ready: true, ..Machine::default() }
    }

    fn asks(id: &str, mib: u64) -> Workload {
        let requests = Resources { cpu_millis: 1, memory_bytes: mib * MIB, ..Resources::default() };
        Workload { id: id.into(), requests, ..Workload::default() }
    }

    fn balloon(id: &str, machine: &str, (size, left, target, used): (u64, u64, u64, u64)) -> Balloon {
        Balloon {
            workload: asks(id, left.max(target)),
            machine: machine.into(),
            size: size * MIB,
            minimum: 64 * MIB,
            target: target * MIB,
            used: used * MIB,
        }
    }

    fn pool(machines: &[(&str, u64)], guests: &[Balloon]) -> (Pool, BTreeMap<String, Balloon>) {
        let mut pool = Pool::default();
        machines.iter().for_each(|(name, mib)| pool.set_machine(machine(name, *mib)));
        guests.iter().for_each(|guest| pool.assign(&guest.machine, guest.workload.clone()));
        (pool, guests.iter().map(|guest| (guest.workload.id.clone(), guest.clone())).collect())
    }

    #[test]
    fn an_idle_guest_makes_room_and_keeps_what_it_uses_with_a_margin() {
        let guests = [
            balloon("guest/a/idle", "m1", (1024, 1024, 1024, 100)),
            balloon("guest/a/busy", "m1", (512, 512, 512, 450)),
        ];
        let (mut pool, known) = pool(&[("m1", 1600)], &guests);
        let targets = squeeze(&mut pool, &asks("new", 256), &known).unwrap();
        assert_eq!(targets, [("guest/a/idle".to_owned(), 832 * MIB)]);
        // Not below 100 MiB, a quarter more, and 32 MiB.
        assert!(squeeze(&mut pool, &asks("new", 64 + 1024 - 160), &known).is_some());
        assert!(squeeze(&mut pool, &asks("new", 64 + 1024 - 156), &known).is_none());
        // Nothing was changed by asking.
        assert_eq!(pool.machines().next().map(|machine| machine.used.memory_bytes), Some(1536 * MIB));
    }

    #[test]
    fn who_would_not_fit_for_another_reason_takes_nothing() {
        let (mut pool, known) = pool(&[("m1", 1024)], &[balloon("guest/a/idle", "m1", (1024, 1024, 1024, 100))]);
        let mut picky = asks("new", 256);
        picky.selector.insert("disk".into(), "fast".into());
        assert_eq!(squeeze(&mut pool, &picky, &known), None);
    }

    #[test]
    fn a_guest_in_need_gets_memory_that_its_machine_does_not_have_and_the_rest_waits() {
        let needy = balloon("guest/a/needy", "m1", (1024, 256, 256, 300));
        let idle = balloon("guest/a/idle", "m1", (1024, 256, 256, 100));
        let (pool, known) = pool(&[("m1", 512)], &[needy, idle]);
        assert_eq!(give_back(&pool, &known, true), [("guest/a/needy".to_owned(), 408 * MIB)]);
    }

    #[test]
    fn what_is_free_goes_back() {
        let (pool, known) = pool(&[("m1", 4096)], &[balloon("guest/a/idle", "m1", (1024, 256, 256, 100))]);
        assert_eq!(give_back(&pool, &known, false), []);
        assert_eq!(give_back(&pool, &known, true), [("guest/a/idle".to_owned(), 1024 * MIB)]);
    }

    #[test]
    fn only_guests_that_say_how_little_is_enough_take_part() {
        let object = |spec: serde_json::Value| -> VirtualMachine {
            serde_json::from_value(json!({"metadata": {"name": "g", "namespace": "a"}, "spec": spec,
                "status": {"phase": "Running", "memoryBytes": 300 * MIB, "memoryUsed": 50 * MIB}}))
            .unwrap()
        };
        let whole = asks("guest/a/g", 512);
        let of = |spec| workload(&object(spec), whole.clone()).0.requests.memory_bytes;
        assert_eq!(of(json!({"nodeName": "m1", "memoryTarget": "256Mi"})), 512 * MIB);
        let taking_part = json!({"nodeName": "m1", "memoryTarget": "256Mi", "memoryMinimum": "128Mi"});
        // It was asked for more than it has let go of.
        assert_eq!(of(taking_part), 300 * MIB);
        assert_eq!(of(json!({"memoryTarget": "256Mi", "memoryMinimum": "128Mi"})), 512 * MIB);
    }

    proptest! {
        #[test]
        fn nobody_is_asked_for_what_it_needs_and_what_is_taken_is_enough(
            figures in proptest::collection::vec((64u64..2048, 0u64..2048, 0u64..2048, 1u64..2048), 1..6),
            free in 0u64..512, wanted in 1u64..4096, room in 0u64..8192,
        ) {
            let guests: Vec<Balloon> = figures.iter().enumerate().map(|(index, (size, left, target, used))| {
                let figures = (*size, (*left).clamp(1, *size), (*target).min(*size), *used);
                balloon(&format!("guest/a/{index}"), "m1", figures)
            }).collect();
            let held: u64 = guests.iter().map(Balloon::held).sum();
            let (mut pool, known) = pool(&[("m1", held / MIB + free)], &guests);
            if let Some(targets) = squeeze(&mut pool, &asks("new", wanted), &known) {
                let mut after = held;
                for (id, target) in &targets {
                    prop_assert!(*target >= known[id].floor() && *target <= known[id].held());
                    after -= known[id].held() - target;
                }
                prop_assert!(after + wanted * MIB <= held + free * MIB);
            }
            let (pool, _) = self::pool(&[("m1", room)], &guests);
            let back = give_back(&pool, &known, true);
            let mut after: u64 = known.values().map(|guest| guest.held().max(guest.floor())).sum();
            let least = after;
            for (id, target) in &back {
                prop_assert!(*target > known[id].target && *target <= known[id].size);
                after += target.saturating_sub(known[id].held().max(known[id].floor()));
            }
            // More than there is, only for those in need.
            prop_assert!(after <= least.max(room * MIB));
        }
    }
}
