//! The contract, as one list of claims that every engine is held against.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::clock::ManualClock;
use store::{
    Compare, EmbeddedOptions, EmbeddedStore, Error, Event, KeyRange, MAX_KEY_BYTES, MAX_TRANSACTION_OPERATIONS,
    MAX_VALUE_BYTES, MemoryStore, Operation, OperationResult, RangeRequest, Store, Transaction, WatchItem,
};

use crate::support::{
    PATIENCE, always, delete, eventually, newest, next_change, prefix, put, value, watch_error, write,
};

/// An engine under test and how to let its time pass.
pub struct Engine {
    pub store: Arc<dyn Store>,
    /// Moves the engine's clock; engines with their own clock really wait.
    pub clock: Option<Arc<ManualClock>>,
}

impl Engine {
    async fn pass(&self, time: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(time),
            None => tokio::time::sleep(time).await,
        }
    }
}

/// Every claim, on one engine. Each uses its own keys, so that they share one store.
pub async fn run(engine: &Engine) {
    let store = &engine.store;
    revisions_and_versions_count_up(store).await;
    a_branch_runs_whole_or_not_at_all(store).await;
    compares_see_every_state(store).await;
    ranges_are_ordered_counted_and_limited(store).await;
    old_revisions_are_readable(store).await;
    a_watch_yields_every_change_once_and_in_order(store).await;
    a_watch_from_the_past_catches_up(store).await;
    a_watch_of_a_future_revision_waits_for_it(store).await;
    bad_requests_are_refused(store).await;
    binary_keys_and_large_values_come_back(store).await;
    revoked_leases_take_their_keys(store).await;
    leases_end_without_keep_alive(engine).await;
    compaction_forgets_the_past_only(store).await;
}

async fn revisions_and_versions_count_up(store: &Arc<dyn Store>) {
    let first = write(store.as_ref(), put("count/a", "1")).await;
    let second = write(store.as_ref(), put("count/a", "2")).await;
    assert_eq!(second, first + 1);
    let item = store.range(newest(prefix("count/"))).await.unwrap().items.remove(0);
    assert_eq!((item.create_revision, item.mod_revision, item.version), (first, second, 2));
    assert_eq!(write(store.as_ref(), delete("count/none")).await, second, "deleting nothing is no write");
    let third = write(store.as_ref(), delete("count/a")).await;
    let fourth = write(store.as_ref(), put("count/a", "3")).await;
    assert_eq!((third, fourth), (second + 1, second + 2));
    let item = store.range(newest(prefix("count/"))).await.unwrap().items.remove(0);
    assert_eq!((item.create_revision, item.version), (fourth, 1), "a new life");
    assert_eq!(store.revision().await.unwrap(), fourth);
}

async fn a_branch_runs_whole_or_not_at_all(store: &Arc<dyn Store>) {
    write(store.as_ref(), put("branch/a", "old")).await;
    let transaction = Transaction {
        compare: vec![Compare::Exists("branch/a".into()), Compare::Exists("branch/none".into())],
        then: vec![put("branch/a", "then")],
        otherwise: vec![Operation::Get("branch/a".into()), put("branch/b", "1"), delete("branch/none")],
    };
    let response = store.transact(transaction).await.unwrap();
    assert!(!response.succeeded);
    let OperationResult::Got(Some(got)) = &response.results[0] else { panic!("{:?}", response.results) };
    assert_eq!(got.value, "old");
    assert_eq!(response.results[1..], [OperationResult::Put, OperationResult::Deleted(None)]);
    let both = always(vec![put("branch/a", "new"), delete("branch/b")]);
    let response = store.transact(both).await.unwrap();
    assert!(response.succeeded);
    let OperationResult::Deleted(Some(gone)) = &response.results[1] else { panic!("{:?}", response.results) };
    assert_eq!(gone.value, "1");
    let items = store.range(newest(prefix("branch/"))).await.unwrap().items;
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].mod_revision, response.revision);
}

