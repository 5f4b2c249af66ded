//! Machines in their slots, and the columns beside them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::{Bits, Column, Labels, RUN, Set, Stocks, number};
use crate::pool::{Machine, Resources, Taint, TaintEffect, Workload};
use crate::score::{DEFAULT_CPU_MILLIS, DEFAULT_MEMORY_BYTES};

/// Distance of neighbours in [`Stocks::order`] when there is room.
const ORDER_STEP: u64 = 1 << 32;

/// What one workload takes from its machine.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    requests: Resources,
    ports: Box<[(String, u16)]>,
}

impl Taken {
    pub fn new(requests: Resources, ports: impl IntoIterator<Item = (String, u16)>) -> Taken {
        Taken { requests, ports: ports.into_iter().collect() }
    }
}

/// Sums of requests. Wider than a request, so that whatever is added can be taken off again.
#[derive(Clone, Debug, Default)]
struct Held {
    cpu_millis: u128,
    memory_bytes: u128,
    ephemeral_storage_bytes: u128,
    extended: BTreeMap<String, u128>,
}

/// A machine, or the name of one that is not there but has workloads, which count again when it comes back.
#[derive(Clone, Debug, Default)]
struct Slot {
    machine: Machine,
    is_present: bool,
    held: Held,
    /// What it was given out for.
    sort: Sort,
}

/// Machines that are about as large and as open get slots of the same runs, so that the bounds of a run are close.
type Sort = (u32, u32, bool);

fn sort(machine: &Machine) -> Sort {
    // Two bits below the first: steps of a quarter or less.
    let size = |total: u64| {
        let zeros = total.leading_zeros();
        let mantissa = total.checked_shl(zeros).unwrap_or(0) >> 61;
        zeros << 2 | number(usize::try_from(mantissa & 3).unwrap_or(0))
    };
    let is_closed = machine.unschedulable || machine.taints.iter().any(|t| t.effect != TaintEffect::PreferNoSchedule);
    (size(machine.allocatable.cpu_millis), size(machine.allocatable.memory_bytes), is_closed)
}

/// All machines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    slots: Vec<Slot>,
    /// Slots that nobody has, by the sort of machine that they are for.
    free: HashMap<Sort, Vec<u32>>,
    by_name: BTreeMap<String, u32>,
    /// Those that are not there.
    absent: HashMap<String, u32>,
    /// Those that are there.
    pub present: Bits,
    pub unschedulable: Bits,
    /// Those that have as many workloads as they may.
    pub full: Bits,
    pub labels: Labels,
    /// Machines by their list of taints, where there are any.
    pub taints: HashMap<Vec<Taint>, Set>,
    pub ports: HashMap<(String, u16), Set>,
    /// For each image its size where it is.
    pub images: HashMap<String, BTreeMap<u32, u64>>,
    /// What requests have left.
    pub cpu_free: Column,
    pub memory_free: Column,
    pub storage_free: Column,
    /// The same for other resources, where they are.
    pub extended_free: HashMap<String, BTreeMap<u32, u64>>,
    /// Processor time and memory as scores see them.
    pub stocks: Stocks,
}

