//! OCI containers on one machine: a small parent process per container (the *shim*), the OCI runtime underneath, control
//! groups v1 and v2, standard streams, logs and exit statuses. Knows OCI bundles; must never know where an image came
//! from, nor any kind or dialect.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Runtime`] | the asynchronous interface that the agent uses |
//! | [`shim`] | what `nuee shim` runs: single-threaded, poll-based, outlives the daemon |
//! | [`init`] | what `nuee init` runs inside a container as process 1 |
//! | [`logs`] | reading log files: tail, follow, rotation |
//! | [`spec`] | defaults of an OCI specification: capabilities, seccomp, mounts, devices, users |
//! | [`cgroup`] | control groups, v1 and v2 behind one type |
//! | [`processes`] | process tables of containers |

mod apart;
pub mod cgroup;
mod children;
mod config;
mod detached;
mod directories;
mod error;
mod exec;
mod filters;
pub mod init;
mod log_format;
pub mod logs;
pub mod memory;
mod oci;
pub mod processes;
mod protocol;
mod runtime;
mod session;
pub mod shim;
pub mod spec;
mod state;
mod sys;

pub use config::{ContainerConfig, JournalConfig, LogConfig, OciRuntimeChoice, PortToCarry, RuntimeOptions};
pub use error::Error;
pub use processes::names;
pub use runtime::Runtime;
pub use state::{ContainerState, ContainerStatus, ExitRecord};

/// Result of a call to the runtime.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether mounts can be made for reading alone with all that is mounted below them: a kernel since 5.12.
pub fn can_seal_mounts_throughout() -> bool {
    static KNOWN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *KNOWN.get_or_init(sys::can_change_mounts)
}

/// Lets nobody write through what is mounted below a mount of the caller's namespace; the mount itself stays as it is.
///
/// Errors: the kernel cannot, see [`can_seal_mounts_throughout`].
pub fn seal_mounts_below(mount: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    sys::make_mounts_below_read_only(mount)
}
