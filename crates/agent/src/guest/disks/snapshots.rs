//! `Snapshot` objects: disks frozen at one instant, taken once. What is made from one keeps the layers that it needs, whatever becomes of
//! the snapshot.

use std::sync::Arc;
use std::time::Duration;

use api::snapshot::{SnapshotDisk, SnapshotStatus};
use api::{Snapshot, VirtualMachine};
use hypervisor::disk::LayerStore;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::oneshot;

use super::freeze::is_final;
use super::{Frozen, Plugged, Source, blocking, disk_name, freeze, guest_with, load, running, volume};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain, is_not_found};
use crate::guest::start::ROOT_DISK;
use crate::informer;

/// Pause before what cannot be yet is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows `Snapshot` objects until the agent is dropped. Sends the uids of all once the first list is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let is_open = |context: &Context, object: &Snapshot| {
        let elsewhere = object.spec.node_name.as_ref().is_some_and(|node| *node != context.node_name);
        !elsewhere && !informer::is_made(object.status.as_ref().map(|status| status.phase.as_str()))
    };
    let make = |context, object| async move { make(&context, &object).await };
    informer::make_each(
        context,
        listed,
        is_open,
        make,
        |context, object| async move { remove(&context, &object).await },
    )
    .await;
}

async fn remove(context: &Context, object: &Snapshot) -> Result<()> {
    let Some(uid) = object.metadata.uid.clone() else { return Ok(()) };
    if object.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
        return Ok(());
    }
    let layers = context.guests.layers().await?;
    blocking(move || layers.release(&uid)).await
}

