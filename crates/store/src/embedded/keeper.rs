//! The thread that keeps house: ends leases, tells watchers of progress, prepares segments, cleans old ones.
//! It only asks; every write is the writer's.
//!
//! Cleaning is circular: the oldest segment's needed entries go to the log's end, then the segment goes. It runs while
//! more is dead than alive, so that the disk holds at most about twice what is needed, and each byte written is copied
//! about once. Oldest first also keeps reading the log back simple: see `Writer::relocate`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, oneshot};

use super::log::{LogError, Segment};
use super::record::{self, Item, Location, Parsed, SEGMENT_HEADER_BYTES, small};
use super::writer::{OldEntry, Reply, Request, Shared};
use crate::error::{Error, Result};

/// How often leases are looked at; half the precision that a lease of one second needs.
const TICK: Duration = Duration::from_millis(200);
/// Most bytes of one frame of copied entries; bounds how long other writers wait for it.
const RELOCATE_BYTES: usize = 256 * 1024;
/// Ticks without cleaning after it failed: what stopped it, damage or a full disk, seldom goes at once.
const CLEANING_PAUSE_TICKS: u32 = 15;
/// Dead segments that are left alone, so that a small store is not copied about.
const DEAD_SEGMENTS_ALLOWED: u64 = 2;

/// Wakes the keeper before its time, and ends it.
#[derive(Default)]
pub(crate) struct Bell {
    state: Mutex<BellState>,
    changed: Condvar,
}

#[derive(Default)]
struct BellState {
    rung: bool,
    stopped: bool,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.state.lock().rung = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for a ring or the time; says whether to go on.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        if !state.rung && !state.stopped {
            self.changed.wait_for(&mut state, TICK);
        }
        state.rung = false;
        !state.stopped
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }
}

/// The keeper.
pub(crate) struct Keeper {
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) segment_bytes: u64,
    /// The store's secret identity.
    pub(crate) store: u64,
    /// Frames at the last tick, and whether they are sealed.
    pub(crate) seen_frames: u64,
    pub(crate) sealed: bool,
    /// Ticks until cleaning is tried again.
    pub(crate) pause: u32,
}

impl Keeper {
    /// Keeps house until the bell stops it.
    pub(crate) fn run(mut self) {
        loop {
            if self.shared.failed().is_none() {
                self.end_leases();
                self.prepare();
                self.seal();
                self.pause = self.pause.saturating_sub(1);
                if self.pause == 0
                    && let Err(error) = self.clean()
                {
                    tracing::warn!(%error, "cannot clean the store now");
                    self.pause = CLEANING_PAUSE_TICKS;
                }
            }
            self.shared.hub.progress(self.shared.published.load(Ordering::Acquire));
            if !self.bell.wait() {
                return;
            }
        }
    }

    fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Result<u64> {
        let closed = || Error::Unavailable("the store is closed".into());
        let (reply, answer) = oneshot::channel();
        self.requests.blocking_send(request(reply)).map_err(|_| closed())?;
        answer.blocking_recv().map_err(|_| closed())?
    }

    fn end_leases(&self) {
        let now = self.shared.clock.now();
        let over: Vec<u64> = {
            let index = self.shared.index.read();
            index.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect()
        };
        for lease in over {
            if let Err(error) = self.ask(|reply| Request::LeaseEnd(lease, true, reply)) {
                tracing::warn!(lease, %error, "cannot end a lease now");
            }
        }
    }

    fn prepare(&self) {
        match self.shared.spares.refill() {
            // A full disk is the callers' matter: they get the error when they need the space.
            Ok(()) | Err(LogError::NoSpace) => {}
            Err(LogError::Fatal(text)) => {
                let _ = self.shared.fail(text);
            }
        }
    }

    /// Seals the log when it has rested for a tick.
    fn seal(&mut self) {
        let frames = self.shared.frames.load(Ordering::Relaxed);
        if frames != self.seen_frames {
            self.seen_frames = frames;
            self.sealed = false;
        } else if !self.sealed && self.requests.try_send(Request::Seal).is_ok() {
            self.sealed = true;
        }
    }

    fn clean(&self) -> Result<()> {
        while !self.bell.is_stopped() {
            let Some(segment) = self.next_to_clean() else { return Ok(()) };
            self.clean_segment(&segment)?;
            self.prepare();
        }
        Ok(())
    }

    /// The oldest segment, when enough is dead.
    fn next_to_clean(&self) -> Option<Arc<Segment>> {
        let index = self.shared.index.read();
        if index.segments.len() < 2 {
            return None;
        }
        let (live, total) = index.sizes();
        let dead = total.saturating_sub(live);
        let enough = if self.shared.spares.is_low() {
            dead >= 2 * self.segment_bytes
        } else {
            dead > live + (DEAD_SEGMENTS_ALLOWED + 1) * self.segment_bytes
        };
        let (_, oldest) = index.segments.first_key_value()?;
        (enough || oldest.live_bytes == 0).then(|| Arc::clone(&oldest.segment))
    }

    fn clean_segment(&self, segment: &Arc<Segment>) -> Result<()> {
        let unreadable = |error| Error::Unavailable(format!("cannot read segment {}: {error}", segment.id));
        let mut bytes = vec![0; usize::try_from(segment.capacity).unwrap_or(usize::MAX)];
        segment.file.read_at(&mut bytes, 0).map_err(unreadable)?;
        let seed = record::seed(self.store, segment.id);
        let mut at = SEGMENT_HEADER_BYTES;
        let mut chunk = Vec::new();
        let mut chunk_bytes = 0;
        while let Parsed::Frame { payload, length, .. } = record::parse_frame(&bytes[at.min(bytes.len())..], &seed) {
            let payload_at = at + record::FRAME_HEADER_BYTES;
            for item in record::parse_items(payload)? {
                let Item::Entry { offset, bytes, entry } = item else { continue };
                let location =
                    Location { segment: segment.id, offset: small(payload_at + offset), length: small(bytes.len()) };
                let revision = entry.stamp.mod_revision;
                if self.shared.index.read().needed(entry.key, revision, location).is_none() {
                    continue;
                }
                chunk_bytes += bytes.len();
                chunk.push(OldEntry { key: entry.key.to_vec(), revision, at: location, bytes: bytes.to_vec() });
                if chunk_bytes >= RELOCATE_BYTES {
                    self.ask(|reply| Request::Relocate(std::mem::take(&mut chunk), reply))?;
                    chunk_bytes = 0;
                }
            }
            at += length;
        }
        if !chunk.is_empty() {
            self.ask(|reply| Request::Relocate(chunk, reply))?;
        }
        // Refused when a damaged frame left something needed behind: the segment then stays, and the damage is seen.
        self.ask(|reply| Request::DropFirst(segment.id, reply)).map(|_| ())
    }
}
