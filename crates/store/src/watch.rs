//! Live watches of the engines that run in this process: fan-out of commits, bounded per watcher.
//! Knows commits and ranges; must never know where history is kept (engines chain it in front).
//!
//! A batch of commits is shared by all watchers; each one holds only references and picks its own events out when it
//! is polled, so that publishing costs one push per watcher and batch.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;

use crate::WatchStream;
use crate::error::{Error, Result};
use crate::types::{Event, KeyRange, Revision, WatchItem};

/// Most events that may wait for one watcher before it is cut off: seconds of full write load.
pub(crate) const MAX_QUEUED_EVENTS: usize = 65_536;
/// Most bytes of events that may wait for one watcher before it is cut off.
pub(crate) const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// One committed transaction.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) revision: Revision,
    pub(crate) events: Vec<Event>,
}

type Batch = Arc<Vec<Commit>>;

/// All live watchers of one store.
#[derive(Default)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Watchers {
    next: u64,
    live: BTreeMap<u64, Arc<Watcher>>,
    closed: bool,
}

struct Watcher {
    range: KeyRange,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    events: usize,
    bytes: usize,
    /// Everything up to here was queued or does not concern this watcher.
    seen: Revision,
    progress: Option<Revision>,
    ended: Option<Error>,
    waker: Option<Waker>,
}

impl Hub {
    /// Whether anybody watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Begins a watch of everything after `seen`. The caller must hold the lock under which commits become visible, so
    /// that none falls between its history and this watch.
    pub(crate) fn register(self: &Arc<Self>, range: KeyRange, seen: Revision) -> LiveWatch {
        let watcher = Arc::new(Watcher { range, queue: Mutex::new(Queue { seen, ..Queue::default() }) });
        let mut watchers = self.watchers.lock();
        let id = watchers.next;
        watchers.next += 1;
        if watchers.closed {
            watcher.queue.lock().ended = Some(Error::Unavailable("the store is closed".into()));
        } else {
            watchers.live.insert(id, Arc::clone(&watcher));
            self.count.store(watchers.live.len(), Ordering::Release);
        }
        LiveWatch { hub: Arc::clone(self), id, watcher, floor: seen, current: None, done: false }
    }

