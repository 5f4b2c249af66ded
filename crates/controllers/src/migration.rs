//! Migrations: chooses where to, and makes the one write that decides: `spec.nodeName` of the machine, against the version in which
//! its source has handed it over. See [`api::migration`].

use std::collections::BTreeMap;

use api::migration::{Record, is_handed_over, may_commit};
use api::{Migration, MigrationPhase, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::{Result, chain, follow, gone, node_life, watching};

enum Change {
    Migration(Box<Event<Migration>>),
    Guest(Box<Event<VirtualMachine>>),
}

type Key = (String, String);

fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let migrations = follow(Api::<Migration>::all(client.clone()), watching());
    let guests = follow(Api::<VirtualMachine>::all(client.clone()), watching());
    let sources: Vec<BoxStream<'static, Change>> = vec![
        migrations.map(|event| Change::Migration(Box::new(event))).boxed(),
        guests.map(|event| Change::Guest(Box::new(event))).boxed(),
    ];
    let mut changes = select_all(sources);
    let mut migrations: BTreeMap<Key, Migration> = BTreeMap::new();
    let mut guests: BTreeMap<Key, VirtualMachine> = BTreeMap::new();
    let mut guests_listed = false;
    while let Some(change) = changes.next().await {
        let touched: Vec<Key> = match change {
            Change::Migration(event) => match *event {
                Event::Apply(object) | Event::InitApply(object) => {
                    let at = key(&object);
                    migrations.insert(at.clone(), object);
                    vec![at]
                }
                Event::Delete(object) => {
                    migrations.remove(&key(&object));
                    continue;
                }
                Event::Init | Event::InitDone => continue,
            },
            Change::Guest(event) => match *event {
                Event::Apply(object) | Event::InitApply(object) => {
                    let at = key(&object);
                    guests.insert(at.clone(), object);
                    of_guest(&migrations, &at)
                }
                Event::Delete(object) => {
                    guests.remove(&key(&object));
                    of_guest(&migrations, &key(&object))
                }
                Event::Init => continue,
                Event::InitDone => {
                    guests_listed = true;
                    migrations.keys().cloned().collect()
                }
            },
        };
        if !guests_listed {
            continue;
        }
        for at in touched {
            let Some(migration) = migrations.get(&at) else { continue };
            let guest = guests.get(&(at.0.clone(), migration.spec.virtual_machine.clone()));
            if let Err(error) = settle(&client, migration, guest, &migrations).await {
                tracing::warn!(migration = at.1, error = chain(&error), "cannot settle a migration");
            }
        }
    }
    Ok(())
}

fn of_guest(migrations: &BTreeMap<Key, Migration>, (namespace, name): &Key) -> Vec<Key> {
    let ours = migrations.iter().filter(|((own, _), one)| own == namespace && one.spec.virtual_machine == *name);
    ours.map(|(at, _)| at.clone()).collect()
}

/// What a migration needs next. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// A place.
    Choose,
    /// The write that decides.
    Commit,
    /// It is over.
    End(MigrationPhase, &'static str),
}

/// Decides. `busy`: another migration of the machine is under way. Pure.
#[must_use]
pub fn step(migration: &Migration, guest: Option<&VirtualMachine>, busy: bool) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return Step::Wait;
    }
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    let Some(guest) =
        guest.filter(|guest| status.machine_uid.is_empty() || guest.metadata.uid.as_ref() == Some(&status.machine_uid))
    else {
        return Step::End(MigrationPhase::Failed, "there is no such machine");
    };
    let node = guest.spec.node_name.as_deref().unwrap_or_default();
    if status.phase == MigrationPhase::Pending {
        return match () {
            () if migration.spec.cancel => Step::End(MigrationPhase::Cancelled, "it was cancelled"),
            () if busy => Step::Wait,
            () if !guest.spec.disks.is_empty() => {
                Step::End(MigrationPhase::Failed, "its volumes are on its host and do not move; detach them first")
            }
            () if node.is_empty() => Step::End(MigrationPhase::Failed, "the machine is on no host yet"),
            () if migration.spec.target_node.as_deref() == Some(node) => {
                Step::End(MigrationPhase::Failed, "the machine is there already")
            }
            () => Step::Choose,
        };
    }
    if node == status.target_node {
        return Step::End(MigrationPhase::Succeeded, "");
    }
    let handover = guest.status.as_ref().map(|status| status.handover.clone()).unwrap_or_default();
    let record = Record { bound_here: node == status.source_node, handed_over: is_handed_over(&handover, &uid) };
    if may_commit(record, migration.spec.cancel) { Step::Commit } else { Step::Wait }
}

