//! `Volume` objects that are disks: made, grown, bounded, and removed when nobody has them any more. Each event starts a look at the
//! newest object, under the volume's lock; a look that finds nothing to do changes nothing.

use std::sync::Arc;
use std::time::Duration;

use api::Snapshot;
use api::migration::keeps_copy;
use api::names::AGENT_FINALIZER;
use api::volume::{Volume, VolumeAttachment, VolumeStatus};
use hypervisor::disk::tool;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::freeze::is_final;
use super::snapshots::check_layer;
use super::{Plugged, Source, blocking, disk_name, freeze, guest_with, is_recorded, limits, volume};
use crate::context::{Context, Key, is_path_safe};
use crate::error::{Error, Result, chain, is_not_found};
use crate::patch;

/// Pause before what cannot be yet is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Makes a disk match its object, in a task of its own.
pub fn look_after(context: &Arc<Context>, object: &Volume) {
    let key = Key::of(object);
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let (context, stop) = (context.clone(), context.stop.clone());
    if !context.guests.begin_look(&uid) {
        return;
    }
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let looked = settle(&context, &key, &uid).await;
            // An event that came meanwhile asks for another look.
            let again = context.guests.end_look(&uid);
            match looked {
                Ok(Outlook::Settled) if !again => return,
                Ok(Outlook::Settled) => {}
                Ok(Outlook::Open) => tokio::time::sleep(RETRY).await,
                Err(error) => {
                    tracing::warn!(volume = key.name, error = %chain(&error), "cannot make the disk match its object");
                    tokio::time::sleep(RETRY).await;
                }
            }
            if !context.guests.begin_look(&uid) {
                return;
            }
        }
    }));
}

/// Whether there is more to do, that no event tells of.
enum Outlook {
    Settled,
    Open,
}

fn objects(context: &Context, key: &Key) -> Api<Volume> {
    Api::namespaced(context.client.clone(), &key.namespace)
}

async fn settle(context: &Arc<Context>, key: &Key, uid: &str) -> Result<Outlook> {
    let found = objects(context, key).get_opt(&key.name).await.map_err(Error::api("read the volume"))?;
    let Some(object) = found.filter(|found| found.metadata.uid.as_deref() == Some(uid)) else {
        // Deleted by force, or named anew: what was its own goes.
        let (layers, owner) = (context.guests.layers().await?, uid.to_owned());
        blocking(move || layers.release(&owner)).await?;
        return Ok(Outlook::Settled);
    };
    match &object.spec.node_name {
        Some(node) if *node != context.node_name => return drop_copy(context, key, uid).await,
        // Whatever is done with it now is done where it went; that it is there is told next.
        _ if has_moved(context, &object) => return Ok(Outlook::Settled),
        Some(_) if is_held(&object) => {}
        _ if object.metadata.deletion_timestamp.is_some() => return Ok(Outlook::Settled),
        Some(_) => return hold(context, key, &object).await,
        None if may_take(context, key, &object).await? => return hold(context, key, &object).await,
        None => return Ok(Outlook::Settled),
    }
    let mut uids = vec![uid.to_owned()];
    let is_made = !context.guests.layers().await?.owned_by(uid).is_empty();
    if let Some(source) = object.spec.source.as_ref().filter(|source| !source.volume.is_empty() && !is_made)
        && let Ok(from) = volume(context, &key.namespace, &source.volume).await
    {
        uids.extend(from.metadata.uid);
    }
    let _locks = context.guests.lock_disks(uids).await;
    // It may have been waited for long: until then it may have moved, or been detached.
    let newest = objects(context, key).get_opt(&key.name).await.map_err(Error::api("read the volume"))?;
    let is_same =
        |newest: &Volume| newest.metadata.uid == object.metadata.uid && newest.spec.node_name == object.spec.node_name;
    let Some(object) = newest.filter(|newest| is_same(newest) && !has_moved(context, newest)) else {
        return Ok(Outlook::Open);
    };
    if object.metadata.deletion_timestamp.is_some() {
        return bury(context, key, &object, uid).await;
    }
    let before = object.status.clone().unwrap_or_default();
    let (status, outlook) = match tend(context, key, &object, uid).await {
        Ok(status) => (status, Outlook::Settled),
        Err(error) => {
            let outlook = if is_final(&error) { Outlook::Settled } else { Outlook::Open };
            let phase = match (before.phase.as_str(), &outlook) {
                ("Ready", _) => "Ready",
                (_, Outlook::Settled) => "Failed",
                (_, Outlook::Open) => "Pending",
            };
            (VolumeStatus { phase: phase.into(), message: chain(&error), ..before }, outlook)
        }
    };
    report(context, key, &object, status).await?;
    Ok(outlook)
}

