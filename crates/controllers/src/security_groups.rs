//! Who is in which `SecurityGroup`, for machines that cannot see each other's guests; and a group stays while a machine is in it. What
//! a group's status should be is the pure [`status`].

use std::collections::BTreeMap;

use api::security_group::{FINALIZER, SecurityGroupStatus};
use api::{SecurityGroup, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Result, chain, follow, gone, watching};

enum Change {
    Group(Box<Event<SecurityGroup>>),
    Guest(Box<Event<VirtualMachine>>),
}

type Key = (String, String);

fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What matters of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    groups: Vec<String>,
    addresses: Vec<String>,
}

impl Member {
    fn of(guest: &VirtualMachine) -> Self {
        let addresses = guest.status.iter().flat_map(|status| &status.addresses);
        Self {
            groups: guest.spec.security_groups.clone(),
            addresses: addresses.map(|address| address.ip.clone()).collect(),
        }
    }
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let groups = follow(Api::<SecurityGroup>::all(client.clone()), watching());
    let guests = follow(Api::<VirtualMachine>::all(client.clone()), watching());
    let sources: Vec<BoxStream<'static, Change>> = vec![
        groups.map(|event| Change::Group(Box::new(event))).boxed(),
        guests.map(|event| Change::Guest(Box::new(event))).boxed(),
    ];
    let mut changes = select_all(sources);
    let mut groups: BTreeMap<Key, SecurityGroup> = BTreeMap::new();
    let mut guests: BTreeMap<Key, Member> = BTreeMap::new();
    let mut listed = false;
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
            Change::Guest(event) => match *event {
                Event::Apply(guest) | Event::InitApply(guest) => {
                    let (at, now) = (key(&guest), Member::of(&guest));
                    let before = guests.insert(at.clone(), now.clone());
                    if before.as_ref() == Some(&now) {
                        continue;
                    }
                    of_members(&at.0, before.iter().chain([&now]))
                }
                Event::Delete(guest) => {
                    let before = guests.remove(&key(&guest));
                    of_members(&key(&guest).0, before.iter())
                }
                Event::Init => {
                    guests.clear();
                    listed = false;
                    continue;
                }
                Event::InitDone => {
                    listed = true;
                    groups.keys().cloned().collect()
                }
            },
        };
        // Half a list would show members gone that are still there.
        if !listed {
            continue;
        }
        for at in touched {
            let Some(group) = groups.get(&at) else { continue };
            if let Err(error) = settle(&client, group, &guests).await {
                tracing::warn!(group = at.1, error = chain(&error), "cannot settle a security group");
            }
        }
    }
    Ok(())
}

fn of_members<'a>(namespace: &str, members: impl Iterator<Item = &'a Member>) -> Vec<Key> {
    let mut named: Vec<Key> =
        members.flat_map(|member| &member.groups).map(|name| (namespace.to_owned(), name.clone())).collect();
    named.sort();
    named.dedup();
    named
}

/// Who is in a group. Pure.
fn status(at: &Key, guests: &BTreeMap<Key, Member>) -> SecurityGroupStatus {
    let members = || guests.iter().filter(|((own, _), member)| *own == at.0 && member.groups.contains(&at.1));
    let mut addresses: Vec<String> = members().flat_map(|(_, member)| member.addresses.clone()).collect();
    addresses.sort();
    addresses.dedup();
    SecurityGroupStatus { virtual_machines: members().map(|((_, name), _)| name.clone()).collect(), addresses }
}

async fn settle(client: &Client, group: &SecurityGroup, guests: &BTreeMap<Key, Member>) -> Result<()> {
    let at = key(group);
    let groups: Api<SecurityGroup> = Api::namespaced(client.clone(), &at.0);
    let wanted = status(&at, guests);
    let is_going = group.metadata.deletion_timestamp.is_some();
    if is_going && wanted.virtual_machines.is_empty() {
        let rest: Vec<&String> = group.finalizers().iter().filter(|own| *own != FINALIZER).collect();
        let change = json!({ "metadata": {
            "uid": group.metadata.uid, "resourceVersion": group.metadata.resource_version, "finalizers": rest,
        } });
        return gone(groups.patch(&at.1, &PatchParams::default(), &Patch::Merge(change)).await);
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
    fn members_are_of_the_groups_own_namespace() {
        let member = |groups: &[&str], address: &str| Member {
            groups: groups.iter().map(|one| (*one).to_owned()).collect(),
            addresses: vec![address.to_owned()],
        };
        let at = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let guests = BTreeMap::from([
            (at("shop", "a"), member(&["web", "db"], "10.88.0.2")),
            (at("shop", "b"), member(&["db"], "10.88.0.3")),
            (at("other", "c"), member(&["web"], "10.88.0.4")),
        ]);
        let web = status(&at("shop", "web"), &guests);
        assert_eq!((web.virtual_machines, web.addresses), (vec!["a".to_owned()], vec!["10.88.0.2".to_owned()]));
        assert_eq!(status(&at("shop", "none"), &guests), SecurityGroupStatus::default());
        let touched = of_members("shop", guests.values());
        assert_eq!(touched, [at("shop", "db"), at("shop", "web")]);
    }
}
