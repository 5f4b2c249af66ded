//! Volumes come to a machine and go: before its guest starts, and while it runs.

use std::sync::Arc;
use std::time::Duration;

use api::VirtualMachine;
use api::virtual_machine::AttachedDisk;
use hypervisor::{Disk, DiskLimits, Guest, RunState};
use tokio::sync::OwnedMutexGuard;

use super::{Plugged, Step, blocking, claim, disk, disk_name, limits, load, plan, release, save, serial, volume};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::guest::moving::handover::may_start;
use crate::guest::revert;

/// How long a machine waits for a disk that somebody works on (a backup, a snapshot) before it looks after other things.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What became of a machine's volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those that the guest has.
    pub attached: Vec<AttachedDisk>,
    /// Why not all is as wished.
    pub pending: String,
}

/// Claims the volumes of a guest that is to start. One that resumes gets those that it had. Nobody changes its disks while the locks are
/// held; what they are then says [`disks_now`].
///
/// Errors: one of them cannot be had now, or the machine has moved to another host.
pub async fn prepare(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    resuming: bool,
) -> Result<Vec<OwnedMutexGuard<()>>> {
    let key = Key::of(object);
    if !resuming {
        // A volume that is not wished any more goes as the revert leaves it.
        revert::finish(context, uid).await?;
    }
    let mut uids: Vec<String> = load(context, uid)?.into_iter().map(|one| one.uid).chain([uid.to_owned()]).collect();
    if !resuming {
        for wish in &object.spec.disks {
            uids.extend(volume(context, &key.namespace, &wish.volume).await?.metadata.uid);
        }
    }
    // A guest that resumes has no second try: it waits for whoever copies its disks.
    let locks = if resuming { context.guests.lock_disks(uids).await } else { lock(context, uids, "its disks").await? };
    if !resuming {
        may_start(context, &key, uid).await?;
        for step in plan(&object.spec.disks, &load(context, uid)?, |_| true) {
            match step {
                Step::Unplug(gone) => give_back(context, &key, uid, &gone).await?,
                Step::Plug { volume, read_only, slot } => {
                    take(context, &key, uid, &volume, read_only, slot).await?;
                }
            }
        }
    }
    Ok(locks)
}

/// The volumes of a machine as a guest that starts gets them. The caller holds their locks, and has done all that changes their layers.
pub async fn disks_now(context: &Context, uid: &str) -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for one in &load(context, uid)? {
        disks.push(disk(context, one).await?);
    }
    Ok(disks)
}

/// Waits a while until nobody else works on the disks of these owners.
///
/// Errors: [`Error::NotYet`], with what the caller wants to change.
pub async fn lock(context: &Context, uids: Vec<String>, what: &str) -> Result<Vec<OwnedMutexGuard<()>>> {
    let locked = tokio::time::timeout(LOCK_PATIENCE, context.guests.lock_disks(uids)).await;
    locked
        .map_err(|_| Error::NotYet(format!("{what} cannot be changed while a snapshot or a copy is made, or it moves")))
}

/// Notes and claims a volume. The note comes first: what is claimed and not noted would never be given back.
async fn take(
    context: &Context,
    key: &Key,
    uid: &str,
    name: &str,
    read_only: bool,
    slot: u8,
) -> Result<(Plugged, DiskLimits)> {
    let found = volume(context, &key.namespace, name).await?;
    let volume_uid = found.metadata.uid.unwrap_or_default();
    let plugged = Plugged { volume: name.to_owned(), uid: volume_uid, slot, read_only };
    let mut record = load(context, uid)?;
    let before = record.clone();
    record.retain(|one| one.volume != name);
    record.push(plugged.clone());
    save(context, uid, &record)?;
    match claim(context, name, key, uid).await {
        Ok(claimed) => Ok((plugged, limits(claimed.spec.limits.as_ref()))),
        Err(error) => {
            save(context, uid, &before)?;
            Err(error)
        }
    }
}

/// Gives a volume back that no guest has.
async fn give_back(context: &Context, key: &Key, uid: &str, gone: &Plugged) -> Result<()> {
    release(context, &key.namespace, &gone.volume, uid).await?;
    let mut record = load(context, uid)?;
    record.retain(|one| one != gone);
    save(context, uid, &record)
}

/// Gives all volumes of a machine back that goes. `vanished`: its object is not this host's any more, so that it may be deleted or on
/// another host.
///
/// Errors: [`Error::NotYet`] until it is known which.
pub async fn give_all_back(context: &Context, key: &Key, uid: &str, vanished: bool) -> Result<()> {
    let record = load(context, uid)?;
    if record.is_empty() {
        return Ok(());
    }
    let uids = record.iter().map(|one| one.uid.clone()).chain([uid.to_owned()]).collect();
    let _locks = lock(context, uids, "its disks").await?;
    if !vanished {
        may_start(context, key, uid).await?;
    }
    for one in record {
        if !vanished || is_still_its(context, key, uid, &one).await? {
            release(context, &key.namespace, &one.volume, uid).await?;
        }
        let rest: Vec<Plugged> = load(context, uid)?.into_iter().filter(|other| *other != one).collect();
        save(context, uid, &rest)?;
    }
    Ok(())
}

