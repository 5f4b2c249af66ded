//! The model: a map from key to all its versions. Simple on purpose, because the other engines are held against it;
//! also the store of other crates' unit tests. Nothing survives the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::{Clock, MonotonicClock};
use crate::error::{Error, Result};
use crate::types::{
    Compare, Event, KeyRange, KeyValue, LeaseId, Operation, OperationResult, RangeRequest, RangeResponse, Revision,
    Transaction, TransactionResponse, WatchItem,
};
use crate::watch::{Commit, Hub};
use crate::{Store, WatchStream, validate};

/// How often leases are looked at and watchers told of progress.
const TICK: Duration = Duration::from_millis(200);

/// A store in memory, with the whole contract but durability.
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    hub: Arc<Hub>,
    clock: Arc<dyn Clock>,
}

struct State {
    /// Every version of every key, oldest first; a version without a value is a deletion.
    keys: BTreeMap<Bytes, Vec<Version>>,
    revision: Revision,
    compacted: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: LeaseId,
}

#[derive(Clone)]
struct Version {
    revision: Revision,
    item: Option<KeyValue>,
}

struct Lease {
    time: Duration,
    ends: Duration,
}

impl MemoryStore {
    /// An empty store on the machine's clock.
    pub fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(MonotonicClock::new()))
    }

    /// An empty store whose leases run by this clock.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State { keys: BTreeMap::new(), revision: 1, compacted: 0, leases: BTreeMap::new(), next_lease: 1 };
        let shared = Arc::new(Shared { state: Mutex::new(state), hub: Arc::default(), clock });
        let weak = Arc::downgrade(&shared);
        std::thread::spawn(move || tick(&weak));
        Arc::new(Self { shared })
    }
}

/// Ends leases and tells watchers of progress until the store is gone.
fn tick(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        shared.end_leases();
        drop(shared);
        std::thread::sleep(TICK);
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shared.hub.close();
    }
}

impl Shared {
    fn end_leases(&self) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let over: Vec<LeaseId> =
            state.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
        for lease in over {
            self.end_lease(&mut state, lease);
        }
        self.hub.progress(state.revision);
    }

    fn end_lease(&self, state: &mut State, lease: LeaseId) {
        state.leases.remove(&lease);
        let keys: BTreeSet<Bytes> =
            state.live().filter(|item| item.lease == lease).map(|item| item.key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        state.revision += 1;
        let revision = state.revision;
        let events = keys.into_iter().filter_map(|key| state.delete(&key, revision)).map(|(event, _)| event).collect();
        self.hub.publish(vec![Commit { revision, events }]);
    }
}

