//! The embedded engine: an append-only log of segments with an index in memory.
//!
//! - [`disk`]: what is asked of the file system; `record`: the bytes; `manifest`: the root
//! - `log`: appends; `recover`: opens; `index`: what lies where; `read`: reads back and checks
//! - `writer`: group commit; `batch`: evaluates transactions; `keeper`: leases, cleaning; `backup`: one file and back
//!
//! What it relies on: a write of 512 aligned bytes happens whole or not at all, and what was fsynced stays.

mod backup;
mod batch;
pub mod disk;
mod index;
mod keeper;
mod log;
mod manifest;
mod read;
pub(crate) mod record;
mod recover;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

pub use backup::RESTORE_REVISION_BUMP;

use self::disk::{Disk, OsDisk};
use self::keeper::{Bell, Keeper};
use self::read::{PastChange, Reading};
use self::writer::{Reply, Request, Shared, Writer};
use crate::clock::{Clock, MonotonicClock};
use crate::error::{Error, Result};
use crate::types::{KeyRange, LeaseId, RangeRequest, RangeResponse, Revision, Transaction, TransactionResponse};
use crate::{Store, WatchStream, validate};

/// Requests that may wait for the writer; further callers wait for room.
const QUEUED_REQUESTS: usize = 4096;
/// Values that are read on the caller's own thread; more go to a thread that may block.
const INLINE_READS: usize = 16;
/// Smallest segment: a few large values.
const MIN_SEGMENT_BYTES: u64 = 64 * 1024;
/// Largest segment; offsets are 32 bits.
const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Size of a segment unless told otherwise. Three are there from the start: one in use, one spare, one reserve.
pub const DEFAULT_SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// How an embedded store is opened.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Size of one segment of the log. Units: bytes.
    pub segment_bytes: u64,
    /// The clock that leases run by.
    pub clock: Arc<dyn Clock>,
    /// How long to wait for a process that is about to let go of the store: one that ends closes its files one after another.
    pub lock_patience: Duration,
}

/// How often a store that another process has is asked for.
const LOCK_LOOK: Duration = Duration::from_millis(5);

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            clock: Arc::new(MonotonicClock::new()),
            lock_patience: Duration::ZERO,
        }
    }
}

/// What an embedded store holds and takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Keys that are there.
    pub keys: usize,
    /// Bytes of all versions that are needed.
    pub live_bytes: u64,
    /// Bytes of all segments, prepared ones too.
    pub disk_bytes: u64,
    /// Segments in use.
    pub segments: usize,
    /// Times that the log was synced since the store was opened.
    pub syncs: u64,
}

/// A store in one directory of this machine.
///
/// Dropping it waits for the last write. After a failed fsync it serves reads and refuses every write until it is
/// opened anew.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    bell: Arc<Bell>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: Box<dyn Send + Sync>,
}

impl EmbeddedStore {
    /// Opens the store in this directory, or makes a new one.
    ///
    /// Errors: `Unavailable` when another process has it or the disk fails; `Corrupt` when acknowledged data is
    /// damaged; `Invalid` when its format is newer than this program. The last two change nothing.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Arc<Self>> {
        let disk = OsDisk::new(dir).map_err(|error| Error::Unavailable(format!("cannot open the store: {error}")))?;
        Self::open_on(Arc::new(disk), options)
    }

    /// Opens the store on this disk.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_on(disk: Arc<dyn Disk>, options: EmbeddedOptions) -> Result<Arc<Self>> {
        let lock = lock(&*disk, options.lock_patience)?;
        let segment_bytes = options.segment_bytes.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let (log, index) = recover::open(&disk, segment_bytes, options.clock.now())?;
        let shared = Arc::new(Shared {
            published: AtomicU64::new(index.revision),
            index: RwLock::new(index),
            hub: Arc::default(),
            clock: options.clock,
            spares: Arc::clone(&log.spares),
            fatal: Mutex::default(),
            syncs: AtomicU64::new(0),
            frames: AtomicU64::new(0),
        });
        let (sender, requests) = mpsc::channel(QUEUED_REQUESTS);
        let bell = Arc::new(Bell::default());
        let store = log.manifest.content.store;
        let writer = Writer { log, shared: Arc::clone(&shared), requests, wake_keeper: Arc::clone(&bell) };
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            requests: sender.clone(),
            bell: Arc::clone(&bell),
            segment_bytes,
            store,
            seen_frames: 0,
            sealed: false,
            pause: 0,
        };
        let threads = vec![spawn("store-writer", move || writer.run())?, spawn("store-keeper", move || keeper.run())?];
        Ok(Arc::new(Self { shared, requests: Some(sender), bell, threads: Mutex::new(threads), _lock: lock }))
    }

    /// Makes a store in `dir`, which must be missing or empty, from a backup; returns its revision. It lies at least
    /// [`RESTORE_REVISION_BUMP`] above the backup's, and above all that an earlier restore of the same backup has given out,
    /// so that no revision is ever given out twice. `unix_seconds` is the time now.
    ///
    /// Errors: `Corrupt` when the backup is damaged or cut off; nothing is made then.
    pub fn restore(file: &Path, dir: &Path, unix_seconds: u64) -> Result<Revision> {
        backup::restore(file, dir, DEFAULT_SEGMENT_BYTES, unix_seconds)
    }

    /// Reads a whole backup and checks it, without making anything; returns the revision that it holds.
    ///
    /// Errors: as [`Self::restore`].
    pub fn verify_backup(file: &Path) -> Result<Revision> {
        backup::verify(file)
    }

    /// What the store holds and takes now.
    pub fn statistics(&self) -> Statistics {
        let index = self.shared.index.read();
        let (live_bytes, total) = index.sizes();
        Statistics {
            revision: index.revision,
            compacted: index.compacted,
            keys: index.key_count(),
            live_bytes,
            disk_bytes: total + self.shared.spares.bytes(),
            segments: index.segments.len(),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
        }
    }

    /// Reads every live value and checks it; returns the keys whose values are damaged. Blocks while it reads.
    pub fn scrub(&self) -> Vec<Bytes> {
        let readings: Vec<Reading> = {
            let index = self.shared.index.read();
            let all = KeyRange::Prefix(Bytes::new());
            index.range(&all, index.revision).filter_map(|(key, at)| Reading::new(&index, key, at).ok()).collect()
        };
        readings.into_iter().filter(|reading| reading.read().is_err()).map(|reading| reading.key).collect()
    }

    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answer.await.map_err(|_| closed())?
    }

    async fn send(&self, request: Request) -> Result<()> {
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send(request).await.map_err(|_| closed())
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.hub.close();
        self.bell.stop();
        self.requests = None;
        // The keeper ends first, because it holds the last sender; then the writer has no more requests and ends.
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store had panicked");
            }
        }
    }
}

