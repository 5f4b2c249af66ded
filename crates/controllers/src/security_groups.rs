//! Who is in which `SecurityGroup`, for machines that cannot see each other's workloads; and a group stays while anybody is in it. What
//! a group's status should be is the pure [`status`].

use std::collections::{BTreeMap, BTreeSet};

use api::container::Container;
use api::security_group::{FINALIZER, LABEL, SecurityGroupStatus, names};
use api::{Port, SecurityGroup, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Result, chain, follow, gone, watching};

/// Kinds of workloads.
const KINDS: usize = 4;

enum Change {
    Group(Box<Event<SecurityGroup>>),
    Workload(Kind, Listing),
}

/// What can be in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Container,
    Pod,
    Port,
    VirtualMachine,
}

/// An event of a kind of workload, with what matters of it.
enum Listing {
    Begin,
    End,
    /// Nothing: it is gone, or in no group.
    One(Key, Vec<Member>),
}

type Key = (String, String);
type Members = BTreeMap<(Kind, Key), Vec<Member>>;

fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What matters of a workload, or of one interface of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    groups: Vec<String>,
    addresses: Vec<String>,
}

/// A guest is in the groups that it names from then on, with the addresses that they guard; those of its ports are the ports'.
fn of_guest(guest: &VirtualMachine) -> Vec<Member> {
    let wishes = guest.spec.interfaces().into_iter();
    let named = wishes.map(|wish| Member { groups: wish.security_groups, addresses: Vec::new() });
    let addresses = guest.status.iter().flat_map(|status| &status.addresses).enumerate();
    let on = addresses.filter(|(_, one)| one.port.is_empty()).map(|(at, one)| {
        // A status that was written before addresses told their groups: those of the single fields guard it.
        let is_silent = at == 0 && guest.spec.interfaces.is_empty() && one.security_groups.is_empty();
        let groups = if is_silent { &guest.spec.security_groups } else { &one.security_groups };
        Member { groups: groups.clone(), addresses: vec![one.ip.clone()] }
    });
    named.chain(on).collect()
}

/// A port is in its groups whether or not anybody is on it: its address is nobody else's.
fn of_port(port: &Port) -> Vec<Member> {
    let address = port.status.iter().map(|status| status.address.clone()).filter(|address| !address.is_empty());
    vec![Member { groups: port.spec.security_groups.clone(), addresses: address.collect() }]
}

fn of_container(container: &Container) -> Vec<Member> {
    let networks = container.status.iter().flat_map(|status| status.networks.values());
    let addresses = networks.map(|place| place.ip.clone()).filter(|address| !address.is_empty()).collect();
    vec![Member { groups: container.spec.labels.get(LABEL).map(|text| names(text)).unwrap_or_default(), addresses }]
}

fn of_pod(pod: &Pod) -> Vec<Member> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let has_own_network = spec.is_some_and(|spec| spec.host_network != Some(true));
    let has_ended = status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    if !has_own_network || has_ended {
        return Vec::new();
    }
    let groups = pod.annotations().get(LABEL).map(|text| names(text)).unwrap_or_default();
    vec![Member { groups, addresses: status.and_then(|status| status.pod_ip.clone()).into_iter().collect() }]
}

