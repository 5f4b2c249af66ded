//! The table: Nuée's API over TLS beside etcd driven directly, in one run, on one disk, turn by turn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::client::{Access, Connection};
use crate::machine::{Server, processor_seconds};
use crate::statistics::{Times, median, number};
use crate::{config_map, etcd};

/// Connections that create at the same time.
const CONNECTIONS: [usize; 3] = [1, 32, 256];
/// Sizes of the lists.
const LISTS: [usize; 2] = [2_000, 20_000];
/// Times each list is read.
const LIST_ROUNDS: usize = 11;
/// Watchers of one change: one, and many.
const WATCHERS: [usize; 2] = [1, 1_000];
/// Changes that they wait for.
const CHANGES: [usize; 2] = [400, 40];
/// Connections that fill the store before lists are read.
const FILLERS: usize = 16;

/// How long and how often to measure.
pub struct Plan {
    /// Length of one measurement of creates.
    pub measure: Duration,
    /// Measurements of each; the median counts.
    pub rounds: usize,
}

/// One row.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Ours.
    pub ours: f64,
    /// etcd's, where there is one to compare with.
    pub etcd: Option<f64>,
    /// The unit.
    pub unit: &'static str,
    /// What is asked for.
    pub bar: String,
    /// Whether it is met.
    pub met: Option<bool>,
}

/// Runs everything and hands each row to `show` as soon as it is known.
pub async fn run(server: &Server, etcd_url: &str, plan: &Plan, show: &mut dyn FnMut(Row)) -> Result<()> {
    let access = Access::from_kubeconfig(&server.data.join("kubeconfig"))?;
    let stores = etcd::connect(etcd_url, CONNECTIONS.into_iter().max().unwrap_or(1)).await?;
    memory_and_lists(server, &access, &stores, show).await?;
    watches(&access, &stores, show).await?;
    creates(server, &access, &stores, plan, show).await
}

async fn namespace(access: &Access, name: &str) -> Result<()> {
    let body = format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
    access.connect().await?.request("POST", "/api/v1/namespaces", &body).await?.success().map(drop)
}

