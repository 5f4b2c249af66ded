//! What a caller says about the runtime and about a container, and what the shim is told of it.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::apart::Apart;
use crate::cgroup::Cgroup;
use crate::oci::OciRuntime;

/// Where the runtime keeps its things and what it runs.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// One directory per container below it; the runtime's own part of each is `<id>/shim`. Survives a reboot.
    pub containers_dir: PathBuf,
    /// State of the OCI runtime. Need not survive a reboot.
    pub run_dir: PathBuf,
    /// The program that is started as `<shim_program> shim <directory>` and calls [`crate::shim::main`].
    pub shim_program: PathBuf,
    /// Path of all control groups of this instance, such as `/nuee-0a1b2c3d`.
    pub cgroup_root: String,
    /// Which OCI runtime.
    pub oci_runtime: OciRuntimeChoice,
    /// Mount points below which each container has mounts of its own in one place: its bundle, or its network namespace. What is
    /// mounted there for others is kept from the OCI runtime, so that a start costs the same however many run.
    pub crowds: Vec<PathBuf>,
}

/// A port of the machine whose clients the shim of a container carries to it (see [`Runtime::carry`](crate::Runtime::carry)).
#[derive(Debug)]
pub struct PortToCarry {
    /// Bound, and not listening yet.
    pub socket: std::os::fd::OwnedFd,
    /// UDP; TCP otherwise.
    pub is_datagram: bool,
    /// Where it leads.
    pub target: std::net::SocketAddrV4,
}

/// Which OCI runtime is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OciRuntimeChoice {
    /// crun where it is installed, runc otherwise.
    #[default]
    Auto,
    /// This crun.
    Crun(PathBuf),
    /// This runc.
    Runc(PathBuf),
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// Unique; letters, digits, `_`, `.` and `-`.
    pub id: String,
    /// Where `config.json` is written.
    pub bundle_dir: PathBuf,
    /// The specification. `root.path` must exist; `linux.resources` becomes the control group's limits.
    pub spec: Spec,
    /// Give it a terminal.
    pub terminal: bool,
    /// Keep its standard input open for attached clients; `/dev/null` otherwise.
    pub open_stdin: bool,
    /// Close its standard input when the first attached client that brought input ends it or goes.
    pub stdin_once: bool,
    /// Where its output goes.
    pub log: LogConfig,
    /// The control group above its own, as a plain absolute path without `..`; `None` means that of this instance. It
    /// stays when the container goes.
    pub cgroup_parent: Option<String>,
}

/// A container's log file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file; rotated ones are `<path>.1` (newest), `<path>.2`… Empty: no log.
    pub path: PathBuf,
    /// Rotate when the file would grow beyond this; 0 means never.
    pub max_size_bytes: u64,
    /// How many files to keep, with the current one; at least 1.
    pub max_files: u32,
    /// The journal that gets it too.
    #[serde(default)]
    pub journal: Option<JournalConfig>,
}

/// A journal, and what it is told with each entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalConfig {
    /// Where it listens.
    pub socket: PathBuf,
    /// Names and values of fields.
    pub fields: Vec<(String, String)>,
}

impl LogConfig {
    /// Ten megabytes, five files: what the kubelet gives a container.
    pub fn bounded(path: PathBuf) -> Self {
        Self { path, max_size_bytes: 10 << 20, max_files: 5, journal: None }
    }
}

/// What the shim reads from `shim.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub id: String,
    pub bundle_dir: PathBuf,
    pub oci: OciRuntime,
    pub terminal: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub log: LogConfig,
    pub cgroup: Cgroup,
    /// What the OCI runtime need not see.
    #[serde(default)]
    pub apart: Vec<Apart>,
}
