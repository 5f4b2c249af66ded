//! How a workload stands to those that run already: affinity and anti-affinity between workloads, and even spread over
//! domains (zones, machines). What depends on the whole pool is counted once per decision; checking a machine is then a
//! look-up. Workloads without such wishes pay nothing.
//!
//! `Source:` Kubernetes documentation, "Inter-pod affinity and anti-affinity" and "Pod Topology Spread Constraints".

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::filter::is_eligible;
use crate::pool::{LabelRequirement, Machine, Pool, Workload};
use crate::score::BEST;

/// Which other workloads are meant, and how near is near.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// Conditions on the others' labels, all of which must hold.
    pub selector: Vec<LabelRequirement>,
    /// Namespaces of the others; empty means the workload's own.
    pub namespaces: BTreeSet<String>,
    /// Any namespace.
    pub all_namespaces: bool,
    /// Machines with the same value of this label are one place.
    pub topology_key: String,
}

impl Relation {
    fn means(&self, owner: &Workload, other: &Workload) -> bool {
        let namespace = self.all_namespaces
            || if self.namespaces.is_empty() {
                other.namespace == owner.namespace
            } else {
                self.namespaces.contains(&other.namespace)
            };
        namespace && self.selector.iter().all(|condition| condition.met_by(&other.labels))
    }
}

/// A wish to be spread evenly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Conditions on the labels of the workloads that are counted, in the workload's own namespace.
    pub selector: Vec<LabelRequirement>,
    /// Machines with the same value of this label are one domain.
    pub topology_key: String,
    /// How many more a domain may have than the emptiest one.
    pub max_skew: u64,
    /// Rather wait than be uneven (`DoNotSchedule`); otherwise it is only a wish.
    pub required: bool,
}

/// The counts that one decision needs.
pub(crate) struct Counts<'a> {
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
    pub(crate) fn new(pool: &'a Pool, workload: &'a Workload) -> Counts<'a> {
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
    pub(crate) fn check(&self, machine: &Machine) -> Result<(), String> {
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
    pub(crate) fn score(&self, machine: &Machine) -> Option<u32> {
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
fn domains<'a>(pool: &'a Pool, workload: &'a Workload, relation: &'a Relation) -> impl Iterator<Item = &'a str> {
    let others = pool.placed().filter(move |(_, other)| relation.means(workload, other));
    others.filter_map(move |(machine, _)| machine.labels.get(&relation.topology_key).map(String::as_str))
}

fn near_domains<'a>(pool: &'a Pool, workload: &'a Workload, relation: &'a Relation) -> Option<HashSet<&'a str>> {
    let found: HashSet<&str> = domains(pool, workload, relation).collect();
    // The first of a group that wants to be together has nobody to be near to.
    if found.is_empty() && relation.means(workload, workload) { None } else { Some(found) }
}

fn forbidden<'a>(pool: &'a Pool, workload: &Workload) -> HashSet<(&'a str, &'a str)> {
    let mut found = HashSet::new();
    for (machine, other) in pool.placed_apart() {
        for relation in other.apart.iter().filter(|r| r.means(other, workload)) {
            if let Some(value) = machine.labels.get(&relation.topology_key) {
                found.insert((relation.topology_key.as_str(), value.as_str()));
            }
        }
    }
    found
}

