//! `FloatingIP` objects: gives each an address of the operator's pool, for as long as the object is there, and says which machine is
//! to answer for it. What a status should be is the pure [`wanted`]; the order in which objects are given addresses is that of their
//! creation, so that nobody can take what another has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use api::container::Container;
use api::floating_ip::{FloatingIPPhase, FloatingIPStatus};
use api::{FloatingIP, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Result, chain, follow, gone, watching};

/// Addresses that are looked at for a free one: those of a /16.
const CANDIDATES_MAX: usize = 65_536;

/// First address and prefix length.
pub type Range = (Ipv4Addr, u8);

type Key = (String, String);

/// A workload: its address and its machine.
type Place = (String, String);

enum Change {
    Floating(Box<Event<FloatingIP>>),
    Guest(Box<Event<VirtualMachine>>),
    Container(Box<Event<Container>>),
}

#[derive(Default)]
struct World {
    floating: BTreeMap<Key, FloatingIP>,
    guests: BTreeMap<Key, Place>,
    containers: BTreeMap<Key, Place>,
}

fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// By the name that Docker shows.
fn shown(container: &Container) -> Key {
    (container.namespace().unwrap_or_default(), container.spec.name.clone())
}

fn of_guest(guest: &VirtualMachine) -> Option<Place> {
    let address = guest.status.as_ref()?.addresses.first()?.ip.clone();
    Some((address, guest.spec.node_name.clone()?)).filter(|_| guest.metadata.deletion_timestamp.is_none())
}

fn of_container(container: &Container) -> Option<Place> {
    let status = container.status.as_ref()?;
    let address = status.networks.values().map(|one| one.ip.clone()).find(|address| !address.is_empty())?;
    Some((address, container.spec.node_name.clone()?)).filter(|_| container.metadata.deletion_timestamp.is_none())
}

/// Runs until the watches end.
pub async fn run(client: Client, pool: Vec<Range>) -> Result<()> {
    let floating = follow(Api::<FloatingIP>::all(client.clone()), watching());
    let sources: Vec<BoxStream<'static, Change>> =
        vec![floating.map(|event| Change::Floating(Box::new(event))).boxed()];
    let mut changes = select_all(sources);
    let mut world = World::default();
    let mut follows_workloads = false;
    let mut listed = [false; 3];
    while let Some(change) = changes.next().await {
        let matters = match change {
            Change::Floating(event) => match *event {
                Event::Apply(object) | Event::InitApply(object) => {
                    world.floating.insert(key(&object), object);
                    true
                }
                Event::Delete(object) => world.floating.remove(&key(&object)).is_some(),
                Event::Init => begin(&mut listed[0], &mut world.floating),
                Event::InitDone => end(&mut listed[0]),
            },
            Change::Guest(event) => match *event {
                Event::Apply(object) | Event::InitApply(object) => {
                    note(&mut world.guests, key(&object), of_guest(&object))
                }
                Event::Delete(object) => world.guests.remove(&key(&object)).is_some(),
                Event::Init => begin(&mut listed[1], &mut world.guests),
                Event::InitDone => end(&mut listed[1]),
            },
            Change::Container(event) => match *event {
                Event::Apply(object) | Event::InitApply(object) => {
                    note(&mut world.containers, shown(&object), of_container(&object))
                }
                Event::Delete(object) => world.containers.remove(&shown(&object)).is_some(),
                Event::Init => begin(&mut listed[2], &mut world.containers),
                Event::InitDone => end(&mut listed[2]),
            },
        };
        // Workloads come and go often, and most pools have no such address.
        if !follows_workloads && !world.floating.is_empty() {
            let guests = follow(Api::<VirtualMachine>::all(client.clone()), watching());
            changes.push(guests.map(|event| Change::Guest(Box::new(event))).boxed());
            let containers = follow(Api::<Container>::all(client.clone()), watching());
            changes.push(containers.map(|event| Change::Container(Box::new(event))).boxed());
            follows_workloads = true;
        }
        // Half a list would take addresses from workloads that are still there.
        if matters && listed == [true; 3] && !world.floating.is_empty() {
            settle(&client, &world, &pool).await;
        }
    }
    Ok(())
}

