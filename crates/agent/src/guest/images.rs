//! Disk images: imported from an upload or a URL, or copied from a machine. Each is done once; what a restart interrupted starts over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::virtual_machine::MachineBoot;
use api::{DiskImage, DiskImageStatus, VirtualMachine};
use hypervisor::DiskCopy;
use hypervisor::disk::{Format, tool};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot, watch};

use super::start::ROOT_DISK;
use super::{image_fetch, status};
use crate::context::{Context, Key, is_path_safe};
use crate::directories;
use crate::error::{Error, Result, chain};
use crate::informer;

/// Images made at once: each is bound by the disk.
const AT_ONCE: usize = 2;
/// Images fetched at once, which others cannot hold up.
const FETCHED_AT_ONCE: usize = 4;
/// Pause before what cannot be yet is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows `DiskImage` objects until the agent is dropped. Sends the uids of all once the first list is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let is_open = |context: &Context, object: &DiskImage| {
        let ours = match &object.spec.node_name {
            Some(node) => *node == context.node_name,
            None => may_take(context, object),
        };
        ours && !informer::is_made(object.status.as_ref().map(|status| status.phase.as_str()))
    };
    let (local, remote) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(FETCHED_AT_ONCE)));
    let make = |context: Arc<Context>, object: DiskImage| {
        let places = if object.spec.source.url.is_empty() { local.clone() } else { remote.clone() };
        async move {
            let Ok(_place) = places.acquire().await else { return };
            make(&context, &object).await;
        }
    };
    informer::make_each(
        context,
        listed,
        is_open,
        make,
        |context, object| async move { remove(&context, &object).await },
    )
    .await;
}

/// Whether this machine makes an image that none has taken: the one that has what it is made from, or the pool's first one, which
/// says what is wrong when nobody has it.
fn may_take(context: &Context, object: &DiskImage) -> bool {
    let source = &object.spec.source;
    let key = Key { namespace: Key::of(object).namespace, name: source.virtual_machine.clone() };
    let has_upload = is_path_safe(&source.upload) && context.guests.upload_directory(&source.upload).exists();
    !context.is_member || has_upload || context.guests.uid(&key).is_some()
}

async fn remove(context: &Context, object: &DiskImage) -> Result<()> {
    let Some(uid) = object.metadata.uid.clone() else { return Ok(()) };
    // Here are no disks, and so no copy.
    if !context.data_dir.join("disks").exists() {
        return Ok(());
    }
    directories::remove(&context.guests.image_directory(&uid))?;
    directories::remove(&context.guests.fetch_directory(&uid))?;
    let layers = context.guests.layers().await?;
    let released = tokio::task::spawn_blocking(move || layers.release(&uid)).await;
    Ok(released.map_err(|_| Error::Timeout("releasing a disk image"))??)
}

/// Makes one image and tells how it went.
async fn make(context: &Arc<Context>, object: &DiskImage) {
    let key = Key::of(object);
    let generation = object.metadata.generation;
    let old = object.status.clone().unwrap_or_default();
    let objects: Api<DiskImage> = Api::namespaced(context.client.clone(), &key.namespace);
    let made = loop {
        match try_to_make(context, object).await {
            Err(Error::NotYet(why)) => tracing::debug!(image = key.name, why, "the disk image waits"),
            made => break made,
        }
        tokio::time::sleep(RETRY).await;
        match objects.get_opt(&key.name).await {
            Ok(Some(found)) if found.metadata.uid == object.metadata.uid => {}
            // Nobody wants it any more.
            Ok(_) => return,
            Err(error) => tracing::debug!(image = key.name, %error, "cannot look at the disk image"),
        }
    };
    let status = match made {
        Ok(made) => DiskImageStatus {
            phase: "Ready".into(),
            conditions: vec![status::ready(&old.conditions, true, "Made", "", generation)],
            ..made
        },
        Err(error) => {
            let message = chain(&error);
            tracing::warn!(image = key.name, error = message, "the disk image cannot be made");
            let conditions = vec![status::ready(&old.conditions, false, "Failed", &message, generation)];
            DiskImageStatus { phase: "Failed".into(), message, conditions, ..DiskImageStatus::default() }
        }
    };
    let patch = Patch::Merge(json!({"metadata": {"uid": object.metadata.uid}, "status": status}));
    if let Err(error) = objects.patch_status(&key.name, &PatchParams::default(), &patch).await {
        tracing::warn!(image = key.name, error = %chain(&error), "cannot write the disk image's status");
    }
}

