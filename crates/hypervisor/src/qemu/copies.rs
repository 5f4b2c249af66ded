//! Copies of the disks of a running guest, all as they are at one instant, whole or what changed since a mark. A mark is a bitmap
//! in the hypervisor's memory: it lives as long as the guest's process, whoever drives it.
//!
//! `Source:` QEMU, docs/interop/bitmaps.rst, docs/interop/live-block-operations.rst

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::arguments::node_name;
use super::guest::QemuGuest;
use crate::error::{Error, Result};
use crate::guest::{Disk, DiskCopy};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a copy may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long jobs that were called off may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// What one bit of a mark stands for: a cluster of a layer. Units: bytes.
pub(super) const GRANULARITY: u32 = 64 << 10;
/// What the jobs and targets of copies begin with.
const PREFIX: &str = "copy-";

/// Names the job and the target of the copy of a disk.
fn job(disk: &str) -> String {
    format!("{PREFIX}{}", node_name(disk, 0))
}

impl QemuGuest {
    pub(super) async fn copy_all(&self, copies: &[DiskCopy], progress: &watch::Sender<(u64, u64)>) -> Result<bool> {
        self.end_copies().await?;
        if copies.is_empty() {
            return Ok(false);
        }
        let copied = self.try_to_copy(copies, progress).await;
        let ended = self.end_copies().await;
        if copied.is_err() {
            for copy in copies {
                let Some(mark) = &copy.mark else { continue };
                if let Ok(node) = self.top_node(&copy.name).await {
                    // A mark of a copy that was not made would have a hole before it; it may never have been set.
                    let _ = self.qmp.execute("block-dirty-bitmap-remove", json!({"node": node, "name": mark})).await;
                }
            }
        }
        let still = copied?;
        ended.map(|()| still)
    }

    async fn try_to_copy(&self, copies: &[DiskCopy], progress: &watch::Sender<(u64, u64)>) -> Result<bool> {
        let mut actions = Vec::new();
        for copy in copies {
            let target = job(&copy.name);
            let top = self.top_node(&copy.name).await?;
            let disk = Disk { name: copy.name.clone(), ..Disk::default() };
            self.open_layer(&disk, &target, &copy.target, None, true).await?;
            if let Some(mark) = &copy.mark {
                let data = json!({"node": top, "name": mark, "granularity": GRANULARITY, "persistent": false});
                actions.push(json!({"type": "block-dirty-bitmap-add", "data": data}));
            }
            // A job that is over stays until its end was read.
            let mut data = json!({"job-id": target, "device": top, "target": target, "sync": "full", "compress": true,
                "auto-dismiss": false});
            if let Some(since) = &copy.since {
                data["sync"] = "bitmap".into();
                data["bitmap"] = since.as_str().into();
                // The mark stays as it is: if this copy is lost, the next one may begin there again.
                data["bitmap-mode"] = "never".into();
            }
            actions.push(json!({"type": "blockdev-backup", "data": data}));
        }
        let begun = self.qmp.execute("transaction", json!({"actions": actions}));
        let (_, still) = self.while_still(begun).await?;
        self.await_copies(copies.len(), progress).await.map(|()| still)
    }

    async fn copy_jobs(&self) -> Result<Vec<Value>> {
        let answer = self.qmp.execute("query-jobs", json!({})).await?;
        let ours = |one: &&Value| one["id"].as_str().is_some_and(|id| id.starts_with(PREFIX));
        Ok(answer.as_array().into_iter().flatten().filter(ours).cloned().collect())
    }

    async fn await_copies(&self, count: usize, progress: &watch::Sender<(u64, u64)>) -> Result<()> {
        let deadline = Instant::now() + COPY_TIMEOUT;
        loop {
            let jobs = self.copy_jobs().await?;
            let sum = |field: &str| jobs.iter().filter_map(|one| one[field].as_u64()).sum::<u64>();
            progress.send_replace((sum("current-progress"), sum("total-progress")));
            if let Some(message) = jobs.iter().find_map(|one| one["error"].as_str()) {
                return Err(Error::Refused { command: "copy".into(), message: message.to_owned() });
            }
            let done = jobs.iter().filter(|one| one["status"] == "concluded").count();
            match () {
                () if jobs.len() < count => return Err(Error::Conflict("a copy was called off".into())),
                () if done == count => return Ok(()),
                () if Instant::now() > deadline => return Err(Error::Timeout("the copy of a disk".into())),
                () => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Ends the jobs of copies that are over or were left behind, and closes what they wrote to.
    async fn end_copies(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let jobs = self.copy_jobs().await?;
            if jobs.is_empty() {
                break;
            }
            if begun.elapsed() > END_TIMEOUT {
                return Err(Error::Timeout("the end of a disk's copy".into()));
            }
            for one in &jobs {
                let over = one["status"] == "concluded";
                let command = if over { "job-dismiss" } else { "job-cancel" };
                // It may end by itself meanwhile.
                let _ = self.qmp.execute(command, json!({"id": one["id"]})).await;
                if !over {
                    tokio::time::sleep(LOOK / 5).await;
                }
            }
        }
        let answer = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        let names = answer.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str());
        let disks: Vec<&str> = names
            .filter(|name| name.starts_with(PREFIX))
            .filter_map(|name| name.rsplit_once('.').map(|(disk, _)| disk))
            .collect();
        for disk in disks.into_iter().collect::<std::collections::BTreeSet<_>>() {
            self.close_disk(disk).await?;
        }
        Ok(())
    }
}