/// Creates so many ConfigMaps in a namespace.
pub async fn fill(access: &Access, name: &str, count: usize) -> Result<()> {
    namespace(access, name).await?;
    let mut tasks = JoinSet::new();
    for filler in 0..FILLERS {
        let mut connection = access.connect().await?;
        let path = format!("/api/v1/namespaces/{name}/configmaps");
        tasks.spawn(async move {
            for index in (filler..count).step_by(FILLERS) {
                let body = config_map(&format!("object-{index}"), 0);
                connection.request("POST", &path, &body).await?.success()?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn memory_and_lists(
    server: &Server,
    access: &Access,
    stores: &[Arc<store::EtcdStore>],
    show: &mut dyn FnMut(Row),
) -> Result<()> {
    let before = server.resident_kib();
    for count in LISTS {
        fill(access, &format!("list-{count}"), count).await?;
    }
    let total: usize = LISTS.iter().sum();
    let grown = f64::from(u32::try_from(server.resident_kib().saturating_sub(before))?) / number(total);
    show(Row {
        what: format!("memory per object ({total} of 1 KiB)"),
        ours: grown,
        etcd: None,
        unit: "KiB",
        bar: "< 6".into(),
        met: Some(grown < 6.0),
    });
    for count in LISTS {
        let prefix = format!("/list-{count}/");
        for index in 0..count {
            etcd::put(&stores[index % stores.len()], format!("{prefix}object-{index}")).await?;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut connection = access.connect().await?;
        for _ in 0..LIST_ROUNDS {
            ours.push(list(&mut connection, count).await?.as_secs_f64() * 1000.0);
            theirs.push(etcd::list(&stores[0], &prefix, count).await?.as_secs_f64() * 1000.0);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let bar = count == LISTS[0];
        show(Row {
            what: format!("list of {count}, median"),
            ours,
            etcd: Some(theirs),
            unit: "ms",
            bar: if bar { "< 10".into() } else { String::new() },
            met: bar.then_some(ours < 10.0),
        });
    }
    Ok(())
}

async fn list(connection: &mut Connection, count: usize) -> Result<Duration> {
    let began = Instant::now();
    let path = format!("/api/v1/namespaces/list-{count}/configmaps");
    let answer = connection.request("GET", &path, "").await?.success()?;
    let took = began.elapsed();
    let found = answer.body.windows(7).filter(|window| window == b"\"mark\":").count();
    ensure!(found == count, "the list has {found} of {count} objects");
    Ok(took)
}

async fn watches(access: &Access, stores: &[Arc<store::EtcdStore>], show: &mut dyn FnMut(Row)) -> Result<()> {
    for (watchers, changes) in WATCHERS.into_iter().zip(CHANGES) {
        let ours = fan_out(access, watchers, changes).await?;
        let theirs = etcd::fan_out(&stores[0], watchers, changes).await?;
        for percent in [50, 99] {
            let bar = watchers > 1 && percent == 50;
            show(Row {
                what: format!("one change to {watchers} watcher(s), p{percent}"),
                ours: ours.percentile_ms(percent),
                etcd: Some(theirs.percentile_ms(percent)),
                unit: "ms",
                bar: if bar { "< 20".into() } else { String::new() },
                met: bar.then_some(ours.percentile_ms(percent) < 20.0),
            });
        }
    }
    Ok(())
}

/// From the first byte of a create until the last of `watchers`, each on its own TLS connection, has read the event.
async fn fan_out(access: &Access, watchers: usize, rounds: usize) -> Result<Times> {
    let name = format!("fan-{watchers}");
    namespace(access, &name).await?;
    let path = format!("/api/v1/namespaces/{name}/configmaps");
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..watchers {
        let mut watch = access.connect().await?.watch(&format!("{path}?watch=true")).await?;
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Ok(Some(line)) = watch.line().await {
                let arrived = Instant::now();
                if line.windows(8).any(|window| window == b"\"object-") && seen.send(arrived).is_err() {
                    return;
                }
            }
        });
    }
    let mut writer = access.connect().await?;
    let mut times = Times::default();
    for round in 0..rounds {
        let body = config_map(&format!("object-{round}"), 0);
        let began = Instant::now();
        writer.request("POST", &path, &body).await?.success()?;
        let mut last = began;
        for _ in 0..watchers {
            last = last.max(arrivals.recv().await.context("the watchers ended")?);
        }
        times.push(last - began);
    }
    Ok(times)
}

async fn creates(
    server: &Server,
    access: &Access,
    stores: &[Arc<store::EtcdStore>],
    plan: &Plan,
    show: &mut dyn FnMut(Row),
) -> Result<()> {
    for connections in CONNECTIONS {
        let (mut ours, mut theirs, mut p99, mut cost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..plan.rounds {
            let before = processor_seconds(server.pid());
            let (rate, times) = create(access, &format!("create-{connections}-{round}"), connections, plan).await?;
            cost.push((processor_seconds(server.pid()) - before) * 1e6 / number(times.len().max(1)));
            ours.push(rate);
            p99.push(times.percentile_ms(99));
            theirs.push(etcd_puts(stores, &format!("create-{connections}-{round}"), connections, plan).await?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let bar = connections == 32;
        show(Row {
            what: format!(
                "creates at {connections} connection(s) (p99 {:.1} ms, {:.0} us of processor each)",
                median(p99),
                median(cost)
            ),
            ours,
            etcd: Some(theirs),
            unit: "/s",
            bar: if bar { ">= etcd".into() } else { String::new() },
            met: bar.then_some(ours >= theirs),
        });
    }
    Ok(())
}

async fn create(access: &Access, name: &str, connections: usize, plan: &Plan) -> Result<(f64, Times)> {
    namespace(access, name).await?;
    let (stop, start) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(connections + 1)));
    let mut tasks = JoinSet::new();
    for writer in 0..connections {
        let mut connection = access.connect().await?;
        let (stop, start) = (stop.clone(), start.clone());
        let path = format!("/api/v1/namespaces/{name}/configmaps");
        tasks.spawn(async move {
            start.wait().await;
            let mut times = Times::default();
            while !stop.load(Ordering::Relaxed) {
                let body = config_map(&format!("object-{writer}-{}", times.len()), 0);
                let began = Instant::now();
                connection.request("POST", &path, &body).await?.success()?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    timed(tasks, &start, &stop, plan).await
}

async fn etcd_puts(stores: &[Arc<store::EtcdStore>], name: &str, connections: usize, plan: &Plan) -> Result<f64> {
    let (stop, start) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(connections + 1)));
    let mut tasks = JoinSet::new();
    for writer in 0..connections {
        let (store, stop, start) = (stores[writer % stores.len()].clone(), stop.clone(), start.clone());
        let name = name.to_owned();
        tasks.spawn(async move {
            start.wait().await;
            let mut times = Times::default();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                etcd::put(&store, format!("/{name}/object-{writer}-{}", times.len())).await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    Ok(timed(tasks, &start, &stop, plan).await?.0)
}

async fn timed(
    mut tasks: JoinSet<Result<Times>>,
    start: &Barrier,
    stop: &AtomicBool,
    plan: &Plan,
) -> Result<(f64, Times)> {
    start.wait().await;
    let began = Instant::now();
    tokio::time::sleep(plan.measure).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Times::default();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    Ok((number(times.len()) / began.elapsed().as_secs_f64(), times))
}

/// Where the data of both lies: one directory, so one disk.
pub fn directories(base: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    (base.join("nuee"), base.join("etcd"))
}
