//! One guest over QMP. Keeps nothing that must survive: what it needs to know it asks.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};

use super::arguments::backend_path;
use super::migrate::Way;
use super::process::Process;
use super::qmp::{self, Qmp, QmpEvent};
use super::still;
use crate::error::{Error, Result};
use crate::guest::{
    Disk, DiskCopy, DiskLimits, Guest, GuestEvent, Incoming, Interface, MemoryStatistics, Outgoing, Progress, RunState,
    Sent, unfinished,
};
use crate::sleep;

/// Events that a slow listener may fall behind; it looks anew then.
const EVENTS_KEPT: usize = 64;
/// How often the progress of a transfer of memory is looked at.
const TRANSFER_LOOK: Duration = Duration::from_millis(20);
/// How long a transfer of memory to or from a file may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// No bound on the speed of such a transfer. Units: bytes per second.
const BANDWIDTH_MAX: u64 = 1 << 50;

/// A guest.
pub(super) struct QemuGuest {
    pub(super) qmp: Qmp,
    process: Process,
    pub(super) run_dir: PathBuf,
    /// Held by who speaks to the guest's agent.
    pub(super) agent: tokio::sync::Mutex<()>,
    /// Held by who has its memory written, to a file or to another machine: QEMU knows one transfer at a time.
    transfers: tokio::sync::Mutex<()>,
    /// It ran when the last transfer to another machine began, or was let go on or paused since, as far as this process knows.
    pub(super) ran: AtomicBool,
    /// It was stopped for a transfer, before QEMU would stop it.
    pub(super) held: AtomicBool,
    /// It was paused since the last transfer to another machine began. QEMU does not keep that in mind for a guest that stands still for
    /// its last part, and has it go on when that fails.
    pub(super) paused: AtomicBool,
    /// Held by who says whether it is to run. QEMU is asked and told in two steps, between which nobody else is to come.
    pub(super) turning: tokio::sync::Mutex<()>,
    events: broadcast::Sender<GuestEvent>,
    translator: tokio::task::JoinHandle<()>,
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        self.translator.abort();
    }
}

impl QemuGuest {
    pub(super) async fn open(stream: UnixStream, process: Process, run_dir: &Path) -> Result<Arc<Self>> {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let gone = events.clone();
        let qmp = Qmp::open(stream, move || {
            let _ = gone.send(GuestEvent::Gone);
        })
        .await?;
        let translator = tokio::spawn(translate(qmp.events(), events.clone(), run_dir.to_owned()));
        let (agent, transfers, ran, held, paused, turning) = Default::default();
        let run_dir = run_dir.to_owned();
        Ok(Arc::new(Self { qmp, process, run_dir, agent, transfers, ran, held, paused, turning, events, translator }))
    }

    /// Waits until the memory that it was started with is there.
    pub(super) async fn await_incoming(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + TRANSFER_TIMEOUT;
        while self.status().await? == "inmigrate" {
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Timeout("reading the guest's memory".into()));
            }
            tokio::time::sleep(TRANSFER_LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn status(&self) -> Result<String> {
        let answer = self.qmp.execute("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    pub(super) async fn simple(&self, command: &str) -> Result<()> {
        self.qmp.execute(command, json!({})).await.map(drop)
    }

    async fn write_memory(&self, file: &File) -> Result<()> {
        // What an earlier migration set stays set: nobody would tell QEMU to go on, and a file is as fast as it is.
        self.set_way(Way::ByItself).await?;
        self.qmp.execute_with("getfd", json!({"fdname": "memory"}), file.as_fd()).await?;
        self.qmp.execute("migrate-set-parameters", json!({"max-bandwidth": BANDWIDTH_MAX})).await?;
        self.qmp.execute("migrate", json!({"uri": "fd:memory"})).await?;
        let deadline = tokio::time::Instant::now() + TRANSFER_TIMEOUT;
        loop {
            let answer = self.qmp.execute("query-migrate", json!({})).await?;
            match answer["status"].as_str().unwrap_or_default() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    let message = answer["error-desc"].as_str().unwrap_or("the memory could not be written").to_owned();
                    return Err(Error::Refused { command: "migrate".into(), message });
                }
                _ if tokio::time::Instant::now() > deadline => {
                    self.simple("migrate_cancel").await?;
                    return Err(Error::Timeout("writing the guest's memory".into()));
                }
                _ => tokio::time::sleep(TRANSFER_LOOK).await,
            }
        }
    }
}

pub(super) fn refused(command: &str, why: &str) -> Error {
    Error::Refused { command: command.to_owned(), message: why.to_owned() }
}

