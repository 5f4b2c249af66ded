//! One watch over a cache: a position in its events and a selection. Watchers hold no queue of their own; one that lags
//! behind the cache's memory is cut off with `410 Expired` and lists again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::time::Instant;

use super::{CacheEvent, Progress, WatchCache};
use crate::encoding;
use crate::kind::Kind;
use crate::object::Object;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::Status;
use crate::watch::{EventKind, WatchEvent};

/// Events taken out of the cache at once.
const BATCH: usize = 128;
/// How often an idle watch with bookmarks gets one.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);

/// What a watcher wants to see.
pub struct WatcherOptions {
    /// The kind in the version to show.
    pub kind: Arc<Kind>,
    /// `namespace/` or empty.
    pub prefix: String,
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
    /// Send bookmarks.
    pub bookmarks: bool,
    /// Mark the end of the initial events.
    pub mark_initial: bool,
    /// When to end.
    pub ends: Instant,
}

/// A watch; turn it into a stream with [`Watcher::stream`].
pub struct Watcher {
    cache: Arc<WatchCache>,
    progress: Arc<Progress>,
    options: WatcherOptions,
    api_version: String,
    pending: VecDeque<WatchEvent>,
    initial: VecDeque<Object>,
    initial_left: bool,
    position: u64,
    revision: u64,
    next_bookmark: Instant,
    wake: tokio::sync::watch::Receiver<u64>,
    over: bool,
}

impl Watcher {
    /// A watch of what changes after `revision`. Errors: expired when the cache has forgotten that.
    pub fn since(
        cache: Arc<WatchCache>,
        progress: Arc<Progress>,
        options: WatcherOptions,
        revision: u64,
    ) -> Result<Watcher, Status> {
        let wake = cache.subscribe();
        let position = cache
            .position_after(revision)
            .map_err(|oldest| Status::expired(format!("too old resource version: {revision} ({oldest})")))?;
        Ok(Watcher::new(cache, progress, options, Vec::new(), false, position, revision, wake))
    }

    /// A watch that starts with the present state.
    pub fn from_present(cache: Arc<WatchCache>, progress: Arc<Progress>, options: WatcherOptions) -> Watcher {
        let wake = cache.subscribe();
        let known = progress.revision();
        let (items, position, last) = cache.snapshot(&options.prefix);
        Watcher::new(cache, progress, options, items, true, position, last.max(known), wake)
    }

    #[allow(clippy::too_many_arguments)] // Private; the two constructors above are what callers see.
    fn new(
        cache: Arc<WatchCache>,
        progress: Arc<Progress>,
        options: WatcherOptions,
        initial: Vec<Object>,
        initial_left: bool,
        position: u64,
        revision: u64,
        wake: tokio::sync::watch::Receiver<u64>,
    ) -> Watcher {
        Watcher {
            api_version: options.kind.api_version(),
            cache,
            progress,
            options,
            pending: VecDeque::new(),
            initial: initial.into(),
            initial_left,
            position,
            revision,
            next_bookmark: Instant::now() + BOOKMARK_INTERVAL,
            wake,
            over: false,
        }
    }

    /// The events.
    pub fn stream(self) -> impl Stream<Item = WatchEvent> + Send {
        futures::stream::unfold(self, |mut watcher| async move { watcher.next().await.map(|event| (event, watcher)) })
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.next_initial() {
                return Some(event);
            }
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            self.wake.borrow_and_update();
            let known = self.progress.revision();
            match self.cache.events_from(self.position, BATCH) {
                None => return Some(self.cut_off()),
                Some(events) if events.is_empty() => {
                    self.revision = self.revision.max(known);
                    if let Some(event) = self.idle().await {
                        return Some(event);
                    }
                }
                Some(events) => self.take(&events),
            }
        }
    }

    fn next_initial(&mut self) -> Option<WatchEvent> {
        while let Some(object) = self.initial.pop_front() {
            if self.selects(&object) {
                return Some(WatchEvent::new(EventKind::Added, encoding::shown(&self.options.kind, &object.bytes)));
            }
        }
        if std::mem::take(&mut self.initial_left) && self.options.mark_initial && self.options.bookmarks {
            return Some(self.bookmark(true));
        }
        None
    }

    /// Waits for changes; answers a bookmark when one is due, `None` when there is news or the time is over.
    async fn idle(&mut self) -> Option<WatchEvent> {
        let until = if self.options.bookmarks { self.options.ends.min(self.next_bookmark) } else { self.options.ends };
        tokio::select! {
            changed = self.wake.changed() => {
                self.over |= changed.is_err();
                None
            }
            () = tokio::time::sleep_until(until) => {
                self.over = Instant::now() >= self.options.ends;
                if !self.options.bookmarks {
                    return None;
                }
                self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                Some(self.bookmark(false))
            }
        }
    }

    fn take(&mut self, events: &[Arc<CacheEvent>]) {
        for event in events {
            self.position += 1;
            self.revision = self.revision.max(event.revision);
            if let Some(event) = self.translate(event) {
                self.pending.push_back(event);
            }
        }
        if Instant::now() >= self.options.ends {
            self.over = true;
        }
    }

    /// What the event is to this watcher: an object that is no longer selected is deleted for it, and so on.
    fn translate(&self, event: &CacheEvent) -> Option<WatchEvent> {
        if !event.object.meta.key.starts_with(&self.options.prefix) {
            return None;
        }
        let was = event.previous.as_ref().is_some_and(|previous| self.selects(previous));
        let is = event.kind != EventKind::Deleted && self.selects(&event.object);
        let kind = match (was, is) {
            (false, false) => return None,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        let bytes = match &event.previous {
            // The watcher last knew the state before, so it gets that, at the revision of the change.
            Some(previous) if kind == EventKind::Deleted && event.kind != EventKind::Deleted => {
                encoding::with_revision(&previous.bytes, event.revision)
            }
            _ => event.object.bytes.clone(),
        };
        let shown = encoding::shown(&self.options.kind, &bytes);
        if kind == event.kind && shown.as_ptr() == event.object.bytes.as_ptr() {
            return Some(WatchEvent::shared(kind, shown, event.frame.clone()));
        }
        Some(WatchEvent::new(kind, shown))
    }

    fn selects(&self, object: &Object) -> bool {
        self.options.labels.matches(&object.meta.labels) && self.options.fields.matches(&object.meta)
    }

    fn bookmark(&self, initial: bool) -> WatchEvent {
        let mut metadata = serde_json::json!({"resourceVersion": self.revision.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = serde_json::json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            serde_json::json!({"kind": self.options.kind.kind, "apiVersion": self.api_version, "metadata": metadata});
        WatchEvent::new(EventKind::Bookmark, Bytes::from(object.to_string()))
    }

    fn cut_off(&mut self) -> WatchEvent {
        self.over = true;
        let status = Status::expired(format!("too old resource version: {}", self.revision));
        WatchEvent::new(EventKind::Error, Bytes::from(status.to_value().to_string()))
    }
}