impl State {
    fn newest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.last()?.item.as_ref()
    }

    fn live(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values().filter_map(|versions| versions.last()?.item.as_ref())
    }

    fn holds(&self, compare: &Compare) -> bool {
        let item = self.newest(compare.key());
        match compare {
            Compare::ModRevision(_, revision) => item.map_or(0, |item| item.mod_revision) == *revision,
            Compare::CreateRevision(_, revision) => item.map_or(0, |item| item.create_revision) == *revision,
            Compare::Exists(_) => item.is_some(),
        }
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: LeaseId, revision: Revision) -> Event {
        let previous = self.newest(key).cloned();
        let current = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: previous.as_ref().map_or(revision, |previous| previous.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(1, |previous| previous.version + 1),
            lease,
        };
        self.keys.entry(key.clone()).or_default().push(Version { revision, item: Some(current.clone()) });
        Event::Put { current, previous }
    }

    fn delete(&mut self, key: &Bytes, revision: Revision) -> Option<(Event, KeyValue)> {
        let previous = self.newest(key).cloned()?;
        self.keys.get_mut(key)?.push(Version { revision, item: None });
        Some((Event::Delete { key: key.clone(), revision, previous: Some(previous.clone()) }, previous))
    }

    fn in_range(&self, range: &KeyRange) -> impl Iterator<Item = (&Bytes, &Vec<Version>)> {
        range.bounds().into_iter().flat_map(|bounds| self.keys.range(bounds))
    }

    /// Every event of the range at or after `from`, by revision.
    fn history(&self, range: &KeyRange, from: Revision) -> BTreeMap<Revision, Vec<Event>> {
        let mut history: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
        for (key, versions) in self.in_range(range) {
            let mut previous: Option<KeyValue> = None;
            for version in versions {
                let before = std::mem::replace(&mut previous, version.item.clone());
                if version.revision < from {
                    continue;
                }
                let event = match &version.item {
                    Some(current) => Event::Put { current: current.clone(), previous: before },
                    None => Event::Delete { key: key.clone(), revision: version.revision, previous: before },
                };
                history.entry(version.revision).or_default().push(event);
            }
        }
        history
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let state = self.shared.state.lock();
        let at = match request.revision {
            None | Some(0) => state.revision,
            Some(at) if at > state.revision => return Err(Error::FutureRevision { newest: state.revision }),
            Some(at) if at < state.compacted => return Err(Error::Compacted { oldest: state.compacted }),
            Some(at) => at,
        };
        let mut response = RangeResponse { revision: state.revision, ..RangeResponse::default() };
        for (_, versions) in state.in_range(&request.range) {
            let version = versions.iter().rev().find(|version| version.revision <= at);
            let Some(item) = version.and_then(|version| version.item.as_ref()) else { continue };
            response.count += 1;
            if request.limit == 0 || response.items.len() < request.limit {
                let value = if request.keys_only { Bytes::new() } else { item.value.clone() };
                response.items.push(KeyValue { value, ..item.clone() });
            }
        }
        Ok(response)
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResponse> {
        validate::transaction(&transaction)?;
        let mut state = self.shared.state.lock();
        let succeeded = transaction.compare.iter().all(|compare| state.holds(compare));
        let operations = if succeeded { &transaction.then } else { &transaction.otherwise };
        for operation in operations {
            if let Operation::Put(_, _, lease) = operation
                && *lease != 0
                && !state.leases.contains_key(lease)
            {
                return Err(Error::LeaseNotFound(*lease));
            }
        }
        let revision = state.revision + 1;
        let mut events = Vec::new();
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            results.push(match operation {
                Operation::Put(key, value, lease) => {
                    events.push(state.put(key, value, *lease, revision));
                    OperationResult::Put
                }
                Operation::Delete(key) => match state.delete(key, revision) {
                    Some((event, previous)) => {
                        events.push(event);
                        OperationResult::Deleted(Some(previous))
                    }
                    None => OperationResult::Deleted(None),
                },
                Operation::Get(key) => OperationResult::Got(state.newest(key).cloned()),
            });
        }
        if !events.is_empty() {
            state.revision = revision;
            self.shared.hub.publish(vec![Commit { revision, events }]);
        }
        Ok(TransactionResponse { succeeded, revision: state.revision, results })
    }

    async fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream> {
        let state = self.shared.state.lock();
        let newest = state.revision;
        let from = match from {
            None | Some(0) => newest + 1,
            Some(from) if from < state.compacted => return Err(Error::Compacted { oldest: state.compacted }),
            Some(from) => from,
        };
        let history = state.history(&range, from);
        let live = self.shared.hub.register(range, newest.max(from - 1));
        let items = history.into_iter().map(|(revision, events)| Ok(WatchItem::Events { revision, events }));
        Ok(live.after(items, (from <= newest).then_some(newest)))
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.state.lock().revision)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let mut state = self.shared.state.lock();
        if revision > state.revision {
            return Err(Error::FutureRevision { newest: state.revision });
        }
        if revision <= state.compacted {
            return Ok(());
        }
        state.compacted = revision;
        state.keys.retain(|_, versions| {
            // The newest version at the revision stays readable, unless it is a deletion before it.
            let keep = versions.iter().rposition(|version| version.revision <= revision).unwrap_or(0);
            versions.drain(..keep);
            if versions[0].item.is_none() && versions[0].revision < revision {
                versions.remove(0);
            }
            !versions.is_empty()
        });
        Ok(())
    }

    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId> {
        validate::lease_seconds(ttl_seconds)?;
        let mut state = self.shared.state.lock();
        let id = state.next_lease;
        state.next_lease += 1;
        let time = Duration::from_secs(ttl_seconds);
        state.leases.insert(id, Lease { time, ends: self.shared.clock.now() + time });
        Ok(id)
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<()> {
        let now = self.shared.clock.now();
        let mut state = self.shared.state.lock();
        let entry = state.leases.get_mut(&lease).ok_or(Error::LeaseNotFound(lease))?;
        entry.ends = now + entry.time;
        Ok(())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        let mut state = self.shared.state.lock();
        if !state.leases.contains_key(&lease) {
            return Err(Error::LeaseNotFound(lease));
        }
        self.shared.end_lease(&mut state, lease);
        Ok(())
    }

    /// The model is for tests and keeps nothing.
    async fn backup(&self, _file: &std::path::Path) -> Result<Revision> {
        Err(Error::Invalid("a store in memory has no backup".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_put_is_read_back_at_its_revision() {
        let store = MemoryStore::new();
        let put = |value: &'static str| Transaction {
            then: vec![Operation::Put("a".into(), value.into(), 0)],
            ..Transaction::default()
        };
        assert_eq!(store.transact(put("1")).await.unwrap().revision, 2);
        assert_eq!(store.transact(put("2")).await.unwrap().revision, 3);
        let request = RangeRequest { range: KeyRange::Key("a".into()), revision: Some(2), limit: 0, keys_only: false };
        assert_eq!(store.range(request).await.unwrap().items[0].value, "1");
    }
}