/// The events of one kind.
fn workloads<K>(client: &Client, kind: Kind, read: fn(&K) -> Vec<Member>) -> BoxStream<'static, Change>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    K::DynamicType: Default,
{
    let events = follow(Api::<K>::all(client.clone()), watching());
    let listing = move |event| match event {
        Event::Init => Listing::Begin,
        Event::InitDone => Listing::End,
        Event::Apply(object) | Event::InitApply(object) => {
            Listing::One(key(&object), read(&object).into_iter().filter(|member| !member.groups.is_empty()).collect())
        }
        Event::Delete(object) => Listing::One(key(&object), Vec::new()),
    };
    events.map(move |event| Change::Workload(kind, listing(event))).boxed()
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let groups = follow(Api::<SecurityGroup>::all(client.clone()), watching());
    let mut changes = select_all([
        groups.map(|event| Change::Group(Box::new(event))).boxed(),
        workloads(&client, Kind::VirtualMachine, of_guest),
        workloads(&client, Kind::Container, of_container),
        workloads(&client, Kind::Pod, of_pod),
        workloads(&client, Kind::Port, of_port),
    ]);
    let mut groups: BTreeMap<Key, SecurityGroup> = BTreeMap::new();
    let mut members = Members::new();
    let mut listed: BTreeSet<Kind> = BTreeSet::new();
    while let Some(change) = changes.next().await {
        let touched: Vec<Key> = match change {
            Change::Group(event) => match *event {
                Event::Apply(group) | Event::InitApply(group) => {
                    let at = key(&group);
                    groups.insert(at.clone(), group);
                    vec![at]
                }
                Event::Delete(group) => {
                    groups.remove(&key(&group));
                    continue;
                }
                Event::Init => {
                    groups.clear();
                    continue;
                }
                Event::InitDone => continue,
            },
            Change::Workload(kind, Listing::Begin) => {
                members.retain(|(own, _), _| *own != kind);
                listed.remove(&kind);
                continue;
            }
            Change::Workload(kind, Listing::End) => {
                listed.insert(kind);
                groups.keys().cloned().collect()
            }
            Change::Workload(kind, Listing::One(at, now)) => {
                let before = match now.is_empty() {
                    false => members.insert((kind, at.clone()), now.clone()),
                    true => members.remove(&(kind, at.clone())),
                };
                let before = before.unwrap_or_default();
                if before == now {
                    continue;
                }
                groups_of(&at.0, before.iter().chain(&now))
            }
        };
        // Half a list would show members gone that are still there.
        if listed.len() < KINDS {
            continue;
        }
        for at in touched {
            let Some(group) = groups.get(&at) else { continue };
            if let Err(error) = settle(&client, group, &members).await {
                tracing::warn!(group = at.1, error = chain(&error), "cannot settle a security group");
            }
        }
    }
    Ok(())
}

fn groups_of<'a>(namespace: &str, members: impl Iterator<Item = &'a Member>) -> Vec<Key> {
    let mut named: Vec<Key> =
        members.flat_map(|member| &member.groups).map(|name| (namespace.to_owned(), name.clone())).collect();
    named.sort();
    named.dedup();
    named
}

/// Who is in a group. Pure.
fn status(at: &Key, all: &Members) -> SecurityGroupStatus {
    let of = |places: &&Vec<Member>| places.iter().any(|member| member.groups.contains(&at.1));
    let members = || all.iter().filter(|((_, own), places)| own.0 == at.0 && of(places));
    let guarded = members().flat_map(|(_, places)| places).filter(|member| member.groups.contains(&at.1));
    let mut addresses: Vec<String> = guarded.flat_map(|member| member.addresses.clone()).collect();
    addresses.sort();
    addresses.dedup();
    SecurityGroupStatus {
        members: members().map(|((kind, own), _)| format!("{kind:?}/{}", own.1)).collect(),
        addresses,
    }
}

/// The finalizers that a group should have, where they are others. One that goes already cannot be held any more. Pure.
fn finalizers(group: &SecurityGroup, is_used: bool) -> Option<Vec<String>> {
    let is_held = group.finalizers().iter().any(|own| own == FINALIZER);
    let is_going = group.metadata.deletion_timestamp.is_some();
    if is_held == is_used || (is_going && !is_held) {
        return None;
    }
    let others = group.finalizers().iter().filter(|own| *own != FINALIZER).cloned();
    Some(others.chain(is_used.then(|| FINALIZER.to_owned())).collect())
}

