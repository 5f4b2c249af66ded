//! Fills the caches from the store and keeps them in step by one watch over all objects. When the watch breaks (too
//! slow, compacted, store away) the feed reads everything anew, sends the difference and ends the running watches.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use store::{Event, KeyRange, RangeRequest, SharedStore, WatchItem};
use tokio::task::JoinHandle;

use super::{Caches, Progress};
use crate::keys;

/// Objects read at once while loading.
const LOAD_PAGE: usize = 2_000;
/// Pause before the feed tries again to reach a store that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Called after a change with the resource (`group/plural/`) that changed, in the order of changes.
pub type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// The task that keeps the caches in step; ends when it is dropped.
pub struct Feed {
    task: JoinHandle<()>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads all objects of one revision into the caches and says which revision it was.
pub async fn load(store: &SharedStore, caches: &Caches) -> store::Result<u64> {
    let revision = each_object(store, |resource, relative, stored, revision| {
        caches.get(resource).load(relative, stored, revision);
    })
    .await?;
    caches.loaded(revision);
    Ok(revision)
}

async fn each_object(store: &SharedStore, mut visit: impl FnMut(&str, &str, &[u8], u64)) -> store::Result<u64> {
    let end = Bytes::from(prefix_end(keys::OBJECTS));
    let mut start = Bytes::from(keys::OBJECTS);
    let mut revision = None;
    loop {
        let range = KeyRange::Between(start.clone(), end.clone());
        let page = store.range(RangeRequest { range, revision, limit: LOAD_PAGE, keys_only: false }).await?;
        revision.get_or_insert(page.revision);
        for item in &page.items {
            if let Some((resource, relative)) = std::str::from_utf8(&item.key).ok().and_then(keys::split) {
                visit(resource, relative, &item.value, item.mod_revision);
            }
        }
        match page.items.last() {
            Some(last) if page.items.len() == LOAD_PAGE => {
                let mut next = last.key.to_vec();
                next.push(0);
                start = Bytes::from(next);
            }
            _ => return Ok(revision.unwrap_or(page.revision)),
        }
    }
}

/// The first key after all keys with this prefix.
pub fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    end
}

impl Feed {
    /// Whether the task still runs.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Starts to follow the store after `revision`.
    pub fn start(
        store: SharedStore,
        caches: Arc<Caches>,
        progress: &Arc<Progress>,
        revision: u64,
        listener: Listener,
    ) -> Feed {
        progress.advance(revision);
        let progress = Arc::downgrade(progress);
        Feed { task: tokio::spawn(run(store, caches, progress, revision, listener)) }
    }
}

async fn run(store: SharedStore, caches: Arc<Caches>, progress: Weak<Progress>, mut revision: u64, listener: Listener) {
    loop {
        match follow(&store, &caches, &progress, &mut revision, &listener).await {
            Ok(()) => tracing::warn!(revision, "the store's watch ended"),
            Err(error) => tracing::warn!(revision, %error, "the store's watch broke"),
        }
        let Some(progress) = progress.upgrade() else { return };
        loop {
            match reload(&store, &caches, &listener).await {
                Ok(reached) => {
                    revision = reached;
                    progress.advance(reached);
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot read the store; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }
}

async fn follow(
    store: &SharedStore,
    caches: &Caches,
    progress: &Weak<Progress>,
    revision: &mut u64,
    listener: &Listener,
) -> store::Result<()> {
    let range = KeyRange::Prefix(Bytes::from(keys::OBJECTS));
    let mut watch = store.watch(range, Some(*revision + 1)).await?;
    while let Some(item) = watch.next().await {
        let reached = match item? {
            WatchItem::Progress(reached) => reached,
            WatchItem::Events { revision, events } => {
                for event in &events {
                    apply(caches, event, listener);
                }
                revision
            }
        };
        *revision = reached.max(*revision);
        match progress.upgrade() {
            Some(progress) => progress.advance(reached),
            None => return Ok(()),
        }
    }
    Ok(())
}

fn apply(caches: &Caches, event: &Event, listener: &Listener) {
    let key = match event {
        Event::Put { current, .. } => &current.key,
        Event::Delete { key, .. } => key,
    };
    let Some((resource, relative)) = std::str::from_utf8(key).ok().and_then(keys::split) else { return };
    let cache = caches.get(resource);
    match event {
        Event::Put { current, .. } => cache.put(relative, &current.value, current.mod_revision),
        Event::Delete { revision, .. } => cache.delete(relative, *revision),
    }
    listener(resource);
}

async fn reload(store: &SharedStore, caches: &Caches, listener: &Listener) -> store::Result<u64> {
    let mut seen: HashSet<String> = HashSet::new();
    let revision = each_object(store, |resource, relative, stored, revision| {
        caches.get(resource).put(relative, stored, revision);
        seen.insert(format!("{resource}{relative}"));
    })
    .await?;
    for (resource, cache) in caches.all() {
        for object in cache.all("") {
            if !seen.contains(&format!("{resource}{}", object.meta.key)) {
                cache.delete(&object.meta.key, revision);
            }
        }
        cache.restart(revision);
        listener(&resource);
    }
    Ok(revision)
}
