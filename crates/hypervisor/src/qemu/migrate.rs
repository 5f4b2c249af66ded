//! A guest moves: its disks are mirrored by NBD and its memory follows, over sockets that are handed to QEMU, so that it needs no
//! network of its own. While it is copied the guest runs; it stands still from the moment that all but the last pages are over.
//!
//! `Source:` QEMU, docs/devel/migration.rst, docs/interop/live-block-operations.rst

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::guest::{QemuGuest, refused};
use super::qmp::QmpEvent;
use crate::error::{Error, Result};
use crate::guest::{Incoming, Outgoing, Progress, Sent};

/// How often progress is looked at, where no event tells of it.
const LOOK: Duration = Duration::from_millis(50);
/// How long what needs no time of its own is waited for before it is looked at again.
const CLOSE_LOOK: Duration = Duration::from_millis(1);
/// How long the last part may take, while the guest stands still.
const LAST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to go on after a transfer was called off.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// No bound on the speed. How long the guest may stand still for the rest of its memory stays QEMU's own, 300 ms: with less it makes more
/// passes over the memory, and QEMU 7.2 under emulation then loses writes of the guest, which dies of it. Units: bytes per second.
const BANDWIDTH_MAX: u64 = 1 << 50;
/// What the guest writes meanwhile is copied after it was written here. If its writes waited for the other machine ("write-blocking"),
/// there would be less left when it stands still; but QEMU 7.2 corrupts its own memory when such a write fails, and the guest dies of
/// a migration that breaks.
const COPY_MODE: &str = "background";
/// How often all memory of a guest is gone through, and how long at most, before the rest is left for when it runs on the other machine.
/// Each page that is there by then is one that it need not wait for.
const PASSES_MAX: u64 = 2;
const PASSES_TIME_MAX: Duration = Duration::from_secs(60);
/// Name under which descriptors of memory are handed over.
const MEMORY: &str = "moving-memory";
const LISTENER: &str = "moving-disks";
/// The capability by which a guest can run with a part of its memory on the other machine.
const POST_COPY: &str = "postcopy-ram";

/// How a transfer of memory goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To its end, and it leaves the guest its speed.
    ByItself,
    /// It waits for the word when the guest stands still.
    Led {
        /// The guest may run on the other machine before all is there.
        post_copy: bool,
    },
}

/// States of a transfer of memory that is not over.
const GOING: [&str; 8] = [
    "setup",
    "active",
    "pre-switchover",
    "device",
    "cancelling",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover",
];

/// Whether the guest is to run on the other machine now, with the rest of its memory here. `begun`: as QEMU counts the passes that were begun.
/// Pure.
fn is_time_to_switch(begun: u64, elapsed: Duration) -> bool {
    begun > PASSES_MAX || elapsed > PASSES_TIME_MAX
}

/// Whether a guest that is found so when its transfer is called off goes on: it was stopped (`held`) for the transfer alone, and nobody has
/// paused it since (`ran`). Pure.
fn goes_on(status: &str, held: bool, ran: bool) -> bool {
    status == "paused" && held && ran
}

/// Whether a guest that is found so when its transfer is called off is to stand still: somebody has paused it (`paused`) while it stood still
/// for the transfer, and QEMU had it go on all the same. Pure.
fn stands_still(status: &str, paused: bool) -> bool {
    status == "running" && paused
}

/// The mirror of a disk: its job, and the node that it writes to.
fn mirror(disk: &str) -> String {
    format!("moving-{disk}")
}

