//! Versioned key-value store with etcd's contract: one global revision, transactions, watches, leases, compaction.
//! Knows bytes, keys and revisions; must never know JSON, kinds or HTTP.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// A point in the store's history. Starts at 1 for an empty store; every committed write transaction adds one.
pub type Revision = u64;

/// One key with its value at some revision. `Source:` etcd's `mvccpb.KeyValue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, at most [`MAX_KEY_BYTES`].
    pub key: Bytes,
    /// The value, at most [`MAX_VALUE_BYTES`].
    pub value: Bytes,
    /// Revision at which this life of the key began.
    pub create_revision: Revision,
    /// Revision of the last write to the key.
    pub mod_revision: Revision,
    /// Number of writes since the key was created; 1 after creation.
    pub version: u64,
    /// The lease that the key hangs on; 0 when none.
    pub lease: LeaseId,
}

/// Identity of a lease; 0 means "no lease" where a key names one.
pub type LeaseId = u64;

/// Longest key that the store takes. Units: bytes.
pub const MAX_KEY_BYTES: usize = 2048;
/// Longest value that the store takes; above Kubernetes' 1.5 MiB default request bound. Units: bytes.
pub const MAX_VALUE_BYTES: usize = 3 * 1024 * 1024;
/// Most operations in one transaction; etcd's own default.
pub const MAX_TRANSACTION_OPERATIONS: usize = 128;

/// Which keys a read or a watch covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// Every key that starts with these bytes; empty means all.
    Prefix(Bytes),
    /// From the first key (inclusive) to the second (exclusive).
    Between(Bytes, Bytes),
}

/// A read of one or many keys, in key order.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    /// The keys.
    pub range: KeyRange,
    /// Read as of this revision; `None` reads the newest.
    pub revision: Option<Revision>,
    /// At most so many keys; 0 means no limit.
    pub limit: usize,
    /// Leave values empty, only keys and revisions.
    pub keys_only: bool,
}

/// What a range read found.
#[derive(Clone, Debug, Default)]
pub struct RangeResponse {
    /// The keys found, in order, at most the limit.
    pub items: Vec<KeyValue>,
    /// Number of keys in the range, regardless of the limit.
    pub count: usize,
    /// The store's newest revision at the time of the read.
    pub revision: Revision,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key was last written at exactly this revision; 0 means "the key does not exist".
    ModRevision(Bytes, Revision),
    /// The key exists.
    Exists(Bytes),
    /// The key's life began at exactly this revision.
    CreateRevision(Bytes, Revision),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write the key; with a lease it goes when the lease ends (0: none).
    Put(Bytes, Bytes, LeaseId),
    /// Delete the key if it is there.
    Delete(Bytes),
    /// Read the key as part of the transaction.
    Get(Bytes),
}

/// If all compares hold run `then`, otherwise `otherwise`; atomically and durably. A transaction may name a key once.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// Operations when they hold.
    pub then: Vec<Operation>,
    /// Operations when one does not.
    pub otherwise: Vec<Operation>,
}

/// Outcome of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The key was written.
    Put,
    /// The key's last state when it was there.
    Deleted(Option<KeyValue>),
    /// The key's state when it was there.
    Got(Option<KeyValue>),
}

/// Outcome of a transaction; when it is returned, its writes are on the disk.
#[derive(Clone, Debug)]
pub struct TransactionResponse {
    /// Whether the compares held.
    pub succeeded: bool,
    /// Revision of this transaction's writes, or the newest revision when nothing was written.
    pub revision: Revision,
    /// One result per operation of the branch that ran.
    pub results: Vec<OperationResult>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written; `previous` is its state before, when it was there and the engine still has it.
    Put { current: KeyValue, previous: Option<KeyValue> },
    /// The key was deleted at `revision`; `previous` is its last state, when the engine still has it.
    Delete { key: Bytes, revision: Revision, previous: Option<KeyValue> },
}

/// What a watch yields, in revision order. All events of one revision come in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes, all of one revision.
    Events { revision: Revision, events: Vec<Event> },
    /// Nothing in the range changed up to this revision (sent when the watcher is in step, on request or now and then).
    Progress(Revision),
}

/// A running watch. Ends with an error when the watcher is too slow or its revision was compacted; dropping it cancels.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem>> + Send>>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for was compacted away; `oldest` is the first that is still there.
    #[error("revision was compacted; the oldest available is {oldest}")]
    Compacted { oldest: Revision },
    /// The revision asked for lies in the future.
    #[error("revision is in the future; the newest is {newest}")]
    FutureRevision { newest: Revision },
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

/// etcd's contract. Two engines implement it and pass one conformance suite.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys in order at one revision.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse>;
    /// Runs a transaction; acknowledged means fsynced.
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResponse>;
    /// Watches a range: every change with a revision `>= from`; `from == None` means from now on.
    async fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream>;
    /// The newest revision.
    async fn revision(&self) -> Result<Revision>;
    /// Forgets history before `revision`; live keys stay.
    async fn compact(&self, revision: Revision) -> Result<()>;
    /// Grants a lease that ends `ttl_seconds` after its last keep-alive.
    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId>;
    /// Starts the lease's time anew.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<()>;
    /// Ends a lease and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<()>;
    /// Writes a consistent copy of the store to one file, online; returns the revision that it holds.
    async fn backup(&self, file: &std::path::Path) -> Result<Revision>;
}

/// A shared store.
pub type SharedStore = Arc<dyn Store>;
