//! Migrations: chooses where to, and follows the machine, whose own host decides when it goes. See [`api::migration`].

use std::sync::Arc;
use std::time::Duration;

use api::migration::{FINALIZER, is_complete, must_stay};
use api::virtual_machine::MachinePhase;
use api::{Migration, MigrationPhase, VirtualMachine};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::{Error, Result, drive, gone, node_life, volumes, watching};

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
    drive(controller, "migration", reconcile, Arc::new(Shared { client, started: Timestamp::now() })).await;
}

/// What every reconcile has.
struct Shared {
    client: Client,
    /// Since when this controller has run.
    started: Timestamp,
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
    /// It is over.
    End(MigrationPhase, &'static str),
}

/// What is told of a migration whose source is not heard of, when the machine is on the target. It may have given all.
const SILENT: &str = "the machine's host is another one now, and the one that it came from is silent: if a part of the memory was still there, it \
    was lost, and the machine started anew from its disks";

/// Time between two looks whether a source is silent that is to say when all of a machine is on its target.
const SOURCE_LOOK: Duration = Duration::from_secs(30);
/// How long it must be silent, while this controller has run: after the API was away nobody has been heard.
const SILENT_MIN: SignedDuration = SignedDuration::from_secs(30);

/// Decides. `busy`: another migration of the machine is under way. `silent`: the pool does not hear of the source. Pure.
#[must_use]
pub fn step(migration: &Migration, guest: Option<&VirtualMachine>, busy: bool, silent: bool) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return Step::Wait;
    }
    let Some(guest) =
        guest.filter(|guest| status.machine_uid.is_empty() || guest.metadata.uid.as_ref() == Some(&status.machine_uid))
    else {
        return Step::End(MigrationPhase::Failed, "there is no such machine");
    };
    let node = guest.spec.node_name.as_deref().unwrap_or_default();
    if status.phase == MigrationPhase::Pending {
        return match () {
            () if migration.spec.cancel || migration.metadata.deletion_timestamp.is_some() => {
                Step::End(MigrationPhase::Cancelled, "it was cancelled")
            }
            () if busy => Step::Wait,
            () if guest.spec.disks.iter().any(|disk| disk.read_only) => {
                Step::End(MigrationPhase::Failed, "a volume that it may only read does not move; detach it first")
            }
            () if node.is_empty() => Step::End(MigrationPhase::Failed, "the machine is on no host yet"),
            () if migration.spec.target_node.as_deref() == Some(node) => {
                Step::End(MigrationPhase::Failed, "the machine is there already")
            }
            () => match guest.status.as_ref().map(|status| status.phase) {
                Some(MachinePhase::Suspended) => Step::End(
                    MigrationPhase::Failed,
                    "the machine sleeps, and its memory is on its host; wake it first",
                ),
                Some(MachinePhase::Stopped) => {
                    Step::End(MigrationPhase::Failed, "the machine does not run; start it first")
                }
                _ => Step::Choose,
            },
        };
    }
    match (node == status.target_node, is_complete(&migration.spec, &status)) {
        (true, true) => Step::End(MigrationPhase::Succeeded, ""),
        (true, false) if silent => Step::End(MigrationPhase::Failed, SILENT),
        _ => Step::Wait,
    }
}

/// The finalizers that a migration should have, where they are others. Pure.
fn finalizers(migration: &Migration, held: bool) -> Option<Vec<String>> {
    let own = migration.finalizers();
    if own.iter().any(|one| one == FINALIZER) == held {
        return None;
    }
    let others = own.iter().filter(|one| *one != FINALIZER).cloned();
    Some(others.chain(held.then(|| FINALIZER.to_owned())).collect())
}

