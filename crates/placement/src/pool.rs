//! The snapshot: machines, what runs on them, and what wants a place. Kept up to date by small changes, so that a decision
//! costs nothing but the decision.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::index::{Crowd, Identity, Index, Member, Taken};
use crate::relations::{Relation, Spread};

/// Amounts of the things that machines have and workloads ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Processor time; Units: thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory; Units: bytes.
    pub memory_bytes: u64,
    /// Local disk; Units: bytes.
    pub ephemeral_storage_bytes: u64,
    /// Anything else that machines advertise, by name.
    pub extended: BTreeMap<String, u64>,
}

impl Resources {
    /// Adds, stopping at the largest number.
    pub fn add(&mut self, other: &Resources) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.ephemeral_storage_bytes = self.ephemeral_storage_bytes.saturating_add(other.ephemeral_storage_bytes);
        for (name, amount) in &other.extended {
            let entry = self.extended.entry(name.clone()).or_default();
            *entry = entry.saturating_add(*amount);
        }
    }
}

/// What a taint does to workloads that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaintEffect {
    /// Keeps new ones away.
    NoSchedule,
    /// Keeps new ones away if there is another place.
    PreferNoSchedule,
    /// Keeps new ones away and drives running ones out.
    NoExecute,
}

/// A mark on a machine that keeps workloads away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, possibly empty.
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
}

/// A workload's leave to ignore taints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toleration {
    /// Key that it covers; `None` covers all.
    pub key: Option<String>,
    /// Value that it covers; `None` covers all (operator `Exists`).
    pub value: Option<String>,
    /// Effect that it covers; `None` covers all.
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Whether it covers this taint. `Source:` Kubernetes API reference, Toleration v1 core.
    pub fn covers(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

/// One condition on machine labels. `Source:` Kubernetes API reference, NodeSelectorRequirement v1 core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LabelRequirement {
    /// The label has one of these values.
    In(String, Vec<String>),
    /// The label is absent or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
    /// The label is a number above this.
    GreaterThan(String, i64),
    /// The label is a number below this.
    LessThan(String, i64),
}

impl LabelRequirement {
    /// Whether these labels meet it.
    pub fn met_by(&self, labels: &BTreeMap<String, String>) -> bool {
        let number = |key: &String| labels.get(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::GreaterThan(key, bound) => number(key).is_some_and(|value| value > *bound),
            Self::LessThan(key, bound) => number(key).is_some_and(|value| value < *bound),
        }
    }
}

/// A machine and what it carries.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Labels to select by.
    pub labels: BTreeMap<String, String>,
    /// Marks that keep workloads away.
    pub taints: Vec<Taint>,
    /// Closed for new workloads.
    pub unschedulable: bool,
    /// Reports that it works.
    pub ready: bool,
    /// What it can give away in all.
    pub allocatable: Resources,
    /// Most workloads at once.
    pub workloads_max: usize,
    /// What is given away.
    pub used: Resources,
    /// Host ports in use: protocol and port, with the number of holders.
    pub host_ports: BTreeMap<(String, u16), usize>,
    /// Number of workloads.
    pub workloads: usize,
    /// Images that are there already, with their sizes; Units: bytes.
    pub images: BTreeMap<String, u64>,
}

/// Something that wants a place, or has one.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Its identity, unique in the pool.
    pub id: String,
    /// What it asks for.
    pub requests: Resources,
    /// Labels that the machine must have.
    pub selector: BTreeMap<String, String>,
    /// Alternatives, one of which the machine must meet in full; empty means any machine.
    pub affinity: Vec<Vec<LabelRequirement>>,
    /// Wishes: weight and conditions.
    pub preferences: Vec<(u32, Vec<LabelRequirement>)>,
    /// Taints that it ignores.
    pub tolerations: Vec<Toleration>,
    /// Host ports that it needs: protocol and port.
    pub host_ports: BTreeSet<(String, u16)>,
    /// The one machine that it wants.
    pub machine: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Labels that others may select it by.
    pub labels: BTreeMap<String, String>,
    /// Images that it runs; machines that have them are preferred.
    pub images: Vec<String>,
    /// Must be near to these.
    pub near: Vec<Relation>,
    /// Must be away from these.
    pub apart: Vec<Relation>,
    /// Would like to be near to these; with a negative weight, away from them.
    pub near_preferences: Vec<(i32, Relation)>,
    /// Wants to be spread evenly.
    pub spread: Vec<Spread>,
}

/// All machines and what they carry. Answers follow name order; changes cost what they change.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    pub(crate) index: Index,
    pub(crate) crowd: Crowd,
    placed: HashMap<String, Placed>,
}