fn has_moved(context: &Context, object: &Volume) -> bool {
    let moved_to = object.status.as_ref().and_then(|status| status.moved_to.as_ref());
    moved_to.is_some_and(|node| *node != context.node_name)
}

/// Drops what is here of a disk that is another host's, unless a guest here has it: then it is on its way here, or not all of it is gone.
async fn drop_copy(context: &Context, key: &Key, uid: &str) -> Result<Outlook> {
    if !context.data_dir.join("disks").exists() {
        return Ok(Outlook::Settled);
    }
    let layers = context.guests.layers().await?;
    if layers.owned_by(uid).is_empty() {
        return Ok(Outlook::Settled);
    }
    let _lock = context.guests.lock_disks(vec![uid.to_owned()]).await;
    let newest = objects(context, key).get_opt(&key.name).await.map_err(Error::api("read the volume"))?;
    let held_here = newest.is_none_or(|newest| newest.spec.node_name.as_deref() == Some(context.node_name.as_str()));
    if keeps_copy(held_here, is_recorded(context, uid)?) {
        return Ok(Outlook::Open);
    }
    tracing::info!(volume = key.name, "a disk is on another machine now; what was here of it goes");
    let owner = uid.to_owned();
    blocking(move || layers.release(&owner)).await?;
    Ok(Outlook::Settled)
}

/// Drops what a guest that did not come left of a volume. What cannot be dropped now is found when the agent starts.
pub async fn drop_stray(context: &Context, namespace: &str, plugged: &Plugged) {
    let key = Key { namespace: namespace.to_owned(), name: plugged.volume.clone() };
    if let Err(error) = drop_copy(context, &key, &plugged.uid).await {
        tracing::warn!(volume = key.name, error = %chain(&error), "what is left of a disk stays for now");
    }
}

fn is_held(object: &Volume) -> bool {
    object.metadata.finalizers.iter().flatten().any(|one| one == AGENT_FINALIZER)
}

/// Takes a volume, and makes its deletion wait for this machine. The write brings the next look.
async fn hold(context: &Context, key: &Key, object: &Volume) -> Result<Outlook> {
    let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
    finalizers.push(AGENT_FINALIZER.to_owned());
    let metadata = json!({"uid": object.metadata.uid, "resourceVersion": object.metadata.resource_version,
        "finalizers": finalizers});
    change(context, key, json!({"metadata": metadata, "spec": {"nodeName": context.node_name}})).await
}

async fn change(context: &Context, key: &Key, patch: Value) -> Result<Outlook> {
    match objects(context, key).patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(Outlook::Settled),
        Err(error) if is_not_found(&error) => Ok(Outlook::Settled),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outlook::Open),
        Err(error) => Err(Error::api("change the volume")(error)),
    }
}

/// Whether this machine makes a disk that none has taken: the one that has what it is made from, or the pool's first one.
async fn may_take(context: &Context, key: &Key, object: &Volume) -> Result<bool> {
    let source = object.spec.source.clone().unwrap_or_default();
    let holder = if !source.volume.is_empty() {
        let from = objects(context, key).get_opt(&source.volume).await.map_err(Error::api("read the volume"))?;
        from.and_then(|from| from.spec.node_name)
    } else if !source.snapshot.is_empty() {
        let snapshots: Api<Snapshot> = Api::namespaced(context.client.clone(), &key.namespace);
        let from = snapshots.get_opt(&source.snapshot).await.map_err(Error::api("read the snapshot"))?;
        from.and_then(|from| from.spec.node_name)
    } else if is_path_safe(&source.upload) && context.guests.upload_directory(&source.upload).exists() {
        return Ok(true);
    } else {
        None
    };
    Ok(holder.map_or(!context.is_member, |holder| holder == context.node_name))
}

