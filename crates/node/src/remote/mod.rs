//! The contract of one machine over a connection to another one. One connection carries one call: a [`Call`] in the first frame,
//! an answer or an error in the next one, and then what the call streams. What makes the connection, and who may make one, is
//! the business of whoever calls [`serve`] and implements [`Dial`].
//!
//! | module | owns |
//! |---|---|
//! | `frame` | kind, length, bytes |
//! | `client` | [`RemoteNode`]: the machine as its callers see it |
//! | `server` | [`serve`]: one call on the machine itself |

mod client;
mod frame;
mod server;

pub use client::{Dial, RemoteNode};
pub use server::serve;

use serde::{Deserialize, Serialize};

use crate::{AttachOptions, ExecRequest, LogOptions, PathStatistics, ProcessTable, Statistics, TerminalSize, Workload};

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Call {
    Logs(Workload, LogOptions),
    Exec(Workload, ExecRequest),
    Attach(Workload, AttachOptions),
    Resize(Workload, TerminalSize),
    Signal(Workload, i32),
    PortForward(Workload, u16),
    Statistics(Workload),
    Processes(Workload, String),
    PathStatistics(Workload, String),
    ReadArchive(Workload, String),
    WriteArchive(Workload, String),
    Changes(Workload),
    Export(Workload),
    ChangesLayer(Workload),
}

/// What is answered at once; streams follow in frames of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    /// A process' session: its id on the machine, and whether its standard input is connected.
    Session(u32, bool),
    Statistics(Statistics),
    Processes(ProcessTable),
    Path(PathStatistics),
    Changes(Vec<crate::FileChange>),
}

/// Reads one frame of foreign bytes, for the fuzzer.
#[doc(hidden)]
pub async fn fuzz(data: &[u8]) {
    let mut reader = data;
    while let Ok(Some(found)) = frame::read(&mut reader).await {
        let _ = found.json::<Call>();
        let _ = found.json::<Answer>();
        let _ = found.json::<crate::Error>();
        let _ = found.log_line();
    }
}