/// Takes the store for this process.
fn lock(disk: &dyn Disk, patience: Duration) -> Result<Box<dyn Send + Sync>> {
    let asked = Instant::now();
    loop {
        match disk.lock() {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(Error::Unavailable(format!("cannot lock the store: {error}")));
            }
            Err(_) if asked.elapsed() >= patience => {
                return Err(Error::Unavailable("another process has the store open".into()));
            }
            Err(_) => std::thread::sleep(LOCK_LOOK),
            Ok(lock) => return Ok(lock),
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map_err(|error| Error::Unavailable(format!("cannot start a thread: {error}")))
}

fn closed() -> Error {
    Error::Unavailable("the store is closed".into())
}

/// Runs what may block where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Unavailable("a read of the store panicked".into()))?
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let mut response = RangeResponse::default();
        let mut readings = Vec::new();
        {
            let index = self.shared.index.read();
            response.revision = index.revision;
            let at = match request.revision {
                None | Some(0) => index.revision,
                Some(at) if at > index.revision => return Err(Error::FutureRevision { newest: index.revision }),
                Some(at) if at < index.compacted => return Err(Error::Compacted { oldest: index.compacted }),
                Some(at) => at,
            };
            for (key, version) in index.range(&request.range, at) {
                response.count += 1;
                if request.limit == 0 || readings.len() < request.limit {
                    readings.push(Reading::new(&index, key, version)?);
                }
            }
        }
        response.items = if request.keys_only {
            readings.iter().map(Reading::key_only).collect()
        } else if readings.len() <= INLINE_READS {
            readings.iter().map(Reading::read).collect::<Result<_>>()?
        } else {
            blocking(move || readings.iter().map(Reading::read).collect()).await?
        };
        Ok(response)
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResponse> {
        validate::transaction(&transaction)?;
        let (reply, answer) = oneshot::channel();
        self.send(Request::Transact(transaction, reply)).await?;
        answer.await.map_err(|_| closed())?
    }

    async fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream> {
        let index = self.shared.index.read();
        let newest = index.revision;
        let from = match from {
            None | Some(0) => newest + 1,
            Some(from) if from < index.compacted => return Err(Error::Compacted { oldest: index.compacted }),
            Some(from) => from,
        };
        let mut changes = Vec::new();
        if from <= newest {
            for (key, version, previous) in index.changes(&range, from) {
                changes.push(PastChange::new(&index, &key, &version, previous.as_ref())?);
            }
        }
        // Registered under the lock that commits become visible under, so that none falls between.
        let live = self.shared.hub.register(range, newest.max(from - 1));
        drop(index);
        Ok(live.after(read::history(changes), (from <= newest).then_some(newest)))
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.index.read().revision)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact(revision, reply)).await.map(|_| ())
    }

    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId> {
        validate::lease_seconds(ttl_seconds)?;
        let lease = loop {
            let lease = recover::random() >> 1;
            if lease != 0 && !self.shared.index.read().leases.contains_key(&lease) {
                break lease;
            }
        };
        self.ask(|reply| Request::LeaseGrant(lease, ttl_seconds, reply)).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<()> {
        let now = self.shared.clock.now();
        let mut index = self.shared.index.write();
        let entry = index.leases.get_mut(&lease).filter(|lease| !lease.ending).ok_or(Error::LeaseNotFound(lease))?;
        entry.ends = now + std::time::Duration::from_secs(entry.ttl_seconds);
        Ok(())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        self.ask(|reply| Request::LeaseEnd(lease, false, reply)).await.map(|_| ())
    }

    async fn backup(&self, file: &Path) -> Result<Revision> {
        let (checkpoint, entries) = {
            let index = self.shared.index.read();
            let all = KeyRange::Prefix(Bytes::new());
            let entries: Result<Vec<Reading>> =
                index.range(&all, index.revision).map(|(key, version)| Reading::new(&index, key, version)).collect();
            (index.checkpoint(), entries?)
        };
        let revision = checkpoint.revision;
        let file: PathBuf = file.to_path_buf();
        blocking(move || backup::write(&file, &checkpoint, entries)).await?;
        Ok(revision)
    }
}
