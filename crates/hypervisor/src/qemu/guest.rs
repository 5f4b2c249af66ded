//! One guest over QMP. Keeps nothing that must survive: what it needs to know it asks.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{broadcast, watch};

use super::arguments::backend_path;
use super::process::Process;
use super::qmp::{self, Qmp, QmpEvent};
use crate::error::{Error, Result};
use crate::guest::{
    Disk, DiskCopy, DiskLimits, Guest, GuestEvent, Incoming, MemoryStatistics, Outgoing, Progress, RunState,
};

/// Events that a slow listener may fall behind; it looks anew then.
const EVENTS_KEPT: usize = 64;
/// How often the progress of a transfer of memory is looked at.
const TRANSFER_LOOK: Duration = Duration::from_millis(20);
/// How long a transfer of memory to or from a file may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// No bound on the speed of such a transfer. Units: bytes per second.
const BANDWIDTH_MAX: u64 = 1 << 50;
/// How long the console may take no input.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A guest.
pub(super) struct QemuGuest {
    pub(super) qmp: Qmp,
    process: Process,
    run_dir: PathBuf,
    events: broadcast::Sender<GuestEvent>,
    console: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
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
        let translator = tokio::spawn(translate(qmp.events(), events.clone()));
        let console = tokio::sync::Mutex::default();
        Ok(Arc::new(Self { qmp, process, run_dir: run_dir.to_owned(), events, console, translator }))
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

    async fn simple(&self, command: &str) -> Result<()> {
        self.qmp.execute(command, json!({})).await.map(drop)
    }

    async fn write_memory(&self, file: &File) -> Result<()> {
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

/// From QEMU's events to ours.
async fn translate(mut from: broadcast::Receiver<QmpEvent>, to: broadcast::Sender<GuestEvent>) {
    loop {
        let event = match from.recv().await {
            Ok(QmpEvent { name, data }) => match name.as_str() {
                "SHUTDOWN" | "STOP" | "RESUME" | "GUEST_PANICKED" | "BLOCK_IO_ERROR" => GuestEvent::Changed,
                "RESET" => GuestEvent::Restarted,
                "BALLOON_CHANGE" => GuestEvent::Memory(data["actual"].as_u64().unwrap_or(0)),
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
            "inmigrate" => RunState::Receiving,
            "paused" | "finish-migrate" | "save-vm" | "suspended" => RunState::Paused,
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
        self.simple("system_reset").await
    }

    async fn pause(&self) -> Result<()> {
        self.simple("stop").await
    }

    async fn resume(&self) -> Result<()> {
        self.simple("cont").await
    }

    async fn suspend(&self, path: &Path) -> Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(Error::io("create", path))?;
        self.pause().await?;
        let written = self.write_memory(&file).await.and_then(|()| file.sync_all().map_err(Error::io("sync", path)));
        if let Err(error) = written {
            // It goes on as if nothing had been asked.
            let _ = std::fs::remove_file(path);
            self.resume().await?;
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

    async fn set_memory(&self, bytes: u64) -> Result<()> {
        self.qmp.execute("balloon", json!({"value": bytes})).await.map(drop)
    }

    async fn memory(&self) -> Result<MemoryStatistics> {
        let actual = self.qmp.execute("query-balloon", json!({})).await?;
        let path = json!({"path": "/machine/peripheral/balloon", "property": "guest-stats"});
        let told = self.qmp.execute("qom-get", path).await?;
        // The largest number means that the guest did not say.
        let figure = |name: &str| told["stats"][name].as_u64().filter(|bytes| *bytes != u64::MAX);
        Ok(MemoryStatistics {
            actual_bytes: actual["actual"].as_u64().unwrap_or(0),
            total_bytes: figure("stat-total-memory"),
            free_bytes: figure("stat-free-memory"),
            available_bytes: figure("stat-available-memory"),
        })
    }

    async fn attach_disk(&self, disk: &Disk) -> Result<()> {
        self.plug_disk(disk).await
    }

    async fn detach_disk(&self, name: &str) -> Result<()> {
        self.unplug_disk(name).await
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

    async fn snapshot_disks(&self, new_tops: &[(String, PathBuf)]) -> Result<()> {
        self.put_on_top(new_tops).await
    }

    async fn copy_disks(&self, copies: &[DiskCopy], progress: &watch::Sender<(u64, u64)>) -> Result<()> {
        self.copy_all(copies, progress).await
    }

    async fn marks(&self, name: &str) -> Result<Vec<String>> {
        self.marks_of(name).await
    }

    async fn forget_mark(&self, name: &str, mark: &str) -> Result<()> {
        let node = self.top_node(name).await?;
        self.qmp.execute("block-dirty-bitmap-remove", json!({"node": node, "name": mark})).await.map(drop)
    }

    async fn send(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<()> {
        self.send_all(to, progress).await
    }

    async fn forget_send(&self) -> Result<()> {
        self.call_off().await
    }

    async fn receive(&self, from: Incoming) -> Result<()> {
        self.receive_all(from).await
    }

    async fn received(&self) -> Result<()> {
        self.await_all().await
    }

    async fn type_on_console(&self, bytes: &[u8]) -> Result<()> {
        let mut console = self.console.lock().await;
        if console.is_none() {
            let stream = qmp::connect(&self.run_dir, "console.sock").await;
            let (mut reader, writer) = stream.map_err(Error::io("reach the console of", &self.run_dir))?.into_split();
            // What it says is read from the log; here it is only drained, so that the guest is never held up.
            tokio::spawn(async move {
                let mut buffer = [0u8; 4096];
                while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
            });
            *console = Some(writer);
        }
        let Some(writer) = console.as_mut() else { return Err(Error::Gone) };
        match tokio::time::timeout(CONSOLE_TIMEOUT, writer.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                *console = None;
                Err(Error::Io { action: "write to the console of", path: self.run_dir.clone(), source })
            }
            Err(_) => Err(Error::Timeout("the guest's console".into())),
        }
    }
}
