//! Starts guests, and finds them again by their run directories.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::guest::QemuGuest;
use super::launch::{LOG_FILE, Plan};
use super::process::Process;
use super::{PROGRAM, arguments, faults, probe, qmp, still};
use crate::error::{Error, Result};
use crate::guest::{Acceleration, Guest, GuestConfig, Hypervisor, Start};
use crate::sleep;

/// How long the launcher may take; a machine under load takes seconds to unshare.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// The last lines of the hypervisor's log that go into an error.
const LOG_LINES: usize = 5;

/// How to run QEMU.
#[derive(Clone, Debug)]
pub struct Options {
    /// Program that, called with `guest`, runs [`super::launch::main`].
    pub launcher: PathBuf,
    /// How guests run; `None` finds it out by a probe guest.
    pub acceleration: Option<Acceleration>,
}

/// QEMU on this machine.
pub struct Qemu {
    launcher: PathBuf,
    program: PathBuf,
    acceleration: Acceleration,
}

/// Where a program is, also in directories that only root's path has.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/bin".into(), "/usr/local/bin".into(), "/usr/libexec".into()]);
    directories.iter().map(|directory| directory.join(name)).find(|file| file.is_file())
}

impl Qemu {
    /// Opens the driver.
    ///
    /// Errors: [`Error::NotSupported`] when QEMU is not installed.
    pub async fn open(options: Options) -> Result<Arc<Self>> {
        let program = find_program(PROGRAM)
            .ok_or_else(|| Error::NotSupported(format!("{PROGRAM} is not installed (Debian: qemu-system-x86)")))?;
        let acceleration = match options.acceleration {
            Some(given) => given,
            None => probe::run().await.acceleration,
        };
        Ok(Arc::new(Self { launcher: options.launcher, program, acceleration }))
    }

    async fn launch(&self, plan: &Plan) -> Result<()> {
        let text = serde_json::to_vec(plan).map_err(|error| Error::Invalid(error.to_string()))?;
        let mut command = Command::new(&self.launcher);
        command.arg("guest").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::io("run", &self.launcher))?;
        let mut stdin = child.stdin.take().ok_or(Error::Gone)?;
        // A launcher that ended early says why on standard error.
        let _ = stdin.write_all(&text).await;
        drop(stdin);
        let ended = tokio::time::timeout(LAUNCH_TIMEOUT, child.wait_with_output()).await;
        let ended = ended.map_err(|_| Error::Timeout("the launch of a guest".into()))?;
        let output = ended.map_err(Error::io("wait for", &self.launcher))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Start(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    async fn bring_up(&self, config: &GuestConfig, start: &Start) -> Result<Arc<QemuGuest>> {
        let mut plan = arguments::plan(config, self.program.clone(), self.acceleration, start);
        if *start == (Start::Receive { post_copy: true }) {
            faults::check().map_err(Error::NotSupported)?;
            plan.late_memory = faults::need_capability();
        }
        self.launch(&plan).await?;
        let told = |error: Error| match error {
            Error::Gone | Error::Io { .. } => Error::Start(log_end(&config.run_dir)),
            other => other,
        };
        let guest = connect(&config.run_dir).await.and_then(|guest| guest.ok_or(Error::Gone)).map_err(told)?;
        if let Start::Resume(memory) = start {
            guest.await_incoming().await.map_err(told)?;
            wake(&guest, memory).await.map_err(|error| match error {
                Error::Gone => Error::Start(log_end(&config.run_dir)),
                other => other,
            })?;
        }
        Ok(guest)
    }
}

/// Lets a guest go on that has read its memory. With its first instruction its disks may be ahead of that: nobody may wake it from there
/// again then, and everybody may until then.
async fn wake(guest: &QemuGuest, memory: &Path) -> Result<()> {
    let went = match sleep::begin(memory).await {
        Ok(()) => guest.simple("cont").await,
        Err(error) => Err(error),
    };
    let Err(error) = went else {
        if let Err(error) = sleep::forget(memory).await {
            // By its name nobody wakes from it; only its room is not there.
            tracing::warn!(%error, "the memory from which a guest was woken is not removed yet");
        }
        return Ok(());
    };
    guest.kill().await?;
    // Without an answer it may have run before it was ended.
    let has_run = !matches!(error, Error::Refused { .. } | Error::Io { .. });
    let settled = if has_run { sleep::forget(memory).await } else { sleep::call_off(memory).await };
    if let Err(error) = settled {
        tracing::warn!(%error, has_run, "the memory of a guest that was not woken is not put in order");
    }
    Err(error)
}

/// What the hypervisor of a run directory printed last.
pub fn log_end(run_dir: &Path) -> String {
    let text = std::fs::read_to_string(run_dir.join(LOG_FILE)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("; ");
    if end.is_empty() { "it ended without a word".to_owned() } else { end }
}

/// Reaches the guest of a run directory; `None` when its process is gone.
async fn connect(run_dir: &Path) -> Result<Option<Arc<QemuGuest>>> {
    let Some(process) = Process::of(run_dir) else { return Ok(None) };
    match qmp::connect(run_dir, "qmp.sock").await {
        Ok(stream) => QemuGuest::open(stream, process, run_dir).await.map(Some),
        Err(_) if !process.is_alive() => Ok(None),
        Err(source) => Err(Error::Io { action: "reach the guest of", path: run_dir.to_owned(), source }),
    }
}

/// Whether the guest of a run directory has a process, whether or not it talks.
pub fn is_running(run_dir: &Path) -> bool {
    Process::of(run_dir).is_some()
}

/// Ends the guest of a run directory, whether or not it talks; returns when its process is gone.
pub async fn kill(run_dir: &Path) -> Result<()> {
    match Process::of(run_dir) {
        Some(process) => process.kill().await,
        None => Ok(()),
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn acceleration(&self) -> Acceleration {
        self.acceleration
    }

    async fn start(&self, config: &GuestConfig, start: Start) -> Result<Arc<dyn Guest>> {
        let run_dir = &config.run_dir;
        if Process::of(run_dir).is_some() {
            return Err(Error::Conflict(format!("guest {} is running", config.id)));
        }
        std::fs::create_dir_all(run_dir).map_err(Error::io("create", run_dir))?;
        std::fs::set_permissions(run_dir, std::fs::Permissions::from_mode(0o700))
            .map_err(Error::io("protect", run_dir))?;
        match self.bring_up(config, &start).await {
            Ok(guest) => Ok(guest),
            Err(error) => {
                kill(run_dir).await?;
                Err(error)
            }
        }
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Arc<dyn Guest>>> {
        let found = connect(run_dir).await?;
        if found.is_some() {
            still::resume_after_end(run_dir);
        }
        Ok(found.map(|guest| guest as Arc<dyn Guest>))
    }
}