async fn try_to_make(context: &Arc<Context>, object: &DiskImage) -> Result<DiskImageStatus> {
    let key = Key::of(object);
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let objects: Api<DiskImage> = Api::namespaced(context.client.clone(), &key.namespace);
    if object.spec.node_name.is_none() {
        let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "spec": {"nodeName": context.node_name}}));
        objects.patch(&key.name, &PatchParams::default(), &patch).await.map_err(Error::api("take the disk image"))?;
    }
    // What an interrupted attempt left.
    let layers = context.guests.layers().await?;
    let (store, owner) = (layers.clone(), uid.clone());
    let released = tokio::task::spawn_blocking(move || store.release(&owner)).await;
    released.map_err(|_| Error::Timeout("releasing a disk"))??;
    let source = &object.spec.source;
    match (source.upload.as_str(), source.virtual_machine.as_str(), source.url.as_str()) {
        (upload, "", "") if is_path_safe(upload) => {
            let directory = context.guests.upload_directory(upload);
            if !source.sha256.is_empty() || !source.sha512.is_empty() {
                let (sums, path) = (image_fetch::Sums::of(source), directory.join("disk"));
                let checked = tokio::task::spawn_blocking(move || sums.check_file(&path)).await;
                checked.map_err(|_| Error::Timeout("checking the upload"))??;
            }
            import(context, object, &directory, &uid).await
        }
        ("", machine, "") if is_path_safe(machine) => copy(context, object, machine, &uid).await,
        ("", "", url) if !url.is_empty() => {
            let directory = context.guests.fetch_directory(&uid);
            let fetched = image_fetch::fetch(context, object, &directory).await;
            let made = match fetched {
                Ok(bytes) => import(context, object, &directory, &uid).await.map(|made| (made, bytes)),
                Err(error) => Err(error),
            };
            directories::remove(&directory)?;
            let (made, fetched_bytes) = made?;
            Ok(DiskImageStatus { fetched_bytes, total_bytes: fetched_bytes, ..made })
        }
        _ => Err(Error::Invalid("spec.source: name one of upload, virtualMachine and url".into())),
    }
}

/// Takes in the `disk` of a directory, and `kernel` and `initrd` if they are there; the directory goes.
async fn import(context: &Context, object: &DiskImage, upload: &Path, uid: &str) -> Result<DiskImageStatus> {
    let source = &object.spec.source;
    let disk = upload.join("disk");
    let found = std::fs::symlink_metadata(&disk).map_err(Error::io("open upload", &disk))?;
    if !found.is_file() {
        return Err(Error::Invalid(format!("upload {} is no plain file", source.upload)));
    }
    let format = match source.format.as_str() {
        "" => None,
        "raw" => Some(Format::Raw),
        "qcow2" => Some(Format::Qcow2),
        other => return Err(Error::Invalid(format!("format {other:?} is not taken: raw or qcow2"))),
    };
    let layers = context.guests.layers().await?;
    let (id, part) = layers.scratch();
    let imported = tool::import(&disk, format, &part).await;
    let header = discard_on_error(&part, imported.map_err(Error::from))?;
    let bytes = header.virtual_bytes;
    let (store, layer, owner) = (layers, id.clone(), uid.to_owned());
    let adopted = tokio::task::spawn_blocking(move || store.adopt(&layer, bytes, &owner)).await;
    adopted.map_err(|_| Error::Timeout("keeping a disk image"))??;
    let kernel = keep_kernel(upload, &context.guests.image_directory(uid))?;
    if object.spec.boot == MachineBoot::Kernel && !kernel {
        return Err(Error::Invalid("spec.boot is Kernel, but there is no kernel with the disk".into()));
    }
    directories::remove(upload)?;
    let virtual_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(DiskImageStatus { virtual_bytes, layer: id, kernel, ..DiskImageStatus::default() })
}

