//! Migrations: chooses where to, and makes the one write that decides: `spec.nodeName` of the machine, against the version in which
//! its source has handed it over. See [`api::migration`].

use std::sync::Arc;

use api::migration::{Record, is_handed_over, may_commit};
use api::{Migration, MigrationPhase, VirtualMachine};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::{Error, Result, drive, gone, node_life, watching};

/// Runs the controller.
pub async fn run(client: Client) {
    let all = || Api::<Migration>::all(client.clone());
    let controller = Controller::new(all(), watching());
    let (of_guest, of_migration) = (controller.store(), controller.store());
    let controller = controller
        .watches(Api::<VirtualMachine>::all(client.clone()), watching(), move |guest| {
            of(&of_guest, &guest.namespace().unwrap_or_default(), &guest.name_any())
        })
        // One that waits for another is told when that is over.
        .watches(all(), watching(), move |migration| {
            of(&of_migration, &migration.namespace().unwrap_or_default(), &migration.spec.virtual_machine)
        });
    drive(controller, "migration", reconcile, Arc::new(client)).await;
}

/// The migrations of a machine that are not over.
fn of(migrations: &Store<Migration>, namespace: &str, machine: &str) -> Vec<ObjectRef<Migration>> {
    let of_it = |one: &Arc<Migration>| {
        one.spec.virtual_machine == machine && one.namespace().as_deref() == Some(namespace) && !phase(one).is_final()
    };
    migrations.state().into_iter().filter(of_it).map(|one| ObjectRef::from_obj(&*one)).collect()
}

fn phase(migration: &Migration) -> MigrationPhase {
    migration.status.as_ref().map(|status| status.phase).unwrap_or_default()
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

async fn reconcile(seen: Arc<Migration>, client: Arc<Client>) -> Result<Action> {
    if phase(&seen).is_final() {
        return Ok(Action::await_change());
    }
    let namespace = seen.namespace().ok_or(Error::Incomplete("namespace"))?;
    let migrations: Api<Migration> = Api::namespaced((*client).clone(), &namespace);
    let all = migrations.list(&ListParams::default()).await?.items;
    let Some(migration) = all.iter().find(|one| one.metadata.uid == seen.metadata.uid) else {
        return Ok(Action::await_change());
    };
    let machines: Api<VirtualMachine> = Api::namespaced((*client).clone(), &namespace);
    let guest = machines.get_opt(&migration.spec.virtual_machine).await?;
    let is_active = |other: &&Migration| {
        other.metadata.uid != migration.metadata.uid
            && other.spec.virtual_machine == migration.spec.virtual_machine
            && !phase(other).is_final()
            && phase(other) != MigrationPhase::Pending
    };
    let busy = all.iter().any(|other| is_active(&other));
    settle(&client, migration, guest.as_ref(), busy).await?;
    Ok(Action::await_change())
}

async fn settle(client: &Client, migration: &Migration, guest: Option<&VirtualMachine>, busy: bool) -> Result<()> {
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
            // Had somebody else written meanwhile, what is true now is looked at anew.
            machines.patch(&guest.name_any(), &PatchParams::default(), &patch).await?;
            Ok(())
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
