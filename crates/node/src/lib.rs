//! What a dialect may ask of one machine directly: logs, exec, attach, consoles of guests, port-forward, signals, figures, files. The agent
//! implements it in-process; a proxy to another machine's agent implements it in a cluster. Everything that is *state*
//! goes through objects instead. Must never know a vendor's wire format.
//!
//! [`remote`] carries the same contract over a connection to another machine. [`patience`] gives up what the machine itself does not answer.

pub mod patience;
pub mod remote;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Which running thing is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Workload {
    /// One container of a pod, by the pod's namespace, name and the container's name.
    PodContainer {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The container's name in the pod.
        container: String,
    },
    /// A `Container` object, by namespace and object name (the 64-digit id).
    Container {
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A virtual machine, by namespace and object name. It has a log and can be attached to: both are its serial console.
    VirtualMachine {
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
}

/// Which of a process' output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputStream {
    /// Standard output (and everything, on a terminal).
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it was written.
    pub stream: OutputStream,
    /// The bytes, at most 64 KiB.
    pub data: Bytes,
}

/// A line of a log, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When the line was read from the container; nanoseconds since the Unix epoch.
    pub timestamp_ns: i64,
    /// Where it was written.
    pub stream: OutputStream,
    /// The text, with its line feed when the line was complete.
    pub data: Bytes,
}

/// What part of a log is wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogOptions {
    /// Go on as lines come, until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Only lines at or after this instant; nanoseconds since the Unix epoch.
    pub since_ns: Option<i64>,
    /// Only lines before this instant; nanoseconds since the Unix epoch.
    pub until_ns: Option<i64>,
    /// The log of the run before this one (pods).
    pub previous: bool,
    /// Leave out standard output.
    pub without_stdout: bool,
    /// Leave out standard error.
    pub without_stderr: bool,
}

/// A process to run in a container that runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal.
    pub terminal: bool,
    /// Keep its standard input open for the session.
    pub stdin: bool,
    /// Environment, `NAME=value`, on top of the container's own.
    pub environment: Vec<String>,
    /// Working directory; empty means the container's own.
    pub working_directory: String,
    /// `user[:group]`; empty means the container's own.
    pub user: String,
    /// Groups, names or numbers, that a `user` has besides its own. Without one the process has those of the container.
    #[serde(default)]
    pub groups: Vec<String>,
    /// All capabilities.
    pub privileged: bool,
    /// First size of the terminal.
    pub size: Option<TerminalSize>,
}

/// Size of a terminal. Units: character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Whether the kernel's OOM killer struck.
    pub out_of_memory: bool,
}

/// A live connection to a process. Dropping it detaches; an exec'd process whose session is dropped goes on.
pub struct Session {
    /// Standard input; `None` when it was not asked for. Shut it down to send end-of-file.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Output as it comes; ends when the process has ended and all was read.
    pub output: Pin<Box<dyn Stream<Item = Output> + Send>>,
    /// Send a size here to change the terminal.
    pub resize: mpsc::Sender<TerminalSize>,
    /// Resolves when the process ends (for attach: the container's main process).
    pub exit: BoxFuture<'static, Result<ExitStatus>>,
    /// Process id on the host once started; 0 when unknown.
    pub pid: u32,
}

/// Where and what to attach to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AttachOptions {
    /// Connect standard input.
    pub stdin: bool,
    /// First replay what was logged so far.
    pub replay_logs: bool,
    /// The container does not run yet: wait for its start and miss nothing of it.
    pub wait_for_start: bool,
}