/// Has the finalizer hold the migration, or not; whether that is so now. Otherwise the watch brings what somebody else wrote.
async fn hold(client: &Client, migration: &Migration, held: bool) -> Result<bool> {
    let Some(finalizers) = finalizers(migration, held) else { return Ok(true) };
    let migrations: Api<Migration> = Api::namespaced(client.clone(), &migration.namespace().unwrap_or_default());
    let metadata = json!({"uid": migration.metadata.uid, "resourceVersion": migration.metadata.resource_version,
        "finalizers": finalizers});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match migrations.patch(&migration.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn reconcile(seen: Arc<Migration>, shared: Arc<Shared>) -> Result<Action> {
    let client = &shared.client;
    if phase(&seen).is_final() {
        hold(client, &seen, must_stay(phase(&seen))).await?;
        return Ok(Action::await_change());
    }
    let namespace = seen.namespace().ok_or(Error::Incomplete("namespace"))?;
    let migrations: Api<Migration> = Api::namespaced(client.clone(), &namespace);
    let all = migrations.list(&ListParams::default()).await?.items;
    let Some(migration) = all.iter().find(|one| one.metadata.uid == seen.metadata.uid) else {
        return Ok(Action::await_change());
    };
    let machines: Api<VirtualMachine> = Api::namespaced(client.clone(), &namespace);
    let guest = machines.get_opt(&migration.spec.virtual_machine).await?;
    let is_active = |other: &&Migration| {
        other.metadata.uid != migration.metadata.uid
            && other.spec.virtual_machine == migration.spec.virtual_machine
            && !phase(other).is_final()
            && phase(other) != MigrationPhase::Pending
    };
    let busy = all.iter().any(|other| is_active(&other));
    let status = migration.status.clone().unwrap_or_default();
    let is_looked_at = !is_complete(&migration.spec, &status) && !status.source_node.is_empty();
    let silent = is_looked_at && is_silent(client, &status.source_node, shared.started).await?;
    match step(migration, guest.as_ref(), busy, silent) {
        Step::Wait if is_looked_at => Ok(Action::requeue(SOURCE_LOOK)),
        step => settle(client, migration, guest.as_ref(), step).await.map(|()| Action::await_change()),
    }
}

async fn is_silent(client: &Client, node: &str, started: Timestamp) -> Result<bool> {
    let found = Api::<Node>::all(client.clone()).get_opt(node).await?;
    Ok(is_given_up(found.as_ref(), started, Timestamp::now()))
}

/// Whether nothing is to be heard of a machine any more. Pure.
fn is_given_up(node: Option<&Node>, started: Timestamp, now: Timestamp) -> bool {
    let since = node.and_then(node_life::rules::ready_since).map_or(started, |since| since.max(started));
    node.and_then(node_life::rules::ready) != Some("True") && now.duration_since(since) >= SILENT_MIN
}

async fn settle(client: &Client, migration: &Migration, guest: Option<&VirtualMachine>, step: Step) -> Result<()> {
    match step {
        Step::Wait => Ok(()),
        Step::End(phase, message) => {
            if let Some(guest) = guest.filter(|_| phase == MigrationPhase::Succeeded) {
                volumes::follow_machine(client, guest).await?;
            }
            report(client, migration, json!({"phase": phase, "message": message, "endedAt": Time(Timestamp::now())}))
                .await
        }
        Step::Choose => {
            let Some(guest) = guest else { return Ok(()) };
            let source = guest.spec.node_name.clone().unwrap_or_default();
            match choose(client, migration, &source).await? {
                Some(target) => {
                    // First, since the source may begin as soon as it is named.
                    if !hold(client, migration, true).await? {
                        return Ok(());
                    }
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

    fn guest(node: &str) -> VirtualMachine {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "g1"},
            "spec": {"image": "i", "nodeName": node}}))
        .unwrap()
    }

    #[test]
    fn it_is_over_when_the_machine_is_on_its_target() {
        let copying = json!({"phase": "Copying", "sourceNode": "n1", "targetNode": "n2", "machineUid": "g1"});
        let at = |node: &str| step(&migration(copying.clone()), Some(&guest(node)), false, false);
        assert_eq!(at("n1"), Step::Wait);
        assert_eq!(at("n2"), Step::End(MigrationPhase::Succeeded, ""));
        assert_eq!(at("n3"), Step::Wait);
        let gone = step(&migration(copying.clone()), None, false, false);
        assert!(matches!(gone, Step::End(MigrationPhase::Failed, _)));
        // By post-copy the source says when, while it is heard of.
        let mut late = migration(copying);
        late.spec.post_copy = true;
        assert_eq!(step(&late, Some(&guest("n2")), false, false), Step::Wait);
        assert_eq!(step(&late, Some(&guest("n2")), false, true), Step::End(MigrationPhase::Failed, SILENT));
        assert_eq!(step(&late, Some(&guest("n1")), false, true), Step::Wait);
        late.status.get_or_insert_default().complete = true;
        assert_eq!(step(&late, Some(&guest("n2")), false, true), Step::End(MigrationPhase::Succeeded, ""));
    }

    #[test]
    fn a_source_is_given_up_when_it_has_been_silent_for_a_while_that_somebody_listened() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let node = |status: &str, since: i64| -> Node {
            let ready = json!({"type": "Ready", "status": status, "lastTransitionTime": Time(at(since))});
            serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"conditions": [ready]}})).unwrap()
        };
        let given_up = |node: &Node, now: i64| is_given_up(Some(node), at(1000), at(now));
        assert!(!given_up(&node("True", 10), 9000));
        assert!(!given_up(&node("Unknown", 2000), 2029));
        assert!(given_up(&node("Unknown", 2000), 2030));
        assert!(!given_up(&node("Unknown", 10), 1029), "nobody listened before");
        assert!(given_up(&node("False", 10), 1030));
        assert!(!is_given_up(None, at(1000), at(1029)));
        assert!(is_given_up(None, at(1000), at(1030)));
    }

    #[test]
    fn one_that_is_deleted_before_it_began_is_cancelled_and_one_that_is_over_is_not_held() {
        let mut deleted = migration(json!({}));
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert!(matches!(step(&deleted, Some(&guest("n1")), false, false), Step::End(MigrationPhase::Cancelled, _)));
        let mut held = migration(json!({"phase": "Scheduled"}));
        assert!(must_stay(phase(&held)));
        held.metadata.finalizers = Some(vec!["other".into()]);
        assert_eq!(finalizers(&held, false), None);
        held.metadata.finalizers = finalizers(&held, true);
        assert_eq!(held.metadata.finalizers.as_deref(), Some(&["other".to_owned(), FINALIZER.to_owned()][..]));
        assert_eq!(finalizers(&held, true), None);
        for over in [MigrationPhase::Succeeded, MigrationPhase::Failed, MigrationPhase::Cancelled] {
            assert_eq!(finalizers(&held, must_stay(over)).unwrap(), ["other"]);
        }
    }

    #[test]
    fn one_migration_of_a_machine_at_a_time() {
        assert_eq!(step(&migration(json!({})), Some(&guest("n1")), true, false), Step::Wait);
        assert_eq!(step(&migration(json!({})), Some(&guest("n1")), false, false), Step::Choose);
        let mut with_volume = guest("n1");
        with_volume.spec.disks.push(api::virtual_machine::MachineDisk { volume: "data".into(), read_only: false });
        assert_eq!(step(&migration(json!({})), Some(&with_volume), false, false), Step::Choose);
        with_volume.spec.disks[0].read_only = true;
        assert!(matches!(
            step(&migration(json!({})), Some(&with_volume), false, false),
            Step::End(MigrationPhase::Failed, _)
        ));
        let mut asleep = guest("n1");
        asleep.status.get_or_insert_default().phase = MachinePhase::Suspended;
        assert!(
            matches!(step(&migration(json!({})), Some(&asleep), false, false), Step::End(MigrationPhase::Failed, why) if why.contains("sleeps"))
        );
    }
}
