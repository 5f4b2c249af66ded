//! Measures the embedded store beside etcd, in one run, on one disk: durable puts per second, the time until one change
//! has reached 1,000 watchers, and opening 30,000 objects.
//!
//! `cargo run --release -p store --example bench-store -- [directory]`; needs Debian's `etcd` in the path.

// A command-line program: its output is its purpose.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use store::{
    EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, KeyRange, Operation, SharedStore, Store, Transaction,
    WatchItem,
};

const VALUE_BYTES: usize = 1024;
const MEASURE: Duration = Duration::from_secs(3);
const WRITERS: [usize; 4] = [1, 32, 64, 256];
const WATCHERS: usize = 1000;
const FAN_OUTS: usize = 30;
const OBJECTS: usize = 30_000;
/// Connections to etcd, so that one HTTP/2 connection is not what is measured.
const CONNECTIONS: usize = 8;
const KEYS_PER_WRITER: usize = 100;

struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        // Nothing to do when it ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() {
    if let (Some("--open"), Some(dir)) = (std::env::args().nth(1).as_deref(), std::env::args().nth(2)) {
        return only_open(Path::new(&dir));
    }
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(base).expect("a directory to write in");
    let etcd = start_etcd(&dir.path().join("etcd"));
    let ours: SharedStore = open(&dir.path().join("ours"));
    let theirs = connect(etcd.1).await;
    for writers in WRITERS {
        // Alternating, twice each, the better one counts: the machine may be busy.
        let mut best = [(0.0f64, 0.0f64); 2];
        for _ in 0..2 {
            for (best, stores) in best.iter_mut().zip([std::slice::from_ref(&ours), &theirs[..]]) {
                let measured = puts(stores, writers).await;
                if measured.0 > best.0 {
                    *best = measured;
                }
            }
        }
        let [(ours, ours_p99), (etcd, etcd_p99)] = best;
        println!(
            "{writers:>4} writers: embedded {ours:>7.0} puts/s (p99 {ours_p99:.1} ms), etcd {etcd:>7.0} puts/s \
             (p99 {etcd_p99:.1} ms), {:.1}x",
            ours / etcd
        );
    }
    println!("one change to {WATCHERS} watchers: embedded {}", fan_out(&ours).await);
    println!("one change to {WATCHERS} watchers: etcd     {}", fan_out(&theirs[0]).await);
    drop(ours);
    drop(etcd);
    opening(&dir.path().join("objects")).await;
}

fn open(dir: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(dir, EmbeddedOptions::default()).expect("the store opens")
}

fn start_etcd(dir: &Path) -> (Etcd, u16) {
    let port =
        || std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let (client, peer) = (port(), port());
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new("etcd");
    command.args(["--name", "one", "--data-dir"]).arg(dir);
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("one={peer_url}")]);
    (Etcd(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts")), client)
}

async fn connect(port: u16) -> Vec<SharedStore> {
    let options = EtcdOptions { endpoints: vec![format!("http://127.0.0.1:{port}")], tls: None };
    let mut stores: Vec<SharedStore> = Vec::new();
    while stores.len() < CONNECTIONS {
        match EtcdStore::connect(options.clone()).await {
            Ok(store) => stores.push(store),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    stores
}

fn put(key: String) -> Transaction {
    Transaction { then: vec![Operation::Put(key.into(), vec![b'x'; VALUE_BYTES].into(), 0)], ..Transaction::default() }
}

/// Puts per second, and the 99th percentile of one put in milliseconds.
async fn puts(stores: &[SharedStore], writers: usize) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (store, stop) = (Arc::clone(&stores[writer % stores.len()]), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("/registry/configmaps/ns-{writer}/name-{}", times.len() % KEYS_PER_WRITER);
                    let began = Instant::now();
                    store.transact(put(key)).await.expect("a put");
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    tokio::time::sleep(MEASURE).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("a writer"));
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100].as_secs_f64() * 1000.0;
    #[allow(clippy::cast_precision_loss, reason = "a count for people to read")]
    let count = times.len() as f64;
    (count / began.elapsed().as_secs_f64(), p99)
}

/// From the call of one put until the last of the watchers has its event.
async fn fan_out(store: &SharedStore) -> String {
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..WATCHERS {
        let mut watch = store.watch(KeyRange::Prefix("/fan/".into()), None).await.expect("a watch");
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(item)) = watch.next().await {
                if matches!(item, WatchItem::Events { .. }) && seen.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
    }
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    for _ in 0..FAN_OUTS {
        let began = Instant::now();
        store.transact(put("/fan/key".into())).await.expect("a put");
        let acknowledged = began.elapsed();
        for _ in 0..WATCHERS {
            arrivals.recv().await;
        }
        whole.push(began.elapsed());
        after.push(began.elapsed().saturating_sub(acknowledged));
    }
    whole.sort_unstable();
    after.sort_unstable();
    format!(
        "{:.1?} from the call (worst {:.1?}), {:.1?} after the acknowledgement",
        whole[FAN_OUTS / 2],
        whole[FAN_OUTS - 1],
        after[FAN_OUTS / 2]
    )
}

async fn opening(dir: &Path) {
    let store = open(dir);
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    for chunk in 0..OBJECTS / 100 {
        let key = |index: usize| Bytes::from(format!("/registry/pods/ns-{chunk}/name-{index}"));
        let then = (0..100).map(|index| Operation::Put(key(index), value.clone(), 0)).collect();
        store.transact(Transaction { then, ..Transaction::default() }).await.expect("a put");
    }
    drop(store);
    let mut times = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        drop(open(dir));
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!("open with {OBJECTS} objects: {:.1?} (with closing)", times[2]);
    // In a process of its own, because this one's allocator has memory to spare.
    let this = std::env::current_exe().expect("this program");
    Command::new(this).arg("--open").arg(dir).status().expect("this program runs");
    let store = open(dir);
    let began = Instant::now();
    let all = store::RangeRequest { range: KeyRange::Prefix(Bytes::new()), revision: None, limit: 0, keys_only: false };
    let found = store.range(all).await.expect("a range").items.len();
    println!("read all {found}: {:.1?}", began.elapsed());
}

fn only_open(dir: &Path) {
    let before = resident_kib();
    let store = open(dir);
    let keys = store.statistics().keys;
    println!("resident memory: {before} KiB before opening {keys} objects, {} KiB after", resident_kib());
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
