//! What can go wrong here, in kinds that a caller can tell apart.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or process could not be worked on.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The request, or what was uploaded, is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// There is no such guest, disk or layer.
    #[error("{0} not found")]
    NotFound(String),
    /// The guest is not in a state in which that can be done.
    #[error("{0}")]
    Conflict(String),
    /// The hypervisor refused a command, in its own words.
    #[error("{command}: {message}")]
    Refused {
        /// What was asked.
        command: String,
        /// The answer.
        message: String,
    },
    /// The guest could not be started; the text is what the hypervisor printed.
    #[error("the guest did not start: {0}")]
    Start(String),
    /// The hypervisor's process is gone, or does not talk any more.
    #[error("the guest is gone")]
    Gone,
    /// No answer within the bound.
    #[error("{0} timed out")]
    Timeout(String),
    /// The guest was asked to let go of a device, and has not done so within the bound.
    #[error("the guest does not let go of {0}")]
    Kept(String),
    /// This machine, or this driver, cannot do that.
    #[error("{0}")]
    NotSupported(String),
}

/// Result of a call to this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
