//! The one thread that writes: takes transactions off a queue, puts many into one frame, makes it durable with one
//! fsync, and only then shows them to readers, watchers and callers.
//!
//! Order of one batch: evaluate against the index and the batch's own earlier writes; append; fsync; index; watchers;
//! callers. A failed fsync ends all writing for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use super::batch::Batch;
use super::index::{Index, SegmentState, Version};
use super::log::{Log, LogError, Spares};
use super::record::{FrameBuilder, Location, SEGMENT_HEADER_BYTES};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::types::{LeaseId, Operation, Revision, Transaction, TransactionResponse};
use crate::watch::Hub;

/// Most transactions that share one fsync; bounds the latency of one.
const MAX_BATCH_TRANSACTIONS: usize = 1024;
/// A batch takes no further transaction past this.
const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long a batch may wait for the callers that the last batch woke; far below one fsync.
const GATHER_LIMIT: Duration = Duration::from_micros(150);
/// Versions let go of per hold of the index's lock.
const PRUNE_STEP: usize = 4096;

/// Answers a call that yields a number.
pub(crate) type Reply = oneshot::Sender<Result<u64>>;
/// Answers a transaction.
pub(crate) type TransactionReply = oneshot::Sender<Result<TransactionResponse>>;

/// What the writer is asked for.
pub(crate) enum Request {
    Transact(Transaction, TransactionReply),
    LeaseGrant(LeaseId, u64, Reply),
    /// Ends a lease; with `true` only if its time is over.
    LeaseEnd(LeaseId, bool, Reply),
    Compact(Revision, Reply),
    /// Copies what is still needed of these entries to the log's end.
    Relocate(Vec<OldEntry>, Reply),
    /// Drops the oldest segment, which must hold nothing that is needed.
    DropFirst(u32, Reply),
    /// Writes an empty frame, which proves at the next open that the frame before was acknowledged.
    Seal,
}

/// An entry as it lies in a segment that is being cleaned.
pub(crate) struct OldEntry {
    pub(crate) key: Vec<u8>,
    pub(crate) revision: Revision,
    pub(crate) at: Location,
    pub(crate) bytes: Vec<u8>,
}

/// What the writer, the keeper and the callers share.
pub(crate) struct Shared {
    pub(crate) index: RwLock<Index>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) spares: Arc<Spares>,
    /// Why writing ended for ever.
    pub(crate) fatal: Mutex<Option<String>>,
    /// Newest revision that watchers were handed.
    pub(crate) published: AtomicU64,
    pub(crate) syncs: AtomicU64,
    /// Frames with content; what the keeper compares to know whether to seal.
    pub(crate) frames: AtomicU64,
}

impl Shared {
    /// Ends writing for ever.
    pub(crate) fn fail(&self, text: String) -> Error {
        tracing::error!(reason = %text, "the store's disk failed; no write is acknowledged any more");
        Error::Unavailable(self.fatal.lock().get_or_insert(text).clone())
    }

    /// The error that callers get after a fatal one.
    pub(crate) fn failed(&self) -> Option<Error> {
        self.fatal.lock().clone().map(Error::Unavailable)
    }
}

/// The writer and its end of the log.
pub(crate) struct Writer {
    pub(crate) log: Log,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) wake_keeper: Arc<super::keeper::Bell>,
}

impl Writer {
    /// Serves requests until every sender is gone.
    pub(crate) fn run(mut self) {
        let mut carried = None;
        let mut usual = 1;
        while let Some(request) = carried.take().or_else(|| self.requests.blocking_recv()) {
            if let Request::Transact(transaction, reply) = request {
                let mut batch = vec![(transaction, reply)];
                carried = self.gather(&mut batch, usual);
                usual = batch.len();
                self.transact(batch);
            } else {
                self.alone(request);
            }
        }
        self.alone(Request::Seal);
    }

    /// Fills the batch with what waits; returns the first request that is not for it. When the last batch was larger
    /// the callers that it woke are about to come back, and a moment's patience saves them an fsync.
    fn gather(&mut self, batch: &mut Vec<(Transaction, TransactionReply)>, usual: usize) -> Option<Request> {
        let mut bytes = transaction_bytes(&batch[0].0);
        let mut began = None;
        while batch.len() < MAX_BATCH_TRANSACTIONS && bytes < MAX_BATCH_BYTES {
            match self.requests.try_recv() {
                Ok(Request::Transact(transaction, reply)) => {
                    bytes += transaction_bytes(&transaction);
                    batch.push((transaction, reply));
                }
                Ok(other) => return Some(other),
                Err(_) if batch.len() >= usual => return None,
                Err(_) if began.get_or_insert_with(Instant::now).elapsed() > GATHER_LIMIT => return None,
                Err(_) => std::thread::yield_now(),
            }
        }
        None
    }