/// Removes a disk that nobody has; one that a machine has waits.
async fn bury(context: &Context, key: &Key, object: &Volume, uid: &str) -> Result<Outlook> {
    let status = object.status.clone().unwrap_or_default();
    if let Some(attached) = &status.attached_to
        && !is_over(context, key, attached)
    {
        let name = &attached.virtual_machine;
        let message = format!("it is attached to virtual machine {name}, and goes when it is detached");
        report(context, key, object, VolumeStatus { message, ..status }).await?;
        return Ok(Outlook::Open);
    }
    let (layers, owner) = (context.guests.layers().await?, uid.to_owned());
    blocking(move || layers.release(&owner)).await?;
    let finalizers = object.metadata.finalizers.iter().flatten();
    let rest: Vec<&String> = finalizers.filter(|one| *one != AGENT_FINALIZER).collect();
    change(context, key, json!({"metadata": {"uid": uid, "finalizers": rest}})).await
}

/// Whether the machine that has a volume is gone, and its guest too. The first the pool's controller says: to this host a machine that is
/// bound to another looks the same.
fn is_over(context: &Context, key: &Key, attached: &VolumeAttachment) -> bool {
    let place = Key { namespace: key.namespace.clone(), name: attached.virtual_machine.clone() };
    let uid = attached.uid.as_str();
    attached.gone && context.guests.uid(&place).as_deref() != Some(uid) && !context.guests.run_dir(uid).exists()
}

/// Makes what is missing of a disk. The caller holds its lock.
async fn tend(context: &Context, key: &Key, object: &Volume, uid: &str) -> Result<VolumeStatus> {
    let mut status = object.status.clone().unwrap_or_default();
    if status.attached_to.as_ref().is_some_and(|attached| is_over(context, key, attached)) {
        status.attached_to = None;
    }
    // It is here, and its spec says so.
    status.moved_to = None;
    let layers = context.guests.layers().await?;
    if layers.owned_by(uid).is_empty() {
        if status.size_bytes.is_some() {
            // It was here. Empty, it would be taken for what was lost.
            return Err(Error::Invalid("the disk is not on this machine any more".into()));
        }
        make(context, key, object, uid).await?;
    }
    let top = layers.owned_by(uid).pop().ok_or_else(|| Error::Invalid("the disk is missing".into()))?;
    let mut bytes = layers.get(&top)?.virtual_bytes;
    let guest = guest_with(context, &key.namespace, uid, status.attached_to.as_ref()).await?;
    let wanted = object.wanted_bytes().unwrap_or(bytes);
    if wanted > bytes {
        match &guest {
            Some(guest) => {
                guest.grow_disk(&disk_name(uid), wanted).await?;
                blocking(move || layers.set_size(&top, wanted)).await?;
            }
            None => {
                let owner = uid.to_owned();
                blocking(move || layers.create(Some(&top), Some(wanted), &owner)).await?;
            }
        }
        bytes = wanted;
    }
    if let Some(guest) = guest.filter(|_| status.limits != object.spec.limits) {
        guest.limit_disk(&disk_name(uid), limits(object.spec.limits.as_ref())).await?;
    }
    status.limits.clone_from(&object.spec.limits);
    Ok(VolumeStatus { phase: "Ready".into(), message: String::new(), size_bytes: i64::try_from(bytes).ok(), ..status })
}

