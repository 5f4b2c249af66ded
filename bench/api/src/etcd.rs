//! etcd, driven directly: the floor. One gRPC connection for each client, as many clients of one server would have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use store::{EtcdOptions, EtcdStore, KeyRange, Operation, RangeRequest, Store, Transaction, WatchItem};

use crate::OBJECT_BYTES;
use crate::statistics::Times;

/// How long etcd may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// So many connections.
pub async fn connect(url: &str, count: usize) -> Result<Vec<Arc<EtcdStore>>> {
    let began = Instant::now();
    let mut stores = Vec::new();
    while stores.len() < count {
        match EtcdStore::connect(EtcdOptions { endpoints: vec![url.to_owned()], tls: None }).await {
            Ok(store) => stores.push(store),
            Err(error) if began.elapsed() > START_TIMEOUT => return Err(error).context("etcd does not answer"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Ok(stores)
}

/// Puts one new key.
pub async fn put(store: &EtcdStore, key: String) -> Result<()> {
    let put = Operation::Put(key.into(), vec![b'x'; OBJECT_BYTES].into(), 0);
    store.transact(Transaction { then: vec![put], ..Transaction::default() }).await?;
    Ok(())
}

/// Reads all keys with this prefix; how long it took.
pub async fn list(store: &EtcdStore, prefix: &str, expected: usize) -> Result<Duration> {
    let began = Instant::now();
    let range = KeyRange::Prefix(prefix.to_owned().into());
    let found = store.range(RangeRequest { range, revision: None, limit: 0, keys_only: false }).await?;
    anyhow::ensure!(found.items.len() == expected, "etcd lists {} of {expected}", found.items.len());
    Ok(began.elapsed())
}

/// From the call of a put until the last of `watchers` has its event, `rounds` times.
pub async fn fan_out(store: &Arc<EtcdStore>, watchers: usize, rounds: usize) -> Result<Times> {
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let prefix = format!("/fan-{watchers}/");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let mut watch = store.watch(KeyRange::Prefix(prefix.clone().into()), None).await?;
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Some(Ok(item)) = watch.next().await {
                if matches!(item, WatchItem::Events { .. }) && seen.send(()).is_err() {
                    return;
                }
            }
        });
    }
    let mut times = Times::default();
    for round in 0..rounds {
        let began = Instant::now();
        put(store, format!("{prefix}{round}")).await?;
        for _ in 0..watchers {
            arrivals.recv().await.context("the watchers ended")?;
        }
        times.push(began.elapsed());
    }
    Ok(times)
}
