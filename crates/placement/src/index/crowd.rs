//! The workloads that have a place, by what other workloads ask of them: those with the same namespace and labels are one group;
//! those that keep the same others away are one too. Knows slots, not machines.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::number;
use super::tally::Tally;
use crate::pool::LabelRequirement;
use crate::relations::Relation;

/// What selectors see of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
}

/// A wish to have others away, as its owner means it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Keeper {
    pub namespace: String,
    pub relation: Relation,
}

/// Equal things, counted by slot.
#[derive(Clone, Debug)]
struct Group<T> {
    what: Arc<T>,
    on: Tally,
}

/// Groups, by number.
#[derive(Clone, Debug)]
struct Groups<T> {
    numbers: HashMap<Arc<T>, u32>,
    groups: Vec<Option<Group<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Groups { numbers: HashMap::new(), groups: Vec::new(), free: Vec::new() }
    }
}

impl<T: Hash + Eq> Groups<T> {
    /// Counts one more; its number, and whether it is the first.
    fn join(&mut self, what: T, slot: u32) -> (u32, bool) {
        let known = self.numbers.get(&what).copied();
        let group = known.unwrap_or_else(|| {
            let what = Arc::new(what);
            let group = Some(Group { what: what.clone(), on: Tally::default() });
            let place = self.free.pop().unwrap_or_else(|| {
                self.groups.push(None);
                number(self.groups.len() - 1)
            });
            self.groups[place as usize] = group;
            self.numbers.insert(what, place);
            place
        });
        if let Some(group) = &mut self.groups[group as usize] {
            group.on.add(slot);
        }
        (group, known.is_none())
    }

    /// Counts one less; what it was when it was the last.
    fn leave(&mut self, group: u32, slot: u32) -> Option<Arc<T>> {
        let place = &mut self.groups[group as usize];
        let on = &mut place.as_mut()?.on;
        on.take(slot);
        if !on.is_empty() {
            return None;
        }
        let what = place.take()?.what;
        self.numbers.remove(&what);
        self.free.push(group);
        Some(what)
    }

    fn get(&self, group: u32) -> Option<&Group<T>> {
        self.groups.get(group as usize)?.as_ref()
    }
}

/// Numbers of groups by label and value.
type ByLabel = HashMap<String, HashMap<String, BTreeSet<u32>>>;

/// What a workload is counted under.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    group: u32,
    keepers: Box<[u32]>,
}

/// All workloads that have a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crowd {
    groups: Groups<Identity>,
    by_label: ByLabel,
    keepers: Groups<Keeper>,
    /// Keepers by the first label that they demand of others.
    keepers_by_label: ByLabel,
    /// Keepers that demand none.
    keepers_of_any: BTreeSet<u32>,
}

impl Crowd {
    pub fn join(&mut self, slot: u32, identity: Identity, apart: Vec<Relation>) -> Member {
        let keepers = apart.into_iter().map(|relation| {
            let keeper = Keeper { namespace: identity.namespace.clone(), relation };
            let (number, is_first) = self.keepers.join(keeper, slot);
            if is_first && let Some(group) = self.keepers.get(number) {
                match first_demand(&group.what.relation) {
                    Some((key, values)) => {
                        values.iter().for_each(|value| enter(&mut self.keepers_by_label, key, value, number));
                    }
                    None => drop(self.keepers_of_any.insert(number)),
                }
            }
            number
        });
        let keepers = keepers.collect();
        let (group, is_first) = self.groups.join(identity, slot);
        if is_first && let Some(known) = self.groups.get(group) {
            known.what.labels.iter().for_each(|(key, value)| enter(&mut self.by_label, key, value, group));
        }
        Member { group, keepers }
    }

    pub fn leave(&mut self, slot: u32, member: &Member) {
        if let Some(identity) = self.groups.leave(member.group, slot) {
            identity.labels.iter().for_each(|(key, value)| strike(&mut self.by_label, key, value, member.group));
        }
        for number in &member.keepers {
            let Some(keeper) = self.keepers.leave(*number, slot) else { continue };
            match first_demand(&keeper.relation) {
                Some((key, values)) => {
                    values.iter().for_each(|value| strike(&mut self.keepers_by_label, key, value, *number));
                }
                None => drop(self.keepers_of_any.remove(number)),
            }
        }
    }

    /// Visits slots with the number of workloads there whose labels meet all conditions and whose namespace is meant.
    pub fn each_selected(
        &self,
        selector: &[LabelRequirement],
        is_meant: impl Fn(&str) -> bool,
        mut visit: impl FnMut(u32, u32),
    ) {
        let mut check = |group: &Group<Identity>| {
            if is_meant(&group.what.namespace) && selector.iter().all(|c| c.met_by(&group.what.labels)) {
                group.on.iter().for_each(|(slot, count)| visit(slot, count));
            }
        };
        // The condition that leaves the fewest groups to look at.
        let demands = selector.iter().filter_map(demand);
        let count = |(key, values): &(&str, &[String])| -> usize {
            values.iter().filter_map(|value| Some(self.by_label.get(*key)?.get(value)?.len())).sum()
        };
        let Some((key, values)) = demands.min_by_key(count) else {
            return self.groups.groups.iter().flatten().for_each(check);
        };
        for value in values.iter().collect::<BTreeSet<_>>() {
            let groups = self.by_label.get(key).and_then(|known| known.get(value));
            groups.into_iter().flatten().filter_map(|group| self.groups.get(*group)).for_each(&mut check);
        }
    }

    /// Visits the wishes to have a workload away, with the slots of those who have them.
    pub fn each_keeper(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        mut visit: impl FnMut(&Relation, &Tally),
    ) {
        let by_label =
            labels.iter().filter_map(|(key, value)| self.keepers_by_label.get(key)?.get(value)).flatten().copied();
        for number in by_label.chain(self.keepers_of_any.iter().copied()) {
            let Some(group) = self.keepers.get(number) else { continue };
            if group.what.relation.means(&group.what.namespace, namespace, labels) {
                visit(&group.what.relation, &group.on);
            }
        }
    }
}

/// The label and values that a condition demands, if it is of that kind.
fn demand(condition: &LabelRequirement) -> Option<(&str, &[String])> {
    match condition {
        LabelRequirement::In(key, values) => Some((key, values)),
        _ => None,
    }
}

fn first_demand(relation: &Relation) -> Option<(&str, &[String])> {
    relation.selector.iter().find_map(demand)
}

fn enter(by_label: &mut ByLabel, key: &str, value: &str, number: u32) {
    if !by_label.contains_key(key) {
        by_label.insert(key.to_owned(), HashMap::new());
    }
    let Some(values) = by_label.get_mut(key) else { return };
    if !values.contains_key(value) {
        values.insert(value.to_owned(), BTreeSet::new());
    }
    let Some(numbers) = values.get_mut(value) else { return };
    numbers.insert(number);
}

fn strike(by_label: &mut ByLabel, key: &str, value: &str, number: u32) {
    let Some(values) = by_label.get_mut(key) else { return };
    let Some(numbers) = values.get_mut(value) else { return };
    numbers.remove(&number);
    if numbers.is_empty() {
        values.remove(value);
    }
    if values.is_empty() {
        by_label.remove(key);
    }
}
