//! Watching kinds: a reflector whose stream never ends and waits between failures.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::context::{Context, Key};
use crate::error::{Result, chain};

/// A store of all objects, and the stream of events that keeps it current; the stream must be polled.
pub fn reflect<K>(api: Api<K>, config: watcher::Config) -> (Store<K>, impl Stream<Item = watcher::Event<K>> + Send)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Unpin + Send,
{
    let (store, writer) = reflector::store();
    (store, reflector::reflector(writer, events(api, config)).filter_ok())
}

/// What [`follow`] tells.
pub enum Change<K> {
    /// The object is there, new or changed.
    Here(K),
    /// It is gone; with its uid when that is known.
    Gone(Key, Option<String>),
    /// A whole list has been told.
    Listed,
}

/// Tells of every object of a kind, for ever. After a list, what is `known` and not in it is gone.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    known: impl Fn() -> Vec<Key>,
    mut tell: impl FnMut(Change<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(events(api, config).filter_ok());
    let mut listing: Vec<Key> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => {
                listing.push(Key::of(&object));
                tell(Change::Here(object));
            }
            watcher::Event::Apply(object) => tell(Change::Here(object)),
            watcher::Event::Delete(object) => tell(Change::Gone(Key::of(&object), object.meta().uid.clone())),
            watcher::Event::InitDone => {
                for key in known().into_iter().filter(|key| !listing.contains(key)) {
                    tell(Change::Gone(key, None));
                }
                tell(Change::Listed);
            }
        }
    }
}

/// What is known of the objects of a kind, of which lists come piece by piece.
struct Listing<V> {
    known: BTreeMap<Key, V>,
    coming: BTreeMap<Key, V>,
    is_listed: bool,
}

impl<V> Listing<V> {
    fn new() -> Self {
        Self { known: BTreeMap::new(), coming: BTreeMap::new(), is_listed: false }
    }

    /// Notes an event; whether what is known is whole.
    fn note<K: Resource>(&mut self, event: watcher::Event<K>, read: impl Fn(K) -> Option<V>) -> bool {
        match event {
            watcher::Event::Init => self.coming.clear(),
            watcher::Event::InitApply(object) => {
                let key = Key::of(&object);
                self.coming.extend(read(object).map(|value| (key, value)));
            }
            watcher::Event::InitDone => {
                self.known = std::mem::take(&mut self.coming);
                self.is_listed = true;
            }
            watcher::Event::Apply(object) => {
                let key = Key::of(&object);
                match read(object) {
                    Some(value) => drop(self.known.insert(key, value)),
                    None => drop(self.known.remove(&key)),
                }
            }
            watcher::Event::Delete(object) => drop(self.known.remove(&Key::of(&object))),
        }
        self.is_listed && self.coming.is_empty()
    }
}

/// All objects of a kind by their places, again after each change, for ever. Half a list is never told.
pub fn states<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = BTreeMap<Key, Arc<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut listing = Listing::new();
    let step = move |event| {
        let whole = listing.note(event, |object| Some(Arc::new(object)));
        std::future::ready(whole.then(|| listing.known.clone()))
    };
    StreamExt::filter_map(events(api, config).filter_ok(), step)
}

/// What matters of those objects of a kind of which anything does, again after each change of that. Half a list is never told.
pub fn selected<K, V>(
    api: Api<K>,
    config: watcher::Config,
    read: fn(&K) -> Option<V>,
) -> impl Stream<Item = BTreeMap<Key, V>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    V: Clone + PartialEq + Send + 'static,
{
    let (mut listing, mut told) = (Listing::new(), None);
    let step = move |event| {
        let whole = listing.note(event, |object: K| read(&object));
        let is_news = whole && told.as_ref() != Some(&listing.known);
        if is_news {
            told = Some(listing.known.clone());
        }
        std::future::ready(is_news.then(|| listing.known.clone()))
    };
    StreamExt::filter_map(events(api, config).filter_ok(), step)
}

/// Follows objects that are made once and stay as they are, such as snapshots: `make` is begun for each that `is_open`, in a task of its
/// own, and `remove` is called for each that is gone. Sends the uids of all once the first list is complete.
pub async fn make_each<K, M, R>(
    context: Arc<Context>,
    listed: oneshot::Sender<Vec<String>>,
    is_open: impl Fn(&Context, &K) -> bool,
    make: impl Fn(Arc<Context>, K) -> M,
    remove: impl Fn(Arc<Context>, K) -> R,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    M: Future<Output = ()> + Send + 'static,
    R: Future<Output = Result<()>>,
{
    let config = watcher::Config::default();
    let mut events = std::pin::pin!(events(Api::<K>::all(context.client.clone()), config).filter_ok());
    let mut listed = Some(listed);
    let mut uids: Vec<String> = Vec::new();
    let mut begun: HashSet<Option<String>> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            watcher::Event::Init => uids.clear(),
            watcher::Event::InitDone => {
                if let Some(listed) = listed.take() {
                    let _ = listed.send(uids.clone());
                }
            }
            watcher::Event::Delete(object) => {
                begun.remove(&object.meta().uid);
                let name = object.meta().name.clone();
                if let Err(error) = remove(context.clone(), object).await {
                    tracing::warn!(kind = %K::kind(&()), name, error = %chain(&error), "cannot remove what was made");
                }
            }
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                uids.extend(object.meta().uid.clone());
                if is_open(&context, &object) && begun.insert(object.meta().uid.clone()) {
                    let stop = context.stop.clone();
                    tokio::spawn(stop.run_until_cancelled_owned(make(context.clone(), object)));
                }
            }
        }
    }
}

/// Whether the phase of what is made once says that it is done, well or not.
pub fn is_made(phase: Option<&str>) -> bool {
    matches!(phase, Some("Ready" | "Failed"))
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
        StreamExt::filter_map(self, |result| async move {
            result
                .map_err(|error| tracing::warn!(error = %crate::error::chain(&error), "watch failed; trying again"))
                .ok()
        })
    }
}
impl<K, S: Stream<Item = watcher::Result<watcher::Event<K>>>> FilterOk<K> for S {}
