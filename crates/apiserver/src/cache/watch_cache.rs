//! One resource's live objects and its latest events. Readers take text out by reference counting; nothing is parsed.

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::encoding;
use crate::object::{Meta, Object};
use crate::watch::EventKind;

/// Most events that one resource remembers for watchers that lag or come back.
const MAX_EVENTS: usize = 20_000;
/// Most text that those events hold. Units: bytes.
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;
/// Events older than this go, except the last few; as long as Kubernetes' clients take to come back.
const EVENT_AGE: Duration = Duration::from_secs(300);
/// Events that stay however old they are.
const MIN_EVENTS: usize = 64;

struct ByKey(Arc<Meta>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &ByKey) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &ByKey) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &ByKey) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// One change of one object.
pub struct CacheEvent {
    /// Revision of the change.
    pub revision: u64,
    /// Added, modified or deleted.
    pub kind: EventKind,
    /// The new state; for deletions the last state, at the deletion's revision.
    pub object: Object,
    /// The state before.
    pub previous: Option<Object>,
    /// The frame on the wire, made once.
    pub frame: Arc<OnceLock<Bytes>>,
    at: Instant,
}

impl CacheEvent {
    fn bytes(&self) -> usize {
        self.object.bytes.len() + self.frame.get().map_or(0, Bytes::len)
    }
}

struct State {
    objects: BTreeMap<ByKey, Bytes>,
    events: VecDeque<Arc<CacheEvent>>,
    /// Sequence number of the first event in `events`.
    first_sequence: u64,
    event_bytes: usize,
    /// All changes after this revision are in `events`.
    complete_after: u64,
    /// Revision of the last change.
    last_revision: u64,
    selectable: Arc<Vec<(String, String)>>,
}

/// One resource's cache.
pub struct WatchCache {
    state: RwLock<State>,
    sequence: watch::Sender<u64>,
}

impl Default for WatchCache {
    fn default() -> WatchCache {
        WatchCache {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                events: VecDeque::new(),
                first_sequence: 0,
                event_bytes: 0,
                complete_after: 0,
                last_revision: 0,
                selectable: Arc::default(),
            }),
            sequence: watch::Sender::new(0),
        }
    }
}

impl WatchCache {
    /// Declares the fields that field selectors may use; objects that are here already are read again.
    pub fn set_selectable(&self, selectable: &[(String, String)]) {
        let mut state = self.state.write();
        if state.selectable.as_slice() == selectable {
            return;
        }
        state.selectable = Arc::new(selectable.to_vec());
        let old = std::mem::take(&mut state.objects);
        for (ByKey(meta), bytes) in old {
            let object = encoding::object(&meta.key, &bytes, meta.revision, selectable);
            state.objects.insert(ByKey(object.meta), object.bytes);
        }
    }

    /// Puts an object in while the server loads; no event.
    pub fn load(&self, key: &str, stored: &[u8], revision: u64) {
        let mut state = self.state.write();
        let object = encoding::object(key, stored, revision, &state.selectable.clone());
        state.objects.insert(ByKey(object.meta), object.bytes);
        state.last_revision = state.last_revision.max(revision);
    }

    /// All objects were loaded as of `revision`: watches can start from there.
    pub fn loaded(&self, revision: u64) {
        let mut state = self.state.write();
        state.complete_after = state.complete_after.max(revision);
    }

    /// Follows a write.
    pub fn put(&self, key: &str, stored: &[u8], revision: u64) {
        let selectable = self.state.read().selectable.clone();
        let object = encoding::object(key, stored, revision, &selectable);
        let mut state = self.state.write();
        if revision <= state.last_revision && state.current_revision(key).is_some_and(|own| own >= revision) {
            return;
        }
        let previous = state.take(key);
        state.objects.insert(ByKey(object.meta.clone()), object.bytes.clone());
        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
        let sequence = state.push(kind, object, previous, revision);
        drop(state);
        self.sequence.send_replace(sequence);
    }

    /// Follows a deletion.
    pub fn delete(&self, key: &str, revision: u64) {
        let mut state = self.state.write();
        let Some(previous) = state.take(key) else { return };
        let meta = Meta { revision, ..(*previous.meta).clone() };
        let object = Object { bytes: encoding::with_revision(&previous.bytes, revision), meta: Arc::new(meta) };
        let sequence = state.push(EventKind::Deleted, object, Some(previous), revision);
        drop(state);
        self.sequence.send_replace(sequence);
    }

