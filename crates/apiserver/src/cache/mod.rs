//! The watch caches: all live objects as text, one cache per resource, fed by one watch of the store.

mod feed;
mod progress;
mod watch_cache;
mod watcher;

pub use feed::{Feed, Listener, load, prefix_end};
pub use progress::Progress;
pub use watch_cache::{CacheEvent, WatchCache};
pub use watcher::{Watcher, WatcherOptions};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// All caches by `group/plural/`.
#[derive(Default)]
pub struct Caches {
    by_resource: RwLock<HashMap<String, Arc<WatchCache>>>,
    /// Revision at which the server loaded: what a cache made later knows nothing about lies before it.
    base: AtomicU64,
}

impl Caches {
    /// The cache of a resource, made when it is not there.
    pub fn get(&self, resource: &str) -> Arc<WatchCache> {
        if let Some(cache) = self.by_resource.read().get(resource) {
            return cache.clone();
        }
        let mut caches = self.by_resource.write();
        let cache = caches.entry(resource.to_owned()).or_default();
        cache.loaded(self.base.load(Ordering::Acquire));
        cache.clone()
    }

    /// All objects were loaded as of `revision`: watches can start from there.
    pub fn loaded(&self, revision: u64) {
        self.base.fetch_max(revision, Ordering::AcqRel);
        for (_, cache) in self.all() {
            cache.loaded(revision);
        }
    }

    /// All caches.
    pub fn all(&self) -> Vec<(String, Arc<WatchCache>)> {
        self.by_resource.read().iter().map(|(resource, cache)| (resource.clone(), cache.clone())).collect()
    }
}