/// What is kept of a workload that has a place: no more than others can feel of it.
#[derive(Clone, Debug)]
struct Placed {
    slot: u32,
    taken: Taken,
    member: Member,
}

impl Pool {
    /// The machines, in name order.
    pub fn machines(&self) -> impl ExactSizeIterator<Item = &Machine> {
        self.index.machines()
    }

    /// Adds a machine or changes its description; what it carries stays, whatever the description says of it. Cheap for a
    /// machine that is known, so that it can be called for each sign of life.
    pub fn set_machine(&mut self, machine: Machine) {
        self.index.set_machine(machine);
    }

    /// Removes a machine; its workloads stay known, in case it comes back.
    pub fn remove_machine(&mut self, name: &str) {
        self.index.remove_machine(name);
    }

    /// Notes that a workload runs on a machine; moves it when it was elsewhere.
    pub fn assign(&mut self, machine: &str, mut workload: Workload) {
        self.remove(&workload.id);
        let taken = Taken::of(&mut workload);
        let slot = self.index.take(machine, &taken);
        let identity = Identity { namespace: workload.namespace, labels: workload.labels };
        let member = self.crowd.join(slot, identity, workload.apart);
        self.placed.insert(workload.id, Placed { slot, taken, member });
    }

    /// Notes that a workload is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(Placed { slot, taken, member }) = self.placed.remove(id) else { return };
        self.crowd.leave(slot, &member);
        self.index.give_back(slot, &taken);
    }

    /// The machine that a workload is on.
    pub fn machine_of(&self, id: &str) -> Option<&str> {
        self.placed.get(id).map(|placed| self.index.name(placed.slot))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine(name: usize) -> Machine {
        let allocatable = Resources { cpu_millis: 4000, memory_bytes: 8 << 30, ..Resources::default() };
        Machine { name: format!("m{name}"), allocatable, workloads_max: 110, ready: true, ..Machine::default() }
    }

    fn workload(id: usize, cpu_millis: u64, port: u16) -> Workload {
        Workload {
            id: format!("w{id}"),
            requests: Resources { cpu_millis, memory_bytes: cpu_millis.saturating_mul(1024), ..Resources::default() },
            host_ports: (port > 0).then(|| ("TCP".to_owned(), port)).into_iter().collect(),
            ..Workload::default()
        }
    }

    proptest! {
        #[test]
        fn small_changes_end_where_counting_anew_would(steps in proptest::collection::vec((0usize..4, 0usize..3, 0usize..8, 0u64..900, 0u16..3), 0..60)) {
            let mut pool = Pool::default();
            let mut placed = BTreeMap::new();
            for (what, name, id, cpu, port) in steps {
                match what {
                    0 => pool.set_machine(machine(name)),
                    1 => pool.remove_machine(&format!("m{name}")),
                    2 => {
                        pool.remove(&format!("w{id}"));
                        placed.remove(&id);
                    }
                    _ => {
                        // Now and then more than a machine can count.
                        let cpu = if cpu > 850 { u64::MAX } else { cpu };
                        pool.assign(&format!("m{name}"), workload(id, cpu, port));
                        placed.insert(id, (name, workload(id, cpu, port)));
                    }
                }
                for id in 0..8 {
                    let known = pool.machine_of(&format!("w{id}")).map(str::to_owned);
                    prop_assert_eq!(known, placed.get(&id).map(|(name, _)| format!("m{name}")));
                }
                for known in pool.machines() {
                    let here = || placed.values().filter(|(name, _)| format!("m{name}") == known.name).map(|(_, w)| w);
                    let mut used = Resources::default();
                    here().for_each(|workload| used.add(&workload.requests));
                    let mut ports = BTreeMap::new();
                    here().flat_map(|w| w.host_ports.clone()).for_each(|port| *ports.entry(port).or_default() += 1);
                    prop_assert_eq!(&known.used, &used);
                    prop_assert_eq!(known.workloads, here().count());
                    prop_assert_eq!(&known.host_ports, &ports);
                }
            }
        }
    }

    #[test]
    fn a_thousand_decisions_on_five_hundred_machines_take_no_time() {
        let mut pool = Pool::default();
        (0..500).for_each(|name| pool.set_machine(machine(name)));
        let start = std::time::Instant::now();
        for id in 0..1000 {
            let item = workload(id, 100, 0);
            let choice = crate::place(&pool, &item).map(|c| c.machine);
            pool.assign(&choice.unwrap_or_default(), item);
        }
        let took = start.elapsed();
        eprintln!("1,000 decisions on 500 machines: {took:?}");
        assert!(pool.machines().all(|m| m.workloads == 2), "spread evenly");
        // Measured: 150 ms in a debug build; the bound is for busy machines.
        assert!(took.as_secs() < 10);
    }
}
