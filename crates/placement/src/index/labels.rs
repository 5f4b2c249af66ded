//! Machines by label: which have a key, and which have a value of it.

use std::collections::{BTreeMap, HashMap};

use super::bits::{Bits, Set};
use crate::pool::LabelRequirement;

/// One label key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key {
    number: u32,
    values: HashMap<String, u32>,
    /// The machines of each value, by the value's number; empty ones are free to be used again.
    domains: Vec<Set>,
    free: Vec<u32>,
    /// Those with any value.
    all: Set,
}

impl Key {
    /// The machines of each value. Empty ones are no values.
    pub fn domains(&self) -> &[Set] {
        &self.domains
    }

    /// All machines that have the key.
    pub fn all(&self) -> &Set {
        &self.all
    }

    fn value(&self, value: &str) -> Option<&Set> {
        self.values.get(value).map(|number| &self.domains[*number as usize])
    }

    fn insert(&mut self, value: &str, slot: u32) -> u32 {
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
        number
    }

    fn remove(&mut self, value: &str, slot: u32) {
        self.all.remove(slot);
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
    /// For each slot the number of its value for each key's number, in order.
    of: Vec<Vec<(u32, u32)>>,
    next: u32,
}

impl Labels {
    pub fn key(&self, key: &str) -> Option<&Key> {
        self.keys.get(key)
    }

    /// The number of the value that a machine has for a key.
    pub fn domain(&self, key: &Key, slot: u32) -> Option<u32> {
        let own = self.of.get(slot as usize)?;
        own.binary_search_by_key(&key.number, |(key, _)| *key).ok().map(|at| own[at].1)
    }

    pub fn insert(&mut self, slot: u32, labels: &BTreeMap<String, String>) {
        let mut own = Vec::with_capacity(labels.len());
        for (name, value) in labels {
            if !self.keys.contains_key(name) {
                self.keys.insert(name.clone(), Key { number: self.next, ..Key::default() });
                self.next += 1;
            }
            let Some(key) = self.keys.get_mut(name) else { continue };
            own.push((key.number, key.insert(value, slot)));
        }
        own.sort_unstable();
        if self.of.len() <= slot as usize {
            self.of.resize(slot as usize + 1, Vec::new());
        }
        self.of[slot as usize] = own;
    }

    pub fn remove(&mut self, slot: u32, labels: &BTreeMap<String, String>) {
        for (name, value) in labels {
            let Some(key) = self.keys.get_mut(name) else { continue };
            key.remove(value, slot);
            if key.values.is_empty() {
                self.keys.remove(name);
            }
        }
        if let Some(own) = self.of.get_mut(slot as usize) {
            *own = Vec::new();
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
