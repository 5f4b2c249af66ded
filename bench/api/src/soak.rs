//! Many writers and many watchers at once, for minutes: no watch misses or repeats a change, memory stays bounded, reads stay quick.
//!
//! Writers own their objects and create, change and delete them at a steady pace. Watchers follow the whole collection; now and then
//! one drops its connection and goes on from the last version that it saw. A reader gets objects at a steady pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::checker::{Change, Journal, Sequence};
use crate::client::Access;
use crate::config_map;
use crate::statistics::Times;
use crate::table::fill;

/// Namespace of the soak.
const NAMESPACE: &str = "soak";
/// How long watchers may take to see the last change after the writers ended.
const SETTLE: Duration = Duration::from_secs(60);
/// Reads per second of the reader.
const READS_PER_SECOND: u32 = 100;
/// Events after which a watcher drops its connection and goes on, on average.
const RESUME_AFTER: u64 = 20_000;

/// How much.
#[derive(Clone, Debug)]
pub struct Load {
    /// Objects that are there from the start.
    pub objects: usize,
    /// Watchers of the whole collection.
    pub watchers: usize,
    /// Writers.
    pub writers: usize,
    /// Writes per second of each writer.
    pub rate: u32,
    /// How long the writers write.
    pub length: Duration,
    /// Where the randomness starts.
    pub seed: u64,
    /// A fault for the checker to find: one watcher leaves out one event.
    pub lose_one: bool,
}

/// What came out.
pub struct Outcome {
    /// Acknowledged changes.
    pub changes: usize,
    /// Events that all watchers saw together.
    pub events: u64,
    /// Times that a watcher dropped its connection and went on.
    pub resumed: u64,
    /// Times of reads of one object.
    pub reads: Times,
    /// Times of writes.
    pub writes: Times,
    /// What is wrong; empty when all is well.
    pub faults: Vec<String>,
}

struct Shared {
    journal: Mutex<Journal>,
    /// The last version, once the writers have ended.
    end: AtomicU64,
    resumed: AtomicU64,
}

/// Fills the namespace, then runs the load.
pub async fn run(access: &Access, load: &Load) -> Result<Outcome> {
    fill(access, NAMESPACE, load.objects).await.context("cannot fill the namespace")?;
    let start = access.connect().await?.request("GET", &collection("limit=1"), "").await?.success()?;
    let start = start.metadata()?.version()?;
    let shared =
        Arc::new(Shared { journal: Mutex::default(), end: AtomicU64::new(u64::MAX), resumed: AtomicU64::new(0) });
    let mut watchers = JoinSet::new();
    for watcher in 0..load.watchers {
        let seed = load.seed.wrapping_add(1_000_000).wrapping_add(u64::try_from(watcher)?);
        let lose = load.lose_one && watcher + 1 == load.watchers;
        let watching = watch(access.clone(), shared.clone(), start, seed, lose);
        watchers.spawn(async move { (watcher, watching.await) });
    }
    let mut writers = JoinSet::new();
    for writer in 0..load.writers {
        writers.spawn(write(access.clone(), shared.clone(), load.clone(), writer));
    }
    let reader = tokio::spawn(read(access.clone(), shared.clone(), load.objects));
    let mut writes = Times::default();
    let mut faults = Vec::new();
    while let Some(done) = writers.join_next().await {
        match done? {
            Ok(times) => writes.extend(times),
            Err(error) => faults.push(format!("a writer ended: {error:#}")),
        }
    }
    // A last change, acknowledged with its version, tells the watchers where to stop.
    let end = last_change(access, &shared).await?;
    shared.end.store(end, Ordering::Release);
    let reads = reader.await??;
    let mut seen: Vec<(usize, Sequence)> = Vec::new();
    let settle = tokio::time::Instant::now() + SETTLE;
    while !watchers.is_empty() {
        match tokio::time::timeout_at(settle, watchers.join_next()).await {
            Ok(Some(done)) => match done? {
                (watcher, Ok(sequence)) => seen.push((watcher, sequence)),
                (watcher, Err(error)) => faults.push(format!("watcher {watcher} ended: {error:#}")),
            },
            Ok(None) => break,
            Err(_) => {
                faults.push(format!("{} watchers did not see the last change in time", watchers.len()));
                break;
            }
        }
    }
    judge(&shared, start, &mut seen, &mut faults);
    let events = seen.iter().map(|(_, sequence)| sequence.count()).sum();
    let changes = shared.journal.lock().len();
    Ok(Outcome { changes, events, resumed: shared.resumed.load(Ordering::Relaxed), reads, writes, faults })
}

/// The first watcher's deletions say when each happened; then all are held against the journal.
fn judge(shared: &Shared, start: u64, seen: &mut [(usize, Sequence)], faults: &mut Vec<String>) {
    seen.sort_by_key(|(watcher, _)| *watcher);
    let mut journal = shared.journal.lock();
    if let Some((_, witness)) = seen.first() {
        faults.extend(journal.learn_deletions(witness).err());
    }
    for (watcher, sequence) in seen {
        faults.extend(journal.check(start, sequence).err().map(|fault| format!("watcher {watcher}: {fault}")));
    }
}