/// Returns at the next event of these names, or after a while. What happened is asked for: who missed an event looks anew.
async fn woken(events: &mut broadcast::Receiver<QmpEvent>, names: &[&str], within: Duration) {
    let heard = async {
        while let Ok(event) = events.recv().await {
            if names.contains(&event.name.as_str()) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(within, heard).await;
}

/// Why a job ended, as it was told.
fn end_of_job(events: &mut broadcast::Receiver<QmpEvent>) -> String {
    loop {
        match events.try_recv() {
            Ok(event) if event.name == "BLOCK_JOB_COMPLETED" => {
                if let Some(why) = event.data["error"].as_str() {
                    return format!(": {why}");
                }
            }
            Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return String::new(),
        }
    }
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl QemuGuest {
    pub(super) async fn send_all(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<Sent> {
        self.call_off().await?;
        {
            let _turn = self.turning.lock().await;
            self.held.store(false, Ordering::Relaxed);
            self.paused.store(false, Ordering::Relaxed);
            self.ran.store(self.status().await? == "running", Ordering::Relaxed);
        }
        match self.try_to_send(to, progress).await {
            Ok(sent) => Ok(sent),
            Err(error) => {
                // What has all gone over is the other side's to run, whatever was heard of it here.
                if self.status().await? == "postmigrate" && self.transfer().await? == "completed" {
                    return Ok(Sent::All);
                }
                // Of what was not told nobody can have decided that it runs there.
                if self.is_waiting().await?
                    && let Err(left) = self.cancel_waiting().await
                {
                    tracing::warn!(error = %left, "a transfer that waits is not taken back yet");
                }
                self.call_off().await?;
                Err(error)
            }
        }
    }

    async fn try_to_send(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<Sent> {
        let speed = to.bandwidth.unwrap_or(BANDWIDTH_MAX).max(1);
        // The disks come first, all at once, and share what there is.
        let disk_speed =
            (speed / u64::try_from(to.disks.len()).unwrap_or(1).max(1)).clamp(1, i64::MAX.unsigned_abs() / 2);
        let mut events = self.qmp.events();
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
                        "speed": disk_speed, "copy-mode": COPY_MODE}),
                )
                .await?;
            mirrors.push(node);
        }
        self.await_mirrors(&mirrors, &mut events, progress).await?;
        self.set_way(Way::Led { post_copy: to.post_copy }).await?;
        // No bound is 0 for the one, and a large number for the other.
        let late_speed = to.bandwidth.unwrap_or(0).min(BANDWIDTH_MAX);
        let speeds = json!({"max-bandwidth": speed, "max-postcopy-bandwidth": late_speed});
        self.qmp.execute("migrate-set-parameters", speeds).await?;
        self.qmp.execute_with("getfd", json!({"fdname": MEMORY}), to.memory.as_fd()).await?;
        self.qmp.execute("migrate", json!({"uri": format!("fd:{MEMORY}")})).await?;
        drop(to.memory);
        let in_part = self.follow("pre-switchover", None, to.post_copy, &mut events, progress).await?;
        // The guest stands still: what it wrote last goes over with the end of the mirrors.
        let stood_still = Instant::now();
        progress.send_modify(|now| now.stands_still_since = Some(stood_still));
        for node in &mirrors {
            self.qmp.execute("block-job-cancel", json!({"device": node})).await?;
        }
        self.await_no_jobs(&mirrors, stood_still, &mut events).await?;
        if in_part {
            return Ok(Sent::Part);
        }
        let drained = Instant::now();
        self.qmp.execute("migrate-continue", json!({"state": "pre-switchover"})).await?;
        let deadline = Some(stood_still + LAST_TIMEOUT);
        tokio::try_join!(self.delete_mirrors(), self.follow("completed", deadline, false, &mut events, progress))?;
        // It is said to be so an instant before it is.
        while self.status().await? == "finish-migrate" {
            tokio::time::sleep(CLOSE_LOOK).await;
        }
        let drain = drained.duration_since(stood_still);
        tracing::debug!(?drain, memory = ?drained.elapsed(), "the last part of a guest is sent");
        Ok(Sent::All)
    }

    /// Gives the rest of a guest that waits for the word to run on the other machine.
    pub(super) async fn give_rest(&self, progress: &watch::Sender<Progress>) -> Result<()> {
        let mut events = self.qmp.events();
        self.qmp.execute("migrate-continue", json!({"state": "pre-switchover"})).await?;
        tokio::try_join!(self.delete_mirrors(), self.follow("completed", None, false, &mut events, progress)).map(drop)
    }

    /// Whether it stands still and waits for the word to run on the other machine with a part of its memory. It may have been decided
    /// that it does.
    async fn is_waiting(&self) -> Result<bool> {
        if self.transfer().await? != "pre-switchover" {
            return Ok(false);
        }
        let all = self.qmp.execute("query-migrate-capabilities", json!({})).await?;
        let mut on = all.as_array().into_iter().flatten().filter(|one| one["state"] == true);
        Ok(on.any(|one| one["capability"] == POST_COPY))
    }

    /// Whether the other machine runs it, or may by now, with or without all of its memory.
    pub(super) async fn is_given(&self) -> Result<bool> {
        let answer = self.qmp.execute("query-migrate", json!({})).await?;
        let has_begun = answer["status"].as_str().is_some_and(|status| status.starts_with("postcopy-"));
        Ok(has_begun || bytes(&answer["ram"]["postcopy-bytes"]) > 0 || self.is_waiting().await?)
    }

    /// Takes back one that waits. QEMU then does not have it go on by itself.
    async fn cancel_waiting(&self) -> Result<()> {
        self.qmp.execute("migrate_cancel", json!({})).await?;
        let begun = Instant::now();
        while self.status().await? == "finish-migrate" {
            if begun.elapsed() > RECOVERY_TIMEOUT {
                return Err(Error::Timeout("the end of a transfer".into()));
            }
            tokio::time::sleep(CLOSE_LOOK).await;
        }
        // It may have been called off while they wrote the last.
        self.cancel_mirrors().await?;
        while self.is_mirrored().await? {
            if begun.elapsed() > RECOVERY_TIMEOUT {
                return Err(Error::Timeout("the end of a disk's copy".into()));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.delete_mirrors().await
    }

    /// Stops its processors. Whoever calls it holds `turning`.
    pub(super) async fn stand_still(&self) -> Result<()> {
        self.simple("stop").await?;
        self.ran.store(false, Ordering::Relaxed);
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets it go on here, whatever was sent. Whoever calls it holds `turning`.
    pub(super) async fn go_on_here(&self) -> Result<()> {
        if self.is_waiting().await? {
            self.cancel_waiting().await?;
        }
        if self.is_given().await? {
            return Err(refused("cont", "the other machine runs the guest"));
        }
        self.simple("cont").await?;
        self.held.store(false, Ordering::Relaxed);
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Has a guest stand still and the rest of its memory left for when it runs on the other machine; whether that is so. It is not when QEMU
    /// was about to send all that was left.
    ///
    /// The guest is stopped first, so that QEMU never has it go on by itself: it does that when a transfer fails that it stopped the guest
    /// for, and by then the other machine may run it.
    async fn leave_rest(&self) -> Result<bool> {
        let _turn = self.turning.lock().await;
        self.held.store(true, Ordering::Relaxed);
        self.simple("stop").await?;
        // Otherwise QEMU had stopped it before.
        if self.status().await? != "paused" {
            return Ok(false);
        }
        self.simple("migrate-start-postcopy").await.map(|()| true)
    }

    /// How memory moves from now on.
    pub(super) async fn set_way(&self, way: Way) -> Result<()> {
        let (led, post_copy) = match way {
            Way::ByItself => (false, false),
            Way::Led { post_copy } => (true, post_copy),
        };
        self.set_capabilities(&["pause-before-switchover", "events"], led).await?;
        // A guest whose rest can follow is not slowed down.
        self.set_capabilities(&["auto-converge"], led && !post_copy).await?;
        self.set_capabilities(&[POST_COPY], post_copy).await
    }

    async fn set_capabilities(&self, names: &[&str], state: bool) -> Result<()> {
        let all: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": state})).collect();
        self.qmp.execute("migrate-set-capabilities", json!({"capabilities": all})).await.map(drop)
    }

    /// Whether it is on its way to another machine, or was all sent there.
    pub(super) async fn is_sending(&self) -> Result<bool> {
        Ok(self.status().await? == "postmigrate"
            || GOING.contains(&self.transfer().await?.as_str())
            || self.is_mirrored().await?)
    }

    /// Whether a disk of it is being copied to another machine.
    async fn is_mirrored(&self) -> Result<bool> {
        let is_ours = |job: &Value| job["device"].as_str().is_some_and(|name| name.starts_with("moving-"));
        Ok(self.jobs().await?.iter().any(is_ours))
    }

    /// How the last transfer of memory stands.
    async fn transfer(&self) -> Result<String> {
        let answer = self.qmp.execute("query-migrate", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    async fn jobs(&self) -> Result<Vec<Value>> {
        let answer = self.qmp.execute("query-block-jobs", json!({})).await?;
        Ok(answer.as_array().cloned().unwrap_or_default())
    }

    /// Waits until the mirrors have everything and get each further write.
    async fn await_mirrors(
        &self,
        mirrors: &[String],
        events: &mut broadcast::Receiver<QmpEvent>,
        progress: &watch::Sender<Progress>,
    ) -> Result<()> {
        // Those that tell why a job ended are kept for that.
        let mut ready = self.qmp.events();
        loop {
            let jobs = self.jobs().await?;
            let ours: Vec<&Value> =
                jobs.iter().filter(|job| mirrors.iter().any(|node| job["device"] == node.as_str())).collect();
            if ours.len() < mirrors.len() {
                let message = format!("a disk could not be written on the other machine{}", end_of_job(events));
                return Err(Error::Refused { command: "blockdev-mirror".into(), message });
            }
            progress.send_modify(|now| {
                now.disk_total = ours.iter().map(|job| bytes(&job["len"])).sum();
                now.disk_sent = ours.iter().map(|job| bytes(&job["offset"])).sum();
            });
            if ours.iter().all(|job| job["ready"] == true) {
                return Ok(());
            }
            woken(&mut ready, &["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"], LOOK).await;
        }
    }

    async fn await_no_jobs(
        &self,
        mirrors: &[String],
        since: Instant,
        events: &mut broadcast::Receiver<QmpEvent>,
    ) -> Result<()> {
        while self.jobs().await?.iter().any(|job| mirrors.iter().any(|node| job["device"] == node.as_str())) {
            if since.elapsed() > LAST_TIMEOUT {
                return Err(Error::Timeout("the end of a disk's copy".into()));
            }
            woken(events, &["JOB_STATUS_CHANGE"], LOOK).await;
        }
        Ok(())
    }

    /// Follows the transfer of memory until it is in this state; whether the rest was left for when the guest runs on the other machine, as
    /// it may with `post_copy`.
    async fn follow(
        &self,
        until: &str,
        deadline: Option<Instant>,
        post_copy: bool,
        events: &mut broadcast::Receiver<QmpEvent>,
        progress: &watch::Sender<Progress>,
    ) -> Result<bool> {
        let (begun, mut in_part) = (Instant::now(), false);
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
                "failed" | "cancelled" | "postcopy-paused" => {
                    let message = answer["error-desc"].as_str().unwrap_or("the transfer broke").to_owned();
                    return Err(Error::Refused { command: "migrate".into(), message });
                }
                found if found == until => return Ok(in_part),
                "active"
                    if post_copy
                        && !in_part
                        && is_time_to_switch(bytes(&memory["dirty-sync-count"]), begun.elapsed()) =>
                {
                    in_part = self.leave_rest().await?;
                }
                _ if deadline.is_some_and(|deadline| Instant::now() > deadline) => {
                    return Err(Error::Timeout("the last part of the transfer".into()));
                }
                _ => {}
            }
            woken(events, &["MIGRATION", "STOP"], LOOK).await;
        }
    }

    /// Takes away what a transfer left that is over or is not wanted any more, and has the guest go on. A guest that was sent, or of which
    /// a part was, stays as it is.
    pub(super) async fn call_off(&self) -> Result<()> {
        if self.is_given().await? {
            return Ok(());
        }
        if GOING.contains(&self.transfer().await?.as_str()) {
            self.qmp.execute("migrate_cancel", json!({})).await?;
        }
        self.cancel_mirrors().await?;
        let begun = Instant::now();
        loop {
            let is_mirrored = self.is_mirrored().await?;
            let turn = self.turning.lock().await;
            let status = self.status().await?;
            if !is_mirrored && status != "finish-migrate" {
                // One that stood still before looks as if it had been sent, and has no other way back; so does one that was about to be
                // sent in part. Of what ran before nothing is known to an agent that was not there, but to the life of the guest.
                if status == "postmigrate" && self.transfer().await? != "completed" {
                    self.go_on_here().await?;
                    if !self.ran.load(Ordering::Relaxed) {
                        self.stand_still().await?;
                    }
                } else if goes_on(&status, self.held.load(Ordering::Relaxed), self.ran.load(Ordering::Relaxed)) {
                    self.simple("cont").await?;
                } else if stands_still(&status, self.paused.load(Ordering::Relaxed)) {
                    self.stand_still().await?;
                }
                self.held.store(false, Ordering::Relaxed);
                break;
            }
            if begun.elapsed() > RECOVERY_TIMEOUT {
                return Err(Error::Timeout("the end of a transfer".into()));
            }
            drop(turn);
            tokio::time::sleep(LOOK).await;
        }
        self.delete_mirrors().await
    }

    /// Has the mirrors end as they are.
    async fn cancel_mirrors(&self) -> Result<()> {
        for job in self.jobs().await? {
            let name = job["device"].as_str().unwrap_or_default().to_owned();
            if name.starts_with("moving-") {
                // It may end by itself meanwhile.
                let _ = self.qmp.execute("block-job-cancel", json!({"device": name, "force": true})).await;
            }
        }
        Ok(())
    }

    async fn delete_mirrors(&self) -> Result<()> {
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
        self.set_capabilities(&["events"], true).await?;
        self.set_capabilities(&[POST_COPY], from.post_copy).await?;
        self.qmp.execute_with("getfd", json!({"fdname": MEMORY}), from.memory.as_fd()).await?;
        self.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{MEMORY}")})).await.map(drop)
    }

    /// How what comes stands, once it is loaded or has failed.
    async fn loaded(&self, events: &mut broadcast::Receiver<QmpEvent>) -> Result<String> {
        while self.status().await? == "inmigrate" {
            woken(events, &["MIGRATION"], LOOK).await;
        }
        self.transfer().await
    }

    pub(super) async fn await_all(&self) -> Result<()> {
        let mut events = self.qmp.events();
        loop {
            match self.loaded(&mut events).await?.as_str() {
                "completed" => break,
                // It can run, and waits for the rest.
                "active" | "postcopy-active" => woken(&mut events, &["MIGRATION"], LOOK).await,
                _ => return Err(not_all()),
            }
        }
        self.stop_taking_disks().await
    }

    pub(super) async fn await_enough(&self) -> Result<()> {
        match self.loaded(&mut self.qmp.events()).await?.as_str() {
            "completed" | "postcopy-active" => Ok(()),
            _ => Err(not_all()),
        }
    }

    pub(super) async fn stop_taking_disks(&self) -> Result<()> {
        let exports = self.qmp.execute("query-block-exports", json!({})).await?;
        match exports.as_array().is_some_and(|all| !all.is_empty()) {
            true => self.simple("nbd-server-stop").await,
            false => Ok(()),
        }
    }
}

fn not_all() -> Error {
    Error::Refused { command: "migrate-incoming".into(), message: "not all has come".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_left_after_so_many_passes_or_so_long() {
        assert!(!is_time_to_switch(1, Duration::ZERO));
        assert!(!is_time_to_switch(PASSES_MAX, PASSES_TIME_MAX));
        assert!(is_time_to_switch(PASSES_MAX + 1, Duration::ZERO));
        assert!(is_time_to_switch(1, PASSES_TIME_MAX + Duration::from_secs(1)));
    }

    #[test]
    fn only_who_was_stopped_for_the_transfer_alone_goes_on_without_it() {
        assert!(goes_on("paused", true, true));
        assert!(!goes_on("paused", true, false), "somebody paused it");
        assert!(!goes_on("paused", false, true), "it was not stopped for the transfer");
        assert!(!goes_on("running", true, true));
        assert!(!goes_on("finish-migrate", true, true));
    }

    #[test]
    fn who_was_paused_while_it_stood_still_for_its_transfer_does_not_go_on_by_itself() {
        assert!(stands_still("running", true));
        assert!(!stands_still("running", false), "nobody paused it");
        assert!(!stands_still("paused", true));
        assert!(!stands_still("shutdown", true));
    }
}
