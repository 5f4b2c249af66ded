//! What can go wrong with a store, told apart as far as a caller can act on it.

use crate::types::{LeaseId, Revision};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for was compacted away; `oldest` is the first that is still there.
    #[error("revision was compacted; the oldest available is {oldest}")]
    Compacted {
        /// First revision that can still be asked for.
        oldest: Revision,
    },
    /// The revision asked for lies in the future.
    #[error("revision is in the future; the newest is {newest}")]
    FutureRevision {
        /// The store's newest revision.
        newest: Revision,
    },
    /// Key, value or transaction above its bound, or a key named twice.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// No such lease.
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    /// No space left; reads go on, writes work again after space was freed.
    #[error("no space left for the store")]
    NoSpace,
    /// A watcher fell too far behind and was cut off; list again.
    #[error("watcher was too slow")]
    SlowWatcher,
    /// The store cannot be used any more (an fsync failed, the engine is closed or cannot be reached).
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The data on disk does not match its checksum; never served.
    #[error("corrupt data: {0}")]
    Corrupt(String),
}

/// Result of a store call.
pub type Result<T> = std::result::Result<T, Error>;
