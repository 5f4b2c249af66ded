//! Power cuts, failed syncs and full disks, on the simulated disk: nothing acknowledged is ever lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use store::{EmbeddedOptions, EmbeddedStore, Error, KeyRange, Operation, Store, Transaction};

use crate::simdisk::{Faults, Random, SimDisk};
use crate::support::{always, delete, eventually, newest, prefix, put, write};

const SEGMENT_BYTES: u64 = 64 * 1024;
const KEYS: u64 = 24;
/// Power cuts with an honest disk, unless `STORE_CUTS` and `STORE_SEED` say otherwise (the nightly run does more).
const CUTS: u64 = 250;
const SEED: u64 = 1;
/// Runs on a disk that skips syncs; most of them must be seen.
const CONTROLS: u64 = 20;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { segment_bytes: SEGMENT_BYTES, ..EmbeddedOptions::default() }
}

/// What was acknowledged, and what was asked for last and may be there or not.
#[derive(Clone, Default)]
struct Journal {
    acknowledged: BTreeMap<String, (u64, String)>,
    /// Per key: the write in flight when the power went; `None` is a deletion.
    open: BTreeMap<String, Vec<Option<String>>>,
    revision: u64,
    compacted: u64,
}

/// Writes from several tasks until `writes` are acknowledged, then cuts the power at once.
async fn load(disk: &SimDisk, random: &mut Random, journal: &mut Journal, writes: u64) -> SimDisk {
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    let shared = Arc::new(parking_lot::Mutex::new((std::mem::take(journal), 0u64)));
    let mut tasks = Vec::new();
    for writer in 0..4u64 {
        let (store, shared) = (Arc::clone(&store), Arc::clone(&shared));
        let mut random = Random(random.next());
        tasks.push(tokio::spawn(async move {
            // Every writer has its own keys, so that the order per key is known.
            while shared.lock().1 < writes {
                let key = format!("key/{}", writer + 4 * random.below(KEYS / 4));
                let length = usize::try_from(random.below(3000)).unwrap();
                let value = (random.below(6) > 0).then(|| format!("{}-{}", random.next(), "x".repeat(length)));
                shared.lock().0.open.entry(key.clone()).or_default().push(value.clone());
                let operation = value.as_ref().map_or_else(|| delete(&key), |value| put(&key, value));
                let Ok(response) = store.transact(always(vec![operation])).await else { return };
                let (journal, count) = &mut *shared.lock();
                journal.open.remove(&key);
                journal.revision = journal.revision.max(response.revision);
                match value {
                    Some(value) => journal.acknowledged.insert(key, (response.revision, value)),
                    None => journal.acknowledged.remove(&key),
                };
                *count += 1;
            }
        }));
    }
    let until = random.below(writes);
    eventually("half the writes", async || shared.lock().1 >= until).await;
    if random.below(2) == 0 {
        let revision = store.revision().await.unwrap();
        if store.compact(revision).await.is_ok() {
            shared.lock().0.compacted = revision;
        }
    }
    // The cut and the journal are taken at one moment, with the writers running: the journal first, so that it holds
    // nothing that was acknowledged after the cut. What is acknowledged in between is in its open list.
    let cut = {
        let journal_now = shared.lock().0.clone();
        let cut = disk.cut(random);
        *journal = journal_now;
        cut
    };
    disk.power_off();
    for task in tasks {
        task.await.unwrap();
    }
    // A write that was acknowledged between journal and cut is there and not in the journal: allow it.
    let (after, _) = shared.lock().clone();
    journal.open_to(&after);
    cut
}

impl Journal {
    /// Adds what happened after the journal was taken as possible.
    fn open_to(&mut self, after: &Self) {
        for (key, (revision, value)) in &after.acknowledged {
            if *revision > self.revision || !self.acknowledged.contains_key(key) {
                self.open.entry(key.clone()).or_default().push(Some(value.clone()));
            }
        }
        for key in self.acknowledged.keys() {
            if after.acknowledged.get(key) != self.acknowledged.get(key) {
                self.open.entry(key.clone()).or_default().push(None);
            }
        }
    }

    /// Says what is wrong with the store, if anything is.
    async fn check(&self, store: &dyn Store) -> Result<(), String> {
        let found = store.range(newest(prefix("key/"))).await.map_err(|error| error.to_string())?;
        if found.revision < self.revision {
            return Err(format!("revision {} after {}", found.revision, self.revision));
        }
        let found: BTreeMap<String, String> = found
            .items
            .into_iter()
            .map(|item| (String::from_utf8_lossy(&item.key).into(), String::from_utf8_lossy(&item.value).into()))
            .collect();
        for index in 0..KEYS {
            let key = format!("key/{index}");
            let now = found.get(&key).cloned();
            let acknowledged = self.acknowledged.get(&key).map(|(_, value)| value.clone());
            if now != acknowledged && !self.open.get(&key).is_some_and(|open| open.contains(&now)) {
                return Err(format!("{key} is not what was acknowledged"));
            }
        }
        Ok(())
    }