/// Figures of a running container. Units are in the names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Processor time since the start.
    pub cpu_ns: u64,
    /// Part of it in the kernel.
    pub cpu_kernel_ns: u64,
    /// Part of it in user space.
    pub cpu_user_ns: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// All memory charged, with page cache.
    pub memory_bytes: u64,
    /// Inactive file cache, which tools subtract.
    pub memory_inactive_file_bytes: u64,
    /// Limit; `u64::MAX` when none.
    pub memory_limit_bytes: u64,
    /// Number of tasks.
    pub pids: u64,
    /// Limit of tasks; 0 when none.
    pub pids_limit: u64,
    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
    /// Per interface name: bytes and packets in, bytes and packets out.
    pub network: BTreeMap<String, NetworkStatistics>,
}

/// Counters of one network interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkStatistics {
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
}

/// One row of a process table: the columns of `ps -ef`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessTable {
    /// Column titles.
    pub titles: Vec<String>,
    /// One row per process.
    pub processes: Vec<Vec<String>>,
}

/// What a path in a container is (docker cp).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PathStatistics {
    /// Base name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// `st_mode` as in stat(2).
    pub mode: u32,
    /// Modification time, nanoseconds since the Unix epoch.
    pub modified_ns: i64,
    /// Target of a symbolic link; empty otherwise.
    pub link_target: String,
}

/// A change of a container's file system against its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: FileChangeKind,
}

/// Kind of a [`FileChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileChangeKind {
    /// Content or metadata changed.
    Modified,
    /// New.
    Added,
    /// Gone.
    Deleted,
}

/// Bytes in pieces, such as a tar stream.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;
/// Log lines as they come.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogLine>> + Send>>;

/// A connection in both directions, such as a forwarded port.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What went wrong on the machine.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// No such workload, or path in it.
    #[error("{0}")]
    NotFound(String),
    /// The workload is in the wrong state ("container is not running").
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// What may not be changed ("mounted volume is marked read-only").
    #[error("{0}")]
    Forbidden(String),
    /// Not possible on this machine.
    #[error("{0}")]
    NotSupported(String),
    /// The program to run does not exist (exit code 127) or cannot be run (126).
    #[error("{message}")]
    CannotStart {
        /// The exit code that a shell would give.
        code: i32,
        /// What a user reads.
        message: String,
    },
    /// The machine cannot be reached, or a part of it does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// Result of a call to a machine.
pub type Result<T> = std::result::Result<T, Error>;

/// One machine, as the dialects see it.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Reads a log.
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream>;
    /// Runs one more process in a container.
    async fn exec(&self, workload: &Workload, request: ExecRequest) -> Result<Session>;
    /// Connects to a container's main process.
    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session>;
    /// Changes the size of the main process' terminal.
    async fn resize(&self, workload: &Workload, size: TerminalSize) -> Result<()>;
    /// Sends a signal to the main process.
    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()>;
    /// Connects to a TCP port inside the workload's network namespace.
    async fn port_forward(&self, workload: &Workload, port: u16) -> Result<Box<dyn Duplex>>;
    /// Reads figures.
    async fn statistics(&self, workload: &Workload) -> Result<Statistics>;
    /// Lists processes; `arguments` are those of ps(1), empty for `-ef`.
    async fn processes(&self, workload: &Workload, arguments: &str) -> Result<ProcessTable>;
    /// Describes a path (docker cp, HEAD archive).
    async fn path_statistics(&self, workload: &Workload, path: &str) -> Result<PathStatistics>;
    /// Reads a path as a tar stream (docker cp).
    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)>;
    /// Unpacks a tar stream under a path (docker cp).
    async fn write_archive(&self, workload: &Workload, path: &str, archive: ByteStream) -> Result<()>;
    /// Lists changes against the image (docker diff).
    async fn changes(&self, workload: &Workload) -> Result<Vec<FileChange>>;
    /// Reads the whole root file system as a tar stream (docker export).
    async fn export(&self, workload: &Workload) -> Result<ByteStream>;
    /// Packs the changes against the image as one uncompressed OCI layer (docker commit).
    async fn changes_layer(&self, workload: &Workload) -> Result<ByteStream>;
}

/// A shared machine.
pub type SharedNode = Arc<dyn Node>;
