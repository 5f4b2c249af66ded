//! Loading, names, snapshots, saving, removal, garbage, and what a crash leaves.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use futures::TryStreamExt;
use image::{Error, ImageStore, ImageUser, ListFilter, Progress, Removal, RemoveOptions};

use crate::helpers::{Item, archive_with_diff_ids, count, load, tar_of};

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar_of(&[
            Item::Directory("etc/", 0o750),
            Item::File("etc/keep", b"keep", 0o4755),
            Item::File("etc/gone", b"gone", 0o600),
            Item::Directory("old/", 0o755),
            Item::File("old/hidden", b"x", 0o644),
        ]),
        tar_of(&[
            Item::Directory("etc/", 0o750),
            Item::File("etc/.wh.gone", b"", 0o600),
            Item::Directory("old/", 0o755),
            Item::File("old/.wh..wh..opq", b"", 0o600),
            Item::File("old/new", b"new", 0o644),
        ]),
    ]
}

#[tokio::test]
async fn a_snapshot_shows_the_layers_and_keeps_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let id = load(&store, &two_layers(), "app:1").await.unwrap();
    let snapshot = store.prepare("c1", "app:1", &dir.path().join("c1")).await.unwrap();
    store.mount(&snapshot).await.unwrap();
    store.mount(&snapshot).await.unwrap();
    let root = &snapshot.rootfs;
    assert_eq!(std::fs::read(root.join("etc/keep")).unwrap(), b"keep");
    assert_eq!(std::fs::metadata(root.join("etc/keep")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(std::fs::metadata(root.join("etc")).unwrap().mode() & 0o7777, 0o750);
    assert!(!root.join("etc/gone").exists(), "whited out");
    assert!(!root.join("old/hidden").exists() && root.join("old/new").exists(), "opaque");
    std::fs::write(root.join("written"), b"mine").unwrap();
    store.unmount(&snapshot).await.unwrap();
    assert_eq!(count(root), 0);

    drop(store);
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let again = store.prepare("c1", &id.to_string(), &dir.path().join("c1")).await.unwrap();
    assert_eq!(again, snapshot);
    store.mount(&again).await.unwrap();
    assert_eq!(std::fs::read(root.join("written")).unwrap(), b"mine");
    let mut layer = Vec::new();
    layer = image::layer::pack_changes(&snapshot.upper, layer).unwrap();
    assert!(layer.windows(7).any(|bytes| bytes == b"written"));
    store.remove_snapshot("c1").await.unwrap();
    assert_eq!(count(&dir.path().join("c1")), 0);
    assert!(store.snapshot("c1").is_none());
}

#[tokio::test]
async fn a_container_of_dockers_has_its_marks_over_the_image_and_not_among_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let lead = outside.display().to_string();
    let layers: [(&str, Vec<Vec<u8>>); 6] = [
        ("plain", two_layers()),
        ("without", vec![tar_of(&[Item::Directory("bin/", 0o755)])]),
        (
            "files",
            vec![tar_of(&[
                Item::Directory("etc/", 0o711),
                Item::Symlink("etc/mtab", "/outside"),
                Item::Symlink(".dockerenv", &lead),
            ])],
        ),
        ("directories", vec![tar_of(&[Item::Directory("etc/mtab/", 0o755), Item::Directory(".dockerenv/", 0o755)])]),
        ("linked", vec![tar_of(&[Item::Symlink("etc", &lead)])]),
        (
            "gone",
            vec![
                tar_of(&[Item::Directory("etc/mtab/", 0o755), Item::Directory(".dockerenv/", 0o755)]),
                tar_of(&[
                    Item::Directory("etc/", 0o700),
                    Item::File("etc/.wh.mtab", b"", 0o600),
                    Item::File(".wh..dockerenv", b"", 0o600),
                ]),
            ],
        ),
    ];
    for (name, layers) in &layers {
        load(&store, layers, &format!("{name}:1")).await.unwrap();
        let snapshot = store.prepare_marked(name, &format!("{name}:1"), &dir.path().join(name)).await.unwrap();
        let again = store.prepare_marked(name, &format!("{name}:1"), &dir.path().join(name)).await.unwrap();
        assert_eq!(again, snapshot);
        store.mount(&snapshot).await.unwrap();
        let root = &snapshot.rootfs;
        let is_link = |path: &str| std::fs::read_link(root.join(path)).ok().map(|to| to.display().to_string());
        let flag = root.join(".dockerenv").symlink_metadata().unwrap();
        let mode = |path: &str| root.join(path).symlink_metadata().unwrap().mode() & 0o7777;
        match *name {
            "directories" => {
                assert!(flag.is_dir() && root.join("etc/mtab").is_dir());
            }
            "linked" => {
                assert!(flag.is_file());
                assert_eq!(is_link("etc"), Some(lead.clone()));
            }
            _ => {
                assert!(flag.is_file() && flag.len() == 0 && flag.mode() & 0o7777 == 0o755, "{name}");
                assert_eq!(is_link("etc/mtab").as_deref(), Some("/proc/mounts"), "{name}");
            }
        }
        match *name {
            "plain" => {
                assert_eq!((mode("etc"), mode("etc/keep")), (0o750, 0o4755));
                assert_eq!(root.join("etc").metadata().unwrap().mtime(), 1_000_000_000);
                assert!(!root.join("etc/gone").exists());
            }
            "files" => assert_eq!(mode("etc"), 0o711),
            "gone" => assert_eq!(mode("etc"), 0o700),
            "without" => assert_eq!(mode("etc"), 0o755),
            _ => {}
        }
        assert_eq!(count(&snapshot.upper), 0, "{name}: no change");
        if *name == "plain" {
            // What is written over it is a change, and so is its removal.
            std::fs::write(root.join(".dockerenv"), b"mine").unwrap();
            std::fs::remove_file(root.join("etc/mtab")).unwrap();
            assert_eq!(std::fs::read(snapshot.upper.join(".dockerenv")).unwrap(), b"mine");
            let other = store.prepare_marked("other", "plain:1", &dir.path().join("other")).await.unwrap();
            store.mount(&other).await.unwrap();
            assert_eq!(std::fs::read(other.rootfs.join(".dockerenv")).unwrap(), b"");
            store.remove_snapshot("other").await.unwrap();
        }
        store.remove_snapshot(name).await.unwrap();
        assert_eq!(count(&dir.path().join(name)), 0, "{name}");
    }
    assert_eq!(count(&outside), 0, "no link was followed");
    // One for each kind of image, until nobody uses it.
    assert_eq!(count(&dir.path().join("images/marks")), layers.len());
    let kept = store.prepare_marked("kept", "plain:1", &dir.path().join("kept")).await.unwrap();
    store.collect_garbage().await.unwrap();
    assert_eq!(count(&dir.path().join("images/marks")), 1);
    drop(store);
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    store.mount(&kept).await.unwrap();
    assert!(kept.rootfs.join(".dockerenv").is_file());
    store.unmount(&kept).await.unwrap();
    // A crash of the machine may take them: the container is mounted without.
    std::fs::remove_dir_all(dir.path().join("images/marks")).unwrap();
    store.mount(&kept).await.unwrap();
    assert!(!kept.rootfs.join(".dockerenv").exists() && kept.rootfs.join("etc/keep").is_file());
    store.remove_snapshot("kept").await.unwrap();
}