    fn transact(&mut self, transactions: Vec<(Transaction, TransactionReply)>) {
        if let Some(Error::Unavailable(text)) = self.shared.failed() {
            for (_, reply) in transactions {
                let _ = reply.send(Err(Error::Unavailable(text.clone())));
            }
            return;
        }
        match self.try_transact(transactions, false) {
            Ok(()) => {}
            Err((LogError::NoSpace, transactions)) => self.transact_on_full_disk(transactions),
            Err((LogError::Fatal(text), transactions)) => self.refuse_all(text, transactions),
        }
    }

    /// Writes that take space get the error; deletions may use the reserve, because they free space.
    fn transact_on_full_disk(&mut self, transactions: Vec<(Transaction, TransactionReply)>) {
        let (puts, others): (Vec<_>, Vec<_>) = transactions.into_iter().partition(|(transaction, _)| {
            transaction.then.iter().chain(&transaction.otherwise).any(|step| matches!(step, Operation::Put(..)))
        });
        for (_, reply) in puts {
            let _ = reply.send(Err(Error::NoSpace));
        }
        match self.try_transact(others, true) {
            Ok(()) => {}
            Err((LogError::NoSpace, others)) => {
                for (_, reply) in others {
                    let _ = reply.send(Err(Error::NoSpace));
                }
            }
            Err((LogError::Fatal(text), others)) => self.refuse_all(text, others),
        }
    }

    fn refuse_all(&mut self, text: String, transactions: Vec<(Transaction, TransactionReply)>) {
        let _ = self.shared.fail(text.clone());
        for (_, reply) in transactions {
            let _ = reply.send(Err(Error::Unavailable(text.clone())));
        }
    }

    /// Commits a batch, or gives its transactions back.
    fn try_transact(
        &mut self,
        transactions: Vec<(Transaction, TransactionReply)>,
        urgent: bool,
    ) -> std::result::Result<(), (LogError, Vec<(Transaction, TransactionReply)>)> {
        let shared = Arc::clone(&self.shared);
        let mut batch = Batch::new(&shared);
        let mut answers = Vec::with_capacity(transactions.len());
        for (transaction, _) in &transactions {
            answers.push(batch.evaluate(transaction));
        }
        if let Err(error) = self.commit(batch, urgent, |_| {}) {
            return Err((error, transactions));
        }
        for ((_, reply), answer) in transactions.into_iter().zip(answers) {
            let _ = reply.send(answer);
        }
        Ok(())
    }

    /// Appends, syncs, and shows a batch. `then` runs under the index's lock after the batch was applied.
    fn commit(
        &mut self,
        batch: Batch<'_>,
        urgent: bool,
        then: impl FnOnce(&mut Index),
    ) -> std::result::Result<(), LogError> {
        if batch.frame.is_empty() {
            return Ok(());
        }
        let Batch { frame, changes, commits, .. } = batch;
        let base = self.append(frame, urgent)?;
        self.sync()?;
        let segment = self.active_id();
        let published = {
            let mut index = self.shared.index.write();
            for change in changes {
                let offset = change.offset + base;
                let at = Location { segment, offset, length: change.length };
                index.apply(&change.key, Version { stamp: change.stamp, at });
            }
            then(&mut index);
            index.revision
        };
        self.shared.hub.publish(commits);
        self.shared.published.store(published, Ordering::Release);
        Ok(())
    }

    /// Appends a frame, in a new segment if it must; returns its offset there.
    fn append(&mut self, frame: FrameBuilder, urgent: bool) -> std::result::Result<u32, LogError> {
        if !self.log.fits(frame.len()) {
            let checkpoint = self.shared.index.read().checkpoint();
            self.log.roll(frame.len() + SEGMENT_HEADER_BYTES, &checkpoint, urgent)?;
            if let Some(active) = &self.log.active {
                let state = SegmentState { segment: Arc::clone(active), live_bytes: 0 };
                self.shared.index.write().segments.insert(active.id, state);
            }
            self.wake_keeper.ring();
        }
        let base = self.log.append(frame)?;
        self.shared.frames.fetch_add(1, Ordering::Relaxed);
        u32::try_from(base).map_err(|_| LogError::Fatal("a segment is too long".into()))
    }

    fn sync(&mut self) -> std::result::Result<(), LogError> {
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.log.sync()
    }

    fn active_id(&self) -> u32 {
        self.log.active.as_ref().map_or(0, |active| active.id)
    }

    /// Serves a request that shares its fsync with no other.
    fn alone(&mut self, request: Request) {
        let (reply, outcome) = match request {
            Request::Transact(transaction, reply) => return self.transact(vec![(transaction, reply)]),
            Request::Seal => return self.seal(),
            Request::LeaseGrant(lease, ttl_seconds, reply) => (reply, self.lease_grant(lease, ttl_seconds)),
            Request::LeaseEnd(lease, only_if_over, reply) => (reply, self.lease_end(lease, only_if_over)),
            Request::Compact(revision, reply) => (reply, self.compact(revision)),
            Request::Relocate(entries, reply) => (reply, self.relocate(entries)),
            Request::DropFirst(segment, reply) => (reply, self.drop_first(segment)),
        };
        let _ = reply.send(outcome);
    }

