//! The disk that a machine boots from: cloned from its image, made anew when that is asked for, and set aside for a rescue image.
//!
//! What was made is noted beside the guest's other files, after it was made and before the guest runs: each request to make it anew is
//! acted on once, whenever this process is ended.

use api::DiskImage;
use api::virtual_machine::MachineBoot;
use api::{VirtualMachine, VirtualMachineStatus};
use hypervisor::{Boot, Disk};
use kube::Api;
use serde::{Deserialize, Serialize};

use super::disks::blocking;
use super::start::{self, ROOT_DISK, Size};
use super::{firmware, image_copies, revert};
use crate::context::{Context, Key};
use crate::error::{Error, Result};

/// Name of the disk of a rescue image.
pub const RESCUE_DISK: &str = "rescue";

/// What a machine boots from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The request to make its disk anew that was acted on last.
    pub rebuild: i64,
    /// The request to take its disks back that was acted on last.
    #[serde(default)]
    pub revert: i64,
    /// The rescue image; empty means its own disk.
    pub rescue: String,
    /// The rescue image's uid.
    pub rescue_uid: String,
}

/// The owner of the disk of a machine's rescue image.
pub fn rescue_owner(uid: &str) -> String {
    format!("rescue-{uid}")
}

fn record(context: &Context, uid: &str) -> std::path::PathBuf {
    context.guests.directory(uid).join("root.json")
}