async fn settle(client: &Client, group: &SecurityGroup, members: &Members) -> Result<()> {
    let at = key(group);
    let groups: Api<SecurityGroup> = Api::namespaced(client.clone(), &at.0);
    let wanted = status(&at, members);
    if let Some(finalizers) = finalizers(group, !wanted.members.is_empty()) {
        let change = json!({ "metadata": {
            "uid": group.metadata.uid, "resourceVersion": group.metadata.resource_version, "finalizers": finalizers,
        } });
        // What this changes comes by the watch, and the rest is settled then.
        return match groups.patch(&at.1, &PatchParams::default(), &Patch::Merge(change)).await {
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
            done => gone(done),
        };
    }
    if group.status.as_ref().unwrap_or(&SecurityGroupStatus::default()) == &wanted {
        return Ok(());
    }
    let change = Patch::Merge(json!({ "status": wanted }));
    gone(groups.patch_status(&at.1, &PatchParams::default(), &change).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_held_while_it_is_used() {
        let mut group = SecurityGroup::new("web", Default::default());
        group.metadata.finalizers = Some(vec!["other".into()]);
        assert_eq!(finalizers(&group, false), None);
        assert_eq!(finalizers(&group, true).unwrap(), ["other", FINALIZER]);
        group.metadata.finalizers = finalizers(&group, true);
        assert_eq!(finalizers(&group, true), None);
        assert_eq!(finalizers(&group, false).unwrap(), ["other"]);
    }

    #[test]
    fn members_are_of_the_groups_own_namespace() {
        let member = |groups: &[&str], address: &str| Member {
            groups: groups.iter().map(|one| (*one).to_owned()).collect(),
            addresses: vec![address.to_owned()],
        };
        let at = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let members = Members::from([
            ((Kind::VirtualMachine, at("shop", "a")), vec![member(&["web", "db"], "10.88.0.2")]),
            ((Kind::Pod, at("shop", "a")), vec![member(&["db"], "10.88.0.3")]),
            ((Kind::VirtualMachine, at("other", "c")), vec![member(&["web"], "10.88.0.4")]),
        ]);
        let web = status(&at("shop", "web"), &members);
        assert_eq!((web.members, web.addresses), (vec!["VirtualMachine/a".to_owned()], vec!["10.88.0.2".to_owned()]));
        let db = status(&at("shop", "db"), &members);
        assert_eq!(db.members, ["Pod/a", "VirtualMachine/a"]);
        assert_eq!(status(&at("shop", "none"), &members), SecurityGroupStatus::default());
        let touched = groups_of("shop", members.values().flatten());
        assert_eq!(touched, [at("shop", "db"), at("shop", "web")]);
    }

    #[test]
    fn a_guest_is_in_a_group_with_those_of_its_addresses_that_it_guards() {
        let spec = json!({"image": "a", "interfaces": [{"securityGroups": ["web"]}, {"network": "n", "securityGroups": ["db", "new"]}]});
        let on = json!([{"network": "bridge", "ip": "10.88.0.2", "securityGroups": ["web"]},
            {"network": "n", "ip": "10.89.0.2", "securityGroups": ["db"]}, {"network": "p", "ip": "10.90.0.2", "port": "p"}]);
        let object = json!({"apiVersion": "nuee.dev/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "namespace": "shop"},
            "spec": spec, "status": {"addresses": on}});
        let guest: VirtualMachine = serde_json::from_value(object).unwrap();
        let members = Members::from([((Kind::VirtualMachine, key(&guest)), of_guest(&guest))]);
        let of = |name: &str| status(&("shop".to_owned(), name.to_owned()), &members);
        assert_eq!(of("web").addresses, ["10.88.0.2"]);
        assert_eq!(of("db").addresses, ["10.89.0.2"]);
        let new = of("new");
        assert_eq!((new.members.len(), new.addresses.len()), (1, 0), "named, and guarding nothing yet");
    }

    #[test]
    fn a_guest_whose_status_does_not_tell_the_groups_of_its_address_is_in_those_of_its_specification() {
        let guarded = |on: serde_json::Value| {
            let object = json!({"apiVersion": "nuee.dev/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "namespace": "shop"},
                "spec": {"image": "a", "securityGroups": ["web"]}, "status": {"addresses": [on]}});
            let guest: VirtualMachine = serde_json::from_value(object).unwrap();
            let members = Members::from([((Kind::VirtualMachine, key(&guest)), of_guest(&guest))]);
            status(&("shop".to_owned(), "web".to_owned()), &members).addresses
        };
        assert_eq!(guarded(json!({"network": "bridge", "ip": "10.88.0.2"})), ["10.88.0.2"]);
        let before = json!({"network": "bridge", "ip": "10.88.0.2", "securityGroups": ["before"]});
        assert!(guarded(before).is_empty(), "it tells, and the change is on its way");
        assert!(guarded(json!({"network": "p", "ip": "10.90.0.2", "port": "p"})).is_empty(), "those are the port's");
    }
}
