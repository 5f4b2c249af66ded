//! The slow and obvious way to place: every decision looks at every machine and every workload. What the crate does must give the
//! same answers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use placement::pool::LabelRequirement;
use placement::{Choice, Machine, Policy, Relation, Resources, Spread, TaintEffect, Unschedulable, Workload, filter};

/// Highest score.
const BEST: u32 = 100;

/// All machines, and all workloads that have a place.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub machines: BTreeMap<String, Machine>,
    pub placed: BTreeMap<String, (String, Workload)>,
}

impl Reference {
    /// The machines with what they carry, counted anew.
    fn counted(&self) -> Vec<Machine> {
        let mut machines = self.machines.clone();
        for machine in machines.values_mut() {
            (machine.used, machine.workloads) = (Resources::default(), 0);
            machine.host_ports.clear();
        }
        for (name, workload) in self.placed.values() {
            let Some(machine) = machines.get_mut(name) else { continue };
            machine.used.add(&workload.requests);
            machine.workloads += 1;
            for port in &workload.host_ports {
                *machine.host_ports.entry(port.clone()).or_default() += 1;
            }
        }
        machines.into_values().collect()
    }

    pub fn place_by(&self, workload: &Workload, policy: Policy) -> Result<Choice, Unschedulable> {
        let machines = self.counted();
        let pool = Pool { machines: &machines, placed: &self.placed };
        let counts = Counts::new(&pool, workload);
        let mut refusals = Unschedulable::new(machines.len());
        let mut best: Option<(u32, &Machine)> = None;
        let mut feasible = 0;
        for machine in &machines {
            match filter::check(machine, workload).and_then(|()| counts.check(machine)) {
                Err(reason) => refusals.count(reason),
                Ok(()) => {
                    feasible += 1;
                    let score = score(machine, workload, policy, counts.score(machine));
                    if best.is_none_or(|(highest, _)| score > highest) {
                        best = Some((score, machine));
                    }
                }
            }
        }
        match best {
            Some((score, machine)) => Ok(Choice { machine: machine.name.clone(), score, feasible }),
            None => Err(refusals),
        }
    }
}

struct Pool<'a> {
    machines: &'a [Machine],
    placed: &'a BTreeMap<String, (String, Workload)>,
}

impl Pool<'_> {
    fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter()
    }

    /// Everything that runs on a machine of the pool, with the machine.
    fn placed(&self) -> impl Iterator<Item = (&Machine, &Workload)> {
        self.placed
            .values()
            .filter_map(|(name, workload)| Some((self.machines.iter().find(|m| m.name == *name)?, workload)))
    }
}

fn means(relation: &Relation, owner: &Workload, other: &Workload) -> bool {
    let namespace = relation.all_namespaces
        || if relation.namespaces.is_empty() {
            other.namespace == owner.namespace
        } else {
            relation.namespaces.contains(&other.namespace)
        };
    namespace && relation.selector.iter().all(|condition: &LabelRequirement| condition.met_by(&other.labels))
}

fn is_eligible(machine: &Machine, workload: &Workload) -> bool {
    workload.selector.iter().all(|(key, value)| machine.labels.get(key) == Some(value))
        && (workload.affinity.is_empty()
            || workload.affinity.iter().any(|term| term.iter().all(|condition| condition.met_by(&machine.labels))))
}

/// The counts that one decision needs.
struct Counts<'a> {
    workload: &'a Workload,
    /// Per required affinity: the domains with a match; `None` when there is none anywhere and the workload may be first.
    near: Vec<Option<HashSet<&'a str>>>,
    /// Per required anti-affinity: the domains with a match.
    apart: Vec<HashSet<&'a str>>,
    /// Domains (label and value) that workloads which run already keep this one out of.
    forbidden: HashSet<(&'a str, &'a str)>,
    /// Per spread: matches in each domain, and in the emptiest one.
    spread: Vec<(HashMap<&'a str, u64>, u64)>,
    /// Wishes: weight of each domain per label.
    wishes: HashMap<(&'a str, &'a str), i64>,
    /// Least and greatest sum of wishes of any machine.
    wish_range: (i64, i64),
}

