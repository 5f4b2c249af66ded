//! Volumes come to a machine and go: before its guest starts, and while it runs.

use std::sync::Arc;
use std::time::Duration;

use api::VirtualMachine;
use api::virtual_machine::AttachedDisk;
use hypervisor::{Disk, DiskLimits, Guest, RunState};
use tokio::sync::OwnedMutexGuard;

use super::{Plugged, Step, claim, disk, disk_name, limits, load, plan, release, save, serial, volume};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};

/// How long a machine waits for a disk that somebody works on (a backup, a snapshot) before it looks after other things.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What a guest is started with. Nobody changes these disks while this is held.
pub struct Prepared {
    /// Its volumes.
    pub disks: Vec<Disk>,
    _locks: Vec<OwnedMutexGuard<()>>,
}

/// What became of a machine's volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those that the guest has.
    pub attached: Vec<AttachedDisk>,
    /// Why not all is as wished.
    pub pending: String,
}

/// Claims the volumes of a guest that is to start. One that resumes gets those that it had.
///
/// Errors: one of them cannot be had now.
pub async fn prepare(context: &Context, object: &VirtualMachine, uid: &str, resuming: bool) -> Result<Prepared> {
    let key = Key::of(object);
    if !resuming {
        for step in plan(&object.spec.disks, &load(context, uid)?, |_| true) {
            match step {
                Step::Unplug(gone) => give_back(context, &key, uid, &gone).await?,
                Step::Plug { volume, read_only, slot } => {
                    take(context, &key, uid, &volume, read_only, slot).await?;
                }
            }
        }
    }
    let record = load(context, uid)?;
    let uids = record.iter().map(|one| one.uid.clone()).chain([uid.to_owned()]).collect();
    // A guest that resumes has no second try: it waits for whoever copies its disks.
    let locks = if resuming { context.guests.lock_disks(uids).await } else { lock(context, uids, "its disks").await? };
    let mut disks = Vec::new();
    for one in &record {
        disks.push(disk(context, one).await?);
    }
    Ok(Prepared { disks, _locks: locks })
}

async fn lock(context: &Context, uids: Vec<String>, what: &str) -> Result<Vec<OwnedMutexGuard<()>>> {
    let locked = tokio::time::timeout(LOCK_PATIENCE, context.guests.lock_disks(uids)).await;
    locked.map_err(|_| Error::NotYet(format!("{what} cannot be changed while a snapshot or a copy is made")))
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

/// Gives all volumes of a machine back that goes.
pub async fn give_all_back(context: &Context, key: &Key, uid: &str) -> Result<()> {
    for one in load(context, uid)? {
        give_back(context, key, uid, &one).await?;
    }
    Ok(())
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

async fn unplug(context: &Context, key: &Key, uid: &str, gone: &Plugged, guest: Option<&Arc<dyn Guest>>) -> Result<()> {
    let _lock = lock(context, vec![gone.uid.clone()], &format!("volume {}", gone.volume)).await?;
    if let Some(guest) = guest {
        if guest.state().await? == RunState::Paused {
            return Err(Error::NotYet(format!("the guest stands still; volume {} goes when it goes on", gone.volume)));
        }
        guest.detach_disk(&disk_name(&gone.uid)).await?;
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
    let (plugged, limits) = take(context, key, uid, name, read_only, slot).await?;
    let _lock = lock(context, vec![plugged.uid.clone()], &format!("volume {name}")).await?;
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