#[tokio::test]
async fn a_scratch_snapshot_is_mounted_again_in_either_way_and_keeps_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &two_layers(), "app:1").await.unwrap();
    let snapshot = store.prepare("c1", "app:1", &dir.path().join("c1")).await.unwrap();
    let written = snapshot.rootfs.join("written");
    store.mount_scratch(&snapshot).await.unwrap();
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(&*snapshot.rootfs.to_string_lossy())).unwrap();
    assert!(line.contains("volatile"), "{line}");
    std::fs::write(&written, b"mine").unwrap();
    store.unmount(&snapshot).await.unwrap();
    store.mount_scratch(&snapshot).await.unwrap();
    assert_eq!(std::fs::read(&written).unwrap(), b"mine");
    store.unmount(&snapshot).await.unwrap();
    store.mount(&snapshot).await.unwrap();
    assert_eq!(std::fs::read(&written).unwrap(), b"mine");
    store.remove_snapshot("c1").await.unwrap();
}

#[tokio::test]
async fn hundreds_of_layers_mount_below_a_long_path() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(200)).join("e".repeat(100));
    let store = ImageStore::open(&long).unwrap();
    let layers: Vec<Vec<u8>> =
        (0..300).map(|i| tar_of(&[Item::File(&format!("f{i}"), i.to_string().as_bytes(), 0o644)])).collect();
    load(&store, &layers, "deep:1").await.unwrap();
    let snapshot = store.prepare("c", "deep:1", &dir.path().join("c")).await.unwrap();
    store.mount(&snapshot).await.unwrap();
    assert_eq!(std::fs::read(snapshot.rootfs.join("f299")).unwrap(), b"299");
    assert_eq!(count(&snapshot.rootfs), 300);
    store.remove_snapshot("c").await.unwrap();
}

