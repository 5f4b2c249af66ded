//! Errors of the agent.

use std::path::PathBuf;

/// What can go wrong when a workload is made to match its object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver refused or did not answer.
    #[error("{action}")]
    Api {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The network refused.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The image store refused.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The program cannot be run: exit code and Docker's words.
    #[error("{message}")]
    CannotStart {
        /// 126, 127 or 128.
        code: i32,
        /// What the user reads.
        message: String,
    },
    /// What is asked for makes no sense, or does not exist.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be now, and may be later without anybody asking again.
    #[error("{0}")]
    NotYet(String),
    /// What lies on the machine does not answer.
    #[error(transparent)]
    NoAnswer(#[from] node::patience::NoAnswer),
    /// A part took too long.
    #[error("{0} timed out")]
    Timeout(&'static str),
}

/// Result of a step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An API error with what was being done.
    pub(crate) fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Error {
        move |source| Error::Api { action, source: Box::new(source) }
    }

    /// An I/O error with what was being done.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

/// Whether the apiserver said "not found".
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The whole chain of causes in one line, without repetitions.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