    /// Hands commits, in revision order, to every watcher whose range they touch.
    pub(crate) fn publish(&self, commits: Vec<Commit>) {
        let Some(last) = commits.last().map(|commit| commit.revision) else { return };
        let events: usize = commits.iter().map(|commit| commit.events.len()).sum();
        let bytes: usize = commits.iter().flat_map(|commit| &commit.events).map(event_bytes).sum();
        let batch: Batch = Arc::new(commits);
        let mut watchers = self.watchers.lock();
        let mut slow = Vec::new();
        for (id, watcher) in &watchers.live {
            if !batch.iter().flat_map(|commit| &commit.events).any(|event| watcher.range.contains(event.key())) {
                continue;
            }
            let mut queue = watcher.queue.lock();
            if last <= queue.seen {
                continue;
            }
            let fits = queue.batches.is_empty()
                || (queue.events + events <= MAX_QUEUED_EVENTS && queue.bytes + bytes <= MAX_QUEUED_BYTES);
            if fits {
                queue.batches.push_back(Arc::clone(&batch));
                queue.events += events;
                queue.bytes += bytes;
                queue.seen = last;
                queue.progress = None;
            } else {
                queue.batches.clear();
                queue.ended = Some(Error::SlowWatcher);
                slow.push(*id);
            }
            let waker = queue.waker.take();
            drop(queue);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        for id in slow {
            watchers.live.remove(&id);
        }
        self.count.store(watchers.live.len(), Ordering::Release);
    }

    /// Tells every watcher that is in step that nothing in its range changed up to `revision`. The caller must have
    /// published everything up to it.
    pub(crate) fn progress(&self, revision: Revision) {
        let watchers = self.watchers.lock();
        for watcher in watchers.live.values() {
            let mut queue = watcher.queue.lock();
            if revision > queue.seen && queue.batches.is_empty() {
                queue.seen = revision;
                queue.progress = Some(revision);
                if let Some(waker) = queue.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Ends all watches: the store is going away.
    pub(crate) fn close(&self) {
        let mut watchers = self.watchers.lock();
        watchers.closed = true;
        for watcher in std::mem::take(&mut watchers.live).into_values() {
            let mut queue = watcher.queue.lock();
            queue.ended = Some(Error::Unavailable("the store is closed".into()));
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
        self.count.store(0, Ordering::Release);
    }
}

fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Put { current, previous } => {
            current.key.len() + current.value.len() + previous.as_ref().map_or(0, |previous| previous.value.len())
        }
        Event::Delete { key, previous, .. } => key.len() + previous.as_ref().map_or(0, |previous| previous.value.len()),
    }
}

/// The live part of one watch; cancels when dropped.
pub(crate) struct LiveWatch {
    hub: Arc<Hub>,
    id: u64,
    watcher: Arc<Watcher>,
    floor: Revision,
    current: Option<(Batch, usize)>,
    done: bool,
}

impl LiveWatch {
    /// The live watch with history in front. A progress item parts the two, unless the history is empty or failed.
    pub(crate) fn after(
        self,
        history: impl Iterator<Item = Result<WatchItem>> + Send + 'static,
        up_to: Option<Revision>,
    ) -> WatchStream {
        let progress = up_to.map(|revision| Ok(WatchItem::Progress(revision)));
        Box::pin(CaughtUp { history: Some(Box::new(history.chain(progress))), live: Some(self) })
    }

    fn next_from_batch(&mut self) -> Option<WatchItem> {
        let (batch, position) = self.current.as_mut()?;
        while let Some(commit) = batch.get(*position) {
            *position += 1;
            if commit.revision <= self.floor {
                continue;
            }
            let range = &self.watcher.range;
            let events: Vec<Event> =
                commit.events.iter().filter(|event| range.contains(event.key())).cloned().collect();
            if !events.is_empty() {
                return Some(WatchItem::Events { revision: commit.revision, events });
            }
        }
        self.current = None;
        None
    }
}

impl Stream for LiveWatch {
    type Item = Result<WatchItem>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        loop {
            if let Some(item) = this.next_from_batch() {
                return Poll::Ready(Some(Ok(item)));
            }
            let mut queue = this.watcher.queue.lock();
            if let Some(batch) = queue.batches.pop_front() {
                queue.events -= batch.iter().map(|commit| commit.events.len()).sum::<usize>();
                queue.bytes -= batch.iter().flat_map(|commit| &commit.events).map(event_bytes).sum::<usize>();
                drop(queue);
                this.current = Some((batch, 0));
                continue;
            }
            if let Some(error) = queue.ended.take() {
                drop(queue);
                this.done = true;
                return Poll::Ready(Some(Err(error)));
            }
            if let Some(revision) = queue.progress.take() {
                return Poll::Ready(Some(Ok(WatchItem::Progress(revision))));
            }
            queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
    }
}

impl Drop for LiveWatch {
    fn drop(&mut self) {
        let mut watchers = self.hub.watchers.lock();
        watchers.live.remove(&self.id);
        self.hub.count.store(watchers.live.len(), Ordering::Release);
    }
}

/// History, then the live watch; an error ends both.
struct CaughtUp {
    history: Option<Box<dyn Iterator<Item = Result<WatchItem>> + Send>>,
    live: Option<LiveWatch>,
}

impl Stream for CaughtUp {
    type Item = Result<WatchItem>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(history) = &mut self.history {
            match history.next() {
                Some(Ok(item)) => return Poll::Ready(Some(Ok(item))),
                Some(Err(error)) => {
                    self.history = None;
                    self.live = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.history = None,
            }
        }
        match &mut self.live {
            Some(live) => Pin::new(live).poll_next(context),
            None => Poll::Ready(None),
        }
    }
}
