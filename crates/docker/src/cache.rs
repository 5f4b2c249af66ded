//! A shared cache of one kind in one namespace, filled by one watch. Requests read it, wait on single objects in it, and
//! put in what they wrote themselves, so that a client always sees its own writes. Knows kube, not what the kinds mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// How long a request waits for the first list after a start before it gives up.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause before a watch that failed is opened again.
const WATCH_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long the watch may take to tell of a deletion before it is taken for told.
const TOLD_TIMEOUT: Duration = Duration::from_secs(2);
/// How many deletions are remembered, against events that arrive after them.
const TOMBSTONES_MAX: usize = 4_096;

/// Called for each change, in order, before anybody who waits for it wakes: old state, new state, and whether
/// it is news (false while the first list comes in).
pub(crate) type Observer<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>, bool) + Send + Sync>;

/// An object's place: its latest state, or `Gone` with the last one.
#[derive(Clone, Debug)]
pub(crate) enum Slot<K> {
    /// It exists.
    There(Arc<K>),
    /// It was deleted; this was its last state.
    Gone(Arc<K>),
}

impl<K> Slot<K> {
    /// The latest state, deleted or not.
    pub(crate) fn object(&self) -> &Arc<K> {
        match self {
            Slot::There(object) | Slot::Gone(object) => object,
        }
    }
}

struct Inner<K> {
    slots: HashMap<String, watch::Sender<Slot<K>>>,
    /// Deleted objects by uid, so that a late event does not bring them back.
    tombstones: std::collections::VecDeque<String>,
}

struct Shared<K> {
    api: Api<K>,
    inner: RwLock<Inner<K>>,
    observer: Observer<K>,
    filled: watch::Sender<bool>,
}