async fn settle(
    client: &Client,
    migration: &Migration,
    guest: Option<&VirtualMachine>,
    all: &BTreeMap<Key, Migration>,
) -> Result<()> {
    let active = |other: &&Migration| {
        let phase = other.status.as_ref().map(|status| status.phase).unwrap_or_default();
        other.metadata.uid != migration.metadata.uid
            && other.namespace() == migration.namespace()
            && other.spec.virtual_machine == migration.spec.virtual_machine
            && !phase.is_final()
            && phase != MigrationPhase::Pending
    };
    let busy = all.values().any(|other| active(&other));
    match step(migration, guest, busy) {
        Step::Wait => Ok(()),
        Step::End(phase, message) => {
            report(client, migration, json!({"phase": phase, "message": message, "endedAt": Time(Timestamp::now())}))
                .await
        }
        Step::Choose => {
            let Some(guest) = guest else { return Ok(()) };
            let source = guest.spec.node_name.clone().unwrap_or_default();
            match choose(client, migration, &source).await? {
                Some(target) => {
                    let status = json!({"phase": MigrationPhase::Scheduled, "sourceNode": source, "targetNode": target,
                        "machineUid": guest.metadata.uid});
                    report(client, migration, status).await
                }
                None => {
                    let message = "no other machine can take it";
                    let status =
                        json!({"phase": MigrationPhase::Failed, "message": message, "endedAt": Time(Timestamp::now())});
                    report(client, migration, status).await
                }
            }
        }
        Step::Commit => {
            let Some(guest) = guest else { return Ok(()) };
            let target = migration.status.as_ref().map(|status| status.target_node.clone()).unwrap_or_default();
            let machines: Api<VirtualMachine> = Api::namespaced(client.clone(), &guest.namespace().unwrap_or_default());
            let metadata = json!({"uid": guest.metadata.uid, "resourceVersion": guest.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"nodeName": target}}));
            match machines.patch(&guest.name_any(), &PatchParams::default(), &patch).await {
                Ok(_) => Ok(()),
                // Somebody else wrote meanwhile; what is true now comes by the watch.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    }
}

async fn report(client: &Client, migration: &Migration, status: Value) -> Result<()> {
    let migrations: Api<Migration> = Api::namespaced(client.clone(), &migration.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": {"uid": migration.metadata.uid}, "status": status}));
    gone(migrations.patch_status(&migration.name_any(), &PatchParams::default(), &patch).await)
}

/// The machine that is wished, or one that is ready and takes new workloads.
async fn choose(client: &Client, migration: &Migration, source: &str) -> Result<Option<String>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items;
    let fits = |node: &&Node| {
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let name = node.name_any();
        let wished = migration.spec.target_node.as_ref();
        name != source
            && node_life::rules::ready(node) == Some("True")
            && wished.map_or(!unschedulable, |wished| *wished == name)
    };
    Ok(nodes.iter().find(fits).map(ResourceExt::name_any))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(status: Value) -> Migration {
        serde_json::from_value(json!({"metadata": {"name": "m", "namespace": "default", "uid": "m1"},
            "spec": {"virtualMachine": "web"}, "status": status}))
        .unwrap()
    }

    fn guest(node: &str, handover: &str) -> VirtualMachine {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "g1"},
            "spec": {"image": "i", "nodeName": node}, "status": {"handover": handover}}))
        .unwrap()
    }

    #[test]
    fn only_a_handover_of_this_very_migration_is_committed() {
        let copying = json!({"phase": "Copying", "sourceNode": "n1", "targetNode": "n2", "machineUid": "g1"});
        let at = |node: &str, handover: &str| step(&migration(copying.clone()), Some(&guest(node, handover)), false);
        assert_eq!(at("n1", ""), Step::Wait);
        assert_eq!(at("n1", "ready:m1"), Step::Commit);
        assert_eq!(at("n1", "ready:m0"), Step::Wait);
        assert_eq!(at("n1", "withdrawn:1"), Step::Wait);
        assert_eq!(at("n2", "ready:m1"), Step::End(MigrationPhase::Succeeded, ""));
        assert_eq!(at("n3", "ready:m1"), Step::Wait);
        let gone = step(&migration(copying), None, false);
        assert!(matches!(gone, Step::End(MigrationPhase::Failed, _)));
    }

    #[test]
    fn one_migration_of_a_machine_at_a_time() {
        assert_eq!(step(&migration(json!({})), Some(&guest("n1", "")), true), Step::Wait);
        assert_eq!(step(&migration(json!({})), Some(&guest("n1", "")), false), Step::Choose);
        let mut with_volume = guest("n1", "");
        with_volume.spec.disks.push(api::virtual_machine::MachineDisk { volume: "data".into(), read_only: false });
        assert!(matches!(step(&migration(json!({})), Some(&with_volume), false), Step::End(MigrationPhase::Failed, _)));
    }
}
