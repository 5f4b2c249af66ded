//! What only the embedded engine has: locks, backups, cleaning, leases that outlive a restart, bounded watchers.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use store::clock::ManualClock;
use store::embedded::RESTORE_REVISION_BUMP;
use store::{EmbeddedOptions, EmbeddedStore, Error, Operation, RangeRequest, Store};

use crate::simdisk::Random;
use crate::support::{
    PATIENCE, always, delete, eventually, newest, next_change, prefix, put, value, watch_error, write,
};

fn small() -> EmbeddedOptions {
    // A child of another test holds our files, the lock among them, from its fork to its exec.
    EmbeddedOptions { segment_bytes: 64 * 1024, lock_patience: PATIENCE, ..EmbeddedOptions::default() }
}

#[tokio::test]
async fn two_daemons_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), small()).unwrap();
    let at_once = EmbeddedOptions { lock_patience: Duration::ZERO, ..small() };
    let second = EmbeddedStore::open(dir.path(), at_once).err().unwrap();
    assert!(matches!(second, Error::Unavailable(text) if text.contains("another process")));
    drop(store);
    EmbeddedStore::open(dir.path(), small()).unwrap();
}

#[tokio::test]
async fn a_store_that_is_about_to_be_free_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), small()).unwrap();
    let path = dir.path().to_owned();
    let options = EmbeddedOptions { lock_patience: PATIENCE, ..small() };
    let second = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path, options));
    // Whether it asks before or after this, it gets the store.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(store);
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("store");
    let store = EmbeddedStore::open(&inner, small()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    store.backup(&dir.path().join("backup")).await.unwrap();
    assert_eq!(mode(&dir.path().join("backup")), 0o600);
    for entry in std::fs::read_dir(&inner).unwrap().flatten() {
        // A prepared segment may just get its final name.
        if let Ok(data) = std::fs::metadata(entry.path()) {
            assert_eq!(data.permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
        }
    }
}

#[tokio::test]
async fn a_backup_taken_under_load_comes_back_whole_with_new_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("one"), small()).unwrap();
    let lease = store.lease_grant(3600).await.unwrap();
    for index in 0..300 {
        write(store.as_ref(), put(&format!("key/{index:03}"), &"x".repeat(index * 7))).await;
    }
    write(store.as_ref(), Operation::Put("leased".into(), "1".into(), lease)).await;
    write(store.as_ref(), delete("key/007")).await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for index in 0..200 {
                write(store.as_ref(), put(&format!("key/{:03}", index % 50), &format!("new {index}"))).await;
            }
        })
    };
    let file = dir.path().join("backup");
    let revision = store.backup(&file).await.unwrap();
    writer.await.unwrap();
    let then = store.range(RangeRequest { revision: Some(revision), ..newest(prefix("")) }).await.unwrap().items;
    let last = store.revision().await.unwrap();

    assert_eq!(EmbeddedStore::verify_backup(&file).unwrap(), revision);
    let restored = EmbeddedStore::restore(&file, &dir.path().join("two"), 0).unwrap();
    assert_eq!(restored, revision + RESTORE_REVISION_BUMP);
    let copy: Arc<dyn Store> = EmbeddedStore::open(&dir.path().join("two"), small()).unwrap();
    assert_eq!(copy.revision().await.unwrap(), restored);
    assert!(restored > last);
    assert_eq!(copy.range(newest(prefix(""))).await.unwrap().items, then);
    assert!(matches!(watch_error(&copy, prefix(""), last).await, Error::Compacted { .. }), "old watchers list again");
    assert!(write(copy.as_ref(), put("key/000", "after")).await > restored);
    copy.lease_revoke(lease).await.unwrap();
    assert_eq!(value(copy.as_ref(), "leased").await, None);
    let occupied = EmbeddedStore::restore(&file, &dir.path().join("two"), 0);
    assert!(matches!(occupied, Err(Error::Invalid(_))), "never over a store that is there");
}

#[tokio::test]
async fn what_was_written_after_one_restore_is_not_reused_after_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("one"), small()).unwrap();
    write(store.as_ref(), put("key", "old")).await;
    let file = dir.path().join("backup");
    store.backup(&file).await.unwrap();
    let now = 1_800_000_000;
    EmbeddedStore::restore(&file, &dir.path().join("two"), now).unwrap();
    let first = EmbeddedStore::open(&dir.path().join("two"), small()).unwrap();
    let mut last = 0;
    for index in 0..50 {
        last = write(first.as_ref(), put("key", &format!("lost {index}"))).await;
    }
    let again = EmbeddedStore::restore(&file, &dir.path().join("three"), now + 1).unwrap();
    assert!(again > last, "{again} {last}");
    let second: Arc<dyn Store> = EmbeddedStore::open(&dir.path().join("three"), small()).unwrap();
    assert!(matches!(watch_error(&second, prefix(""), last).await, Error::Compacted { .. }));
}

#[tokio::test]
async fn a_damaged_or_cut_backup_is_refused_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("one"), small()).unwrap();
    for index in 0..20 {
        write(store.as_ref(), put(&format!("key/{index}"), &"x".repeat(100))).await;
    }
    let file = dir.path().join("backup");
    store.backup(&file).await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    let bad = dir.path().join("bad");
    let target = dir.path().join("two");
    let mut random = Random(11);
    for round in 0..200 {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            let bit = usize::try_from(random.below(whole.len() as u64 * 8)).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
        } else {
            bytes.truncate(usize::try_from(random.below(whole.len() as u64)).unwrap());
        }
        std::fs::write(&bad, &bytes).unwrap();
        assert!(EmbeddedStore::verify_backup(&bad).is_err(), "round {round}");
        match EmbeddedStore::restore(&bad, &target, 0) {
            Err(Error::Corrupt(_) | Error::Invalid(_)) => assert!(!target.exists()),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("round {round}: a changed backup was restored"),
        }
    }
}

