//! The parent process of one container: it owns the container's streams, log and exit status, so that the daemon may come
//! and go. Single-threaded, one poll(2) loop, no asynchronous runtime; memory and start-up time are paid per container.
//!
//! ```text
//! Creating --OCI runtime done--> Created --Start--> Running --main process ends--> Draining --output read--> Lingering
//! ```
//! *Draining* reads what the container wrote, kills what is left of it and writes the exit status; *Lingering* lets
//! clients read the rest; then the process ends. The daemon finds the exit status in a file.

mod carrier;
mod client;
mod create;
mod descriptors;
mod events;
mod join;
mod journal;
mod log_writer;
mod process;
mod requests;
mod scratch;
mod server;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use log_writer::rotated;
pub(crate) use server::Forker;

use crate::error::chain;
use crate::protocol::Refusal;
use crate::state::ShimDir;

/// How long the OCI runtime may take for one call before it counts as hung.
pub(crate) const OCI_TIMEOUT: Duration = Duration::from_secs(20);
/// Clients at the same time.
const CLIENTS_MAX: usize = 256;
/// Processes besides the main one at the same time.
const EXECS_MAX: usize = 1_000;
/// How long output may still come after the main process has ended and everything in its group was killed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long clients may take to read the rest.
const LINGER_TIMEOUT: Duration = Duration::from_secs(60);
/// Output a client may leave unread on disk before the container is held back for it.
const SPILL_MAX_BYTES: u64 = 64 << 20;
/// Output a client may leave unread in memory.
const QUEUE_MAX_BYTES: usize = 128 << 10;
/// A client that holds the container back and reads nothing for so long is cut off.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Standard input that waits for the container to read it.
const STDIN_QUEUE_MAX_BYTES: usize = 64 << 10;
/// Output read at once.
const READ_BYTES: usize = 32 << 10;

/// What a new shim says on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The container waits for its start.
    Created { pid: u32 },
    /// It could not be created.
    Failed(Refusal),
}

/// Runs a shim: `args` are those after the word `shim`, a single directory. Returns when the container has ended. With
/// `--serve` it is the server that forks shims.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(directory) = args.into_iter().next() else {
        return report(&Report::Failed(Refusal { code: 0, message: "usage: shim DIRECTORY".to_owned() }));
    };
    if directory == server::SERVE {
        return server::serve();
    }
    crate::sys::keep_memory_small();
    run(ShimDir(PathBuf::from(directory)))
}

/// The shim of one directory, to its end.
fn run(directory: ShimDir) -> ExitCode {
    match create::create(directory) {
        Ok(mut shim) => {
            let pid = shim.main_pid();
            report(&Report::Created { pid });
            if create::close_standard_streams().is_err() {
                // The daemon would wait for the end of the report for ever; it has the report, and a time-out.
                return ExitCode::FAILURE;
            }
            shim.run()
        }
        Err(failure) => {
            let refusal = match failure {
                crate::Error::CannotStart { code, message } => Refusal { code, message },
                other => Refusal { code: 0, message: chain(&other) },
            };
            report(&Report::Failed(refusal))
        }
    }
}

/// Writes the one line that the daemon waits for.
fn report(report: &Report) -> ExitCode {
    let mut text = serde_json::to_vec(report).unwrap_or_default();
    text.push(b'\n');
    // When the daemon is gone, nobody reads it, and the container goes on all the same.
    let _ = std::io::stdout().write_all(&text).and_then(|()| std::io::stdout().flush());
    match report {
        Report::Created { .. } => ExitCode::SUCCESS,
        Report::Failed(_) => ExitCode::FAILURE,
    }
}