    /// Forgets the events, so that every watcher has to start over; after the feed lost its place.
    pub fn restart(&self, revision: u64) {
        let mut state = self.state.write();
        // One number is skipped, so that a watcher that was in step finds its place gone too.
        state.first_sequence += u64::try_from(state.events.len()).unwrap_or(u64::MAX) + 1;
        state.events.clear();
        state.event_bytes = 0;
        state.complete_after = revision;
        let sequence = state.first_sequence;
        drop(state);
        self.sequence.send_replace(sequence);
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Object> {
        let state = self.state.read();
        let (meta, bytes) = state.objects.get_key_value(key)?;
        Some(Object { bytes: bytes.clone(), meta: meta.0.clone() })
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Revision of the last change of this resource.
    pub fn last_revision(&self) -> u64 {
        self.state.read().last_revision
    }

    /// Objects whose key starts with `prefix`, comes after `after`, and that `select` wants; and the revision of the
    /// last change that they reflect.
    pub fn collect(
        &self,
        prefix: &str,
        after: Option<&str>,
        mut select: impl FnMut(&Object) -> bool,
    ) -> (Vec<Object>, u64) {
        let state = self.state.read();
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let items = state
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(meta, _)| meta.0.key.starts_with(prefix))
            .map(|(meta, bytes)| Object { bytes: bytes.clone(), meta: meta.0.clone() })
            .filter(|object| select(object))
            .collect();
        (items, state.last_revision)
    }

    /// All objects whose key starts with `prefix`.
    pub fn all(&self, prefix: &str) -> Vec<Object> {
        self.collect(prefix, None, |_| true).0
    }

    /// Where a watch that knows everything up to `revision` has to go on; `Err`: the oldest revision to start from.
    pub(super) fn position_after(&self, revision: u64) -> Result<u64, u64> {
        let state = self.state.read();
        if revision < state.complete_after {
            return Err(state.complete_after);
        }
        let skip = state.events.partition_point(|event| event.revision <= revision);
        Ok(state.first_sequence + u64::try_from(skip).unwrap_or(u64::MAX))
    }

    /// The present objects, with the position and the revision from which to go on.
    pub(super) fn snapshot(&self, prefix: &str) -> (Vec<Object>, u64, u64) {
        let state = self.state.read();
        let items = state
            .objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(meta, _)| meta.0.key.starts_with(prefix))
            .map(|(meta, bytes)| Object { bytes: bytes.clone(), meta: meta.0.clone() })
            .collect();
        (items, state.next_sequence(), state.last_revision)
    }

    /// Events from `sequence` on, at most `limit`; `None` when they are no longer all here.
    pub(super) fn events_from(&self, sequence: u64, limit: usize) -> Option<Vec<Arc<CacheEvent>>> {
        let state = self.state.read();
        let skip = usize::try_from(sequence.checked_sub(state.first_sequence)?).ok()?;
        Some(state.events.iter().skip(skip).take(limit).cloned().collect())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.sequence.subscribe()
    }
}

impl State {
    fn current_revision(&self, key: &str) -> Option<u64> {
        self.objects.get_key_value(key).map(|(meta, _)| meta.0.revision)
    }

    fn next_sequence(&self) -> u64 {
        self.first_sequence + u64::try_from(self.events.len()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, key: &str) -> Option<Object> {
        self.objects.remove_entry(key).map(|(meta, bytes)| Object { bytes, meta: meta.0 })
    }

    fn push(&mut self, kind: EventKind, object: Object, previous: Option<Object>, revision: u64) -> u64 {
        let event = CacheEvent { revision, kind, object, previous, frame: Arc::default(), at: Instant::now() };
        self.last_revision = self.last_revision.max(revision);
        self.event_bytes += event.bytes();
        let now = event.at;
        self.events.push_back(Arc::new(event));
        while self.events.len() > MIN_EVENTS {
            let Some(oldest) = self.events.front() else { break };
            let fits = self.events.len() <= MAX_EVENTS && self.event_bytes <= MAX_EVENT_BYTES;
            if fits && now.duration_since(oldest.at) < EVENT_AGE {
                break;
            }
            self.event_bytes = self.event_bytes.saturating_sub(oldest.object.bytes.len());
            self.complete_after = oldest.revision;
            self.first_sequence += 1;
            self.events.pop_front();
        }
        self.next_sequence()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(name: &str) -> Vec<u8> {
        encoding::encode(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}))
    }

    #[test]
    fn objects_are_found_by_prefix_in_order() {
        let cache = WatchCache::default();
        for (revision, key) in [(2, "a/x"), (3, "ab/y"), (4, "a/b")] {
            cache.put(key, &stored("n"), revision);
        }
        let (items, revision) = cache.collect("a/", None, |_| true);
        let keys: Vec<&str> = items.iter().map(|item| &*item.meta.key).collect();
        assert_eq!((keys, revision), (vec!["a/b", "a/x"], 4));
        assert_eq!(cache.collect("a/", Some("a/b"), |_| true).0.len(), 1);
        cache.delete("a/x", 5);
        assert!(cache.get("a/x").is_none());
        assert_eq!(cache.last_revision(), 5);
    }

    #[test]
    fn positions_are_kept_until_events_are_forgotten() {
        let cache = WatchCache::default();
        cache.loaded(1);
        for revision in 2..30_000 {
            cache.put("a", &stored("a"), revision);
        }
        let oldest = cache.position_after(1).unwrap_err();
        assert!(oldest > 9_000);
        let position = cache.position_after(29_000).unwrap();
        let events = cache.events_from(position, 5).unwrap();
        assert_eq!(events[0].revision, 29_001);
        assert!(cache.events_from(0, 5).is_none());
        cache.restart(40_000);
        assert!(cache.events_from(position, 5).is_none());
    }

    #[test]
    fn memory_stays_below_six_kibibytes_for_each_object_of_one() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y".repeat(900)}});
        let text = encoding::encode(&object);
        let cache = WatchCache::default();
        cache.put("default/a", &text, 2);
        let kept = cache.get("default/a").unwrap();
        // The text is shared by the map and the event; the metadata by the map and the event too.
        let held =
            kept.bytes.len() + std::mem::size_of::<Meta>() + kept.meta.key.len() + std::mem::size_of::<CacheEvent>();
        assert!(held < 2 * 1024, "{held}");
    }
}