fn begin<V>(listed: &mut bool, known: &mut BTreeMap<Key, V>) -> bool {
    *listed = false;
    known.clear();
    false
}

fn end(listed: &mut bool) -> bool {
    *listed = true;
    true
}

/// Whether that is new.
fn note(known: &mut BTreeMap<Key, Place>, at: Key, place: Option<Place>) -> bool {
    match place {
        Some(place) => known.insert(at, place.clone()) != Some(place),
        None => known.remove(&at).is_some(),
    }
}

fn contains((base, prefix): &Range, address: Ipv4Addr) -> bool {
    api::share::Range::containing(*base, *prefix).contains(address)
}

/// All addresses of the pool that a host may have.
fn candidates(pool: &[Range]) -> impl Iterator<Item = Ipv4Addr> {
    let hosts = |(base, prefix): &Range| {
        let (first, count) = (u64::from(base.to_bits()), 1u64 << (32 - u32::from((*prefix).min(32))));
        // A range shorter than a subnet is its addresses, all of them; of a subnet the ends are no host's.
        let edge = u64::from(*prefix < 31);
        (first + edge..first + count - edge).filter_map(|bits| u32::try_from(bits).ok()).map(Ipv4Addr::from_bits)
    };
    pool.iter().flat_map(hosts).take(CANDIDATES_MAX)
}

/// What the statuses should be. Pure.
fn wanted(world: &World, pool: &[Range]) -> BTreeMap<Key, FloatingIPStatus> {
    let mut order: Vec<(&Key, &FloatingIP)> = world.floating.iter().collect();
    order.sort_by_key(|(at, object)| {
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, object.metadata.uid.clone(), (*at).clone())
    });
    let held = |object: &FloatingIP| object.status.as_ref()?.address.parse::<Ipv4Addr>().ok();
    // What an object was given it keeps, whatever the pool is now: the first of two, should there ever be two.
    let mut taken: BTreeSet<Ipv4Addr> = BTreeSet::new();
    let mut given: BTreeMap<&Key, Ipv4Addr> = BTreeMap::new();
    for (at, object) in &order {
        if let Some(address) = held(object).filter(|address| taken.insert(*address)) {
            given.insert(at, address);
        }
    }
    let mut problems: BTreeMap<&Key, String> = BTreeMap::new();
    // Those who wish for an address come before those who take any.
    let (wishing, others): (Vec<_>, Vec<_>) = order.iter().partition(|(_, object)| !object.spec.address.is_empty());
    for (at, object) in wishing.into_iter().chain(others) {
        if given.contains_key(at) {
            continue;
        }
        match choose(&object.spec.address, pool, &taken) {
            Ok(address) => {
                taken.insert(address);
                given.insert(at, address);
            }
            Err(problem) => drop(problems.insert(at, problem)),
        }
    }
    let mut statuses = BTreeMap::new();
    for (at, object) in &order {
        let status = match given.get(at) {
            Some(address) => lead(world, object, *address),
            None => {
                FloatingIPStatus { message: problems.remove(at).unwrap_or_default(), ..FloatingIPStatus::default() }
            }
        };
        statuses.insert((*at).clone(), status);
    }
    statuses
}

fn choose(wish: &str, pool: &[Range], taken: &BTreeSet<Ipv4Addr>) -> std::result::Result<Ipv4Addr, String> {
    if pool.is_empty() {
        return Err("there is no pool: floatingAddresses is not set".into());
    }
    if wish.is_empty() {
        let free = candidates(pool).find(|address| !taken.contains(address));
        return free.ok_or_else(|| "no address of the pool is free".into());
    }
    let address: Ipv4Addr = wish.parse().map_err(|_| format!("{wish} is no address"))?;
    match pool.iter().any(|range| contains(range, address)) {
        false => Err(format!("{address} is not of the pool")),
        true if taken.contains(&address) => Err(format!("{address} is taken")),
        true => Ok(address),
    }
}

