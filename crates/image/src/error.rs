//! What can go wrong with images, in kinds that a caller can tell apart.

use std::io;

/// Result of a call into this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The text is what a user may see.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image, blob, layer, repository or upload.
    #[error("{0}")]
    NotFound(String),
    /// The thing is in use, or in the wrong state.
    #[error("{0}")]
    Conflict(String),
    /// The input makes no sense: a reference, a Dockerfile, a manifest, an archive.
    #[error("{0}")]
    Invalid(String),
    /// A layer or archive tries what no honest one does, or breaks a bound.
    #[error("refused: {0}")]
    Hostile(String),
    /// The content is not what its digest says.
    #[error("{0}")]
    Corrupt(String),
    /// The registry wants other credentials, or denies the request.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry cannot be reached or fails.
    #[error("{0}")]
    Unavailable(String),
    /// Something that this machine or this crate cannot do.
    #[error("{0}")]
    NotSupported(String),
    /// A build step ended with a code other than zero.
    #[error("The command '{command}' returned a non-zero code: {code}")]
    StepFailed {
        /// The command as Docker prints it.
        command: String,
        /// Its exit code.
        code: i32,
    },
    /// The file system failed.
    #[error("{doing}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A defect of this crate, or a task that was ended.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Wraps an error of the file system; for `map_err`.
    pub fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source: source.into() }
    }

    /// The whole chain in one line, for logs and for clients that see only text.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error with all of its causes in one line.
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

impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Error {
        Error::Internal(format!("a background task ended: {error}"))
    }
}

/// An error of ours carried through an interface that only knows `io::Error`.
pub(crate) fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// The way back of [`into_io`]. What is not ours is the words of whoever decodes what comes, for data that he cannot make sense of: what
/// has a reason that people should read goes in by [`into_io`].
pub(crate) fn from_io(doing: &str, error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Error>())
        && let Some(inner) = error.into_inner()
    {
        return match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::Internal(other.to_string()),
        };
    }
    Error::Invalid(format!("{doing}: the data ends early or is damaged"))
}
