//! `Backup` objects: copies of all disks of a machine at one instant, made while it runs, whole or what was written since a mark. They
//! lie in the data directory's `exports` until somebody has carried them away and deletes the object.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::Backup;
use api::snapshot::{BackupDisk, BackupStatus};
use hypervisor::disk::{create, tool};
use hypervisor::{DiskCopy, Guest};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::freeze::is_final;
use super::snapshots::{here, lock_machine, moved, sources};
use super::{Source, blocking, running};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain, is_not_found};
use crate::guest::start::ROOT_DISK;
use crate::informer;

/// Pause before what cannot be yet is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(500);
/// Marks that a disk keeps; each costs its guest's hypervisor a bit per 64 KiB, and a little at every write.
const MARKS_MAX: usize = 4;

/// Follows `Backup` objects until the agent is dropped. Sends the uids of all once the first list is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let is_open = |context: &Context, object: &Backup| {
        let elsewhere = object.spec.node_name.as_ref().is_some_and(|node| *node != context.node_name);
        !elsewhere && !informer::is_made(object.status.as_ref().map(|status| status.phase.as_str()))
    };
    let make = |context, object| async move { make(&context, &object).await };
    informer::make_each(context, listed, is_open, make, |context, object| async move { remove(&context, &object) })
        .await;
}

fn remove(context: &Context, object: &Backup) -> Result<()> {
    let Some(uid) = &object.metadata.uid else { return Ok(()) };
    let directory = context.guests.export_directory(uid);
    crate::directories::remove(&directory)
}

/// One backup that is being made.
struct Work<'a> {
    context: &'a Arc<Context>,
    key: Key,
    object: &'a Backup,
    uid: String,
}

