//! A guest moves: its disks are mirrored by NBD and its memory follows, over sockets that are handed to QEMU, so that it needs no
//! network of its own. While it is copied the guest runs; it stands still from the moment that all but the last pages are over.
//!
//! `Source:` QEMU, docs/devel/migration.rst, docs/interop/live-block-operations.rst

use std::os::fd::AsFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::guest::QemuGuest;
use crate::error::{Error, Result};
use crate::guest::{Incoming, Outgoing, Progress};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the last part may take, while the guest stands still.
const LAST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to go on after a transfer was called off.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// No bound on the speed. Units: bytes per second.
const BANDWIDTH_MAX: u64 = 1 << 50;
/// Name under which descriptors of memory are handed over.
const MEMORY: &str = "moving-memory";
const LISTENER: &str = "moving-disks";

/// The mirror of a disk: its job, and the node that it writes to.
fn mirror(disk: &str) -> String {
    format!("moving-{disk}")
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl QemuGuest {
    pub(super) async fn send_all(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<()> {
        self.call_off().await?;
        let sent = self.try_to_send(to, progress).await;
        if let Err(error) = sent {
            // What has all gone over is the other side's to run, whatever was heard of it here.
            if self.status().await? == "postmigrate" {
                return Ok(());
            }
            self.call_off().await?;
            return Err(error);
        }
        Ok(())
    }

    async fn try_to_send(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<()> {
        let speed = to.bandwidth.unwrap_or(BANDWIDTH_MAX).max(1);
        let mut mirrors = Vec::new();
        for (disk, socket) in &to.disks {
            let node = mirror(disk);
            self.qmp.execute_with("getfd", json!({"fdname": node}), socket.as_fd()).await?;
            self.qmp
                .execute(
                    "blockdev-add",
                    json!({"driver": "nbd", "node-name": node, "export": disk,
                        "server": {"type": "fd", "str": node}}),
                )
                .await?;
            let top = self.top_node(disk).await?;
            self.qmp
                .execute(
                    "blockdev-mirror",
                    json!({"job-id": node, "device": top, "target": node, "sync": "full",
                        "speed": speed.min(i64::MAX.unsigned_abs() / 2), "copy-mode": "write-blocking"}),
                )
                .await?;
            mirrors.push(node);
        }
        self.await_mirrors(&mirrors, progress).await?;
        let capabilities = json!({"capabilities": [
            {"capability": "auto-converge", "state": true},
            {"capability": "pause-before-switchover", "state": true}]});
        self.qmp.execute("migrate-set-capabilities", capabilities).await?;
        self.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": speed})).await?;
        self.qmp.execute_with("getfd", json!({"fdname": MEMORY}), to.memory.as_fd()).await?;
        self.qmp.execute("migrate", json!({"uri": format!("fd:{MEMORY}")})).await?;
        drop(to.memory);
        self.follow(&["pre-switchover"], None, progress).await?;
        // The guest stands still: what it wrote last goes over with the end of the mirrors.
        let stood_still = Instant::now();
        for node in &mirrors {
            self.qmp.execute("block-job-cancel", json!({"device": node})).await?;
        }
        self.await_no_jobs(&mirrors, stood_still).await?;
        for node in &mirrors {
            self.qmp.execute("blockdev-del", json!({"node-name": node})).await?;
        }
        self.qmp.execute("migrate-continue", json!({"state": "pre-switchover"})).await?;
        self.follow(&["completed"], Some(stood_still + LAST_TIMEOUT), progress).await
    }

    async fn jobs(&self) -> Result<Vec<Value>> {
        let answer = self.qmp.execute("query-block-jobs", json!({})).await?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    }

    /// Waits until the mirrors have everything and get each further write.
    async fn await_mirrors(&self, mirrors: &[String], progress: &watch::Sender<Progress>) -> Result<()> {
        loop {
            let jobs = self.jobs().await?;
            let ours: Vec<&Value> =
                jobs.iter().filter(|job| mirrors.iter().any(|node| job["device"] == node.as_str())).collect();
            if ours.len() < mirrors.len() {
                let message = "a disk could not be written on the other machine".to_owned();
                return Err(Error::Refused { command: "blockdev-mirror".into(), message });
            }
            progress.send_modify(|now| {
                now.disk_total = ours.iter().map(|job| bytes(&job["len"])).sum();
                now.disk_sent = ours.iter().map(|job| bytes(&job["offset"])).sum();
            });
            if ours.iter().all(|job| job["ready"] == true) {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn await_no_jobs(&self, mirrors: &[String], since: Instant) -> Result<()> {
        while self.jobs().await?.iter().any(|job| mirrors.iter().any(|node| job["device"] == node.as_str())) {
            if since.elapsed() > LAST_TIMEOUT {
                return Err(Error::Timeout("the end of a disk's copy".into()));
            }
            tokio::time::sleep(LOOK / 5).await;
        }
        Ok(())
    }

    /// Follows the transfer of memory until it is in one of these states.
    async fn follow(
        &self,
        until: &[&str],
        deadline: Option<Instant>,
        progress: &watch::Sender<Progress>,
    ) -> Result<()> {
        loop {
            let answer = self.qmp.execute("query-migrate", json!({})).await?;
            let (status, memory) = (answer["status"].as_str().unwrap_or_default(), &answer["ram"]);
            progress.send_modify(|now| {
                now.memory_total = bytes(&memory["total"]);
                now.memory_sent = bytes(&memory["transferred"]);
                now.memory_remaining = bytes(&memory["remaining"]);
                now.dirty_per_second = bytes(&memory["dirty-pages-rate"]).saturating_mul(bytes(&memory["page-size"]));
                now.throttle_percent = bytes(&answer["cpu-throttle-percentage"]);
                now.downtime_ms = bytes(&answer["downtime"]);
            });
            match status {
                "failed" | "cancelled" => {
                    let message = answer["error-desc"].as_str().unwrap_or("the transfer broke").to_owned();
                    return Err(Error::Refused { command: "migrate".into(), message });
                }
                found if until.contains(&found) => return Ok(()),
                _ if deadline.is_some_and(|deadline| Instant::now() > deadline) => {
                    return Err(Error::Timeout("the last part of the transfer".into()));
                }
                _ => tokio::time::sleep(if deadline.is_some() { LOOK / 10 } else { LOOK }).await,
            }
        }
    }

    /// Takes away what a transfer left that is over or is not wanted any more, and has the guest go on. A guest that was all sent stays
    /// as it is.
    pub(super) async fn call_off(&self) -> Result<()> {
        let answer = self.qmp.execute("query-migrate", json!({})).await?;
        let going = ["setup", "active", "pre-switchover", "device", "cancelling", "postcopy-active"];
        if answer["status"].as_str().is_some_and(|status| going.contains(&status)) {
            self.qmp.execute("migrate_cancel", json!({})).await?;
        }
        for job in self.jobs().await? {
            let name = job["device"].as_str().unwrap_or_default().to_owned();
            if name.starts_with("moving-") {
                // It may end by itself meanwhile.
                let _ = self.qmp.execute("block-job-cancel", json!({"device": name, "force": true})).await;
            }
        }
        let begun = Instant::now();
        loop {
            let status = self.status().await?;
            let jobs = self.jobs().await?;
            let busy = jobs.iter().any(|job| job["device"].as_str().is_some_and(|name| name.starts_with("moving-")));
            if !busy && !matches!(status.as_str(), "finish-migrate") {
                break;
            }
            if begun.elapsed() > RECOVERY_TIMEOUT {
                return Err(Error::Timeout("the end of a transfer".into()));
            }
            tokio::time::sleep(LOOK).await;
        }
        let nodes = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        for node in nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str()) {
            if node.starts_with("moving-") {
                self.qmp.execute("blockdev-del", json!({"node-name": node})).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn receive_all(&self, from: Incoming) -> Result<()> {
        self.qmp.execute_with("getfd", json!({"fdname": LISTENER}), from.disks.as_fd()).await?;
        let address = json!({"addr": {"type": "fd", "data": {"str": LISTENER}}});
        self.qmp.execute("nbd-server-start", address).await?;
        for disk in &from.names {
            let node = self.top_node(disk).await?;
            self.qmp
                .execute(
                    "block-export-add",
                    json!({"type": "nbd", "id": mirror(disk), "node-name": node, "name": disk, "writable": true}),
                )
                .await?;
        }
        self.qmp.execute_with("getfd", json!({"fdname": MEMORY}), from.memory.as_fd()).await?;
        self.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{MEMORY}")})).await.map(drop)
    }

    pub(super) async fn await_all(&self) -> Result<()> {
        while self.status().await? == "inmigrate" {
            tokio::time::sleep(LOOK / 10).await;
        }
        let answer = self.qmp.execute("query-migrate", json!({})).await?;
        if answer["status"] != "completed" {
            return Err(Error::Refused { command: "migrate-incoming".into(), message: "not all has come".into() });
        }
        self.qmp.execute("nbd-server-stop", json!({})).await.map(drop)
    }
}