/// What was made last, as far as it is known here: a machine that came from another host has only its status.
pub fn made(context: &Context, uid: &str) -> Result<Made> {
    let path = record(context, uid);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(Error::io("decode", path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Made::default()),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Makes what the machine is to boot from, unless it is there, and takes its disks back where that is asked for. The caller holds the
/// locks of its disks, and no guest has them.
///
/// Errors: [`Error::NotYet`] when an image or a snapshot is not ready. What was there stays then.
pub async fn make(context: &Context, object: &VirtualMachine, uid: &str, size: &Size) -> Result<Made> {
    let layers = context.guests.layers().await?;
    let before = made(context, uid)?;
    let told = object.status.clone().unwrap_or_default();
    let observed = told.observed_rebuild.max(before.rebuild);
    let namespace = Key::of(object).namespace;
    let (spec, owned) = (&object.spec, layers.owned_by(uid));
    // All are looked up before anything is thrown away for one of them.
    let own = match owned.is_empty() || spec.rebuild_request > observed {
        true => Some(image(context, &namespace, &spec.image).await?),
        false => None,
    };
    let rescue = match spec.rescue_image.as_str() {
        "" => None,
        name => Some(image(context, &namespace, name).await?),
    };
    if let Some(image) = &own {
        clone(context, image, uid, size.disk_bytes).await?;
        firmware::forget(context, uid)?;
    }
    // What is taken back is noted with the layers themselves, before it is done.
    let reverted = revert::make(context, object, uid, told.observed_revert.max(before.revert)).await?;
    let mut now = Made { rebuild: spec.rebuild_request.max(observed), revert: reverted, ..Made::default() };
    let owner = rescue_owner(uid);
    if let Some(image) = rescue {
        now.rescue.clone_from(&spec.rescue_image);
        now.rescue_uid = image.metadata.uid.clone().unwrap_or_default();
        if layers.owned_by(&owner).is_empty() || before.rescue_uid != now.rescue_uid {
            firmware::forget_rescue(context, uid)?;
            clone(context, &image, &owner, None).await?;
        }
    } else {
        blocking(move || layers.release(&owner)).await?;
    }
    if now != before {
        note(context, uid, &now)?;
    }
    revert::forget(context, uid)?;
    Ok(now)
}

/// Notes what was made.
pub fn note(context: &Context, uid: &str, made: &Made) -> Result<()> {
    super::shared::write_durably(&record(context, uid), made)
}

/// Whether what a machine is to boot from could be made now. `done`: what was acted on.
///
/// Errors: [`Error::NotYet`] when an image or a snapshot is not ready; [`Error::Invalid`] when its disk is too small for what it is made
/// from, or the snapshot is of other disks.
pub async fn check(context: &Context, object: &VirtualMachine, done: &VirtualMachineStatus) -> Result<()> {
    let (namespace, spec) = (Key::of(object).namespace, &object.spec);
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let (is_new, is_rescued) = (spec.rebuild_request > done.observed_rebuild, !spec.rescue_image.is_empty());
    if spec.revert_request > done.observed_revert {
        revert::check(context, object).await?;
    }
    if is_new || !is_rescued {
        let image = image(context, &namespace, &spec.image).await?;
        if is_new {
            fits(&image, start::size_of(context, object).await?.disk_bytes)?;
        }
        // Fetched while the guest still runs.
        image_copies::layer(context, &image).await?;
        if !is_rescued {
            return boot(context, uid, spec.boot.unwrap_or(image.spec.boot), &image, false).map(drop);
        }
    }
    let rescue = image(context, &namespace, &spec.rescue_image).await?;
    image_copies::layer(context, &rescue).await?;
    boot(context, uid, rescue.spec.boot, &rescue, true).map(drop)
}

/// Whether a disk of this size can be made from an image; `None` means the image's.
fn fits(image: &DiskImage, bytes: Option<u64>) -> Result<()> {
    let needed = image.status.as_ref().map_or(0, |status| u64::try_from(status.virtual_bytes).unwrap_or(0));
    match bytes {
        Some(bytes) if bytes < needed => {
            let name = image.metadata.name.as_deref().unwrap_or_default();
            Err(Error::Invalid(format!("a disk of {bytes} bytes cannot hold disk image {name} of {needed}")))
        }
        _ => Ok(()),
    }
}

/// Gives an owner a new disk with what the image holds, in place of all that it had.
async fn clone(context: &Context, image: &DiskImage, owner: &str, bytes: Option<u64>) -> Result<()> {
    let layers = context.guests.layers().await?;
    let base = image_copies::layer(context, image).await?;
    let owner = owner.to_owned();
    blocking(move || {
        let old = layers.owned_by(&owner);
        layers.create(Some(&base), bytes, &owner)?;
        old.iter().try_for_each(|id| layers.set_owner(id, None))
    })
    .await
}

/// Takes away what was made.
pub async fn release(context: &Context, uid: &str) -> Result<()> {
    let (layers, uid) = (context.guests.layers().await?, uid.to_owned());
    let owners = [revert::owner(&uid), rescue_owner(&uid), uid];
    blocking(move || owners.iter().try_for_each(|owner| layers.release(owner))).await
}

/// An image that is ready.
pub async fn image(context: &Context, namespace: &str, name: &str) -> Result<DiskImage> {
    let images: Api<DiskImage> = Api::namespaced(context.client.clone(), namespace);
    let image = images.get_opt(name).await.map_err(Error::api("read the disk image"))?;
    let image = image.ok_or_else(|| Error::Invalid(format!("disk image {name} not found")))?;
    match image.status.as_ref().map(|status| status.phase.as_str()) {
        Some("Ready") => Ok(image),
        Some("Failed") => Err(Error::Invalid(format!("disk image {name} could not be made"))),
        _ => Err(Error::NotYet(format!("disk image {name} is not ready yet"))),
    }
}

/// The disks that a guest starts with before all others; the first is the one that it boots from.
pub async fn disks(context: &Context, uid: &str, is_rescued: bool) -> Result<Vec<Disk>> {
    let layers = context.guests.layers().await?;
    let disk = |name: &str, owner: &str| {
        let top = layers.owned_by(owner).pop();
        let top = top.ok_or_else(|| Error::Invalid(format!("the machine's disk {name} is missing")))?;
        Ok::<_, Error>(Disk { name: name.into(), layers: layers.chain(&top)?, ..Disk::default() })
    };
    let own = disk(ROOT_DISK, uid)?;
    Ok(if is_rescued { vec![disk(RESCUE_DISK, &rescue_owner(uid))?, own] } else { vec![own] })
}

/// How a guest boots, in this way.
pub fn boot(context: &Context, uid: &str, way: MachineBoot, image: &DiskImage, is_rescued: bool) -> Result<Boot> {
    match way {
        MachineBoot::Bios => Ok(Boot::Bios),
        MachineBoot::Uefi => firmware::boot(context, uid, is_rescued),
        MachineBoot::Kernel => {
            let directory = context.guests.image_directory(image.metadata.uid.as_deref().unwrap_or_default());
            let (kernel, initrd) = (directory.join("kernel"), directory.join("initrd"));
            if !kernel.exists() {
                let name = image.metadata.name.as_deref().unwrap_or_default();
                return Err(Error::Invalid(format!("disk image {name} has no kernel")));
            }
            let initrd = initrd.exists().then_some(initrd);
            Ok(Boot::Kernel { kernel, initrd, command_line: image.spec.command_line.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_at_least_as_large_as_its_image() {
        let status = api::DiskImageStatus { virtual_bytes: 1000, ..Default::default() };
        let image = DiskImage { status: Some(status), ..DiskImage::new("one", Default::default()) };
        for (bytes, is) in [(None, true), (Some(999), false), (Some(1000), true)] {
            assert_eq!(fits(&image, bytes).is_ok(), is, "{bytes:?}");
        }
    }
}
