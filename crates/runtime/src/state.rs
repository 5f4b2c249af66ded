//! What is known about a container: the files that its shim writes, read without the shim's help.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Largest state file that is read.
const STATE_FILE_MAX_BYTES: u64 = 1 << 20;
/// Exit code of a container whose end nobody saw.
pub(crate) const EXIT_CODE_LOST: i32 = 137;

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerStatus {
    /// Its shim is at work on it.
    Creating,
    /// Its process waits for [`crate::Runtime::start`].
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It ended.
    Stopped,
}

/// How and when a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Whether the kernel's OOM killer struck in its control group.
    pub out_of_memory: bool,
    /// When; nanoseconds since the Unix epoch.
    pub finished_at_ns: i64,
}

impl From<ExitRecord> for node::ExitStatus {
    fn from(record: ExitRecord) -> Self {
        node::ExitStatus { code: record.code, out_of_memory: record.out_of_memory }
    }
}

/// One container as found on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub status: ContainerStatus,
    /// Process id of its main process on the host; 0 when it has none.
    pub pid: u32,
    /// How it ended; `None` while it has not.
    pub exit: Option<ExitRecord>,
    /// When it was created; nanoseconds since the Unix epoch, 0 when unknown.
    pub created_at_ns: i64,
    /// When it was started; nanoseconds since the Unix epoch, 0 when it was not.
    pub started_at_ns: i64,
}

/// `state.json`, rewritten by the shim at each step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ShimState {
    pub shim_pid: u32,
    pub shim_start_ticks: u64,
    pub pid: u32,
    pub pid_start_ticks: u64,
    pub created_at_ns: i64,
    pub started_at_ns: i64,
}

/// The files of one container's shim.
#[derive(Clone, Debug)]
pub(crate) struct ShimDir(pub PathBuf);

impl ShimDir {
    pub fn config(&self) -> PathBuf {
        self.0.join("shim.json")
    }
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
    /// There when the container ended before an attached client had read everything.
    pub fn unread(&self) -> PathBuf {
        self.0.join("unread")
    }
    pub fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }
}

/// Reads a JSON file; `None` when it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { action: "open", path: path.to_path_buf(), source }),
    };
    // One read, as its length is known.
    let length = file.metadata().map_or(0, |metadata| metadata.len().min(STATE_FILE_MAX_BYTES));
    let mut text = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(STATE_FILE_MAX_BYTES).read_to_end(&mut text).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map(Some).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// Reads what a shim wrote. A file that does not hold it is as one that is not there: who was without power before it had reached the
/// disk finds it empty.
pub(crate) fn read_written<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_json(path) {
        Err(Error::Json { path, source }) => {
            tracing::warn!(path = %path.display(), error = %source, "a shim's file cannot be read");
            Ok(None)
        }
        other => other,
    }
}

/// Writes a JSON file so that a reader sees the old or the new one; durable before it returns when `durable`.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let text = serde_json::to_vec(value).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(&text).map_err(Error::io("write", &temporary))?;
    if durable {
        file.sync_all().map_err(Error::io("sync", &temporary))?;
    }
    std::fs::rename(&temporary, path).map_err(Error::io("rename", path))
}

/// Now; nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
