//! What is left of objects that were deleted while the daemon was down, and the end of everything.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, stream};

use crate::container::start;
use crate::context::Context;
use crate::error::{Result, chain};

/// Things cleared at once.
const AT_ONCE: usize = 16;

/// What pods own.
#[derive(Debug, Default)]
pub struct PodsListed {
    /// Runtime ids of their containers.
    pub containers: HashSet<String>,
    /// Their uids, which own sandboxes.
    pub uids: HashSet<String>,
}

/// Clears containers, namespaces, addresses, ports and directories whose owners are gone. `found` is what the runtime
/// had at start: younger things are not judged.
pub async fn collect(
    context: &Arc<Context>,
    found: HashSet<String>,
    containers: Vec<String>,
    pods: PodsListed,
    guests: &[String],
) {
    let mut live: HashSet<String> = containers.into_iter().collect();
    live.extend(pods.containers.iter().cloned());
    let orphans: Vec<String> = found.into_iter().filter(|id| !live.contains(id) && !is_known(context, id)).collect();
    clear(context, orphans).await;
    live.extend(pods.uids.iter().cloned());
    // What has come since the start lives too.
    live.extend(context.containers.lock().values().map(|h| h.id.clone()));
    live.extend(context.pods.lock().values().flat_map(|h| h.owned()));
    let guests = guests.iter().cloned().chain(context.guests.uids());
    live.extend(guests.flat_map(|uid| crate::guest::interfaces::owners(&uid)));
    match context.fabric.collect_garbage(&live).await {
        Ok(gone) if !gone.is_empty() => tracing::info!(count = gone.len(), "freed what nobody owns any more"),
        Ok(_) => {}
        Err(error) => tracing::warn!(error = %chain(&error), "cannot collect the network's garbage"),
    }
    let mut leftovers = names(&context.data_dir.join("containers"));
    leftovers.extend(names(&context.data_dir.join("pins")));
    leftovers.sort();
    leftovers.dedup();
    let leftovers = leftovers.into_iter().filter(|id| !live.contains(id));
    clear(context, leftovers.filter(|id| !is_known(context, id)).collect()).await;
    for uid in names(&context.data_dir.join("pods")).into_iter().filter(|uid| !live.contains(uid)) {
        crate::pod::sandbox::remove_directory(context, &uid).await;
    }
}

/// The owners of disks, if there are disks. What has come later is not judged.
pub async fn disk_owners(context: &Context) -> HashSet<String> {
    if !context.data_dir.join("disks").exists() {
        return HashSet::new();
    }
    match context.guests.layers().await {
        Ok(layers) => layers.owners(),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "cannot open the disks");
            HashSet::new()
        }
    }
}

/// Ends guests whose objects are gone, and clears their files, and disks of owners that were there at the start (`found`) and have no
/// object: `owners` are images, volumes and snapshots.
pub async fn collect_guests(context: &Arc<Context>, found: &HashSet<String>, guests: &[String], owners: Vec<String>) {
    let mut live: HashSet<String> = guests.iter().cloned().collect();
    live.extend(context.guests.uids());
    let mut strays = names(&context.data_dir.join("run").join("guests"));
    strays.extend(names(&context.data_dir.join("guests")).into_iter().filter(|name| !name.ends_with(".json")));
    for uid in strays.into_iter().filter(|uid| !live.contains(uid)) {
        tracing::info!(uid, "clearing a guest without an object");
        if let Err(error) = end_guest(context, &uid).await {
            tracing::warn!(uid, error = %chain(&error), "cannot clear a guest");
        }
    }
    if !context.data_dir.join("disks").exists() {
        return;
    }
    let more = |uid: &String| [crate::guest::root::rescue_owner(uid), crate::guest::revert::owner(uid)];
    let more: Vec<String> = live.iter().flat_map(more).collect();
    live.extend(more);
    live.extend(owners);
    for uid in names(&context.data_dir.join("disks").join("images")).into_iter().filter(|uid| !live.contains(uid)) {
        let _ = std::fs::remove_dir_all(context.guests.image_directory(&uid));
    }
    for uid in names(&context.data_dir.join("exports")).into_iter().filter(|uid| !live.contains(uid)) {
        let _ = std::fs::remove_dir_all(context.guests.export_directory(&uid));
    }
    for uid in names(&context.data_dir.join("fetched")).into_iter().filter(|uid| !live.contains(uid)) {
        let _ = std::fs::remove_dir_all(context.guests.fetch_directory(&uid));
    }
    let dead: Vec<String> = found.difference(&live).cloned().collect();
    match context.guests.layers().await {
        Ok(layers) => {
            let collected =
                tokio::task::spawn_blocking(move || dead.iter().try_for_each(|owner| layers.release(owner))).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(%error, "cannot collect the disks' garbage");
            }
        }
        Err(error) => tracing::warn!(error = %chain(&error), "cannot open the disks"),
    }
}

async fn end_guest(context: &Context, uid: &str) -> Result<()> {
    let run_dir = context.guests.run_dir(uid);
    hypervisor::qemu::driver::kill(&run_dir).await?;
    for directory in [run_dir, context.guests.directory(uid)] {
        crate::directories::remove(&directory)?;
    }
    Ok(context.guests.control_group(uid)?.remove()?)
}

fn is_known(context: &Context, id: &str) -> bool {
    context.containers.lock().values().any(|h| h.id == id)
        || context.pods.lock().values().any(|h| h.owned().iter().any(|o| o == id))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

async fn clear(context: &Arc<Context>, ids: Vec<String>) {
    let jobs = ids.into_iter().map(|id| async move {
        tracing::info!(id, "clearing a container without an object");
        start::end_run(context, &id).await;
        start::remove(context, &id).await;
    });
    stream::iter(jobs).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

/// Ends every container and takes away everything on this machine but images, volumes and objects.
pub async fn destroy_everything(context: &Arc<Context>) -> Result<()> {
    let mut ids: Vec<String> = context.runtime.list().await?.into_iter().map(|s| s.id).collect();
    ids.extend(names(&context.data_dir.join("containers")));
    ids.extend(names(&context.data_dir.join("pins")));
    ids.sort();
    ids.dedup();
    let jobs = ids.into_iter().map(|id| async move { start::end_run(context, &id).await });
    stream::iter(jobs).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    for uid in names(&context.data_dir.join("pods")) {
        crate::pod::sandbox::remove_directory(context, &uid).await;
    }
    Ok(context.fabric.destroy_all().await?)
}