    /// Takes over what the store really holds.
    async fn adopt(&mut self, store: &dyn Store) {
        let found = store.range(newest(prefix("key/"))).await.unwrap();
        self.revision = found.revision;
        self.open.clear();
        self.acknowledged = found
            .items
            .into_iter()
            .map(|item| {
                let value = String::from_utf8_lossy(&item.value).into();
                (String::from_utf8_lossy(&item.key).into(), (item.mod_revision, value))
            })
            .collect();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_cut_loses_an_acknowledged_write() {
    let given = |name: &str, usual| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let seed = given("STORE_SEED", SEED);
    let mut random = Random(seed);
    let mut disk = SimDisk::new(Faults::default());
    let mut journal = Journal::default();
    for cut in 0..given("STORE_CUTS", CUTS) {
        let writes = 5 + random.below(60);
        disk = load(&disk, &mut random, &mut journal, writes).await;
        let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options())
            .unwrap_or_else(|error| panic!("seed {seed}, cut {cut}: {error}"));
        journal.check(store.as_ref()).await.unwrap_or_else(|problem| panic!("seed {seed}, cut {cut}: {problem}"));
        journal.adopt(store.as_ref()).await;
        assert!(store.scrub().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_cut_test_sees_a_disk_that_skips_syncs() {
    let mut seen = 0;
    for seed in 0..CONTROLS {
        let mut random = Random(1000 + seed);
        let disk = SimDisk::new(Faults { skip_sync: true, ..Faults::default() });
        let mut journal = Journal::default();
        let disk = load(&disk, &mut random, &mut journal, 60).await;
        seen += match EmbeddedStore::open_on(Arc::new(disk), options()) {
            Err(_) => 1,
            Ok(store) => u64::from(journal.check(store.as_ref()).await.is_err()),
        };
    }
    assert!(seen * 4 >= CONTROLS * 3, "only {seen} of {CONTROLS} were seen");
}

#[tokio::test]
async fn nothing_is_acknowledged_after_a_failed_sync() {
    for number in 1..12 {
        let disk = SimDisk::new(Faults::default());
        let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
        eventually("both spares are ready", async || store.statistics().disk_bytes >= 3 * SEGMENT_BYTES).await;
        disk.set_faults(Faults { fail_sync: Some(disk.syncs() + number), ..Faults::default() });
        let mut acknowledged = Vec::new();
        let mut failed = false;
        for index in 0..20 {
            let key = format!("key/{index}");
            match store.transact(always(vec![put(&key, "value")])).await {
                Ok(_) => {
                    assert!(!failed, "acknowledged after a failed sync");
                    acknowledged.push(key);
                }
                Err(error) => {
                    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
                    failed = true;
                }
            }
        }
        assert!(failed);
        // The keeper's seal may have been the sync that failed.
        assert!((acknowledged.len() as u64) < number);
        let readable = store.range(newest(prefix("key/"))).await.unwrap().items.len();
        assert_eq!(readable, acknowledged.len(), "reads go on, and show only what is durable");
        assert!(store.lease_grant(5).await.is_err());
        assert!(store.compact(1).await.is_err());
        drop(store);
        // The same boot: the page cache still shows the frame that never reached the disk. After opening it counts, so
        // it must have been written again: a power cut right then keeps it, and everything after it.
        let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
        let shown = store.range(newest(prefix("key/"))).await.unwrap().items.len();
        write(store.as_ref(), put("after", "1")).await;
        let cut = disk.cut(&mut Random(number));
        let store = EmbeddedStore::open_on(Arc::new(cut), options()).unwrap();
        assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), shown);
        assert!(shown >= acknowledged.len());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_is_freed_by_deleting() {
    let disk = SimDisk::new(Faults { capacity: Some(10 * SEGMENT_BYTES), ..Faults::default() });
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    eventually("both spares are ready", async || store.statistics().disk_bytes >= 3 * SEGMENT_BYTES).await;
    let value = "x".repeat(4000);
    let mut keys = Vec::new();
    loop {
        let key = format!("key/{}", keys.len());
        match store.transact(always(vec![put(&key, &value)])).await {
            Ok(_) => keys.push(key),
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(keys.len() > 60);
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), keys.len());
    for key in &keys[..keys.len() - 5] {
        write(store.as_ref(), delete(key)).await;
    }
    let revision = store.revision().await.unwrap();
    store.compact(revision).await.unwrap();
    let again = || always(vec![put("key/again", &value)]);
    eventually("space is free", async || store.transact(again()).await.is_ok()).await;
    for index in 0..30 {
        // Cleaning goes on meanwhile and may need a moment.
        let more = || always(vec![put(&format!("more/{index}"), &value)]);
        eventually("space is free", async || store.transact(more()).await.is_ok()).await;
    }
    drop(store);
    let store = EmbeddedStore::open_on(Arc::new(disk), options()).unwrap();
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), 6);
    assert_eq!(store.range(newest(prefix("more/"))).await.unwrap().items.len(), 30);
}

#[tokio::test]
async fn a_full_disk_works_again_when_others_free_it() {
    let disk = SimDisk::new(Faults { capacity: Some(6 * SEGMENT_BYTES), ..Faults::default() });
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    let value = "x".repeat(4000);
    let mut count = 0;
    while store.transact(always(vec![put(&format!("key/{count}"), &value)])).await.is_ok() {
        count += 1;
    }
    // A full disk is no reason not to start.
    drop(store);
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), count);
    disk.set_faults(Faults::default());
    for index in 0..50 {
        write(store.as_ref(), put(&format!("more/{index}"), &value)).await;
    }
}