#[tokio::test]
async fn what_is_saved_loads_again_as_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("a")).unwrap();
    let id = load(&store, &two_layers(), "app:1").await.unwrap();
    store.tag("app:1", "localhost:5000/other/app").unwrap();
    let names = ["app:1".to_owned(), "localhost:5000/other/app:latest".to_owned()];
    let stream = store.save(&names).await.unwrap();
    let bytes: Vec<u8> = stream
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
        .unwrap();
    let other = ImageStore::open(&dir.path().join("b")).unwrap();
    let loaded = other.load(std::io::Cursor::new(bytes.clone()), &Progress::none()).await.unwrap();
    assert_eq!((&loaded[0].id, loaded[0].references.len()), (&id, 2));
    // Without docker's file it is an OCI layout.
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut builder = tar::Builder::new(Vec::new());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().to_str() != Some("manifest.json") {
            builder.append(&entry.header().clone(), entry).unwrap();
        }
    }
    let third = ImageStore::open(&dir.path().join("c")).unwrap();
    let layout = std::io::Cursor::new(builder.into_inner().unwrap());
    let loaded = third.load(layout, &Progress::none()).await.unwrap();
    assert_eq!((&loaded[0].id, loaded[0].references.len()), (&id, 2));
    assert!(store.save(&["nothing:1".to_owned()]).await.is_err());
}

#[tokio::test]
async fn a_layer_that_is_not_its_diff_id_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let wrong = image::Digest::of(b"something else").to_string();
    let archive = archive_with_diff_ids(&two_layers()[..1], &[wrong], "bad:1");
    let error = store.load(std::io::Cursor::new(archive), &Progress::none()).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!(store.list(&ListFilter { all: true, ..ListFilter::default() }).unwrap().is_empty());
    store.collect_garbage().await.unwrap();
    for left in ["layers", "blobs/sha256", "ingest", "trash"] {
        assert_eq!(count(&dir.path().join(left)), 0, "{left}");
    }
}

#[tokio::test]
async fn removal_follows_dockers_rules() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let id = load(&store, &two_layers(), "app:1").await.unwrap();
    store.tag("app:1", "app:2").unwrap();
    let user = |running| ImageUser { container_id: "c".repeat(64), image_id: id.to_string(), running };
    let with = |running, force| RemoveOptions { force, no_prune: false, users: vec![user(running)] };
    let none = RemoveOptions::default();
    assert_eq!(store.remove("app:2", &with(true, false)).unwrap(), [Removal::Untagged("app:2".to_owned())]);
    let text = store.remove("app:1", &with(false, false)).unwrap_err().to_string();
    assert!(text.contains("(must force) - container cccccccccccc is using its referenced image"), "{text}");
    for called in ["app:1", id.short()] {
        let users = vec![ImageUser { image_id: called.to_owned(), ..user(false) }];
        let text = store.remove("app:1", &RemoveOptions { users, ..none.clone() }).unwrap_err().to_string();
        assert!(text.contains("is using its referenced image"), "{called}: {text}");
    }
    let text = store.remove(id.hex(), &with(true, true)).unwrap_err().to_string();
    assert!(text.contains("(cannot be forced) - image is being used by running container"), "{text}");
    store.tag("app:1", "other:1").unwrap();
    let text = store.remove(id.short(), &none).unwrap_err().to_string();
    assert!(text.contains("(must be forced) - image is referenced in multiple repositories"), "{text}");
    let removals = store.remove(id.short(), &RemoveOptions { force: true, ..none.clone() }).unwrap();
    assert_eq!(removals.len(), 3, "{removals:?}");
    assert!(matches!(store.get("app:1"), Err(Error::NotFound(text)) if text == "No such image: app:1"));
    assert_eq!(count(&dir.path().join("blobs/sha256")), 0, "nothing is left");
}