impl Index {
    /// The machines that are there, in name order.
    pub fn machines(&self) -> impl ExactSizeIterator<Item = &Machine> {
        self.by_name.values().map(|slot| &self.slots[*slot as usize].machine)
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn name(&self, slot: u32) -> &str {
        &self.slots[slot as usize].machine.name
    }

    /// The slot of a machine that is there.
    pub fn slot(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Adds a machine or changes its description; what it carries stays.
    pub fn set_machine(&mut self, mut machine: Machine) {
        let slot = self.slot_for(&machine.name, sort(&machine));
        let place = slot as usize;
        if !self.slots[place].is_present {
            self.appear(slot);
        }
        let before = &mut self.slots[place].machine;
        machine.used = std::mem::take(&mut before.used);
        machine.host_ports = std::mem::take(&mut before.host_ports);
        machine.workloads = before.workloads;
        let before = std::mem::replace(before, machine);
        self.describe(slot, &before);
        self.refresh(slot);
    }

    /// Removes a machine; its workloads stay known.
    pub fn remove_machine(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else { return };
        let place = slot as usize;
        let bare = Machine { name: name.to_owned(), ..Machine::default() };
        let mut before = std::mem::replace(&mut self.slots[place].machine, bare);
        self.describe(slot, &before);
        for port in before.host_ports.keys() {
            remove_from(&mut self.ports, port, slot);
        }
        self.slots[place].machine.used = std::mem::take(&mut before.used);
        self.slots[place].machine.host_ports = std::mem::take(&mut before.host_ports);
        self.slots[place].machine.workloads = before.workloads;
        self.slots[place].is_present = false;
        for set in [&mut self.present, &mut self.unschedulable, &mut self.full] {
            set.remove(slot);
        }
        self.absent.insert(name.to_owned(), slot);
        self.free_if_unused(slot);
    }

    /// Notes that a workload takes from a machine, there or not; the machine's slot.
    pub fn take(&mut self, machine: &str, taken: &Taken) -> u32 {
        let slot = self.slot_for(machine, Sort::default());
        let Slot { machine, held, is_present, .. } = &mut self.slots[slot as usize];
        held.cpu_millis += u128::from(taken.requests.cpu_millis);
        held.memory_bytes += u128::from(taken.requests.memory_bytes);
        held.ephemeral_storage_bytes += u128::from(taken.requests.ephemeral_storage_bytes);
        for (name, amount) in taken.requests.extended.iter().filter(|(_, amount)| **amount > 0) {
            *held.extended.entry(name.clone()).or_default() += u128::from(*amount);
        }
        machine.workloads += 1;
        for port in &taken.ports {
            let holders = machine.host_ports.entry(port.clone()).or_default();
            *holders += 1;
            if *holders == 1 && *is_present {
                self.ports.entry(port.clone()).or_default().insert(slot);
            }
        }
        self.recount(slot, &taken.requests);
        slot
    }

    /// Takes it back.
    pub fn give_back(&mut self, slot: u32, taken: &Taken) {
        let Slot { machine, held, is_present, .. } = &mut self.slots[slot as usize];
        held.cpu_millis -= u128::from(taken.requests.cpu_millis);
        held.memory_bytes -= u128::from(taken.requests.memory_bytes);
        held.ephemeral_storage_bytes -= u128::from(taken.requests.ephemeral_storage_bytes);
        for (name, amount) in &taken.requests.extended {
            if let Some(sum) = held.extended.get_mut(name) {
                *sum -= u128::from(*amount);
                if *sum == 0 {
                    held.extended.remove(name);
                }
            }
        }
        machine.workloads -= 1;
        for port in &taken.ports {
            let Some(holders) = machine.host_ports.get_mut(port) else { continue };
            *holders -= 1;
            if *holders == 0 {
                machine.host_ports.remove(port);
                if *is_present {
                    remove_from(&mut self.ports, port, slot);
                }
            }
        }
        self.recount(slot, &taken.requests);
        self.free_if_unused(slot);
    }

    /// The slot of a name, there or not; a new one is of a sort.
    fn slot_for(&mut self, name: &str, sort: Sort) -> u32 {
        if let Some(slot) = self.by_name.get(name).or_else(|| self.absent.get(name)) {
            return *slot;
        }
        let free = self.free.entry(sort).or_default();
        let slot = free.pop().unwrap_or_else(|| {
            let first = self.slots.len();
            for _ in 0..RUN {
                self.slots.push(Slot { sort, ..Slot::default() });
                self.stocks.push();
                [&mut self.cpu_free, &mut self.memory_free, &mut self.storage_free].into_iter().for_each(Column::push);
            }
            free.extend((first + 1..first + RUN).rev().map(number));
            number(first)
        });
        self.slots[slot as usize].machine.name = name.to_owned();
        self.absent.insert(name.to_owned(), slot);
        slot
    }

    fn free_if_unused(&mut self, slot: u32) {
        let Slot { machine, is_present, sort, .. } = &self.slots[slot as usize];
        if !*is_present && machine.workloads == 0 {
            let sort = *sort;
            self.absent.remove(&machine.name);
            self.slots[slot as usize] = Slot { sort, ..Slot::default() };
            self.free.entry(sort).or_default().push(slot);
        }
    }

    /// A name that was known at most becomes a machine.
    fn appear(&mut self, slot: u32) {
        let Slot { machine, is_present, .. } = &mut self.slots[slot as usize];
        *is_present = true;
        for port in machine.host_ports.keys() {
            self.ports.entry(port.clone()).or_default().insert(slot);
        }
        let name = machine.name.clone();
        self.absent.remove(&name);
        self.present.insert(slot);
        self.put_in_order(slot, &name);
        self.by_name.insert(name, slot);
    }

    fn put_in_order(&mut self, slot: u32, name: &str) {
        let earlier = (Bound::Unbounded, Bound::Excluded(name));
        let later = (Bound::Included(name), Bound::Unbounded);
        let before = self.by_name.range::<str, _>(earlier).next_back().map(|(_, slot)| self.stocks.order(*slot));
        let after = self.by_name.range::<str, _>(later).next().map(|(_, slot)| self.stocks.order(*slot));
        let between = match (before, after) {
            (None, None) => Some(u64::MAX / 2),
            (Some(before), None) => before.checked_add(ORDER_STEP),
            (None, Some(after)) => after.checked_sub(ORDER_STEP),
            (Some(before), Some(after)) => Some(before.midpoint(after)).filter(|between| *between > before),
        };
        if let Some(between) = between {
            self.stocks.set_order(slot, between);
            return;
        }
        // No number is free between the neighbours: all get new ones, which is rare, as distances halve.
        let earlier = self.by_name.range::<str, _>(earlier).map(|(_, slot)| *slot);
        let later = self.by_name.range::<str, _>(later).map(|(_, slot)| *slot);
        let start = u64::MAX / 2 - ORDER_STEP.saturating_mul(self.by_name.len() as u64 / 2);
        for (step, slot) in (0..).zip(earlier.chain([slot]).chain(later)) {
            self.stocks.set_order(slot, start + step * ORDER_STEP);
        }
    }

    /// Brings what follows from a description in step with it.
    fn describe(&mut self, slot: u32, before: &Machine) {
        let now = &self.slots[slot as usize].machine;
        if now.labels != before.labels {
            self.labels.remove(slot, &before.labels);
            self.labels.insert(slot, &now.labels);
        }
        if now.taints != before.taints {
            remove_from(&mut self.taints, &before.taints, slot);
            if !now.taints.is_empty() {
                self.taints.entry(now.taints.clone()).or_default().insert(slot);
            }
        }
        if now.images != before.images {
            before.images.keys().for_each(|name| forget(&mut self.images, name, slot));
            for (name, size) in &now.images {
                self.images.entry(name.clone()).or_default().insert(slot, *size);
            }
        }
        if now.allocatable.extended != before.allocatable.extended {
            before.allocatable.extended.keys().for_each(|name| forget(&mut self.extended_free, name, slot));
            for name in now.allocatable.extended.keys() {
                self.extended_free.entry(name.clone()).or_default().insert(slot, 0);
            }
        }
        self.unschedulable.set(slot, now.unschedulable);
    }

    /// After a change of what a machine holds, by a workload that asks for these.
    fn recount(&mut self, slot: u32, requests: &Resources) {
        let Slot { machine, held, .. } = &mut self.slots[slot as usize];
        machine.used.cpu_millis = narrow(held.cpu_millis);
        machine.used.memory_bytes = narrow(held.memory_bytes);
        machine.used.ephemeral_storage_bytes = narrow(held.ephemeral_storage_bytes);
        for name in requests.extended.keys() {
            match held.extended.get(name) {
                Some(sum) => machine.used.extended.insert(name.clone(), narrow(*sum)),
                None => machine.used.extended.remove(name),
            };
        }
        requests.extended.keys().for_each(|name| self.refresh_extended(slot, name));
        self.refresh_columns(slot);
    }

    fn refresh(&mut self, slot: u32) {
        let names: Vec<String> = self.slots[slot as usize].machine.allocatable.extended.keys().cloned().collect();
        names.iter().for_each(|name| self.refresh_extended(slot, name));
        self.refresh_columns(slot);
    }

    fn refresh_extended(&mut self, slot: u32, name: &str) {
        let Machine { allocatable, used, .. } = &self.slots[slot as usize].machine;
        let Some(free) = self.extended_free.get_mut(name).and_then(|machines| machines.get_mut(&slot)) else { return };
        let (total, used) = (allocatable.extended.get(name), used.extended.get(name));
        *free = total.copied().unwrap_or(0).saturating_sub(used.copied().unwrap_or(0));
    }

    fn refresh_columns(&mut self, slot: u32) {
        let Slot { machine, is_present, .. } = &self.slots[slot as usize];
        if !is_present {
            return;
        }
        let Machine { allocatable, used, workloads, .. } = machine;
        self.cpu_free.set(slot, allocatable.cpu_millis.saturating_sub(used.cpu_millis));
        self.memory_free.set(slot, allocatable.memory_bytes.saturating_sub(used.memory_bytes));
        let storage = allocatable.ephemeral_storage_bytes.saturating_sub(used.ephemeral_storage_bytes);
        self.storage_free.set(slot, storage);
        // Whoever asks for little counts with a little all the same, so that such workloads spread too.
        let count = *workloads as u64;
        let cpu = used.cpu_millis.max(count.saturating_mul(DEFAULT_CPU_MILLIS));
        let memory = used.memory_bytes.max(count.saturating_mul(DEFAULT_MEMORY_BYTES));
        self.stocks.set(slot, (allocatable.cpu_millis, cpu), (allocatable.memory_bytes, memory));
        self.full.set(slot, *workloads >= machine.workloads_max);
    }
}

impl Taken {
    /// What a workload will take.
    pub fn of(workload: &mut Workload) -> Taken {
        Taken::new(std::mem::take(&mut workload.requests), std::mem::take(&mut workload.host_ports))
    }
}

fn narrow(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

fn remove_from<K, Q>(sets: &mut HashMap<K, Set>, key: &Q, slot: u32)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let Some(set) = sets.get_mut(key) else { return };
    set.remove(slot);
    if set.is_empty() {
        sets.remove(key);
    }
}

fn forget(columns: &mut HashMap<String, BTreeMap<u32, u64>>, name: &str, slot: u32) {
    let Some(column) = columns.get_mut(name) else { return };
    column.remove(&slot);
    if column.is_empty() {
        columns.remove(name);
    }
}