impl<'a> Counts<'a> {
    fn new(pool: &'a Pool<'a>, workload: &'a Workload) -> Counts<'a> {
        let mut counts = Counts {
            workload,
            near: workload.near.iter().map(|r| near_domains(pool, workload, r)).collect(),
            apart: workload.apart.iter().map(|r| domains(pool, workload, r).collect()).collect(),
            forbidden: forbidden(pool, workload),
            spread: workload.spread.iter().map(|s| spread(pool, workload, s)).collect(),
            wishes: HashMap::new(),
            wish_range: (0, 0),
        };
        for (weight, relation) in &workload.near_preferences {
            for domain in domains(pool, workload, relation) {
                *counts.wishes.entry((relation.topology_key.as_str(), domain)).or_default() += i64::from(*weight);
            }
        }
        if !counts.wishes.is_empty() {
            let sums = || pool.machines().map(|m| counts.wish_sum(m));
            counts.wish_range = (sums().min().unwrap_or(0), sums().max().unwrap_or(0));
        }
        counts
    }

    /// Whether the machine's place suits.
    ///
    /// `Errors:` the reason, in the words that Kubernetes users know.
    fn check(&self, machine: &Machine) -> Result<(), String> {
        for (wish, (domains, emptiest)) in self.workload.spread.iter().zip(&self.spread).filter(|(s, _)| s.required) {
            let Some(domain) = machine.labels.get(&wish.topology_key) else {
                return Err("node(s) didn't match pod topology spread constraints (missing required label)".into());
            };
            let own = u64::from(wish.selector.iter().all(|c| c.met_by(&self.workload.labels)));
            let here = domains.get(domain.as_str()).copied().unwrap_or(0) + own;
            if here.saturating_sub(*emptiest) > wish.max_skew.max(1) {
                return Err("node(s) didn't match pod topology spread constraints".into());
            }
        }
        for (relation, domains) in self.workload.near.iter().zip(&self.near) {
            let place = machine.labels.get(&relation.topology_key);
            let suits = place.is_some_and(|p| domains.as_ref().is_none_or(|d| d.contains(p.as_str())));
            if !suits {
                return Err("node(s) didn't match pod affinity rules".into());
            }
        }
        for (relation, domains) in self.workload.apart.iter().zip(&self.apart) {
            if machine.labels.get(&relation.topology_key).is_some_and(|place| domains.contains(place.as_str())) {
                return Err("node(s) didn't match pod anti-affinity rules".into());
            }
        }
        if self.forbidden.iter().any(|(key, value)| machine.labels.get(*key).is_some_and(|v| v == value)) {
            return Err("node(s) didn't satisfy existing pods anti-affinity rules".into());
        }
        Ok(())
    }

    /// How well the machine's place meets the wishes, 0 to [`BEST`]; `None` when there are none.
    fn score(&self, machine: &Machine) -> Option<u32> {
        let soft = || self.workload.spread.iter().zip(&self.spread).filter(|(s, _)| !s.required);
        let spread = soft().map(|(wish, (domains, _))| {
            let most = domains.values().copied().max().unwrap_or(0);
            let here =
                machine.labels.get(&wish.topology_key).map_or(most, |d| domains.get(d.as_str()).copied().unwrap_or(0));
            share(i128::from(most) - i128::from(here), i128::from(most))
        });
        let (least, greatest) = self.wish_range;
        let near = (least != greatest).then(|| {
            share(i128::from(self.wish_sum(machine)) - i128::from(least), i128::from(greatest) - i128::from(least))
        });
        let (mut sum, mut count) = (0, 0);
        for part in spread.chain(near) {
            sum += part;
            count += 1;
        }
        (count > 0).then(|| sum / count)
    }

    fn wish_sum(&self, machine: &Machine) -> i64 {
        let keys: BTreeSet<&str> =
            self.workload.near_preferences.iter().map(|(_, r)| r.topology_key.as_str()).collect();
        let weight = |key: &&'_ str| Some(*self.wishes.get(&(*key, machine.labels.get(*key)?.as_str()))?);
        keys.iter().filter_map(weight).sum()
    }
}

/// A part of a whole, 0 to [`BEST`].
fn share(part: i128, whole: i128) -> u32 {
    if whole <= 0 { BEST } else { u32::try_from(part * i128::from(BEST) / whole).unwrap_or(0).min(BEST) }
}

/// The domains of the workloads that are meant, one for each of them.
fn domains<'a>(pool: &'a Pool<'a>, workload: &'a Workload, relation: &'a Relation) -> impl Iterator<Item = &'a str> {
    let others = pool.placed().filter(move |(_, other)| means(relation, workload, other));
    others.filter_map(move |(machine, _)| machine.labels.get(&relation.topology_key).map(String::as_str))
}

fn near_domains<'a>(pool: &'a Pool<'a>, workload: &'a Workload, relation: &'a Relation) -> Option<HashSet<&'a str>> {
    let found: HashSet<&str> = domains(pool, workload, relation).collect();
    // The first of a group that wants to be together has nobody to be near to.
    if found.is_empty() && means(relation, workload, workload) { None } else { Some(found) }
}

fn forbidden<'a>(pool: &'a Pool<'a>, workload: &Workload) -> HashSet<(&'a str, &'a str)> {
    let mut found = HashSet::new();
    for (machine, other) in pool.placed() {
        for relation in other.apart.iter().filter(|r| means(r, other, workload)) {
            if let Some(value) = machine.labels.get(&relation.topology_key) {
                found.insert((relation.topology_key.as_str(), value.as_str()));
            }
        }
    }
    found
}

