//! How a workload stands to those that run already: affinity and anti-affinity between workloads, and even spread over
//! domains (zones, machines). Workloads of the same namespace and labels are looked at once, however many they are; what is found
//! refuses or favours whole domains. Workloads without such wishes pay nothing.
//!
//! `Source:` Kubernetes documentation, "Inter-pod affinity and anti-affinity" and "Pod Topology Spread Constraints".

use std::collections::{BTreeMap, BTreeSet};

use crate::filter::Sieve;
use crate::index::{Bits, Key};
use crate::pool::{LabelRequirement, Pool, Workload};
use crate::score::share;

/// Which other workloads are meant, and how near is near.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// Whether its owner, in this namespace, means a workload.
    pub(crate) fn means(&self, owner: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.means_namespace(owner, namespace) && self.selector.iter().all(|condition| condition.met_by(labels))
    }

    fn means_namespace(&self, owner: &str, namespace: &str) -> bool {
        self.all_namespaces
            || if self.namespaces.is_empty() { namespace == owner } else { self.namespaces.contains(namespace) }
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

/// One label key, and how many of the workloads that are meant are in each of its domains.
struct Domains<'a> {
    key: &'a Key,
    counts: Vec<u64>,
}

impl Domains<'_> {
    fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// The machines of the domains whose count is of a kind.
    fn machines_where(&self, is_meant: impl Fn(u64) -> bool) -> Bits {
        let mut machines = Bits::default();
        let domains = self.key.domains().iter().zip(&self.counts).filter(|(_, count)| is_meant(**count));
        domains.for_each(|(domain, _)| domain.add_to(&mut machines));
        machines
    }

    /// Counts of the emptiest and the fullest domain that has machines to which the workload could go at all: others would stay
    /// empty for ever.
    fn range(&self, eligible: Option<&Bits>) -> (u64, u64) {
        let domains = self.key.domains().iter().zip(&self.counts);
        let counts = domains
            .filter(|(domain, _)| eligible.map_or(!domain.is_empty(), |machines| domain.overlaps(machines)))
            .map(|(_, count)| *count);
        counts
            .fold(None, |range: Option<(u64, u64)>, count| {
                Some(range.map_or((count, count), |(least, most)| (least.min(count), most.max(count))))
            })
            .unwrap_or((0, 0))
    }
}

/// The domains of one label key; `None` when no machine has it.
fn domains<'a>(
    pool: &'a Pool,
    topology_key: &str,
    visit_all: impl FnOnce(&mut dyn FnMut(u32, u32)),
) -> Option<Domains<'a>> {
    let key = pool.index.labels.key(topology_key)?;
    let mut counts = vec![0; key.domains().len()];
    visit_all(&mut |slot, count| {
        if let Some(domain) = key.domain(slot) {
            counts[domain as usize] += u64::from(count);
        }
    });
    Some(Domains { key, counts })
}

fn related<'a>(pool: &'a Pool, workload: &Workload, relation: &Relation) -> Option<Domains<'a>> {
    let is_meant = |namespace: &str| relation.means_namespace(&workload.namespace, namespace);
    domains(pool, &relation.topology_key, |visit| pool.crowd.each_selected(&relation.selector, is_meant, visit))
}

fn spread<'a>(pool: &'a Pool, workload: &Workload, wish: &Spread) -> Option<Domains<'a>> {
    let is_meant = |namespace: &str| namespace == workload.namespace;
    domains(pool, &wish.topology_key, |visit| pool.crowd.each_selected(&wish.selector, is_meant, visit))
}

/// Refuses the machines whose place does not suit.
pub(crate) fn refuse(sieve: &mut Sieve<'_>, eligible: Option<&Bits>) {
    let (pool, workload) = (sieve.pool, sieve.workload);
    for wish in workload.spread.iter().filter(|wish| wish.required) {
        let found = spread(pool, workload, wish);
        keep_domains(
            sieve,
            found.as_ref(),
            "node(s) didn't match pod topology spread constraints (missing required label)",
        );
        let Some(found) = found else { continue };
        let own = u64::from(wish.selector.iter().all(|condition| condition.met_by(&workload.labels)));
        let (emptiest, _) = found.range(eligible);
        let limit = emptiest.saturating_add(wish.max_skew.max(1));
        let uneven = found.machines_where(|count| count + own > limit);
        sieve.refuse(|| "node(s) didn't match pod topology spread constraints".into(), |left| left.subtract(&uneven));
    }
    for relation in &workload.near {
        let reason = "node(s) didn't match pod affinity rules";
        let found = related(pool, workload, relation);
        let is_first = relation.means(&workload.namespace, &workload.namespace, &workload.labels);
        match found {
            // The first of a group that wants to be together has nobody to be near to.
            Some(found) if !(found.is_empty() && is_first) => {
                let near = found.machines_where(|count| count > 0);
                sieve.refuse(|| reason.into(), |left| left.keep(&near));
            }
            found => keep_domains(sieve, found.as_ref(), reason),
        }
    }
    for found in workload.apart.iter().filter_map(|relation| related(pool, workload, relation)) {
        let near = found.machines_where(|count| count > 0);
        sieve.refuse(|| "node(s) didn't match pod anti-affinity rules".into(), |left| left.subtract(&near));
    }
    pool.crowd.each_keeper(&workload.namespace, &workload.labels, |relation, holders| {
        let found =
            domains(pool, &relation.topology_key, |visit| holders.iter().for_each(|(slot, count)| visit(slot, count)));
        let Some(near) = found.map(|found| found.machines_where(|count| count > 0)) else { return };
        sieve.refuse(|| "node(s) didn't satisfy existing pods anti-affinity rules".into(), |left| left.subtract(&near));
    });
}

