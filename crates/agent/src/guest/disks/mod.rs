//! Volumes as disks of machines, snapshots, and copies of disks.
//!
//! | module | owns |
//! |---|---|
//! | `plugged` | which volumes a machine has: the pure plan, and the record of it |
//! | `claim` | a volume is one machine's at a time |
//! | [`attach`] | volumes come to a machine and go |
//! | `freeze` | what was written so far is never written again |
//! | [`volumes`] | objects of kind `Volume` that are disks |
//! | [`snapshots`] | objects of kind `Snapshot` |
//! | [`backups`] | objects of kind `Backup` |
//!
//! Whoever changes which layers a disk has, or plugs or unplugs it, holds the lock of the disk's owner meanwhile
//! ([`super::Guests::lock_disks`]): a layer that was frozen must not be opened for writing by a guest that starts.

pub mod attach;
pub mod backups;
mod claim;
mod freeze;
mod plugged;
pub mod snapshots;
pub mod volumes;

use std::sync::Arc;

use api::Volume;
use api::volume::{VolumeAttachment, VolumeLimits};
use hypervisor::{Disk, DiskLimits, Guest, RunState};
use kube::Api;

pub use claim::{claim, release};
pub use freeze::{Frozen, Source, freeze};
pub use plugged::{Plugged, SLOTS, Step, is_recorded, load, plan, save};

use crate::context::{Context, Key};
use crate::error::{Error, Result};

/// Characters of a serial number. `Source:` virtio 1.2, 5.2.6.4.
const SERIAL_CHARACTERS: usize = 20;
/// Digits of its hash in the serial number of a volume whose name is longer.
const HASH_DIGITS: usize = 8;
/// Digits of a volume's uid in the name by which the hypervisor knows it, which may have 17 characters.
const NAME_DIGITS: usize = 16;

/// The name by which the hypervisor knows a volume.
pub fn disk_name(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(NAME_DIGITS).collect();
    format!("v{digits}")
}

/// The serial number by which a guest finds a volume: its name, or the beginning of it and a hash.
pub fn serial(volume: &str) -> String {
    if volume.len() <= SERIAL_CHARACTERS {
        return volume.to_owned();
    }
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(volume.as_bytes()));
    let front: String = volume.chars().take(SERIAL_CHARACTERS - HASH_DIGITS - 1).collect();
    format!("{front}-{}", &digest[..HASH_DIGITS])
}

/// The bounds as the hypervisor takes them.
pub fn limits(wanted: Option<&VolumeLimits>) -> DiskLimits {
    let bytes = wanted.and_then(|limits| limits.bytes_per_second.as_ref());
    let bytes = bytes.and_then(|quantity| api::quantity::whole(&quantity.0));
    DiskLimits {
        operations: wanted.and_then(|limits| u64::try_from(limits.iops?).ok()).unwrap_or(0),
        bytes: bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
    }
}

/// A plugged volume as the hypervisor takes it. The caller holds its lock.
pub async fn disk(context: &Context, plugged: &Plugged) -> Result<Disk> {
    let layers = context.guests.layers().await?;
    let top = layers.owned_by(&plugged.uid).pop();
    let top = top.ok_or_else(|| Error::Invalid(format!("the disk of volume {} is missing", plugged.volume)))?;
    Ok(Disk {
        name: disk_name(&plugged.uid),
        serial: serial(&plugged.volume),
        slot: Some(plugged.slot),
        layers: layers.chain(&top)?,
        read_only: plugged.read_only,
        ..Disk::default()
    })
}

/// The running guest that has a volume plugged in; `None` when none has. The caller holds the volume's lock.
///
/// Errors: its machine is on its way to another host, or nobody has adopted its guest yet.
pub async fn guest_with(
    context: &Context,
    namespace: &str,
    uid: &str,
    attached: Option<&VolumeAttachment>,
) -> Result<Option<Arc<dyn Guest>>> {
    let Some(attached) = attached.filter(|attached| !attached.gone) else { return Ok(None) };
    let key = Key { namespace: namespace.to_owned(), name: attached.virtual_machine.clone() };
    if context.guests.uid(&key).as_deref() != Some(attached.uid.as_str()) {
        return Err(Error::NotYet(format!("virtual machine {} is on its way", key.name)));
    }
    let guest = running(context, &key, &attached.uid).await?;
    match guest {
        Some(guest) if guest.disks().await?.contains(&disk_name(uid)) => Ok(Some(guest)),
        _ => Ok(None),
    }
}

/// The guest of a machine, when it runs.
///
/// Errors: there is one that nobody has adopted yet, or that was sent to another host.
pub async fn running(context: &Context, key: &Key, uid: &str) -> Result<Option<Arc<dyn Guest>>> {
    match context.guests.guest(key) {
        Some(guest) if guest.state().await? == RunState::Sent => {
            Err(Error::NotYet(format!("virtual machine {} moves to another machine", key.name)))
        }
        Some(guest) => Ok(Some(guest)),
        None if hypervisor::qemu::driver::is_running(&context.guests.run_dir(uid)) => {
            Err(Error::NotYet(format!("virtual machine {} is on its way", key.name)))
        }
        None => Ok(None),
    }
}

/// Reads a volume.
///
/// Errors: there is none.
pub async fn volume(context: &Context, namespace: &str, name: &str) -> Result<Volume> {
    let objects: Api<Volume> = Api::namespaced(context.client.clone(), namespace);
    let found = objects.get_opt(name).await.map_err(Error::api("read the volume"))?;
    found.ok_or_else(|| Error::NotYet(format!("volume {name} not found")))
}

/// Runs short work that blocks on the disk.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> hypervisor::Result<T> + Send + 'static) -> Result<T> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::Timeout("work on a disk"))??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_fit_and_long_names_stay_apart() {
        assert_eq!(serial("data"), "data");
        let (one, two) = (serial("a-volume-with-a-long-name-1"), serial("a-volume-with-a-long-name-2"));
        assert!(one.starts_with("a-volume-wi-") && one.len() == SERIAL_CHARACTERS, "{one}");
        assert_ne!(one, two);
        assert_eq!(disk_name("5a0c1c7e-0000-4000-8000-000000000001"), "v5a0c1c7e00004000");
    }
}