fn spread<'a>(pool: &'a Pool<'a>, workload: &Workload, wish: &Spread) -> (HashMap<&'a str, u64>, u64) {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    // A domain counts when the workload could go there at all: others would stay empty for ever.
    for machine in pool.machines().filter(|m| is_eligible(m, workload)) {
        if let Some(domain) = machine.labels.get(&wish.topology_key) {
            counts.entry(domain).or_default();
        }
    }
    for (machine, other) in pool.placed() {
        let counted = other.namespace == workload.namespace && wish.selector.iter().all(|c| c.met_by(&other.labels));
        if let Some(domain) = machine.labels.get(&wish.topology_key).filter(|_| counted)
            && let Some(count) = counts.get_mut(domain.as_str())
        {
            *count += 1;
        }
    }
    let emptiest = counts.values().copied().min().unwrap_or(0);
    (counts, emptiest)
}

/// What a workload counts for when it asks for nothing, so that such workloads spread too. Units: thousandths of a CPU.
/// `Source:` Kubernetes scheduler, DefaultMilliCPURequest.
const DEFAULT_CPU_MILLIS: u64 = 100;
/// The same for memory. Units: bytes.
const DEFAULT_MEMORY_BYTES: u64 = 200 << 20;

/// What an image must weigh in all to count in full: the time that a pull of it takes. Units: bytes.
/// `Source:` Kubernetes scheduler, ImageLocality (23 MiB to 1,000 MiB per container).
const IMAGE_BYTES_MIN: u64 = 23 << 20;
/// See [`IMAGE_BYTES_MIN`]. Units: bytes.
const IMAGE_BYTES_MAX: u64 = 1000 << 20;

/// Scores one feasible machine, 0 to [`BEST`]. `relations` is what the neighbourhood is worth, when the workload has wishes
/// about it.
fn score(machine: &Machine, workload: &Workload, policy: Policy, relations: Option<u32>) -> u32 {
    let mut sum = 5 * resources(machine, workload, policy);
    let mut weights = 5;
    if let Some(relations) = relations {
        sum += 4 * relations;
        weights += 4;
    }
    if let Some(images) = image_share(machine, workload) {
        sum += images;
        weights += 1;
    }
    sum / weights
}

/// Share of the workload's images that is there already, by size; `None` when it names none.
fn image_share(machine: &Machine, workload: &Workload) -> Option<u32> {
    let count = u64::try_from(workload.images.len()).ok().filter(|c| *c > 0)?;
    let present: u64 = workload
        .images
        .iter()
        .filter_map(|image| machine.images.get(image))
        .fold(0, |sum, size| sum.saturating_add(*size));
    let (low, high) = (IMAGE_BYTES_MIN, IMAGE_BYTES_MAX.saturating_mul(count));
    let part = present.clamp(low, high) - low;
    u32::try_from(u128::from(part) * u128::from(BEST) / u128::from(high - low)).ok()
}

fn resources(machine: &Machine, workload: &Workload, policy: Policy) -> u32 {
    let count = machine.workloads as u64;
    let cpu = free_share(
        machine.allocatable.cpu_millis,
        machine.used.cpu_millis.max(count * DEFAULT_CPU_MILLIS),
        workload.requests.cpu_millis.max(DEFAULT_CPU_MILLIS),
    );
    let memory = free_share(
        machine.allocatable.memory_bytes,
        machine.used.memory_bytes.max(count * DEFAULT_MEMORY_BYTES),
        workload.requests.memory_bytes.max(DEFAULT_MEMORY_BYTES),
    );
    let free = (cpu + memory) / 2;
    let allocation = match policy {
        Policy::Spread => free,
        Policy::Pack => BEST - free,
    };
    let balanced = BEST - cpu.abs_diff(memory);
    let unwanted = machine
        .taints
        .iter()
        .filter(|taint| taint.effect == TaintEffect::PreferNoSchedule)
        .any(|taint| !workload.tolerations.iter().any(|leave| leave.covers(taint)));
    let wishes = wish_share(machine, workload);
    let base = (2 * allocation + balanced + 2 * wishes) / 5;
    if unwanted { base / 2 } else { base }
}

/// Share of the machine that stays free, 0 to [`BEST`].
fn free_share(total: u64, used: u64, asked: u64) -> u32 {
    let free = total.saturating_sub(used).saturating_sub(asked);
    let share = u128::from(free) * u128::from(BEST) / u128::from(total.max(1));
    u32::try_from(share).unwrap_or(BEST).min(BEST)
}

/// Share of the workload's wishes that the machine meets, by weight; [`BEST`] when it has none.
fn wish_share(machine: &Machine, workload: &Workload) -> u32 {
    let total: u64 = workload.preferences.iter().map(|(weight, _)| u64::from(*weight)).sum();
    if total == 0 {
        return BEST;
    }
    let met: u64 = workload
        .preferences
        .iter()
        .filter(|(_, conditions)| conditions.iter().all(|condition| condition.met_by(&machine.labels)))
        .map(|(weight, _)| u64::from(*weight))
        .sum();
    u32::try_from(met * u64::from(BEST) / total).unwrap_or(BEST)
}