/// From QEMU's events to ours.
async fn translate(mut from: broadcast::Receiver<QmpEvent>, to: broadcast::Sender<GuestEvent>, run_dir: PathBuf) {
    loop {
        let event = match from.recv().await {
            Ok(QmpEvent { name, .. }) => match name.as_str() {
                "SHUTDOWN" | "STOP" | "RESUME" | "GUEST_PANICKED" | "BLOCK_IO_ERROR" => GuestEvent::Changed,
                "RESET" => {
                    still::forget(&run_dir);
                    GuestEvent::Restarted
                }
                "BALLOON_CHANGE" | "MEMORY_DEVICE_SIZE_CHANGE" => GuestEvent::Memory,
                _ => continue,
            },
            Err(broadcast::error::RecvError::Lagged(_)) => GuestEvent::Changed,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        // Nobody may be listening.
        let _ = to.send(event);
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn pid(&self) -> u32 {
        u32::try_from(self.process.pid).unwrap_or(0)
    }

    fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.events.subscribe()
    }

    async fn state(&self) -> Result<RunState> {
        Ok(match self.status().await?.as_str() {
            "postmigrate" => RunState::Sent,
            "finish-migrate" if self.is_given().await? => RunState::Sent,
            "inmigrate" => RunState::Receiving,
            // The last one has not begun to run, and is not about to.
            "paused" | "finish-migrate" | "save-vm" | "suspended" | "prelaunch" => RunState::Paused,
            "shutdown" => RunState::Off,
            "guest-panicked" | "internal-error" => RunState::Panicked,
            "io-error" => RunState::OutOfSpace,
            _ => RunState::Running,
        })
    }

    async fn power_button(&self) -> Result<()> {
        self.simple("system_powerdown").await
    }

    async fn reset(&self) -> Result<()> {
        let why = "the guest is being sent, or was sent, to another machine";
        let Ok(_transfer) = self.transfers.try_lock() else { return Err(refused("system_reset", why)) };
        // QEMU would not tell any more that it was sent.
        if self.is_sending().await? {
            return Err(refused("system_reset", why));
        }
        self.simple("system_reset").await
    }

    async fn pause(&self) -> Result<()> {
        let _turn = self.turning.lock().await;
        self.stand_still().await
    }

    async fn resume(&self) -> Result<()> {
        let _turn = self.turning.lock().await;
        // It may run on the other machine by now.
        if self.state().await? == RunState::Sent {
            return Err(refused("cont", "the guest was sent to another machine"));
        }
        // It stands still for its last part: QEMU refuses to let it go on, or would have it run again when that fails, whoever has it by then.
        // Whoever calls the transfer off has it go on.
        let is_last = self.status().await? == "finish-migrate";
        if is_last || self.held.load(Ordering::Relaxed) && self.is_sending().await? {
            self.held.store(true, Ordering::Relaxed);
            self.ran.store(true, Ordering::Relaxed);
            self.paused.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.simple("cont").await?;
        self.ran.store(true, Ordering::Relaxed);
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn take_back(&self) -> Result<()> {
        let _turn = self.turning.lock().await;
        self.go_on_here().await
    }

    async fn suspend(&self, path: &Path) -> Result<()> {
        let Ok(_transfer) = self.transfers.try_lock() else {
            return Err(refused("suspend", "the guest is being sent to another machine"));
        };
        // Nobody has it hold still meanwhile: it would do so for ever after.
        let _turn = self.agent.lock().await;
        self.must_not_hold_still("suspend")?;
        if self.is_sending().await? {
            return Err(refused("suspend", "the guest is being sent, or was sent, to another machine"));
        }
        let part = unfinished(path);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = file.map_err(Error::io("create", &part))?;
        self.pause().await?;
        if matches!(self.state().await?, RunState::Off | RunState::Panicked) {
            // From such memory nothing goes on.
            let _ = sleep::tidy(path).await;
            return Err(refused("suspend", "the guest has ended"));
        }
        let written = async move {
            self.write_memory(&file).await?;
            sleep::finish(file, path).await
        };
        if let Err(error) = written.await {
            // It goes on as if nothing had been asked.
            let _ = sleep::forget(path).await;
            // What was sent was sent to that file alone.
            self.take_back().await?;
            return Err(error);
        }
        self.kill().await
    }

    async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }

    async fn set_cpus(&self, count: u32) -> Result<u32> {
        let answer = self.qmp.execute("query-hotpluggable-cpus", json!({})).await?;
        let slots = answer.as_array().cloned().unwrap_or_default();
        let mut present =
            u32::try_from(slots.iter().filter(|slot| slot.get("qom-path").is_some()).count()).unwrap_or(0);
        // The list runs from the last slot to the first.
        for slot in slots.iter().rev().filter(|slot| slot.get("qom-path").is_none()) {
            if present >= count {
                break;
            }
            let mut device = slot["props"].clone();
            device["driver"] = slot["type"].clone();
            device["id"] = Value::from(format!("cpu{present}"));
            self.qmp.execute("device_add", device).await?;
            present += 1;
        }
        Ok(present)
    }

    async fn plug_memory(&self, bytes: u64) -> Result<()> {
        self.plug(bytes).await
    }

    async fn set_memory(&self, bytes: u64) -> Result<()> {
        self.balloon(bytes).await
    }

    async fn memory(&self) -> Result<MemoryStatistics> {
        self.statistics().await
    }

    async fn attach_disk(&self, disk: &Disk) -> Result<()> {
        self.plug_disk(disk).await
    }

    async fn detach_disk(&self, name: &str) -> Result<()> {
        self.unplug_disk(name).await
    }

    async fn attach_interface(&self, interface: &Interface) -> Result<()> {
        self.plug_nic(interface).await
    }

    async fn detach_interface(&self, slot: u8) -> Result<()> {
        self.unplug_nic(slot).await
    }

    async fn interfaces(&self) -> Result<Vec<u8>> {
        self.nic_slots().await
    }

    async fn grow_disk(&self, name: &str, bytes: u64) -> Result<()> {
        let node = self.top_node(name).await?;
        self.qmp.execute("block_resize", json!({"node-name": node, "size": bytes})).await.map(drop)
    }

    async fn disks(&self) -> Result<Vec<String>> {
        self.disk_names().await
    }

    async fn limit_disk(&self, name: &str, limits: DiskLimits) -> Result<()> {
        // A bound for reads or writes alone excludes one for both, so all are named.
        let bounds = json!({"id": backend_path(name), "bps": limits.bytes, "bps_rd": 0, "bps_wr": 0,
            "iops": limits.operations, "iops_rd": 0, "iops_wr": 0});
        self.qmp.execute("block_set_io_throttle", bounds).await.map(drop)
    }

    async fn snapshot_disks(&self, new_tops: &[(String, PathBuf)]) -> Result<bool> {
        self.put_on_top(new_tops).await
    }

    async fn copy_disks(&self, copies: &[DiskCopy], progress: &watch::Sender<(u64, u64)>) -> Result<bool> {
        self.copy_all(copies, progress).await
    }

    async fn marks(&self, name: &str) -> Result<Vec<String>> {
        self.marks_of(name).await
    }

    async fn forget_mark(&self, name: &str, mark: &str) -> Result<()> {
        let node = self.top_node(name).await?;
        self.qmp.execute("block-dirty-bitmap-remove", json!({"node": node, "name": mark})).await.map(drop)
    }

    async fn send(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<Sent> {
        let Ok(_transfer) = self.transfers.try_lock() else {
            return Err(refused("migrate", "the guest's memory is being written"));
        };
        self.must_not_hold_still("migrate")?;
        let sent = self.send_all(to, progress).await;
        if sent.is_err()
            && let Err(error) = self.call_off().await
        {
            tracing::debug!(%error, "what is left of a transfer is not called off yet");
        }
        // In this order: once the sender knows, the other machine ends what takes the disks in.
        sent
    }

    async fn send_rest(&self, progress: &watch::Sender<Progress>) -> Result<()> {
        let Ok(_transfer) = self.transfers.try_lock() else {
            return Err(refused("migrate-continue", "the guest's memory is being written"));
        };
        self.give_rest(progress).await
    }

    async fn forget_send(&self) -> Result<()> {
        // What is written to a file is not given up for a transfer that never began.
        let _transfer = self.transfers.lock().await;
        self.call_off().await
    }

    async fn receive(&self, from: Incoming) -> Result<()> {
        self.receive_all(from).await
    }

    async fn received(&self) -> Result<()> {
        self.await_all().await
    }

    async fn close_disks(&self) -> Result<()> {
        self.stop_taking_disks().await
    }

    async fn can_run(&self) -> Result<()> {
        self.await_enough().await
    }

    async fn console(&self) -> Result<UnixStream> {
        qmp::connect(&self.run_dir, "console.sock").await.map_err(Error::io("reach the console of", &self.run_dir))
    }
}