/// Where an address leads.
fn lead(world: &World, object: &FloatingIP, address: Ipv4Addr) -> FloatingIPStatus {
    let namespace = object.namespace().unwrap_or_default();
    let (guest, container) = (&object.spec.virtual_machine, &object.spec.container);
    let place = match (guest.is_empty(), container.is_empty()) {
        (false, _) => world.guests.get(&(namespace, guest.clone())),
        (true, false) => world.containers.get(&(namespace, container.clone())),
        (true, true) => None,
    };
    let free = FloatingIPStatus {
        address: address.to_string(),
        phase: FloatingIPPhase::Available,
        ..FloatingIPStatus::default()
    };
    // A word about another machine or address is of the past.
    let said = object.status.as_ref().and_then(|status| status.refusal.clone());
    match place {
        Some((fixed, node)) => {
            let refusal = said.filter(|said| said.node_name == *node && said.address == free.address);
            FloatingIPStatus {
                fixed_address: fixed.clone(),
                node_name: node.clone(),
                phase: if refusal.is_some() { FloatingIPPhase::Refused } else { FloatingIPPhase::Active },
                message: refusal.as_ref().map(|said| said.message.clone()).unwrap_or_default(),
                refusal,
                ..free
            }
        }
        None if guest.is_empty() && container.is_empty() => free,
        None => FloatingIPStatus { message: format!("{guest}{container} has no address"), ..free },
    }
}

async fn settle(client: &Client, world: &World, pool: &[Range]) {
    let wanted = wanted(world, pool);
    // What ends comes first, so that no two machines answer for one address longer than it takes.
    let mut changed: Vec<(&Key, &FloatingIPStatus)> = wanted
        .iter()
        .filter(|(at, status)| world.floating.get(at).and_then(|object| object.status.as_ref()) != Some(status))
        .collect();
    changed.sort_by_key(|(_, status)| status.phase == FloatingIPPhase::Active);
    for ((namespace, name), status) in changed {
        let objects: Api<FloatingIP> = Api::namespaced(client.clone(), namespace);
        // What the status lacks is taken away, not left as it was.
        let whole =
            json!({ "address": null, "fixedAddress": null, "nodeName": null, "message": null, "refusal": null });
        let mut change = json!({ "status": whole });
        if let (Some(target), Ok(serde_json::Value::Object(now))) =
            (change["status"].as_object_mut(), serde_json::to_value(status))
        {
            target.extend(now);
        }
        let patched = objects.patch_status(name, &PatchParams::default(), &Patch::Merge(change)).await;
        if let Err(error) = gone(patched) {
            tracing::warn!(name, error = chain(&error), "cannot settle a floating address");
        }
    }
}

#[cfg(test)]
mod tests {
    use api::{FloatingIPRefusal, FloatingIPSpec};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pool() -> Vec<Range> {
        vec![(Ipv4Addr::new(192, 0, 2, 8), 30)]
    }

    fn floating(name: &str, second: i64, spec: FloatingIPSpec) -> (Key, FloatingIP) {
        let mut object = FloatingIP::new(name, spec);
        object.metadata.namespace = Some("shop".into());
        object.metadata.uid = Some(name.into());
        object.metadata.creation_timestamp = Timestamp::from_second(second).ok().map(Time);
        (key(&object), object)
    }

    fn wish(address: &str) -> FloatingIPSpec {
        FloatingIPSpec { address: address.into(), ..FloatingIPSpec::default() }
    }

    fn addresses(statuses: &BTreeMap<Key, FloatingIPStatus>) -> Vec<&str> {
        statuses.values().map(|status| status.address.as_str()).collect()
    }

