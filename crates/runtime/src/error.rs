//! What can go wrong with a container, in kinds that a caller can tell apart.

use std::path::{Path, PathBuf};

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container of that id.
    #[error("no such container: {0}")]
    NotFound(String),
    /// The container is in the wrong state.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not possible on this machine.
    #[error("{0}")]
    NotSupported(String),
    /// The program does not exist (exit code 127) or cannot be run (126 or another code of the OCI runtime).
    #[error("{message}")]
    CannotStart {
        /// The exit code that a client shows.
        code: i32,
        /// What the OCI runtime said, in Docker's words where it has some.
        message: String,
    },
    /// A part did not answer in time.
    #[error("timed out: {0}")]
    Timeout(String),
    /// The container's shim failed or talked nonsense.
    #[error("shim of container {id}: {message}")]
    Shim {
        /// The container.
        id: String,
        /// What happened.
        message: String,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("read {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why it could not be read.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

/// The whole chain of causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl From<Error> for node::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) => node::Error::NotFound(error.to_string()),
            Error::Conflict(text) => node::Error::Conflict(text),
            Error::Invalid(text) => node::Error::Invalid(text),
            Error::NotSupported(text) => node::Error::NotSupported(text),
            Error::CannotStart { code, message } => node::Error::CannotStart { code, message },
            Error::Timeout(_) => node::Error::Unavailable(error.to_string()),
            Error::Shim { .. } | Error::Io { .. } | Error::Json { .. } => node::Error::Internal(chain(&error)),
        }
    }
}