fn discard_on_error<T>(part: &Path, result: Result<T>) -> Result<T> {
    if result.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(part);
    }
    result
}

/// Keeps kernel and RAM disk; whether there is a kernel. Guests' hypervisors read them with no rights of their own.
fn keep_kernel(from: &Path, to: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let mut has_kernel = false;
    for name in ["kernel", "initrd"] {
        let source: PathBuf = from.join(name);
        if !std::fs::symlink_metadata(&source).is_ok_and(|found| found.is_file()) {
            continue;
        }
        std::fs::create_dir_all(to).map_err(Error::io("create", to))?;
        let target = to.join(name);
        std::fs::copy(&source, &target).map_err(Error::io("copy", &source))?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o644))
            .map_err(Error::io("protect", &target))?;
        has_kernel |= name == "kernel";
    }
    Ok(has_kernel)
}

/// Copies a machine's disk: at one instant while it runs, or as it lies when it does not.
async fn copy(context: &Context, object: &DiskImage, machine: &str, uid: &str) -> Result<DiskImageStatus> {
    let key = Key { namespace: Key::of(object).namespace, name: machine.to_owned() };
    let missing = || Error::Invalid(format!("virtual machine {machine} not found on this machine"));
    let guest_uid = context.guests.uid(&key).ok_or_else(missing)?;
    let _lock = context.guests.lock_disks(vec![guest_uid.clone()]).await;
    // It may have moved while its disk was another's, and nobody here has that any more.
    if context.guests.uid(&key).as_deref() != Some(guest_uid.as_str()) {
        return Err(Error::Invalid("its disk moved to another machine, or went, meanwhile; ask for it anew".into()));
    }
    let layers = context.guests.layers().await?;
    let top = layers.owned_by(&guest_uid).pop().ok_or_else(missing)?;
    let bytes = layers.get(&top)?.virtual_bytes;
    let running = super::disks::running(context, &key, &guest_uid).await?;
    let id = match running {
        Some(guest) => {
            let (store, owner) = (layers.clone(), uid.to_owned());
            let made = tokio::task::spawn_blocking(move || {
                let id = store.create(None, Some(bytes), &owner)?;
                let file = store.chain(&id)?.swap_remove(0);
                Ok::<_, hypervisor::Error>((id, file))
            });
            let (id, file) = made.await.map_err(|_| Error::Timeout("making a disk"))??;
            let wanted = DiskCopy { name: ROOT_DISK.into(), target: file, ..DiskCopy::default() };
            if let Err(error) = guest.copy_disks(&[wanted], &watch::Sender::new((0, 0))).await {
                layers.release(uid)?;
                return Err(error.into());
            }
            id
        }
        None => {
            let (id, part) = layers.scratch();
            let flat = tool::flatten(&layers.chain(&top)?, bytes, &part).await;
            discard_on_error(&part, flat.map_err(Error::from))?;
            layers.adopt(&id, bytes, uid)?;
            id
        }
    };
    let kernel = inherit_kernel(context, &key, uid).await?;
    let virtual_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(DiskImageStatus { virtual_bytes, layer: id, kernel, ..DiskImageStatus::default() })
}

/// A copy boots with the kernel of the image that its machine was made from.
async fn inherit_kernel(context: &Context, key: &Key, uid: &str) -> Result<bool> {
    let machines: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    let machine = machines.get_opt(&key.name).await.map_err(Error::api("read the machine"))?;
    let images: Api<DiskImage> = Api::namespaced(context.client.clone(), &key.namespace);
    let Some(machine) = machine else { return Ok(false) };
    let image = images.get_opt(&machine.spec.image).await.map_err(Error::api("read the disk image"))?;
    match image.and_then(|image| image.metadata.uid) {
        Some(from) => keep_kernel(&context.guests.image_directory(&from), &context.guests.image_directory(uid)),
        None => Ok(false),
    }
}