async fn compares_see_every_state(store: &Arc<dyn Store>) {
    let key = Bytes::from("compare/a");
    let holds = async |compare: Compare| {
        store.transact(Transaction { compare: vec![compare], ..Transaction::default() }).await.unwrap().succeeded
    };
    assert!(holds(Compare::ModRevision(key.clone(), 0)).await);
    assert!(holds(Compare::CreateRevision(key.clone(), 0)).await);
    assert!(!holds(Compare::Exists(key.clone())).await);
    let created = write(store.as_ref(), put("compare/a", "1")).await;
    let changed = write(store.as_ref(), put("compare/a", "2")).await;
    assert!(holds(Compare::ModRevision(key.clone(), changed)).await);
    assert!(!holds(Compare::ModRevision(key.clone(), created)).await);
    assert!(holds(Compare::CreateRevision(key.clone(), created)).await);
    assert!(holds(Compare::Exists(key.clone())).await);
    write(store.as_ref(), delete("compare/a")).await;
    assert!(holds(Compare::ModRevision(key.clone(), 0)).await);
    assert!(!holds(Compare::Exists(key)).await);
}

async fn ranges_are_ordered_counted_and_limited(store: &Arc<dyn Store>) {
    for key in ["range/c", "range/a", "range/b", "range0", "rang"] {
        write(store.as_ref(), put(key, key)).await;
    }
    let keys = async |request: RangeRequest| -> Vec<Bytes> {
        store.range(request).await.unwrap().items.into_iter().map(|item| item.key).collect()
    };
    assert_eq!(keys(newest(prefix("range/"))).await, ["range/a", "range/b", "range/c"]);
    let between = KeyRange::Between("range/b".into(), "range0".into());
    assert_eq!(keys(newest(between)).await, ["range/b", "range/c"]);
    assert!(keys(newest(KeyRange::Between("range/c".into(), "range/b".into()))).await.is_empty());
    let request = RangeRequest { limit: 2, keys_only: true, ..newest(prefix("range/")) };
    let response = store.range(request).await.unwrap();
    assert_eq!((response.items.len(), response.count), (2, 3));
    assert!(response.items[0].value.is_empty());
    assert!(response.items[0].mod_revision > 0);
}