    #[test]
    fn nobody_is_given_what_another_has_or_what_is_not_of_the_pool() {
        let mut world = World::default();
        world.floating.extend([
            floating("a", 3, wish("")),
            floating("b", 2, wish("192.0.2.9")),
            floating("c", 1, wish("192.0.2.9")),
            floating("d", 4, wish("192.0.2.77")),
            floating("e", 5, wish("")),
        ]);
        let statuses = wanted(&world, &pool());
        assert_eq!(addresses(&statuses), ["192.0.2.10", "", "192.0.2.9", "", ""]);
        let messages: Vec<&str> = statuses.values().map(|status| status.message.as_str()).collect();
        assert_eq!(messages[1], "192.0.2.9 is taken");
        assert_eq!(messages[3], "192.0.2.77 is not of the pool");
        assert_eq!(messages[4], "no address of the pool is free");
        // What was given stays, also when the pool is another one, and when an older object would like it.
        for (at, status) in &statuses {
            world.floating.get_mut(at).unwrap().status = Some(status.clone());
        }
        assert_eq!(
            wanted(&world, &[(Ipv4Addr::new(198, 51, 100, 0), 24)])[&("shop".into(), "a".into())].address,
            "192.0.2.10"
        );
        world.floating.remove(&("shop".to_owned(), "c".to_owned()));
        assert_eq!(addresses(&wanted(&world, &pool())), ["192.0.2.10", "192.0.2.9", "", ""]);
        assert_eq!(wanted(&World::default(), &[]).len(), 0);
    }

    #[test]
    fn it_leads_to_workloads_of_its_own_namespace_alone() {
        let mut world = World::default();
        let to = FloatingIPSpec { virtual_machine: "web".into(), ..FloatingIPSpec::default() };
        world.floating.extend([floating("a", 1, to)]);
        let place = ("10.88.0.7".to_owned(), "n1".to_owned());
        world.guests.insert(("other".into(), "web".into()), place.clone());
        let status = &wanted(&world, &pool())[&("shop".into(), "a".into())];
        assert_eq!((status.phase, status.message.as_str()), (FloatingIPPhase::Available, "web has no address"));
        world.guests.insert(("shop".into(), "web".into()), place);
        let status = &wanted(&world, &pool())[&("shop".into(), "a".into())];
        assert_eq!((status.phase, status.fixed_address.as_str()), (FloatingIPPhase::Active, "10.88.0.7"));
        assert_eq!(status.node_name, "n1");
    }

    #[test]
    fn what_a_machine_refuses_is_said_as_long_as_it_is_of_that_machine_and_address() {
        let mut world = World::default();
        let to = FloatingIPSpec { virtual_machine: "web".into(), ..FloatingIPSpec::default() };
        let (at, object) = floating("a", 1, to);
        world.floating.insert(at.clone(), object);
        world.guests.insert(at_web(), ("10.88.0.7".to_owned(), "n1".to_owned()));
        let mut status = wanted(&world, &pool())[&at].clone();
        let refusal = FloatingIPRefusal {
            node_name: "n1".into(),
            address: status.address.clone(),
            message: "the machine has it itself".into(),
        };
        status.refusal = Some(refusal);
        world.floating.get_mut(&at).unwrap().status = Some(status);
        let said = &wanted(&world, &pool())[&at];
        assert_eq!((said.phase, said.message.as_str()), (FloatingIPPhase::Refused, "the machine has it itself"));
        world.guests.insert(at_web(), ("10.88.128.7".to_owned(), "n2".to_owned()));
        let said = &wanted(&world, &pool())[&at];
        assert_eq!((said.phase, said.message.as_str(), &said.refusal), (FloatingIPPhase::Active, "", &None));
    }

    fn at_web() -> Key {
        ("shop".into(), "web".into())
    }

    #[test]
    fn a_lone_address_is_a_pool() {
        let one = [(Ipv4Addr::new(192, 0, 2, 5), 32)];
        assert_eq!(candidates(&one).collect::<Vec<_>>(), [Ipv4Addr::new(192, 0, 2, 5)]);
        assert_eq!(candidates(&[(Ipv4Addr::new(0, 0, 0, 0), 0)]).count(), CANDIDATES_MAX);
    }
}
