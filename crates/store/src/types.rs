//! What goes in and out of a store: keys, revisions, transactions, events, and their bounds.
//! Knows bytes only; must never know how an engine keeps them.

use std::ops::Bound;

use bytes::Bytes;

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
    Put {
        /// The key's state after the write.
        current: KeyValue,
        /// Its state before.
        previous: Option<KeyValue>,
    },
    /// The key was deleted at `revision`; `previous` is its last state, when the engine still has it.
    Delete {
        /// The key.
        key: Bytes,
        /// When it was deleted.
        revision: Revision,
        /// Its last state.
        previous: Option<KeyValue>,
    },
}

/// What a watch yields, in revision order. All events of one revision come in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes, all of one revision.
    Events {
        /// The revision.
        revision: Revision,
        /// One event per changed key in the range.
        events: Vec<Event>,
    },
    /// Nothing in the range changed up to this revision (sent when the watcher is in step, on request or now and then).
    Progress(Revision),
}

impl KeyRange {
    /// Whether the range covers this key.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(wanted) => wanted == key,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Between(from, to) => from <= key && key < to,
        }
    }

    /// The range as bounds of an ordered map; `None` when no key can be in it.
    pub(crate) fn bounds(&self) -> Option<(Bound<Bytes>, Bound<Bytes>)> {
        match self {
            Self::Key(key) => Some((Bound::Included(key.clone()), Bound::Included(key.clone()))),
            Self::Prefix(prefix) => {
                let end = match prefix_end(prefix) {
                    Some(end) => Bound::Excluded(end),
                    None => Bound::Unbounded,
                };
                Some((Bound::Included(prefix.clone()), end))
            }
            Self::Between(from, to) if from < to => Some((Bound::Included(from.clone()), Bound::Excluded(to.clone()))),
            Self::Between(..) => None,
        }
    }
}

/// The first key after all keys with this prefix; `None` when there is no such key.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { current, .. } => &current.key,
            Self::Delete { key, .. } => key,
        }
    }
}

impl Operation {
    /// The key that the operation names.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(key, ..) | Self::Delete(key) | Self::Get(key) => key,
        }
    }
}

impl Compare {
    /// The key that the condition names.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::ModRevision(key, _) | Self::Exists(key) | Self::CreateRevision(key, _) => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_is_the_first_key_after_the_prefix() {
        assert_eq!(prefix_end(b"a/").as_deref(), Some(&b"a0"[..]));
        assert_eq!(prefix_end(b"a\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