async fn make(context: &Arc<Context>, object: &Backup) {
    let work = Work { context, key: Key::of(object), object, uid: object.metadata.uid.clone().unwrap_or_default() };
    let mut told = String::new();
    loop {
        match work.is_wanted().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => tracing::debug!(backup = work.key.name, error = %chain(&error), "cannot look at the backup"),
        }
        let (status, done) = tokio::select! {
            copied = work.copy() => match copied {
                Ok(Some(status)) => (status, true),
                // It waited here for disks that have moved since; no other machine takes it up.
                Ok(None) if !told.is_empty() => {
                    (BackupStatus { phase: "Failed".into(), message: chain(&moved()), ..Default::default() }, true)
                }
                // Another machine's.
                Ok(None) => return,
                Err(error) => {
                    let done = !matches!(error, Error::NotYet(_) | Error::Api { .. }) || is_final(&error);
                    let phase = if done { "Failed" } else { "Pending" };
                    (BackupStatus { phase: phase.into(), message: chain(&error), ..Default::default() }, done)
                }
            },
            () = work.until_unwanted() => {
                work.call_off().await;
                break;
            }
        };
        if status.phase == "Failed"
            && let Err(error) = remove(context, object)
        {
            tracing::warn!(backup = work.key.name, error = %chain(&error), "what was copied stays until the backup goes");
        }
        if done || told != status.message {
            told.clone_from(&status.message);
            let mut value = serde_json::to_value(&status).unwrap_or_default();
            // An empty one is left out, and would leave the last one standing.
            value["message"] = status.message.as_str().into();
            match work.report(value).await {
                Ok(()) if done => break,
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(backup = work.key.name, error = %chain(&error), "cannot tell of the backup");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    if matches!(work.is_wanted().await, Ok(false))
        && let Err(error) = remove(context, object)
    {
        tracing::warn!(backup = work.key.name, error = %chain(&error), "cannot remove the backup");
    }
}

impl Work<'_> {
    fn objects(&self) -> Api<Backup> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    async fn is_wanted(&self) -> Result<bool> {
        let found = self.objects().get_opt(&self.key.name).await.map_err(Error::api("read the backup"))?;
        Ok(found.is_some_and(|found| found.metadata.uid == self.object.metadata.uid))
    }

    /// Ends a copy that nobody waits for any more.
    async fn call_off(&self) {
        let name = self.object.spec.virtual_machine.clone();
        let place = Key { namespace: self.key.namespace.clone(), name };
        let Some(machine) = self.context.guests.uid(&place) else { return };
        // Nobody else's copy is ended: whoever makes one has the lock.
        let Ok((_locks, _)) = lock_machine(self.context, &machine).await else { return };
        let Some(guest) = self.context.guests.guest(&place) else { return };
        if let Err(error) = guest.copy_disks(&[], &watch::Sender::new((0, 0))).await {
            tracing::warn!(backup = self.key.name, error = %chain(&error), "a copy goes on that nobody wants");
        }
    }

    /// Returns when somebody deleted the object.
    async fn until_unwanted(&self) {
        while self.is_wanted().await.unwrap_or(true) {
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn report(&self, status: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(Error::api("write the backup's status")(error)),
        }
    }

    /// Copies all disks; `None` when they are another machine's.
    async fn copy(&self) -> Result<Option<BackupStatus>> {
        let name = &self.object.spec.virtual_machine;
        let Some(machine) = here(self.context, &self.key, name).await? else { return Ok(None) };
        let ours = Patch::Merge(json!({"metadata": {"uid": self.uid}, "spec": {"nodeName": self.context.node_name}}));
        let taken = self.objects().patch(&self.key.name, &PatchParams::default(), &ours).await;
        taken.map_err(Error::api("take the backup"))?;
        let (_locks, plugged) = lock_machine(self.context, &machine).await?;
        let place = Key { namespace: self.key.namespace.clone(), name: name.clone() };
        if self.context.guests.uid(&place).as_deref() != Some(machine.as_str()) {
            return Err(moved());
        }
        let guest = running(self.context, &place, &machine).await?;
        let sources = sources(self.context, &self.key, &machine, &plugged).await?;
        let names: Vec<String> =
            std::iter::once(ROOT_DISK.to_owned()).chain(plugged.into_iter().map(|one| one.volume)).collect();
        let directory = self.context.guests.export_directory(&self.uid);
        empty(&directory)?;
        let taken_at = Timestamp::now();
        let (disks, mark, quiesced) = match guest {
            Some(guest) => self.copy_running(&guest, &sources, &names, taken_at).await?,
            None => (self.copy_stopped(&sources, &names).await?, String::new(), false),
        };
        Ok(Some(BackupStatus {
            phase: "Ready".into(),
            total_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
            copied_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
            taken_at: Some(Time(taken_at)),
            mark,
            quiesced,
            disks,
            message: String::new(),
        }))
    }

    async fn size(&self, source: &Source) -> Result<u64> {
        let layers = self.context.guests.layers().await?;
        let top = layers.owned_by(&source.owner).pop();
        let top = top.ok_or_else(|| Error::NotYet(format!("the disk of {} is missing", source.owner)))?;
        Ok(layers.get(&top)?.virtual_bytes.max(source.least_bytes))
    }

    async fn copy_running(
        &self,
        guest: &Arc<dyn Guest>,
        sources: &[Source],
        names: &[String],
        taken_at: Timestamp,
    ) -> Result<(Vec<BackupDisk>, String, bool)> {
        // Marks are forgotten in the order of their names.
        let mark = format!("nuee-{:015}-{}", taken_at.as_millisecond(), self.uid);
        let since = self.object.spec.since.as_str();
        let (mut copies, mut disks) = (Vec::new(), Vec::new());
        for (index, (source, name)) in sources.iter().zip(names).enumerate() {
            let bytes = self.size(source).await?;
            let target = self.context.guests.export_directory(&self.uid).join(format!("{index}.qcow2"));
            let file = target.clone();
            blocking(move || create::create_layer(&file, bytes)).await?;
            let marks = self.forget_old_marks(guest, &source.disk).await?;
            let incremental = !since.is_empty() && marks.iter().any(|mark| mark == since);
            let reason = match (since.is_empty(), incremental) {
                (false, false) => {
                    "nobody knows what was written since the earlier backup: the machine was started anew, or there were many backups"
                }
                _ => "",
            };
            copies.push(DiskCopy {
                name: source.disk.clone(),
                target,
                since: incremental.then(|| since.to_owned()),
                mark: Some(mark.clone()),
            });
            let size_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            disks.push(BackupDisk { name: name.clone(), size_bytes, incremental, reason: reason.to_owned() });
        }
        let (progress, seen) = watch::channel((0, 0));
        let quiesced = tokio::select! {
            copied = guest.copy_disks(&copies, &progress) => copied?,
            never = self.tell(seen) => match never {},
        };
        for copy in &copies {
            std::fs::File::open(&copy.target)
                .and_then(|file| file.sync_all())
                .map_err(Error::io("sync", &copy.target))?;
        }
        Ok((disks, mark, quiesced))
    }

    /// Makes room for a new mark; those that stay.
    async fn forget_old_marks(&self, guest: &Arc<dyn Guest>, disk: &str) -> Result<Vec<String>> {
        let mut marks = guest.marks(disk).await?;
        marks.sort();
        while marks.len() >= MARKS_MAX {
            guest.forget_mark(disk, &marks.remove(0)).await?;
        }
        Ok(marks)
    }

    async fn copy_stopped(&self, sources: &[Source], names: &[String]) -> Result<Vec<BackupDisk>> {
        let layers = self.context.guests.layers().await?;
        let mut disks = Vec::new();
        for (index, (source, name)) in sources.iter().zip(names).enumerate() {
            let top = layers.owned_by(&source.owner).pop();
            let top = top.ok_or_else(|| Error::NotYet(format!("the disk of {name} is missing")))?;
            let bytes = layers.get(&top)?.virtual_bytes;
            let target = self.context.guests.export_directory(&self.uid).join(format!("{index}.qcow2"));
            tool::flatten(&layers.chain(&top)?, bytes, &target).await?;
            std::fs::File::open(&target).and_then(|file| file.sync_all()).map_err(Error::io("sync", &target))?;
            let reason = if self.object.spec.since.is_empty() { "" } else { "the machine does not run" };
            let size_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            disks.push(BackupDisk { name: name.clone(), size_bytes, incremental: false, reason: reason.into() });
        }
        Ok(disks)
    }

    /// Reports progress for ever.
    async fn tell(&self, seen: watch::Receiver<(u64, u64)>) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(REPORT);
        loop {
            ticks.tick().await;
            let (copied, total) = *seen.borrow();
            let status = json!({"phase": "Copying", "message": "", "copiedBytes": copied, "totalBytes": total});
            if let Err(error) = self.report(status).await {
                tracing::debug!(backup = self.key.name, error = %chain(&error), "cannot tell how far it is");
            }
        }
    }
}

/// Makes an empty directory.
fn empty(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    crate::directories::remove(directory)?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(Error::io("create", directory))
}
