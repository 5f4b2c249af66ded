//! `kill -9` of a writing process, again and again, with the journal kept outside of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use store::{EmbeddedOptions, EmbeddedStore, Operation, Store};

use crate::simdisk::Random;
use crate::support::{PATIENCE, always, newest, prefix};

const ROUNDS: u64 = 210;
const WRITERS: u64 = 8;
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";

fn options() -> EmbeddedOptions {
    // Small segments, so that kills also hit new segments and cleaning.
    EmbeddedOptions { segment_bytes: 256 * 1024, lock_patience: PATIENCE, ..EmbeddedOptions::default() }
}

/// A value that shows its own number and whether it is whole.
fn content(writer: u64, number: u64) -> String {
    let length = usize::try_from(Random(writer ^ number).below(4000)).unwrap();
    format!("{number}:{}:{number}", "v".repeat(length))
}

fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let (first, last) = (text.split(':').next()?, text.rsplit(':').next()?);
    (first == last).then(|| first.parse().ok())?
}

/// The writing process: this same test binary, told the directory by its environment. Does nothing otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let store = EmbeddedStore::open(Path::new(&dir), options()).unwrap();
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let key = format!("key/{writer}");
            let items = store.range(newest(prefix(&key))).await.unwrap().items;
            let mut next = items.first().and_then(|item| number(&item.value)).unwrap_or(0) + 1;
            loop {
                let put = Operation::Put(key.clone().into(), content(writer, next).into(), 0);
                let revision = store.transact(always(vec![put])).await.unwrap().revision;
                // One write call per line: the parent's pipe keeps it when this process is killed right after.
                let line = format!("acknowledged {writer} {next} {revision}\n");
                std::io::stdout().write_all(line.as_bytes()).unwrap();
                std::io::stdout().flush().unwrap();
                if next.is_multiple_of(50) {
                    store.compact(revision - 20).await.unwrap();
                }
                next += 1;
            }
        }));
    }
    futures::future::join_all(tasks).await;
}

#[tokio::test]
async fn no_kill_loses_or_tears_an_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(3);
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut newest_revision, mut total) = (0, 0);
    for round in 0..ROUNDS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["crash::child", "--exact", "--nocapture"]).env(DIRECTORY, dir.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let id = child.id();
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for line in lines.split(b'\n').map_while(Result::ok) {
                seen.push(String::from_utf8_lossy(&line).into_owned());
            }
            seen
        });
        // The only sleep: the moment of the kill is what varies. Some kills hit the opening.
        std::thread::sleep(Duration::from_micros(2_000 + random.below(40_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let Some(fields) = line.split("acknowledged ").nth(1) else { continue };
            let fields: Vec<u64> = fields.split(' ').filter_map(|field| field.parse().ok()).collect();
            let [writer, number, revision] = fields[..] else { continue };
            let last = acknowledged.entry(writer).or_default();
            *last = (*last).max(number);
            newest_revision = newest_revision.max(revision);
            total += 1;
        }
        let store = EmbeddedStore::open(dir.path(), options()).unwrap_or_else(|error| panic!("{round} {id}: {error}"));
        let found = store.range(newest(prefix("key/"))).await.unwrap();
        assert!(found.revision >= newest_revision, "round {round}");
        let found: BTreeMap<_, _> = found.items.into_iter().map(|item| (item.key, item.value)).collect();
        for (writer, last) in &acknowledged {
            let value = found.get(format!("key/{writer}").as_bytes()).unwrap_or_else(|| panic!("round {round}: lost"));
            let now = number(value).unwrap_or_else(|| panic!("round {round}: torn"));
            assert!(now >= *last, "round {round}: {now} after {last} was acknowledged");
            assert_eq!(*value, content(*writer, now), "round {round}: torn");
        }
    }
    assert!(total > 1000, "only {total} writes were acknowledged in all rounds");
}