#[tokio::test]
async fn leases_outlive_a_restart_with_their_whole_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let options = EmbeddedOptions { clock: Arc::<ManualClock>::clone(&clock), ..small() };
    let store = EmbeddedStore::open(dir.path(), options.clone()).unwrap();
    let lease = store.lease_grant(10).await.unwrap();
    let revoked = store.lease_grant(10).await.unwrap();
    write(store.as_ref(), Operation::Put("leased".into(), "1".into(), lease)).await;
    store.lease_revoke(revoked).await.unwrap();
    clock.advance(Duration::from_secs(9));
    drop(store);
    let store = EmbeddedStore::open(dir.path(), options).unwrap();
    assert!(matches!(store.lease_keep_alive(revoked).await, Err(Error::LeaseNotFound(_))));
    clock.advance(Duration::from_secs(9));
    store.lease_keep_alive(lease).await.unwrap();
    let mut watch = store.watch(prefix("leased"), None).await.unwrap();
    clock.advance(Duration::from_secs(11));
    next_change(&mut watch).await.unwrap();
    assert_eq!(value(store.as_ref(), "leased").await, None);
}

#[tokio::test]
async fn overwriting_and_compacting_reclaims_space() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), small()).unwrap();
    // Old keys that never change have to move along with the cleaning, and deleted ones must stay deleted.
    for index in 0..20 {
        write(store.as_ref(), put(&format!("old/{index}"), "stays")).await;
        write(store.as_ref(), put(&format!("gone/{index}"), "goes")).await;
    }
    for index in 0..20 {
        write(store.as_ref(), delete(&format!("gone/{index}"))).await;
    }
    let value = "x".repeat(2000);
    let mut largest = 0;
    for round in 0..30 {
        let puts = (0..60).map(|index| put(&format!("key/{index}"), &format!("{round}{value}"))).collect();
        let revision = store.transact(always(puts)).await.unwrap().revision;
        store.compact(revision).await.unwrap();
        largest = largest.max(store.statistics().disk_bytes);
    }
    let settled = async || store.statistics().disk_bytes <= 2 * store.statistics().live_bytes + 7 * 64 * 1024;
    eventually("cleaning", settled).await;
    assert!(store.statistics().segments < 12, "{:?}, largest {largest}", store.statistics());
    drop(store);
    let store = EmbeddedStore::open(dir.path(), small()).unwrap();
    assert_eq!(store.range(newest(prefix("old/"))).await.unwrap().items.len(), 20);
    assert_eq!(store.range(newest(prefix("gone/"))).await.unwrap().items.len(), 0);
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), 60);
    assert!(store.scrub().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_cut_off_and_others_are_not() {
    let disk = crate::simdisk::SimDisk::new(crate::simdisk::Faults::default());
    let options = EmbeddedOptions { segment_bytes: 16 * 1024 * 1024, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open_on(Arc::new(disk), options).unwrap();
    let mut slow = store.watch(prefix("key/"), None).await.unwrap();
    let mut quick = store.watch(prefix("key/"), None).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut last = 0;
        while last < 60 {
            next_change(&mut quick).await.unwrap();
            last += 1;
        }
    });
    let value = bytes::Bytes::from(vec![0; 2 * 1024 * 1024]);
    for _ in 0..60 {
        write(store.as_ref(), Operation::Put("key/a".into(), value.clone(), 0)).await;
        let revision = store.revision().await.unwrap();
        store.compact(revision).await.unwrap();
    }
    reader.await.unwrap();
    let mut last = None;
    while let Some(item) = slow.next().await {
        last = Some(item);
    }
    assert!(matches!(last, Some(Err(Error::SlowWatcher))));
}

#[tokio::test]
async fn a_watcher_in_step_is_told_of_progress() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), small()).unwrap();
    let mut watch = store.watch(prefix("nothing/"), None).await.unwrap();
    let revision = write(store.as_ref(), put("elsewhere", "1")).await;
    let item = tokio::time::timeout(crate::support::PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(item, store::WatchItem::Progress(revision));
}

/// A small file system of its own, gone when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None` when this user may not mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "nuee-store-test"]).arg(dir.path());
        mount.stderr(std::process::Stdio::null()).status().ok()?.success().then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A busy or failed unmount shows up as a directory that cannot be removed.
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_file_system_refuses_writes_and_recovers() {
    // Needs to mount; on the simulated disk the same claim runs for everybody.
    let Some(tmpfs) = Tmpfs::mount("4m") else { return };
    let ballast = tmpfs.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 1024 * 1024]).unwrap();
    let dir = tmpfs.0.path().join("store");
    let options = EmbeddedOptions { segment_bytes: 256 * 1024, ..small() };
    let store = EmbeddedStore::open(&dir, options.clone()).unwrap();
    let value = "x".repeat(8000);
    let mut count = 0;
    let error = loop {
        match store.transact(always(vec![put(&format!("key/{count}"), &value)])).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace), "{error:?}");
    assert!(count > 100);
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().count, count);
    write(store.as_ref(), delete("key/0")).await;
    std::fs::remove_file(&ballast).unwrap();
    for index in 0..40 {
        write(store.as_ref(), put(&format!("more/{index}"), &value)).await;
    }
    drop(store);
    let store = EmbeddedStore::open(&dir, options).unwrap();
    assert_eq!(store.range(newest(prefix("key/"))).await.unwrap().items.len(), count - 1);
    assert_eq!(store.range(newest(prefix("more/"))).await.unwrap().items.len(), 40);
    assert!(store.scrub().is_empty());
}
