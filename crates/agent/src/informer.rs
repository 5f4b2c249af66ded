//! Watching kinds: a reflector whose stream never ends and waits between failures.

use std::fmt::Debug;
use std::hash::Hash;

use futures::Stream;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// A store of all objects, and the stream of events that keeps it current; the stream must be polled.
pub fn reflect<K>(api: Api<K>, config: watcher::Config) -> (Store<K>, impl Stream<Item = watcher::Event<K>> + Send)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Unpin + Send,
{
    let (store, writer) = reflector::store();
    (store, reflector::reflector(writer, events(api, config)).filter_ok())
}

/// The events of a kind, for ever.
fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).default_backoff()
}

/// Leaves out errors, after a word in the log: the watcher tries again by itself.
trait FilterOk<K>: Stream<Item = watcher::Result<watcher::Event<K>>> + Sized {
    fn filter_ok(self) -> impl Stream<Item = watcher::Event<K>> + Send
    where
        Self: Send,
        K: Send,
    {
        futures::StreamExt::filter_map(self, |result| async move {
            result
                .map_err(|error| tracing::warn!(error = %crate::error::chain(&error), "watch failed; trying again"))
                .ok()
        })
    }
}
impl<K, S: Stream<Item = watcher::Result<watcher::Event<K>>>> FilterOk<K> for S {}
