//! Machines by label: which have a key, and which have a value of it.

use std::collections::{BTreeMap, HashMap};

use super::bits::{BLOCK, Bits, Set};
use crate::pool::LabelRequirement;

/// One label key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key {
    values: HashMap<String, u32>,
    /// The machines of each value, by the value's number; empty ones are free to be used again.
    domains: Vec<Set>,
    free: Vec<u32>,
    /// Those with any value.
    all: Set,
    /// The number of each machine's value, block by block; blocks without any are not there.
    of: Vec<Option<Box<[u32; BLOCK]>>>,
}

/// No value.
const NONE: u32 = u32::MAX;

impl Key {
    /// The machines of each value. Empty ones are no values.
    pub fn domains(&self) -> &[Set] {
        &self.domains
    }

    /// All machines that have the key.
    pub fn all(&self) -> &Set {
        &self.all
    }

    /// The number of the value that a machine has.
    #[inline]
    pub fn domain(&self, slot: u32) -> Option<u32> {
        let block = self.of.get(slot as usize / BLOCK)?.as_deref()?;
        Some(block[slot as usize % BLOCK]).filter(|number| *number != NONE)
    }

    fn note(&mut self, slot: u32, number: u32) {
        let (block, place) = (slot as usize / BLOCK, slot as usize % BLOCK);
        if self.of.len() <= block {
            self.of.resize(block + 1, None);
        }
        let numbers = self.of[block].get_or_insert_with(|| Box::new([NONE; BLOCK]));
        numbers[place] = number;
        if numbers.iter().all(|number| *number == NONE) {
            self.of[block] = None;
        }
    }

    fn value(&self, value: &str) -> Option<&Set> {
        self.values.get(value).map(|number| &self.domains[*number as usize])
    }

    fn insert(&mut self, value: &str, slot: u32) {
        let number = match self.values.get(value) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or_else(|| {
                    self.domains.push(Set::default());
                    super::number(self.domains.len() - 1)
                });
                self.values.insert(value.to_owned(), number);
                number
            }
        };
        self.domains[number as usize].insert(slot);
        self.all.insert(slot);
        self.note(slot, number);
    }

    fn remove(&mut self, value: &str, slot: u32) {
        self.all.remove(slot);
        self.note(slot, NONE);
        let Some(number) = self.values.get(value).copied() else { return };
        self.domains[number as usize].remove(slot);
        if self.domains[number as usize].is_empty() {
            self.values.remove(value);
            self.free.push(number);
        }
    }
}

/// All label keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    keys: HashMap<String, Key>,
}

impl Labels {
    pub fn key(&self, key: &str) -> Option<&Key> {
        self.keys.get(key)
    }

    pub fn insert(&mut self, slot: u32, labels: &BTreeMap<String, String>) {
        for (name, value) in labels {
            if !self.keys.contains_key(name) {
                self.keys.insert(name.clone(), Key::default());
            }
            let Some(key) = self.keys.get_mut(name) else { continue };
            key.insert(value, slot);
        }
    }

    pub fn remove(&mut self, slot: u32, labels: &BTreeMap<String, String>) {
        for (name, value) in labels {
            let Some(key) = self.keys.get_mut(name) else { continue };
            key.remove(value, slot);
            if key.values.is_empty() {
                self.keys.remove(name);
            }
        }
    }

    /// Keeps the machines that meet a condition.
    pub fn keep(&self, machines: &mut Bits, condition: &LabelRequirement) {
        let number = |value: &String| value.parse::<i64>().ok();
        match condition {
            LabelRequirement::In(key, values) => {
                machines.keep(&self.united(key, |key, bits| key.add_values(values, bits)));
            }
            LabelRequirement::NotIn(key, values) => {
                machines.subtract(&self.united(key, |key, bits| key.add_values(values, bits)));
            }
            LabelRequirement::Exists(key) => machines.keep(&self.united(key, |key, bits| key.all.add_to(bits))),
            LabelRequirement::DoesNotExist(key) => {
                machines.subtract(&self.united(key, |key, bits| key.all.add_to(bits)));
            }
            LabelRequirement::GreaterThan(key, bound) => machines
                .keep(&self.united(key, |key, bits| key.add_where(|v| number(v).is_some_and(|n| n > *bound), bits))),
            LabelRequirement::LessThan(key, bound) => machines
                .keep(&self.united(key, |key, bits| key.add_where(|v| number(v).is_some_and(|n| n < *bound), bits))),
        }
    }

    /// Keeps the machines that have this label.
    pub fn keep_label(&self, machines: &mut Bits, key: &str, value: &str) {
        match self.keys.get(key).and_then(|key| key.value(value)) {
            Some(set) => set.keep_in(machines),
            None => *machines = Bits::default(),
        }
    }

    fn united(&self, key: &str, add: impl FnOnce(&Key, &mut Bits)) -> Bits {
        let mut bits = Bits::default();
        if let Some(key) = self.keys.get(key) {
            add(key, &mut bits);
        }
        bits
    }
}

impl Key {
    fn add_values(&self, values: &[String], bits: &mut Bits) {
        values.iter().filter_map(|value| self.value(value)).for_each(|set| set.add_to(bits));
    }

    fn add_where(&self, is_meant: impl Fn(&String) -> bool, bits: &mut Bits) {
        for (_, number) in self.values.iter().filter(|(value, _)| is_meant(value)) {
            self.domains[*number as usize].add_to(bits);
        }
    }
}