/// Whether a volume is to be given back by a machine of which this host knows only that it is gone. What went along with it is dropped here.
async fn is_still_its(context: &Context, key: &Key, uid: &str, one: &Plugged) -> Result<bool> {
    let found = match volume(context, &key.namespace, &one.volume).await {
        Ok(found) if found.metadata.uid.as_deref() == Some(one.uid.as_str()) => found,
        Ok(_) | Err(Error::NotYet(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    if found.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
        let (layers, owner) = (context.guests.layers().await?, one.uid.clone());
        blocking(move || layers.release(&owner)).await?;
        return Ok(false);
    }
    match found.status.and_then(|status| status.attached_to).filter(|attached| attached.uid == uid) {
        None => Ok(false),
        Some(attached) if attached.gone => Ok(true),
        Some(_) => Err(Error::NotYet(format!("volume {} may be on its way to another machine", one.volume))),
    }
}

/// Bounds what a guest that has just started may ask of its volumes.
pub async fn bound(context: &Context, key: &Key, uid: &str, guest: &Arc<dyn Guest>) -> Result<()> {
    for one in load(context, uid)? {
        let found = volume(context, &key.namespace, &one.volume).await?;
        let wanted = limits(found.spec.limits.as_ref());
        if wanted != DiskLimits::default() {
            guest.limit_disk(&disk_name(&one.uid), wanted).await?;
        }
    }
    Ok(())
}

/// Brings the volumes of a machine to what its object says, as far as that can be now. Without a guest, what is not wished any more is given
/// back; what is wished is claimed when the guest starts.
pub async fn reconcile(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    guest: Option<&Arc<dyn Guest>>,
) -> Result<Seen> {
    let key = Key::of(object);
    let record = load(context, uid)?;
    if record.is_empty() && object.spec.disks.is_empty() {
        return Ok(Seen::default());
    }
    let present = match guest {
        Some(guest) => guest.disks().await?,
        None => Vec::new(),
    };
    let has = |one: &Plugged| present.contains(&disk_name(&one.uid));
    let mut seen = Seen::default();
    for step in plan(&object.spec.disks, &record, has) {
        let done = match (step, guest) {
            (Step::Unplug(gone), _) => unplug(context, &key, uid, &gone, guest.filter(|_| has(&gone))).await,
            (Step::Plug { volume, read_only, slot }, Some(guest)) => {
                plug(context, &key, uid, (&volume, read_only, slot), guest).await
            }
            (Step::Plug { .. }, None) => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(vm = key.name, error = %chain(&error), "a volume is not as wished");
            if seen.pending.is_empty() {
                seen.pending = chain(&error);
            }
        }
    }
    if let Some(guest) = guest {
        let now = guest.disks().await?;
        let there = load(context, uid)?.into_iter().filter(|one| now.contains(&disk_name(&one.uid)));
        seen.attached = there.map(|one| AttachedDisk { serial: serial(&one.volume), volume: one.volume }).collect();
    }
    Ok(seen)
}

/// What is said of a device that the guest was asked to let go of. It is asked again, and the words are the same each time, so that they
/// are told once.
pub fn kept(error: hypervisor::Error, what: &str) -> Error {
    match error {
        hypervisor::Error::Kept(_) => Error::NotYet(format!("the guest does not let go of {what}; it is asked again")),
        other => other.into(),
    }
}

async fn unplug(context: &Context, key: &Key, uid: &str, gone: &Plugged, guest: Option<&Arc<dyn Guest>>) -> Result<()> {
    if guest.is_none() {
        // Afterwards it may be another machine's, whose disk must not change.
        revert::finish(context, uid).await?;
    }
    let uids = vec![gone.uid.clone(), uid.to_owned()];
    let _lock = lock(context, uids, &format!("volume {}", gone.volume)).await?;
    match guest {
        Some(guest) if guest.state().await? != RunState::Running => {
            return Err(Error::NotYet(format!("the guest stands still; volume {} goes when it goes on", gone.volume)));
        }
        Some(guest) => {
            let detached = guest.detach_disk(&disk_name(&gone.uid)).await;
            detached.map_err(|error| kept(error, &format!("volume {}", gone.volume)))?;
        }
        // Its machine may have moved away with it.
        None => may_start(context, key, uid).await?,
    }
    give_back(context, key, uid, gone).await
}

async fn plug(
    context: &Context,
    key: &Key,
    uid: &str,
    (name, read_only, slot): (&str, bool, u8),
    guest: &Arc<dyn Guest>,
) -> Result<()> {
    let uids = volume(context, &key.namespace, name).await?.metadata.uid.into_iter().chain([uid.to_owned()]).collect();
    let _lock = lock(context, uids, &format!("volume {name}")).await?;
    // Which volumes move with a machine is settled when it begins to.
    if guest.state().await? == RunState::Sent {
        return Err(Error::NotYet(format!("the machine moves; volume {name} comes when it has")));
    }
    let (plugged, limits) = take(context, key, uid, name, read_only, slot).await?;
    guest.attach_disk(&disk(context, &plugged).await?).await?;
    let name = disk_name(&plugged.uid);
    if limits != DiskLimits::default()
        && let Err(error) = guest.limit_disk(&name, limits).await
    {
        // Without its bounds it does not stay.
        guest.detach_disk(&name).await?;
        return Err(error.into());
    }
    Ok(())
}
