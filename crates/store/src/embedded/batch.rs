//! Evaluates transactions against the index and the batch's own earlier writes. Nothing that it does can be seen before
//! the writer has made the frame durable.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::index::Version;
use super::read::Reading;
use super::record::{Entry, FrameBuilder, Stamp};
use super::writer::Shared;
use crate::error::{Error, Result};
use crate::types::{
    Compare, Event, KeyValue, LeaseId, Operation, OperationResult, Revision, Transaction, TransactionResponse,
};
use crate::watch::Commit;

/// Writes that share one fsync.
pub(crate) struct Batch<'a> {
    shared: &'a Shared,
    watched: bool,
    pub(crate) frame: FrameBuilder,
    pub(crate) changes: Vec<Change>,
    pub(crate) commits: Vec<Commit>,
    /// The newest state of every key that the batch wrote.
    written: HashMap<Bytes, Option<KeyValue>>,
    revision: Revision,
}

/// A version and where it lies in the frame.
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) stamp: Stamp,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// What a key is before an operation.
enum Before {
    Absent,
    /// Written by this batch.
    Here(KeyValue),
    /// On the disk.
    Stored(Version, Reading),
}

impl Before {
    fn stamps(&self) -> Option<(Revision, Revision, u64)> {
        match self {
            Self::Absent => None,
            Self::Here(item) => Some((item.create_revision, item.mod_revision, item.version)),
            Self::Stored(version, _) => {
                Some((version.stamp.create_revision, version.stamp.mod_revision, version.stamp.version))
            }
        }
    }

    fn item(&self) -> Result<Option<KeyValue>> {
        match self {
            Self::Absent => Ok(None),
            Self::Here(item) => Ok(Some(item.clone())),
            Self::Stored(_, reading) => reading.read().map(Some),
        }
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            watched: shared.hub.is_watched(),
            frame: FrameBuilder::new(),
            changes: Vec::new(),
            commits: Vec::new(),
            written: HashMap::new(),
            revision: shared.index.read().revision,
        }
    }

    /// Runs one transaction on top of the batch. On an error the batch is as before.
    pub(crate) fn evaluate(&mut self, transaction: &Transaction) -> Result<TransactionResponse> {
        let mut succeeded = true;
        for compare in &transaction.compare {
            succeeded &= self.holds(compare)?;
        }
        let operations = if succeeded { &transaction.then } else { &transaction.otherwise };
        // All that can fail comes first. No branch names a key twice, so that its operations do not see each other.
        let mut before = Vec::with_capacity(operations.len());
        for operation in operations {
            let state = self.before(operation.key())?;
            let item = match operation {
                Operation::Put(_, _, lease) => {
                    self.check_lease(*lease)?;
                    // A damaged value may be written over; only the event lacks what was there.
                    if self.watched { state.item().ok().flatten() } else { None }
                }
                Operation::Delete(_) | Operation::Get(_) => state.item()?,
            };
            before.push((state.stamps(), item));
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut results = Vec::with_capacity(operations.len());
        for (operation, (stamps, item)) in operations.iter().zip(before) {
            results.push(match operation {
                Operation::Put(key, value, lease) => {
                    events.push(self.put(key, value, *lease, revision, stamps, item));
                    OperationResult::Put
                }
                Operation::Delete(key) => {
                    if item.is_some() {
                        events.push(self.delete(key, revision, item.clone()));
                    }
                    OperationResult::Deleted(item)
                }
                Operation::Get(_) => OperationResult::Got(item),
            });
        }
        self.close(revision, events);
        Ok(TransactionResponse { succeeded, revision: self.revision, results })
    }

    /// Deletes the keys of a lease in one revision. A damaged value is no reason to keep its key.
    pub(crate) fn delete_keys(&mut self, keys: BTreeSet<Bytes>) {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for key in keys {
            if let Ok(state) = self.before(&key)
                && state.stamps().is_some()
            {
                let previous = state.item().ok().flatten();
                events.push(self.delete(&key, revision, previous));
            }
        }
        self.close(revision, events);
    }

    fn close(&mut self, revision: Revision, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision = revision;
            self.commits.push(Commit { revision, events });
        }
    }

    fn before(&self, key: &Bytes) -> Result<Before> {
        if let Some(written) = self.written.get(key) {
            return Ok(written.clone().map_or(Before::Absent, Before::Here));
        }
        let index = self.shared.index.read();
        match index.newest(key) {
            None => Ok(Before::Absent),
            Some(version) => Ok(Before::Stored(*version, Reading::new(&index, key, version)?)),
        }
    }

    fn holds(&self, compare: &Compare) -> Result<bool> {
        let stamps = self.before(compare.key())?.stamps();
        Ok(match compare {
            Compare::Exists(_) => stamps.is_some(),
            Compare::ModRevision(_, wanted) => stamps.map_or(0, |(_, revision, _)| revision) == *wanted,
            Compare::CreateRevision(_, wanted) => stamps.map_or(0, |(revision, ..)| revision) == *wanted,
        })
    }

    fn check_lease(&self, lease: LeaseId) -> Result<()> {
        if lease == 0 {
            return Ok(());
        }
        let index = self.shared.index.read();
        if index.leases.get(&lease).is_some_and(|lease| !lease.ending) {
            Ok(())
        } else {
            Err(Error::LeaseNotFound(lease))
        }
    }

    fn put(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: LeaseId,
        revision: Revision,
        before: Option<(Revision, Revision, u64)>,
        previous: Option<KeyValue>,
    ) -> Event {
        let (create_revision, version) = before.map_or((revision, 1), |(create, _, version)| (create, version + 1));
        let stamp = Stamp { mod_revision: revision, create_revision, version, lease, deleted: false };
        let (offset, length) = self.frame.entry(&Entry { stamp, key, value });
        self.changes.push(Change { key: key.clone(), stamp, offset, length });
        let current = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision: revision,
            version,
            lease,
        };
        self.written.insert(key.clone(), Some(current.clone()));
        Event::Put { current, previous }
    }

    fn delete(&mut self, key: &Bytes, revision: Revision, previous: Option<KeyValue>) -> Event {
        let stamp = Stamp { mod_revision: revision, create_revision: 0, version: 0, lease: 0, deleted: true };
        let (offset, length) = self.frame.entry(&Entry { stamp, key, value: b"" });
        self.changes.push(Change { key: key.clone(), stamp, offset, length });
        self.written.insert(key.clone(), None);
        Event::Delete { key: key.clone(), revision, previous }
    }
}