    /// Runs one step, unless writing has ended, and ends writing when the disk fails.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> std::result::Result<(), LogError>) -> Result<()> {
        if let Some(error) = self.shared.failed() {
            return Err(error);
        }
        match step(self) {
            Ok(()) => Ok(()),
            Err(LogError::NoSpace) => Err(Error::NoSpace),
            Err(LogError::Fatal(text)) => Err(self.shared.fail(text)),
        }
    }

    /// Writes an empty frame. It is synced like any other: the next frame may only follow a durable one.
    fn seal(&mut self) {
        let sealed = self.guarded(|writer| {
            if writer.log.fits(FrameBuilder::new().len()) {
                writer.log.append(FrameBuilder::new())?;
                writer.sync()?;
            }
            Ok(())
        });
        if let Err(error) = sealed {
            tracing::warn!(%error, "cannot seal the log");
        }
    }

    fn lease_grant(&mut self, lease: LeaseId, ttl_seconds: u64) -> Result<u64> {
        self.guarded(|writer| {
            let mut frame = FrameBuilder::new();
            frame.lease_grant(lease, ttl_seconds);
            writer.append(frame, false)?;
            writer.sync()
        })?;
        let now = self.shared.clock.now();
        self.shared.index.write().grant(lease, ttl_seconds, now);
        Ok(lease)
    }

    fn lease_end(&mut self, lease: LeaseId, only_if_over: bool) -> Result<u64> {
        let shared = Arc::clone(&self.shared);
        let keys = {
            let now = shared.clock.now();
            let mut index = shared.index.write();
            let entry = index.leases.get_mut(&lease).ok_or(Error::LeaseNotFound(lease))?;
            if only_if_over && entry.ends > now {
                return Ok(0);
            }
            // From here on a keep-alive comes too late.
            entry.ending = true;
            entry.keys.clone()
        };
        let outcome = self.guarded(|writer| {
            let mut batch = Batch::new(&shared);
            batch.delete_keys(keys);
            batch.frame.lease_end(lease);
            writer.commit(batch, true, |index| {
                index.leases.remove(&lease);
            })
        });
        if outcome.is_err()
            && let Some(entry) = shared.index.write().leases.get_mut(&lease)
        {
            entry.ending = false;
        }
        outcome.map(|()| 0)
    }

    fn compact(&mut self, revision: Revision) -> Result<u64> {
        {
            let index = self.shared.index.read();
            if revision > index.revision {
                return Err(Error::FutureRevision { newest: index.revision });
            }
            if revision <= index.compacted {
                return Ok(index.compacted);
            }
        }
        self.guarded(|writer| {
            let mut frame = FrameBuilder::new();
            frame.compact(revision);
            writer.append(frame, true)?;
            writer.sync()
        })?;
        self.shared.index.write().compacted = revision;
        while self.shared.index.write().prune(PRUNE_STEP) {}
        self.wake_keeper.ring();
        Ok(revision)
    }

    fn relocate(&mut self, entries: Vec<OldEntry>) -> Result<u64> {
        let mut frame = FrameBuilder::new();
        let mut moved = Vec::new();
        {
            let index = self.shared.index.read();
            for entry in entries {
                let Some(deletion) = index.needed(&entry.key, entry.revision, entry.at) else { continue };
                moved.push((entry.revision, frame.raw_entry(&entry.bytes), entry.key.clone()));
                // A version of the past must never outlive the deletion behind it on the disk: reading the log back
                // would bring the key to life again.
                if let Some(deletion) = deletion {
                    let copy = super::record::Entry { stamp: deletion.stamp, key: &entry.key, value: b"" };
                    moved.push((deletion.stamp.mod_revision, frame.entry(&copy), entry.key));
                }
            }
        }
        if moved.is_empty() {
            return Ok(0);
        }
        let count = moved.len() as u64;
        let mut base = 0;
        self.guarded(|writer| {
            base = writer.append(frame, true)?;
            writer.sync()
        })?;
        let segment = self.active_id();
        let mut index = self.shared.index.write();
        for (revision, (offset, length), key) in moved {
            index.relocate(&key, revision, Location { segment, offset: base + offset, length });
        }
        Ok(count)
    }

    fn drop_first(&mut self, segment: u32) -> Result<u64> {
        let needed = self.shared.index.read().segments.get(&segment).map(|state| state.live_bytes);
        if needed != Some(0) || self.log.manifest.content.first != segment || self.active_id() == segment {
            return Err(Error::Invalid(format!("segment {segment} cannot be dropped")));
        }
        self.guarded(|writer| writer.log.drop_first())?;
        self.shared.index.write().segments.remove(&segment);
        Ok(0)
    }
}

fn transaction_bytes(transaction: &Transaction) -> usize {
    let steps = transaction.then.iter().chain(&transaction.otherwise);
    steps.map(|step| if let Operation::Put(key, value, _) = step { key.len() + value.len() } else { 64 }).sum()
}