async fn last_change(access: &Access, shared: &Shared) -> Result<u64> {
    let mut connection = access.connect().await?;
    let answer = connection.request("POST", &collection(""), &config_map("last", 0)).await?.success()?;
    let version = answer.metadata()?.version()?;
    shared.journal.lock().acknowledge(version, "last", Change::Added).map_err(|fault| anyhow!(fault))?;
    Ok(version)
}

fn collection(query: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps?{query}")
}

fn object(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{name}")
}

async fn watch(access: Access, shared: Arc<Shared>, start: u64, seed: u64, mut lose: bool) -> Result<Sequence> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut seen = Sequence::after(start);
    loop {
        let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={}", seen.last());
        let mut watch = access.connect().await?.watch(&collection(&query)).await?;
        let mut left = random.random_range(RESUME_AFTER / 2..RESUME_AFTER * 2);
        while left > 0 {
            if seen.last() >= shared.end.load(Ordering::Acquire) {
                return Ok(seen);
            }
            // The last change may be seen before the writers are known to have ended: look again now and then.
            let event = match tokio::time::timeout(Duration::from_millis(200), watch.event()).await {
                Err(_) => continue,
                Ok(event) => event?,
            };
            let Some(event) = event else { break };
            let change = match event.kind.as_str() {
                "ADDED" => Change::Added,
                "MODIFIED" => Change::Modified,
                "DELETED" => Change::Deleted,
                "BOOKMARK" => continue,
                other => bail!("{other} {} after version {}", event.object.code, seen.last()),
            };
            if std::mem::take(&mut lose) {
                continue;
            }
            let metadata = &event.object.metadata;
            seen.see(metadata.version()?, &metadata.name, change).map_err(|fault| anyhow!(fault))?;
            left -= 1;
        }
        shared.resumed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes to the objects that are this writer's alone, at a steady pace: a late write is followed by the next at once.
async fn write(access: Access, shared: Arc<Shared>, load: Load, writer: usize) -> Result<Times> {
    let mut random = StdRng::seed_from_u64(load.seed.wrapping_add(u64::try_from(writer)?));
    let mut connection = access.connect().await?;
    let own: Vec<usize> = (writer..load.objects.max(load.writers)).step_by(load.writers).collect();
    // The version of each, as far as it is known: 0 for one that is there and was not written by us yet.
    let mut versions: Vec<Option<u64>> = own.iter().map(|index| (*index < load.objects).then_some(0)).collect();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / load.rate.max(1));
    let began = Instant::now();
    let mut times = Times::default();
    while began.elapsed() < load.length {
        pace.tick().await;
        let place = random.random_range(0..own.len());
        let name = format!("object-{}", own[place]);
        let sent = Instant::now();
        let last = versions[place];
        let (change, answer) = if last.is_none() {
            let body = config_map(&name, random.random());
            (Change::Added, connection.request("POST", &collection(""), &body).await?)
        } else if random.random_range(0..4) == 0 {
            (Change::Deleted, connection.request("DELETE", &object(&name), "").await?)
        } else {
            let body = format!(r#"{{"data":{{"mark":"{}"}}}}"#, random.random::<u64>());
            (Change::Modified, connection.request("PATCH", &object(&name), &body).await?)
        };
        times.push(sent.elapsed());
        let answer = answer.success()?;
        if change == Change::Deleted {
            versions[place] = None;
            shared.journal.lock().acknowledge_deletion(last.unwrap_or_default(), &name);
        } else {
            let version = answer.metadata()?.version()?;
            versions[place] = Some(version);
            shared.journal.lock().acknowledge(version, &name, change).map_err(|fault| anyhow!(fault))?;
        }
    }
    Ok(times)
}

async fn read(access: Access, shared: Arc<Shared>, objects: usize) -> Result<Times> {
    let mut random = StdRng::seed_from_u64(7);
    let mut connection = access.connect().await?;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / READS_PER_SECOND);
    let mut times = Times::default();
    while shared.end.load(Ordering::Acquire) == u64::MAX {
        let due = pace.tick().await;
        let name = format!("object-{}", random.random_range(0..objects.max(1)));
        let answer = connection.request("GET", &object(&name), "").await?;
        // From when the read was due, so that a slow server cannot slow the reader down and look better for it.
        times.push(due.elapsed());
        if answer.status != 404 {
            answer.success()?;
        }
    }
    Ok(times)
}

/// Resident memory over the time of a soak. Units: KiB.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    samples: Vec<u64>,
}

/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// Looks at the memory until it is told to stop.
pub async fn sample_memory(look: impl Fn() -> u64, mut stopped: tokio::sync::oneshot::Receiver<()>) -> Memory {
    let mut memory = Memory::default();
    loop {
        memory.samples.push(look());
        if tokio::time::timeout(SAMPLE_EVERY, &mut stopped).await.is_ok() {
            return memory;
        }
    }
}

impl Memory {
    /// The largest of each tenth of the time, for people.
    pub fn describe(&self) -> String {
        let tenth = self.samples.len().div_ceil(10).max(1);
        let peaks: Vec<String> = self
            .samples
            .chunks(tenth)
            .map(|chunk| format!("{}", chunk.iter().max().copied().unwrap_or_default() / 1024))
            .collect();
        format!("{} MiB (peak of each tenth)", peaks.join(" "))
    }
}