fn spread<'a>(pool: &'a Pool, workload: &Workload, wish: &Spread) -> (HashMap<&'a str, u64>, u64) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Resources;
    use crate::{Policy, place, place_by};

    fn pool() -> Pool {
        let mut pool = Pool::default();
        for (name, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
            pool.set_machine(Machine {
                name: name.into(),
                labels: [("zone", zone), ("host", name)].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                allocatable: Resources { cpu_millis: 4000, memory_bytes: 8 << 30, ..Resources::default() },
                workloads_max: 110,
                ready: true,
                ..Machine::default()
            });
        }
        pool
    }

    fn workload(id: &str, app: &str) -> Workload {
        Workload {
            id: id.into(),
            namespace: "n".into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..Workload::default()
        }
    }

    fn app(name: &str) -> Vec<LabelRequirement> {
        vec![LabelRequirement::In("app".into(), vec![name.into()])]
    }

    fn relation(name: &str, key: &str) -> Relation {
        Relation { selector: app(name), topology_key: key.into(), ..Relation::default() }
    }

    fn chosen(pool: &Pool, workload: &Workload) -> String {
        place(pool, workload).map_or_else(|refusal| refusal.to_string(), |choice| choice.machine)
    }

    #[test]
    fn affinity_follows_and_the_first_of_a_group_may_go_anywhere() {
        let mut pool = pool();
        let follower = Workload { near: vec![relation("db", "zone")], ..workload("w", "web") };
        assert_eq!(chosen(&pool, &follower), "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.");
        pool.assign("c", workload("db-0", "db"));
        assert_eq!(chosen(&pool, &follower), "c");
        let stranger = Workload { namespace: "m".into(), ..follower };
        assert!(place(&pool, &stranger).is_err(), "another namespace is not meant");
        let group = Workload { near: vec![relation("ring", "zone")], ..workload("r", "ring") };
        assert!(place(&pool, &group).is_ok());
    }

    #[test]
    fn anti_affinity_holds_both_ways() {
        let mut pool = pool();
        let alone = |id: &str| Workload { apart: vec![relation("db", "host")], ..workload(id, "db") };
        for id in ["0", "1", "2"] {
            let choice = place(&pool, &alone(id)).map(|c| c.machine);
            pool.assign(&choice.expect("there is a machine for each"), alone(id));
        }
        assert_eq!(
            chosen(&pool, &alone("3")),
            "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
        );
        assert_eq!(
            chosen(&pool, &workload("4", "db")),
            "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
        );
        pool.remove("1");
        assert!(place(&pool, &workload("4", "db")).is_ok());
    }

    #[test]
    fn spread_keeps_domains_even() {
        let mut pool = pool();
        let rule = Spread { selector: app("web"), topology_key: "zone".into(), max_skew: 1, required: true };
        let spread = |id: &str| Workload { spread: vec![rule.clone()], ..workload(id, "web") };
        pool.assign("a", spread("0"));
        assert_eq!(chosen(&pool, &spread("1")), "c");
        let picky = Workload { selector: [("host".to_owned(), "b".to_owned())].into(), ..spread("1") };
        assert_eq!(chosen(&pool, &picky), "b", "only zones that it may go to are compared");
        let missing =
            Workload { spread: vec![Spread { topology_key: "rack".into(), ..rule.clone() }], ..workload("2", "web") };
        assert_eq!(
            chosen(&pool, &missing),
            "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
        );
        let soft = Workload { spread: vec![Spread { required: false, ..rule.clone() }], ..workload("3", "web") };
        assert_eq!(chosen(&pool, &soft), "c");
    }

    #[test]
    fn wishes_images_names_and_policies_decide() {
        let mut pool = pool();
        pool.assign("b", workload("db-0", "db"));
        let fond = Workload { near_preferences: vec![(10, relation("db", "host"))], ..workload("w", "web") };
        assert_eq!(chosen(&pool, &fond), "b");
        let shy = Workload { near_preferences: vec![(-10, relation("db", "zone"))], ..workload("w", "web") };
        assert_eq!(chosen(&pool, &shy), "c");
        let mut stocked = pool.machines().last().cloned().unwrap_or_default();
        stocked.images = [("big:1".to_owned(), 2 << 30)].into();
        pool.set_machine(stocked);
        assert_eq!(chosen(&pool, &Workload { images: vec!["big:1".into()], ..workload("w", "web") }), "c");
        assert_eq!(chosen(&pool, &Workload { machine: Some("b".into()), ..workload("w", "web") }), "b");
        assert_eq!(
            chosen(&pool, &Workload { machine: Some("x".into()), ..workload("w", "web") }),
            "0/3 nodes are available: 3 node(s) didn't match the requested node name."
        );
        let heavy = Workload {
            requests: Resources { cpu_millis: 1000, memory_bytes: 2 << 30, ..Resources::default() },
            ..workload("h", "x")
        };
        pool.assign("a", heavy.clone());
        let next = Workload { id: "next".into(), ..heavy };
        assert_eq!(place_by(&pool, &next, Policy::Pack).map(|c| c.machine), Ok("a".into()));
        assert_ne!(place_by(&pool, &next, Policy::Spread).map(|c| c.machine), Ok("a".into()));
    }
}