/// Keeps the machines that are in any domain at all.
fn keep_domains(sieve: &mut Sieve<'_>, domains: Option<&Domains<'_>>, reason: &str) {
    sieve.refuse(
        || reason.into(),
        |left| match domains {
            Some(domains) => domains.key.all().keep_in(left),
            None => *left = Bits::default(),
        },
    );
}

/// How well each machine's place meets the wishes, 0 to [`BEST`](crate::score::BEST), by slot; `None` when there are none.
pub(crate) fn scores(pool: &Pool, workload: &Workload, eligible: Option<&Bits>) -> Option<Vec<u32>> {
    let slots = pool.index.stocks.len();
    let mut sums = vec![0; slots];
    let mut count = 0;
    for wish in workload.spread.iter().filter(|wish| !wish.required) {
        add_spread(&mut sums, spread(pool, workload, wish), eligible);
        count += 1;
    }
    if let Some(near) = wish_sums(pool, workload) {
        let present = || pool.index.present.iter().map(|slot| near[slot as usize]);
        let (least, greatest) = (present().min().unwrap_or(0), present().max().unwrap_or(0));
        if least != greatest {
            let part = |sum: i64| share(i128::from(sum) - i128::from(least), i128::from(greatest) - i128::from(least));
            add_mapped(&mut sums, &near, part);
            count += 1;
        }
    }
    if count > 1 {
        sums.iter_mut().for_each(|sum| *sum /= count);
    }
    (count > 0).then_some(sums)
}

/// Adds a function of each value; neighbours are often alike.
fn add_mapped(sums: &mut [u32], values: &[i64], part: impl Fn(i64) -> u32) {
    let mut last = (0, part(0));
    for (sum, value) in sums.iter_mut().zip(values) {
        if *value != last.0 {
            last = (*value, part(*value));
        }
        *sum += last.1;
    }
}

/// Adds what an even spread is worth.
fn add_spread(sums: &mut [u32], found: Option<Domains<'_>>, eligible: Option<&Bits>) {
    let most = found.as_ref().map_or(0, |found| found.range(eligible).1);
    let part = |here: u64| share(i128::from(most) - i128::from(here), i128::from(most));
    let Some(found) = found else { return sums.iter_mut().for_each(|sum| *sum += part(most)) };
    // Who is in no domain is as badly off as in the fullest one.
    let (nowhere, empty) = (part(most), part(0));
    sums.iter_mut().for_each(|sum| *sum += nowhere);
    for (domain, count) in found.key.domains().iter().zip(&found.counts) {
        let here = if *count == 0 { empty } else { part(*count) };
        domain.for_each(|slot| sums[slot as usize] = sums[slot as usize] - nowhere + here);
    }
}

/// The sum of the weights of those that each machine is near to, by slot; `None` when nobody is meant.
fn wish_sums(pool: &Pool, workload: &Workload) -> Option<Vec<i64>> {
    let mut sums: Option<Vec<i64>> = None;
    for (weight, relation) in &workload.near_preferences {
        let Some(found) = related(pool, workload, relation) else { continue };
        let domains = found.key.domains().iter().zip(&found.counts);
        for (domain, count) in domains.filter(|(_, count)| **count > 0) {
            let worth = i64::from(*weight).saturating_mul(i64::try_from(*count).unwrap_or(i64::MAX));
            let sums = sums.get_or_insert_with(|| vec![0; pool.index.stocks.len()]);
            domain.for_each(|slot| sums[slot as usize] = sums[slot as usize].saturating_add(worth));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Machine, Resources};
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