async fn old_revisions_are_readable(store: &Arc<dyn Store>) {
    let one = write(store.as_ref(), put("old/a", "1")).await;
    let two = write(store.as_ref(), put("old/a", "2")).await;
    let three = write(store.as_ref(), delete("old/a")).await;
    let at = async |revision| {
        let request = RangeRequest { revision: Some(revision), ..newest(prefix("old/")) };
        store.range(request).await.unwrap().items.first().map(|item| item.value.clone())
    };
    assert_eq!(at(one - 1).await, None);
    assert_eq!(at(one).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(at(two).await.as_deref(), Some(&b"2"[..]));
    assert_eq!(at(three).await, None);
    let future = RangeRequest { revision: Some(three + 100), ..newest(prefix("old/")) };
    assert!(matches!(store.range(future).await, Err(Error::FutureRevision { .. })));
}

async fn a_watch_yields_every_change_once_and_in_order(store: &Arc<dyn Store>) {
    let mut watch = store.watch(prefix("watch/"), None).await.unwrap();
    let one = write(store.as_ref(), put("watch/a", "1")).await;
    write(store.as_ref(), put("elsewhere", "1")).await;
    let both = always(vec![put("watch/a", "2"), put("watch/b", "1"), put("elsewhere", "2")]);
    let two = store.transact(both).await.unwrap().revision;
    let three = write(store.as_ref(), delete("watch/a")).await;
    let WatchItem::Events { revision, events } = next_change(&mut watch).await.unwrap() else { panic!() };
    assert_eq!((revision, events.len()), (one, 1));
    assert!(matches!(&events[0], Event::Put { current, previous: None } if current.value == "1"));
    let WatchItem::Events { revision, events } = next_change(&mut watch).await.unwrap() else { panic!() };
    assert_eq!((revision, events.len()), (two, 2), "one revision, one batch, the range only");
    assert!(matches!(&events[0], Event::Put { current, previous: Some(before) }
        if current.value == "2" && current.version == 2 && before.value == "1"));
    let WatchItem::Events { revision, events } = next_change(&mut watch).await.unwrap() else { panic!() };
    assert_eq!(revision, three);
    assert!(matches!(&events[0], Event::Delete { key, revision, previous: Some(before) }
        if key == "watch/a" && *revision == three && before.value == "2"));
}

async fn a_watch_from_the_past_catches_up(store: &Arc<dyn Store>) {
    let one = write(store.as_ref(), put("past/a", "1")).await;
    let two = write(store.as_ref(), put("past/a", "2")).await;
    let three = write(store.as_ref(), delete("past/a")).await;
    let mut watch = store.watch(prefix("past/"), Some(two)).await.unwrap();
    let four = write(store.as_ref(), put("past/a", "4")).await;
    for expected in [two, three, four] {
        let WatchItem::Events { revision, .. } = next_change(&mut watch).await.unwrap() else { panic!() };
        assert_eq!(revision, expected);
    }
    let mut watch = store.watch(KeyRange::Key("past/a".into()), Some(one)).await.unwrap();
    let WatchItem::Events { revision, .. } = next_change(&mut watch).await.unwrap() else { panic!() };
    assert_eq!(revision, one);
}

async fn a_watch_of_a_future_revision_waits_for_it(store: &Arc<dyn Store>) {
    let now = write(store.as_ref(), put("future/a", "0")).await;
    let mut watch = store.watch(prefix("future/"), Some(now + 3)).await.unwrap();
    for value in ["1", "2", "3"] {
        write(store.as_ref(), put("future/a", value)).await;
    }
    let WatchItem::Events { revision, .. } = next_change(&mut watch).await.unwrap() else { panic!() };
    assert_eq!(revision, now + 3);
}

async fn bad_requests_are_refused(store: &Arc<dyn Store>) {
    let before = store.revision().await.unwrap();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let many = (0..=MAX_TRANSACTION_OPERATIONS).map(|index| put(&format!("bad/{index}"), "1")).collect();
    let bad = [
        always(vec![put("", "1")]),
        always(vec![put(&long, "1")]),
        always(vec![Operation::Put("bad/a".into(), vec![0; MAX_VALUE_BYTES + 1].into(), 0)]),
        always(vec![put("bad/a", "1"), delete("bad/a")]),
        always(many),
    ];
    for transaction in bad {
        assert!(matches!(store.transact(transaction).await, Err(Error::Invalid(_))));
    }
    let no_lease = always(vec![put("bad/b", "1"), Operation::Put("bad/a".into(), "1".into(), 12_345)]);
    assert!(matches!(store.transact(no_lease).await, Err(Error::LeaseNotFound(12_345))));
    assert!(matches!(store.lease_keep_alive(12_345).await, Err(Error::LeaseNotFound(_))));
    assert!(matches!(store.lease_revoke(12_345).await, Err(Error::LeaseNotFound(_))));
    assert!(matches!(store.lease_grant(0).await, Err(Error::Invalid(_))));
    assert_eq!(store.revision().await.unwrap(), before, "nothing half done");
}

async fn binary_keys_and_large_values_come_back(store: &Arc<dyn Store>) {
    let key = Bytes::from_static(b"binary/\x00\xff\xff");
    let value: Bytes = (0..1_400_000u32).map(|byte| byte.to_le_bytes()[0]).collect::<Vec<u8>>().into();
    write(store.as_ref(), Operation::Put(key.clone(), value.clone(), 0)).await;
    let items = store.range(newest(prefix("binary/"))).await.unwrap().items;
    assert_eq!((&items[0].key, &items[0].value), (&key, &value));
    let range = KeyRange::Prefix(Bytes::from_static(b"binary/\x00\xff"));
    assert_eq!(store.range(newest(range)).await.unwrap().count, 1);
    write(store.as_ref(), Operation::Put(key.clone(), Bytes::new(), 0)).await;
    assert!(store.range(newest(KeyRange::Key(key))).await.unwrap().items[0].value.is_empty());
}

async fn revoked_leases_take_their_keys(store: &Arc<dyn Store>) {
    let lease = store.lease_grant(600).await.unwrap();
    let keys = ["revoke/a", "revoke/b", "revoke/moved"];
    for key in keys {
        write(store.as_ref(), Operation::Put(key.into(), "1".into(), lease)).await;
    }
    write(store.as_ref(), put("revoke/moved", "no lease any more")).await;
    assert_eq!(store.range(newest(prefix("revoke/a"))).await.unwrap().items[0].lease, lease);
    let mut watch = store.watch(prefix("revoke/"), None).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    let WatchItem::Events { events, .. } = next_change(&mut watch).await.unwrap() else { panic!() };
    let mut gone: Vec<&Bytes> = events.iter().map(Event::key).collect();
    gone.sort();
    assert_eq!(gone, ["revoke/a", "revoke/b"]);
    assert_eq!(value(store.as_ref(), "revoke/moved").await.as_deref(), Some("no lease any more"));
    let again = always(vec![Operation::Put("revoke/a".into(), "1".into(), lease)]);
    assert!(matches!(store.transact(again).await, Err(Error::LeaseNotFound(_))));
}

async fn leases_end_without_keep_alive(engine: &Engine) {
    let store = &engine.store;
    let short = store.lease_grant(2).await.unwrap();
    let long = store.lease_grant(3600).await.unwrap();
    write(store.as_ref(), Operation::Put("end/short".into(), "1".into(), short)).await;
    write(store.as_ref(), Operation::Put("end/long".into(), "1".into(), long)).await;
    engine.pass(Duration::from_millis(1200)).await;
    store.lease_keep_alive(short).await.unwrap();
    engine.pass(Duration::from_millis(1200)).await;
    assert!(value(store.as_ref(), "end/short").await.is_some(), "kept alive");
    engine.pass(Duration::from_millis(2000)).await;
    eventually("the lease ends", async || value(store.as_ref(), "end/short").await.is_none()).await;
    assert!(value(store.as_ref(), "end/long").await.is_some());
    assert!(matches!(store.lease_keep_alive(short).await, Err(Error::LeaseNotFound(_))));
}

async fn compaction_forgets_the_past_only(store: &Arc<dyn Store>) {
    let one = write(store.as_ref(), put("compact/a", "1")).await;
    write(store.as_ref(), put("compact/gone", "1")).await;
    write(store.as_ref(), delete("compact/gone")).await;
    write(store.as_ref(), put("compact/a", "2")).await;
    let five = write(store.as_ref(), put("compact/b", "1")).await;
    let six = write(store.as_ref(), put("compact/a", "3")).await;
    store.compact(five).await.unwrap();
    store.compact(five).await.unwrap();
    let at =
        async |revision| store.range(RangeRequest { revision: Some(revision), ..newest(prefix("compact/")) }).await;
    assert!(matches!(at(one).await, Err(Error::Compacted { oldest }) if oldest == five), "{:?}", at(one).await);
    let then = at(five).await.unwrap().items;
    assert_eq!(then.iter().map(|item| &item.value[..]).collect::<Vec<_>>(), [b"2", b"1"]);
    assert_eq!(at(six).await.unwrap().items[0].value, "3");
    let error = watch_error(store, prefix("compact/"), one).await;
    assert!(matches!(error, Error::Compacted { oldest } if oldest == five), "{error:?}");
    let mut watch = store.watch(prefix("compact/"), Some(five)).await.unwrap();
    for expected in [five, six] {
        let WatchItem::Events { revision, .. } = next_change(&mut watch).await.unwrap() else { panic!() };
        assert_eq!(revision, expected);
    }
    assert!(matches!(store.compact(six + 100).await, Err(Error::FutureRevision { .. })));
}

#[tokio::test]
async fn the_model_keeps_the_contract() {
    let clock = ManualClock::new();
    let store = MemoryStore::with_clock(Arc::<ManualClock>::clone(&clock));
    run(&Engine { store, clock: Some(clock) }).await;
}

#[tokio::test]
async fn the_embedded_engine_keeps_the_contract_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    // Small segments, so that the claims also cross segments and cleaning.
    let options =
        EmbeddedOptions { segment_bytes: 64 * 1024, clock: Arc::<ManualClock>::clone(&clock), lock_patience: PATIENCE };
    let store = EmbeddedStore::open(dir.path(), options.clone()).unwrap();
    run(&Engine { store, clock: Some(Arc::clone(&clock)) }).await;
    let store = EmbeddedStore::open(dir.path(), options).unwrap();
    assert_eq!(value(store.as_ref(), "compact/a").await.as_deref(), Some("3"));
    assert_eq!(value(store.as_ref(), "compact/gone").await, None);
    assert!(store.scrub().is_empty());
}