/// Makes the first layer of a disk.
async fn make(context: &Context, key: &Key, object: &Volume, uid: &str) -> Result<()> {
    let layers = context.guests.layers().await?;
    let (owner, wanted) = (uid.to_owned(), object.wanted_bytes());
    let Some(source) = &object.spec.source else {
        return blocking(move || layers.create(None, wanted, &owner)).await.map(drop);
    };
    if !source.upload.is_empty() {
        return import(context, &source.upload, uid).await;
    }
    let below = if source.snapshot.is_empty() {
        let from = volume(context, &key.namespace, &source.volume).await?;
        let status = from.status.clone().unwrap_or_default();
        if !from.is_block() {
            return Err(Error::Invalid(format!("volume {} is a directory", source.volume)));
        }
        if status.phase != "Ready" || from.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
            return Err(Error::NotYet(format!("volume {} is not ready on this machine", source.volume)));
        }
        let from_uid = from.metadata.uid.clone().unwrap_or_default();
        let guest = guest_with(context, &key.namespace, &from_uid, status.attached_to.as_ref()).await?;
        let least_bytes = from.wanted_bytes().unwrap_or(0);
        let disk = Source { disk: disk_name(&from_uid), owner: from_uid, least_bytes };
        freeze(context, &[disk], guest.as_ref(), None).await?.swap_remove(0).layer
    } else {
        layer_of_snapshot(context, key, &source.snapshot, &source.disk).await?
    };
    blocking(move || layers.create(Some(&below), wanted, &owner)).await.map(drop)
}

async fn layer_of_snapshot(context: &Context, key: &Key, name: &str, disk: &str) -> Result<String> {
    let snapshots: Api<Snapshot> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = snapshots.get_opt(name).await.map_err(Error::api("read the snapshot"))?;
    let found = found.ok_or_else(|| Error::NotYet(format!("snapshot {name} not found")))?;
    let status = found.status.clone().unwrap_or_default();
    if status.phase == "Failed" {
        return Err(Error::Invalid(format!("snapshot {name} could not be taken")));
    }
    if !status.ready_to_use || found.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
        return Err(Error::NotYet(format!("snapshot {name} is not ready on this machine")));
    }
    let chosen = match (disk, status.disks.as_slice()) {
        ("", [only]) => Some(only),
        ("", _) => None,
        (disk, disks) => disks.iter().find(|one| one.name == disk),
    };
    let chosen = chosen.map(|chosen| chosen.layer.clone()).ok_or_else(|| {
        let names: Vec<&str> = status.disks.iter().map(|one| one.name.as_str()).collect();
        Error::Invalid(format!("spec.source.disk: name one of {}", names.join(", ")))
    })?;
    let layers = context.guests.layers().await?;
    check_layer(&layers, &found, &chosen)?;
    Ok(chosen)
}

async fn import(context: &Context, upload: &str, uid: &str) -> Result<()> {
    if !is_path_safe(upload) {
        return Err(Error::Invalid(format!("{upload:?} is no name of an upload")));
    }
    let directory = context.guests.upload_directory(upload);
    let file = directory.join("disk");
    let found = std::fs::symlink_metadata(&file).map_err(|_| Error::Invalid(format!("there is no upload {upload}")))?;
    if !found.is_file() {
        return Err(Error::Invalid(format!("upload {upload} is no plain file")));
    }
    let layers = context.guests.layers().await?;
    let (id, part) = layers.scratch();
    let header = match tool::import(&file, None, &part).await {
        Ok(header) => header,
        Err(error) => {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&part);
            return Err(error.into());
        }
    };
    let owner = uid.to_owned();
    blocking(move || layers.adopt(&id, header.virtual_bytes, &owner)).await?;
    std::fs::remove_dir_all(&directory).map_err(Error::io("remove", directory))
}

/// Writes what changed of a status.
async fn report(context: &Context, key: &Key, object: &Volume, status: VolumeStatus) -> Result<()> {
    let old = serde_json::to_value(object.status.clone().unwrap_or_default()).unwrap_or_default();
    let new = serde_json::to_value(&status).unwrap_or_default();
    let Some(difference) = patch::difference(&old, &new) else { return Ok(()) };
    let patch = Patch::Merge(json!({"metadata": {"uid": object.metadata.uid}, "status": difference}));
    match objects(context, key).patch_status(&key.name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("write the volume's status")(error)),
    }
}