/// Takes one, as soon as it can be taken.
async fn make(context: &Arc<Context>, object: &Snapshot) {
    let key = Key::of(object);
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let objects: Api<Snapshot> = Api::namespaced(context.client.clone(), &key.namespace);
    let mut told = String::new();
    loop {
        match objects.get_opt(&key.name).await {
            Ok(Some(found)) if found.metadata.uid == object.metadata.uid => {}
            Ok(_) => return,
            Err(error) => tracing::debug!(snapshot = key.name, %error, "cannot look at the snapshot"),
        }
        let (status, done) = match take(context, &key, object, &uid).await {
            Ok(Some(status)) => (status, true),
            // It waited here for disks that have moved since; no other machine takes it up.
            Ok(None) if !told.is_empty() => {
                (SnapshotStatus { phase: "Failed".into(), message: chain(&moved()), ..Default::default() }, true)
            }
            // Another machine's.
            Ok(None) => return,
            Err(error) if is_final(&error) => {
                (SnapshotStatus { phase: "Failed".into(), message: chain(&error), ..Default::default() }, true)
            }
            Err(error) => {
                (SnapshotStatus { phase: "Pending".into(), message: chain(&error), ..Default::default() }, false)
            }
        };
        if done || told != status.message {
            told.clone_from(&status.message);
            if let Err(error) = write(context, &objects, &key, &uid, &status).await {
                tracing::warn!(snapshot = key.name, error = %chain(&error), "cannot tell of the snapshot; it is taken anew");
            } else if done {
                break;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    // It may have been deleted while it was taken.
    if matches!(objects.get_opt(&key.name).await, Ok(found) if found.as_ref().is_none_or(|found| found.metadata.uid != object.metadata.uid))
        && let Err(error) = remove(context, &owned(context, object)).await
    {
        tracing::warn!(snapshot = key.name, error = %chain(&error), "cannot remove the snapshot");
    }
}

fn owned(context: &Context, object: &Snapshot) -> Snapshot {
    let mut object = object.clone();
    object.spec.node_name = Some(context.node_name.clone());
    object
}

async fn write(
    context: &Context,
    objects: &Api<Snapshot>,
    key: &Key,
    uid: &str,
    status: &SnapshotStatus,
) -> Result<()> {
    let ours = Patch::Merge(json!({"metadata": {"uid": uid}, "spec": {"nodeName": context.node_name}}));
    let mut value = serde_json::to_value(status).unwrap_or_default();
    // An empty one is left out, and would leave the last one standing.
    value["message"] = status.message.as_str().into();
    let told = Patch::Merge(json!({"metadata": {"uid": uid}, "status": value}));
    let parameters = PatchParams::default();
    let written = async {
        objects.patch(&key.name, &parameters, &ours).await?;
        objects.patch_status(&key.name, &parameters, &told).await
    };
    match written.await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("write the snapshot's status")(error)),
    }
}

/// Takes it; `None` when its disks are another machine's.
async fn take(context: &Context, key: &Key, object: &Snapshot, uid: &str) -> Result<Option<SnapshotStatus>> {
    // What an attempt left of which nobody was told.
    let (layers, owner) = (context.guests.layers().await?, uid.to_owned());
    blocking(move || layers.release(&owner)).await?;
    let taken = if object.spec.volume.is_empty() {
        of_machine(context, key, &object.spec.virtual_machine, uid).await?
    } else {
        of_volume(context, key, &object.spec.volume, uid).await?
    };
    let Some((disks, quiesced)) = taken else { return Ok(None) };
    Ok(Some(SnapshotStatus {
        phase: "Ready".into(),
        message: String::new(),
        ready_to_use: true,
        size_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
        taken_at: Some(Time(Timestamp::now())),
        quiesced,
        disks,
    }))
}

/// Whether a layer is a snapshot's. Whatever its status says, it gives nothing away but its own.
///
/// Errors: [`Error::Invalid`] when it is not.
pub fn check_layer(layers: &LayerStore, snapshot: &Snapshot, layer: &str) -> Result<()> {
    let owner = layers.get(layer).ok().and_then(|found| found.owner);
    if owner.is_some() && owner == snapshot.metadata.uid {
        return Ok(());
    }
    let name = snapshot.metadata.name.as_deref().unwrap_or_default();
    Err(Error::Invalid(format!("snapshot {name} does not have that disk any more")))
}

/// Nobody waits for a snapshot of another instant than the one that was asked for.
pub(super) fn moved() -> Error {
    Error::Invalid("its disks moved to another machine, or went, while it waited; ask for it anew".into())
}

fn described(name: &str, frozen: &Frozen) -> SnapshotDisk {
    let size_bytes = i64::try_from(frozen.bytes).unwrap_or(i64::MAX);
    SnapshotDisk { name: name.to_owned(), layer: frozen.layer.clone(), size_bytes }
}

fn is_still(frozen: &[Frozen]) -> bool {
    frozen.iter().all(|frozen| frozen.still)
}

async fn of_volume(context: &Context, key: &Key, name: &str, uid: &str) -> Result<Option<(Vec<SnapshotDisk>, bool)>> {
    let named = volume(context, &key.namespace, name).await?;
    if named.spec.node_name.as_ref().is_some_and(|node| *node != context.node_name) {
        return Ok(None);
    }
    let volume_uid = named.metadata.uid.clone().unwrap_or_default();
    let _lock = context.guests.lock_disks(vec![volume_uid.clone()]).await;
    let found = volume(context, &key.namespace, name).await?;
    let status = found.status.clone().unwrap_or_default();
    if !found.is_block() {
        return Err(Error::Invalid(format!("volume {name} is a directory")));
    }
    match &found.spec.node_name {
        Some(node) if *node != context.node_name => return Err(moved()),
        Some(_) if status.phase == "Ready" && found.metadata.uid == named.metadata.uid => {}
        None if context.is_member => return Ok(None),
        _ => return Err(Error::NotYet(format!("volume {name} is not ready yet"))),
    }
    let guest = guest_with(context, &key.namespace, &volume_uid, status.attached_to.as_ref()).await?;
    let least_bytes = found.wanted_bytes().unwrap_or(0);
    let source = Source { disk: disk_name(&volume_uid), owner: volume_uid, least_bytes };
    let frozen = freeze(context, &[source], guest.as_ref(), Some(uid)).await?;
    Ok(Some((frozen.iter().map(|frozen| described(name, frozen)).collect(), is_still(&frozen))))
}

async fn of_machine(context: &Context, key: &Key, name: &str, uid: &str) -> Result<Option<(Vec<SnapshotDisk>, bool)>> {
    let Some(machine) = here(context, key, name).await? else { return Ok(None) };
    let (_locks, disks) = lock_machine(context, &machine).await?;
    let place = Key { namespace: key.namespace.clone(), name: name.to_owned() };
    if context.guests.uid(&place).as_deref() != Some(machine.as_str()) {
        return Err(moved());
    }
    let guest = running(context, &place, &machine).await?;
    let sources = sources(context, key, &machine, &disks).await?;
    let frozen = freeze(context, &sources, guest.as_ref(), Some(uid)).await?;
    let names = std::iter::once(ROOT_DISK).chain(disks.iter().map(|disk| disk.volume.as_str()));
    Ok(Some((names.zip(&frozen).map(|(name, frozen)| described(name, frozen)).collect(), is_still(&frozen))))
}

/// The uid of a machine of this host; `None` when it is another's.
pub(super) async fn here(context: &Context, key: &Key, name: &str) -> Result<Option<String>> {
    let place = Key { namespace: key.namespace.clone(), name: name.to_owned() };
    if let Some(uid) = context.guests.uid(&place) {
        return Ok(Some(uid));
    }
    let machines: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    match machines.get_opt(name).await {
        Ok(Some(found)) if found.spec.node_name.as_ref().is_some_and(|node| *node != context.node_name) => Ok(None),
        Ok(Some(_)) => Err(Error::NotYet(format!("virtual machine {name} is on no host yet"))),
        Ok(None) if context.is_member => Ok(None),
        Ok(None) => Err(Error::NotYet(format!("virtual machine {name} not found"))),
        // It is bound elsewhere, or not there: the pool's first machine says which.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(Error::api("read the machine")(error)),
    }
}

/// Locks all disks of a machine; the volumes that it has then.
pub async fn lock_machine(
    context: &Context,
    machine: &str,
) -> Result<(Vec<tokio::sync::OwnedMutexGuard<()>>, Vec<Plugged>)> {
    loop {
        let before = load(context, machine)?;
        let uids = before.iter().map(|disk| disk.uid.clone()).chain([machine.to_owned()]);
        let locks = context.guests.lock_disks(uids.collect()).await;
        let now = load(context, machine)?;
        if now == before {
            return Ok((locks, now));
        }
    }
}

/// The disks of a machine, the boot disk first.
pub(super) async fn sources(context: &Context, key: &Key, machine: &str, disks: &[Plugged]) -> Result<Vec<Source>> {
    let mut sources = vec![Source { owner: machine.to_owned(), disk: ROOT_DISK.into(), least_bytes: 0 }];
    for disk in disks {
        let found = volume(context, &key.namespace, &disk.volume).await?;
        let least_bytes = found.wanted_bytes().unwrap_or(0);
        sources.push(Source { owner: disk.uid.clone(), disk: disk_name(&disk.uid), least_bytes });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_gives_nothing_away_but_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let [own, other, nobodys] = ["s1", "v1", "v2"].map(|owner| store.create(None, Some(1 << 20), owner).unwrap());
        // It stays for the one that lies on it.
        store.create(Some(&nobodys), None, "v3").unwrap();
        store.set_owner(&nobodys, None).unwrap();
        let mut snapshot = Snapshot::new("s", Default::default());
        for layer in [&own, &other, &nobodys] {
            assert!(check_layer(&store, &snapshot, layer).is_err(), "it has no uid");
        }
        snapshot.metadata.uid = Some("s1".into());
        assert!(check_layer(&store, &snapshot, &own).is_ok());
        for layer in [other.as_str(), nobodys.as_str(), "gone"] {
            let said = check_layer(&store, &snapshot, layer).unwrap_err().to_string();
            assert!(said.contains("snapshot s does not have that disk any more"), "{said}");
        }
    }
}