#[tokio::test]
async fn garbage_collection_keeps_what_a_container_uses() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &two_layers(), "app:1").await.unwrap();
    let snapshot = store.prepare("c", "app:1", &dir.path().join("c")).await.unwrap();
    store.remove("app:1", &RemoveOptions { force: true, ..RemoveOptions::default() }).unwrap();
    store.collect_garbage().await.unwrap();
    store.mount(&snapshot).await.unwrap();
    assert!(snapshot.rootfs.join("old/new").exists());
    store.remove_snapshot("c").await.unwrap();
    for image in store.list(&ListFilter { all: true, ..ListFilter::default() }).unwrap() {
        store.remove(&image.id.to_string(), &RemoveOptions::default()).unwrap();
    }
    store.collect_garbage().await.unwrap();
    assert_eq!(count(&dir.path().join("images/layers")), 0);
    assert_eq!(count(&dir.path().join("images/blobs/sha256")), 0);
}

#[tokio::test]
async fn what_a_crash_left_half_done_is_gone_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let id = load(&store, &two_layers(), "app:1").await.unwrap();
    drop(store);
    // The states in which a kill can leave the directory: a blob half written, a layer half unpacked, a layer renamed but
    // not yet in the index, an index half written, a removal half done.
    std::fs::write(dir.path().join("ingest/0123"), b"half").unwrap();
    std::fs::create_dir_all(dir.path().join("layers/tmp-1/fs/x")).unwrap();
    std::fs::create_dir_all(dir.path().join("layers").join("a".repeat(64)).join("fs")).unwrap();
    std::os::unix::fs::symlink("../layers/none/fs", dir.path().join("l/zzzzz")).unwrap();
    std::fs::write(dir.path().join("index.0000.tmp"), b"{").unwrap();
    std::fs::create_dir_all(dir.path().join("trash/1/fs/deep")).unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    assert_eq!(store.get("app:1").unwrap().id, id);
    assert_eq!(count(&dir.path().join("layers")), 2);
    assert_eq!(count(&dir.path().join("l")), 3);
    assert_eq!(count(&dir.path().join("ingest")) + count(&dir.path().join("trash")), 0);
    // A damaged index is said, and nothing is changed.
    drop(store);
    std::fs::write(dir.path().join("index.json"), b"{\"version\":1").unwrap();
    assert!(matches!(ImageStore::open(dir.path()), Err(Error::Corrupt(_))));
    assert_eq!(count(&dir.path().join("layers")), 2);
}

#[tokio::test]
async fn a_thousand_images_open_fast() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    load(&store, &two_layers(), "app:1").await.unwrap();
    let path = dir.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let entry = index["images"].as_object().unwrap().values().next().unwrap().clone();
    for i in 0..1000_u32 {
        let id = image::Digest::of(&i.to_be_bytes()).to_string();
        index["names"][format!("docker.io/library/app-{i}:latest")] = id.clone().into();
        index["images"][id] = entry.clone();
    }
    std::fs::write(&path, index.to_string()).unwrap();
    drop(store);
    let start = std::time::Instant::now();
    let store = ImageStore::open(dir.path()).unwrap();
    let passed = start.elapsed();
    assert_eq!(store.list(&ListFilter::default()).unwrap().len(), 1001);
    assert!(passed < std::time::Duration::from_millis(1000), "{passed:?}");
    eprintln!("open with 1,001 images: {passed:?}");
}

#[tokio::test]
async fn one_layer_is_unpacked_once_however_many_ask() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let archive = crate::helpers::docker_archive(&two_layers(), "app:1");
    let loads = (0..8).map(|_| {
        let (store, archive) = (store.clone(), archive.clone());
        tokio::spawn(async move { store.load(std::io::Cursor::new(archive), &Progress::none()).await.unwrap() })
    });
    let loaded = futures::future::join_all(loads).await;
    assert!(loaded.into_iter().all(|result| result.unwrap().len() == 1));
    assert_eq!(count(&dir.path().join("images/layers")), 2);
    assert_eq!(count(&dir.path().join("images/trash")), 0, "no second copy was thrown away");
    let mode = std::fs::metadata(dir.path().join("images/layers")).unwrap().permissions().mode();
    assert_ne!(mode, 0);
}
