//! One Nuée on this machine: its data directory, the lock that only one daemon can hold, and what it tells other processes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Where Nuée keeps everything when nothing else is said.
pub const DEFAULT_DATA_DIRECTORY: &str = "/var/lib/nuee";
/// Where the Docker socket is also found when the data directory is the default one.
pub const DEFAULT_SOCKET: &str = "/run/nuee/docker.sock";
/// How long the lock may be held by processes that only ask who holds it.
const ASKING: Duration = Duration::from_secs(5);
/// Time between two attempts to take it from them.
const LOOK: Duration = Duration::from_millis(1);
/// Group whose members may use Nuée without being root.
pub const GROUP: &str = "nuee";

/// A data directory.
#[derive(Clone, Debug)]
pub struct Instance {
    directory: PathBuf,
}

/// What a running daemon tells other processes, as JSON in `status.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The daemon's process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Whether it answers and its node is Ready.
    pub ready: bool,
    /// When it started.
    pub started_at: String,
    /// Milliseconds from its start to ready; 0 before.
    pub ready_after_ms: u64,
    /// Where clients find it.
    pub endpoints: Endpoints,
}

/// Where clients find a daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Endpoints {
    /// For `DOCKER_HOST`; empty on a machine that has joined a pool.
    pub docker: String,
    /// URL of the Kubernetes API.
    pub kubernetes: String,
    /// For `KUBECONFIG`; empty on a machine that has joined a pool.
    pub kubeconfig: String,
    /// Host and port of the image registry, when it is served.
    pub registry: Option<String>,
}

impl Instance {
    /// The instance that lives in this directory, which need not exist yet.
    pub fn new(directory: &Path) -> Result<Self> {
        Ok(Self { directory: std::path::absolute(directory).context("the data directory's path is unusable")? })
    }

    /// Its data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path inside the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether this is the machine's default instance.
    pub fn is_default(&self) -> bool {
        self.directory == Path::new(DEFAULT_DATA_DIRECTORY)
    }

    /// Eight hexadecimal digits that tell this instance's cgroups from another's: FNV-1a of the path.
    pub fn id(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        let bytes = self.directory.as_os_str().as_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("{hash:08x}")
    }

    /// Makes the directories that every daemon needs. The data directory is closed to other users but for passing through, so that
    /// members of the group reach the socket.
    pub fn create(&self) -> Result<()> {
        for name in ["", "pki", "store", "images", "containers", "pods", "volumes", "network", "run"] {
            let path = self.path(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            let mode = if name.is_empty() { 0o711 } else { 0o700 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        }
        Ok(())
    }

    /// Takes the lock that one daemon holds for its life.
    ///
    /// `Errors:` another daemon holds it.
    pub fn lock(&self) -> Result<Flock<File>> {
        let mut file = self.open_lock()?;
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut held) => {
                    held.set_len(0)?;
                    held.rewind()?;
                    write!(held, "{}", std::process::id())?;
                    return Ok(held);
                }
                Err((returned, _)) => file = returned,
            }
            // Whoever only asks who runs holds it for an instant, and longer on a busy machine; a daemon says who it is.
            let holder = match self.daemon_pid() {
                Some(pid) => pid.to_string(),
                None if begun.elapsed() > ASKING => "unknown".to_owned(),
                None => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            bail!("a Nuée is already running on {} (pid {holder})", self.directory.display())
        }
    }

    fn open_lock(&self) -> Result<File> {
        let path = self.path("nuee.pid");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o644)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }

    /// The running daemon's process; `None` when none runs.
    pub fn daemon_pid(&self) -> Option<i32> {
        let file = File::open(self.path("nuee.pid")).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_free) => None,
            Err((mut file, _)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).ok()?;
                text.trim().parse().ok()
            }
        }
    }

    /// Publishes the daemon's state; readers never see half of it.
    pub fn write_state(&self, state: &State) -> Result<()> {
        let temporary = self.path("status.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(state)?)?;
        fs::rename(&temporary, self.path("status.json"))?;
        Ok(())
    }

    /// What the running daemon says; `None` when none runs or it has not said anything yet.
    pub fn read_state(&self) -> Option<State> {
        let pid = self.daemon_pid()?;
        let state: State = serde_json::from_slice(&fs::read(self.path("status.json")).ok()?).ok()?;
        (i32::try_from(state.pid).ok()? == pid).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_daemon_holds_a_data_directory() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let instance = Instance::new(directory.path())?;
        instance.create()?;
        assert_eq!(instance.daemon_pid(), None);
        let held = instance.lock()?;
        assert_eq!(instance.daemon_pid(), i32::try_from(std::process::id()).ok());
        assert!(instance.lock().is_err());
        drop(held);
        assert_eq!(instance.daemon_pid(), None);
        Ok(())
    }

    #[test]
    fn who_asks_who_runs_keeps_nobody_from_starting() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let instance = Instance::new(directory.path())?;
        instance.create()?;
        // What `daemon_pid` does, by somebody who is slow.
        let asking = Flock::lock(instance.open_lock()?, FlockArg::LockShared).map_err(|(_, error)| error)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                drop(asking);
            });
            instance.lock().map(drop)
        })
    }

    #[test]
    fn two_directories_have_two_names() -> Result<()> {
        assert_ne!(Instance::new(Path::new("/a"))?.id(), Instance::new(Path::new("/b"))?.id());
        Ok(())
    }
}
