//! What the tests share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use store::{Error, KeyRange, Operation, RangeRequest, Result, Store, Transaction, WatchItem, WatchStream};

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn put(key: &str, value: &str) -> Operation {
    Operation::Put(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()), 0)
}

pub fn delete(key: &str) -> Operation {
    Operation::Delete(Bytes::copy_from_slice(key.as_bytes()))
}

pub fn always(then: Vec<Operation>) -> Transaction {
    Transaction { then, ..Transaction::default() }
}

pub fn newest(range: KeyRange) -> RangeRequest {
    RangeRequest { range, revision: None, limit: 0, keys_only: false }
}

pub fn prefix(prefix: &str) -> KeyRange {
    KeyRange::Prefix(Bytes::copy_from_slice(prefix.as_bytes()))
}

pub async fn write(store: &dyn Store, operation: Operation) -> u64 {
    store.transact(always(vec![operation])).await.unwrap().revision
}

pub async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let range = KeyRange::Key(Bytes::copy_from_slice(key.as_bytes()));
    let items = store.range(newest(range)).await.unwrap().items;
    items.first().map(|item| String::from_utf8_lossy(&item.value).into_owned())
}

/// The next item that is not mere progress.
pub async fn next_change(watch: &mut WatchStream) -> Result<WatchItem> {
    loop {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await.expect("an item in time").expect("not the end");
        match next {
            Ok(WatchItem::Progress(_)) => {}
            other => return other,
        }
    }
}

/// The error of a watch, whether it comes at once or as the first item.
pub async fn watch_error(store: &Arc<dyn Store>, range: KeyRange, from: u64) -> Error {
    match store.watch(range, Some(from)).await {
        Err(error) => error,
        Ok(mut watch) => next_change(&mut watch).await.unwrap_err(),
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