/// The cache; cheap to clone.
pub(crate) struct Cache<K> {
    shared: Arc<Shared<K>>,
    watcher: Arc<AbortOnDrop>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), watcher: self.watcher.clone() }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Opens the watch over all objects of the kind. Must be called inside a tokio runtime.
    pub(crate) fn start(api: Api<K>, observer: Observer<K>) -> Self {
        Self::start_of(api, watcher::Config::default(), observer)
    }

    /// The same over those that the watch is asked for.
    pub(crate) fn start_of(api: Api<K>, of: watcher::Config, observer: Observer<K>) -> Self {
        let inner = RwLock::new(Inner { slots: HashMap::new(), tombstones: std::collections::VecDeque::new() });
        let shared = Arc::new(Shared { api, inner, observer, filled: watch::Sender::new(false) });
        let task = tokio::spawn(follow(shared.clone(), of));
        Self { shared, watcher: Arc::new(AbortOnDrop(task)) }
    }

    /// Waits for the first list.
    pub(crate) async fn ready(&self) -> Result<()> {
        if *self.shared.filled.borrow() {
            return Ok(());
        }
        let mut filled = self.shared.filled.subscribe();
        match tokio::time::timeout(FIRST_LIST_TIMEOUT, filled.wait_for(|filled| *filled)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::Unavailable("the object store does not answer".into())),
        }
    }

    /// One object.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<K>> {
        self.shared.inner.read().slots.get(name).map(|slot| slot.borrow().object().clone())
    }

    /// All objects, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.shared.inner.read().slots.values().map(|slot| slot.borrow().object().clone()).collect()
    }

    /// Follows one object; `None` when it does not exist.
    pub(crate) fn follow(&self, name: &str) -> Option<watch::Receiver<Slot<K>>> {
        self.shared.inner.read().slots.get(name).map(watch::Sender::subscribe)
    }

    /// Waits until one object is in a state that `reached` accepts. `None` when it does not exist.
    pub(crate) async fn wait_for(&self, name: &str, reached: impl FnMut(&Slot<K>) -> bool) -> Option<Slot<K>> {
        let mut slot = self.follow(name)?;
        let result = slot.wait_for(reached).await.ok().map(|slot| slot.clone());
        result.or_else(|| Some(slot.borrow().clone()))
    }

    /// Makes an object.
    pub(crate) async fn create(&self, object: &K) -> std::result::Result<Arc<K>, kube::Error> {
        let made = Arc::new(self.shared.api.create(&PostParams::default(), object).await?);
        self.shared.put(made.clone());
        Ok(made)
    }

    /// Writes an object anew. It must be in the version that it names.
    pub(crate) async fn replace(&self, object: &K) -> std::result::Result<Arc<K>, kube::Error> {
        let name = object.name_any();
        let written = Arc::new(self.shared.api.replace(&name, &PostParams::default(), object).await?);
        self.shared.put(written.clone());
        Ok(written)
    }

    /// Changes an object by a JSON merge patch.
    pub(crate) async fn patch(&self, name: &str, change: &serde_json::Value) -> Result<Arc<K>> {
        let patched = self.shared.api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
        let patched = Arc::new(patched);
        self.shared.put(patched.clone());
        Ok(patched)
    }

    /// Deletes an object; it may live on until its finalizers are done. An object that is gone already is no error.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let last = self.get(name);
        match self.shared.api.delete(name, &DeleteParams::default()).await {
            Ok(answer) => {
                match answer.left().filter(|object| !object.finalizers().is_empty()) {
                    Some(held) => self.shared.put(Arc::new(held)),
                    None => self.gone(name, last).await,
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.gone(name, last).await;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes out an object that is known to be gone: in its last state, which the watch tells, or else in the last one seen.
    async fn gone(&self, name: &str, last: Option<Arc<K>>) {
        let Some(last) = last else { return };
        // Another of the same name may be there already.
        let is_other = |object: &K| object.uid() != last.uid();
        let told = self.wait_for(name, |slot| matches!(slot, Slot::Gone(_)) || is_other(slot.object()));
        if tokio::time::timeout(TOLD_TIMEOUT, told).await.is_err()
            && let Some(seen) = self.get(name).filter(|seen| !is_other(seen))
        {
            self.shared.remove_as(seen);
        }
    }

    /// Waits until an object is gone.
    pub(crate) async fn wait_gone(&self, name: &str) {
        self.wait_for(name, |slot| matches!(slot, Slot::Gone(_))).await;
    }
}

/// Versions of one store are numbers that only rise.
fn revision<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K> Shared<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// Tells of a change; the first list tells of no changes.
    fn observe(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        let live = *self.filled.borrow();
        (self.observer)(old, new, live);
    }

    /// Takes in a state unless a newer one is there already.
    fn put(&self, object: Arc<K>) {
        let mut inner = self.inner.write();
        let name = object.name_any();
        let uid = object.uid().unwrap_or_default();
        if !uid.is_empty() && inner.tombstones.contains(&uid) {
            return;
        }
        match inner.slots.get(&name) {
            Some(slot) => {
                let old = slot.borrow().object().clone();
                if revision(&*old) >= revision(&*object) {
                    return;
                }
                self.observe(Some(&old), Some(&object));
                slot.send_replace(Slot::There(object));
            }
            None => {
                self.observe(None, Some(&object));
                inner.slots.insert(name, watch::Sender::new(Slot::There(object)));
            }
        }
    }

    /// Takes out an object that is known to be gone, with the last state we saw.
    fn remove(&self, name: &str) {
        let last = self.inner.read().slots.get(name).map(|slot| slot.borrow().object().clone());
        if let Some(last) = last {
            self.remove_as(last);
        }
    }

    /// Takes out an object that is known to be gone in this last state.
    fn remove_as(&self, last: Arc<K>) {
        let mut inner = self.inner.write();
        let name = last.name_any();
        let uid = last.uid().unwrap_or_default();
        let Some(slot) = inner.slots.get(&name) else { return };
        let old = slot.borrow().object().clone();
        if !uid.is_empty() && old.uid().is_some_and(|there| there != uid) {
            return;
        }
        if revision(&*last) > revision(&*old) {
            self.observe(Some(&old), Some(&last));
        }
        self.observe(Some(&last), None);
        if let Some(slot) = inner.slots.remove(&name) {
            slot.send_replace(Slot::Gone(last));
        }
        if !uid.is_empty() {
            inner.tombstones.push_back(uid);
            if inner.tombstones.len() > TOMBSTONES_MAX {
                inner.tombstones.pop_front();
            }
        }
    }
}

/// Keeps the cache true, for ever.
async fn follow<K>(shared: Arc<Shared<K>>, of: watcher::Config)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = Box::pin(watcher::watcher(shared.api.clone(), of));
    let mut listed: Vec<String> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                listed.push(object.name_any());
                shared.put(Arc::new(object));
            }
            Ok(Event::InitDone) => {
                // A fresh list after a gap: what it does not name is gone. (Objects made by us meanwhile are named by
                // the next list; losing one from the cache for an instant would be wrong, so only old ones go.)
                let known: Vec<String> = shared.inner.read().slots.keys().cloned().collect();
                for name in known.into_iter().filter(|name| !listed.contains(name)) {
                    if let Ok(None) = shared.api.get_opt(&name).await {
                        shared.remove(&name);
                    }
                }
                listed.clear();
                shared.filled.send_replace(true);
            }
            Ok(Event::Apply(object)) => shared.put(Arc::new(object)),
            Ok(Event::Delete(object)) => shared.remove_as(Arc::new(object)),
            Err(error) => {
                tracing::debug!(kind = %K::kind(&()), error = %crate::error::chain(&error), "watch failed; trying again");
                tokio::time::sleep(WATCH_RETRY_PAUSE).await;
            }
        }
    }
}