/// Fills a small store; its last frame is behind a clean end.
async fn small_store() -> SimDisk {
    let disk = SimDisk::new(Faults::default());
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    for index in 0..40 {
        write(store.as_ref(), put(&format!("key/{index}"), &format!("value {index}").repeat(300))).await;
    }
    drop(store);
    disk
}

#[tokio::test]
async fn flipped_bits_are_seen_at_open_and_change_nothing() {
    let original = small_store().await;
    let mut random = Random(7);
    let (mut flipped, mut refused) = (0, 0);
    for name in original.image().keys().filter(|name| name.starts_with("segment-")) {
        let used = original.bytes(name).iter().rposition(|byte| *byte != 0).unwrap();
        for _ in 0..60 {
            let disk = original.cut(&mut random);
            let byte = usize::try_from(random.below(used as u64 - 32)).unwrap();
            disk.flip(name, byte, u8::try_from(random.below(8)).unwrap());
            let before = disk.image();
            match EmbeddedStore::open_on(Arc::new(disk.clone()), options()) {
                Err(Error::Corrupt(_)) => {
                    refused += 1;
                    assert_eq!(before, disk.image(), "a refused store is left alone");
                }
                Err(error) => panic!("{error:?}"),
                Ok(store) => {
                    // Only what carries no data may be opened: padding and the unused part of the header.
                    let items = store.range(newest(prefix("key/"))).await.unwrap().items;
                    assert_eq!(items.len(), 40, "{name} byte {byte}");
                    refused += 1;
                }
            }
            flipped += 1;
        }
    }
    assert_eq!(flipped, refused);
}

#[tokio::test]
async fn flipped_bits_under_a_running_store_are_never_served() {
    let disk = small_store().await;
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).unwrap();
    let name = "segment-00000001";
    let bytes = disk.bytes(name);
    let at = bytes.windows(7).position(|window| window == b"value 3").unwrap();
    disk.flip(name, at, 3);
    let range = KeyRange::Key("key/3".into());
    assert!(matches!(store.range(newest(range)).await, Err(Error::Corrupt(text)) if text.contains("key/3")));
    assert!(matches!(store.range(newest(prefix("key/"))).await, Err(Error::Corrupt(_))));
    assert_eq!(store.scrub(), ["key/3"]);
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    assert!(matches!(store.backup(&backup).await, Err(Error::Corrupt(_))));
    assert!(!backup.exists());
    let get = Transaction { then: vec![Operation::Get("key/3".into())], ..Transaction::default() };
    assert!(matches!(store.transact(get).await, Err(Error::Corrupt(_))));
    write(store.as_ref(), put("key/3", "written anew")).await;
    assert!(store.scrub().is_empty());
}

#[tokio::test]
async fn a_missing_piece_or_a_newer_format_is_refused_and_left_alone() {
    use store::embedded::disk::Disk;
    let original = small_store().await;
    let refuse = |disk: &SimDisk| {
        let before = disk.image();
        let error = EmbeddedStore::open_on(Arc::new(disk.clone()), options()).err().expect("refused");
        assert_eq!(before, disk.image());
        error
    };
    for piece in ["segment-00000001", "segment-00000002", "manifest"] {
        let disk = original.cut(&mut Random(1));
        disk.remove(piece).unwrap();
        assert!(matches!(refuse(&disk), Error::Corrupt(_)), "{piece}");
    }
    let disk = original.cut(&mut Random(1));
    for place in [0, 4096] {
        disk.flip("manifest", place + 8, 1);
    }
    assert!(matches!(refuse(&disk), Error::Invalid(text) if text.contains("format 3")));
}
