//! Copies and layers of directories that stand for snapshots, and attacks on them.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A plain directory in place of a mounted snapshot.
fn view(directory: &Path) -> View {
    let snapshot = Snapshot {
        container_id: "test".into(),
        image_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        rootfs: directory.join("root"),
        lower: vec![directory.join("lower")],
        marks: None,
        upper: directory.join("root"),
        work: directory.join("work"),
    };
    View { snapshot, volumes: BTreeMap::new(), read_only_root: false }
}

fn world() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("root/d")).unwrap();
    std::fs::create_dir_all(directory.path().join("lower")).unwrap();
    std::fs::write(directory.path().join("canary"), "host").unwrap();
    directory
}

async fn bytes(mut stream: ByteStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    all
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
}

fn archive_of(name: &str, text: &str) -> ByteStream {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    futures::stream::iter([Ok(Bytes::from(builder.into_inner().unwrap()))]).boxed()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn a_path_goes_out_and_comes_in_with_its_name() {
    if !is_root() {
        return;
    }
    let world = world();
    write(view(world.path()), "/d".into(), archive_of("file", "text")).await.unwrap();
    assert_eq!(std::fs::read_to_string(world.path().join("root/d/file")).unwrap(), "text");
    let (described, stream) = read(view(world.path()), "/d".into()).await.unwrap();
    assert_eq!(described.name, "d");
    assert_eq!(names(&bytes(stream).await), ["d", "d/file"]);
    let (_, stream) = read(view(world.path()), "/d/.".into()).await.unwrap();
    assert_eq!(names(&bytes(stream).await), ["./", "./file"]);
    let long = format!("/d/{}", "long".repeat(40));
    std::fs::write(world.path().join(format!("root{long}")), "far").unwrap();
    std::os::unix::fs::symlink("file", world.path().join("root/d/link")).unwrap();
    let (_, stream) = read(view(world.path()), "/".into()).await.unwrap();
    let whole = names(&bytes(stream).await);
    for there in ["/", "/d/", "/d/file", "/d/link", &long] {
        assert!(whole.iter().any(|name| name == there), "{there}: {whole:?}");
    }
    assert!(matches!(read(view(world.path()), "/none".into()).await, Err(Error::NotFound(_))));
    assert!(write(view(world.path()), "/d/file".into(), archive_of("x", "")).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapping_links_never_leads_a_copy_out_of_the_container() {
    if !is_root() {
        return;
    }
    let world = world();
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, dir, outside) = (stop.clone(), world.path().join("root/d"), world.path().to_owned());
    let attacker = std::thread::spawn(move || {
        while !flag.load(Ordering::Relaxed) {
            let _ = std::fs::remove_dir_all(&dir);
            let _ = symlink(&outside, &dir);
            let _ = std::fs::remove_file(&dir);
            let _ = std::fs::create_dir(&dir);
        }
    });
    for _ in 0..200 {
        if let Ok((_, mut stream)) = read(view(world.path()), "/d/canary".into()).await {
            // The file may vanish while it is read: that ends the stream, and what came before it counts.
            let mut came = Vec::new();
            while let Some(Ok(piece)) = stream.next().await {
                came.extend_from_slice(&piece);
            }
            assert!(!came.windows(4).any(|w| w == b"host"), "the host's file was read");
        }
        let _ = write(view(world.path()), "/d".into(), archive_of("canary", "evil")).await;
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert_eq!(std::fs::read_to_string(world.path().join("canary")).unwrap(), "host");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapping_links_never_leads_a_layer_or_a_list_of_changes_out_of_the_container() {
    let world = world();
    // A runtime's place too: those are looked at before.
    let swapped = ["root/d", "root/etc"].map(|name| world.path().join(name));
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, outside) = (stop.clone(), world.path().to_owned());
    let attacker = std::thread::spawn(move || {
        while !flag.load(Ordering::Relaxed) {
            for directory in &swapped {
                let _ = std::fs::create_dir(directory);
                let _ = std::fs::write(directory.join("own"), "mine");
                let _ = std::fs::remove_dir_all(directory);
                let _ = symlink(&outside, directory);
                let _ = std::fs::remove_file(directory);
            }
        }
    });
    for _ in 0..200 {
        // What goes meanwhile is no failure.
        let packed = bytes(layer(view(world.path())).await.unwrap()).await;
        assert!(!packed.windows(4).any(|w| w == b"host"), "the host's file was read");
        let packed = names(&packed);
        let listed = changes(view(world.path())).await.unwrap();
        let listed = listed.iter().map(|change| change.path.display().to_string());
        for name in packed.into_iter().chain(listed) {
            assert!(!name.contains("canary") && !name.contains("lower"), "{name} is the host's");
        }
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
}

#[tokio::test]
async fn a_list_of_changes_tells_nothing_of_what_the_machine_has() {
    let world = world();
    // The image has a link where the container put a directory in its place.
    symlink(world.path(), world.path().join("lower/link")).unwrap();
    std::fs::create_dir(world.path().join("root/link")).unwrap();
    for name in ["canary", "other"] {
        std::fs::write(world.path().join("root/link").join(name), "").unwrap();
    }
    let list = changes(view(world.path())).await.unwrap();
    let told: Vec<_> = list.iter().map(|c| (c.path.display().to_string(), c.kind)).collect();
    let expected = [
        ("/d".to_owned(), FileChangeKind::Added),
        ("/link".to_owned(), FileChangeKind::Modified),
        ("/link/canary".to_owned(), FileChangeKind::Added),
        ("/link/other".to_owned(), FileChangeKind::Added),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_volume_is_seen_in_its_place_and_only_in_the_job() {
    if !is_root() {
        return;
    }
    let world = world();
    let volume = world.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let with = |sub_path: &str| {
        let part = Part { source: volume.clone(), sub_path: sub_path.to_owned(), access: Access::Writable };
        View { volumes: [("/v".to_owned(), part)].into(), ..view(world.path()) }
    };
    write(with(""), "/v".into(), archive_of("in", "x")).await.unwrap();
    assert!(volume.join("in").exists());
    assert!(!world.path().join("root/v/in").exists());
    std::fs::create_dir(volume.join("part")).unwrap();
    write(with("part"), "/v".into(), archive_of("deep", "x")).await.unwrap();
    assert!(volume.join("part/deep").exists() && !volume.join("deep").exists());
    // A link in the volume leads to nothing but the volume.
    symlink("/part", volume.join("link")).unwrap();
    let (_, stream) = read(with("link"), "/v/deep".into()).await.unwrap();
    assert_eq!(names(&bytes(stream).await), ["deep"]);
    // What goes before it is opened is not seen, and the rest is.
    std::fs::remove_dir_all(&volume).unwrap();
    for sub_path in ["", "part"] {
        let (_, stream) = read(with(sub_path), "/d/.".into()).await.unwrap();
        assert_eq!(names(&bytes(stream).await), ["./"], "{sub_path}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&world.path().display().to_string()));
}

#[tokio::test]
async fn nothing_is_copied_into_what_is_mounted_for_reading() {
    if !is_root() {
        return;
    }
    let world = world();
    let part = |name: &str, access| {
        let source = world.path().join(name);
        std::fs::create_dir_all(&source).unwrap();
        Part { source, sub_path: String::new(), access }
    };
    let seen = || {
        let (sealed, open) = (part("sealed", Access::ReadOnly), part("open", Access::Writable));
        let parts = [("/v", sealed), ("/v/in", open), ("/w", part("other", Access::Writable))];
        let volumes = parts.map(|(target, part)| (target.to_owned(), part)).into();
        View { volumes, ..view(world.path()) }
    };
    // By a link too.
    symlink("/v", world.path().join("root/link")).unwrap();
    for target in ["/v", "/link"] {
        let refused = write(seen(), target.into(), archive_of("file", "x")).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Forbidden(text) if text == "mounted volume is marked read-only"),
            "{refused}"
        );
    }
    // From outside of it.
    let refused = write(seen(), "/".into(), archive_of("v/file", "x")).await.unwrap_err();
    assert!(matches!(refused, Error::Forbidden(_)), "{refused}");
    assert!(!world.path().join("sealed/file").exists() && !world.path().join("root/v/file").exists());
    // It can be read, and what lies in it or beside it written.
    let (_, stream) = read(seen(), "/v".into()).await.unwrap();
    assert_eq!(names(&bytes(stream).await), ["v", "v/in"]);
    for (target, there) in [("/v/in", "open/file"), ("/w", "other/file")] {
        write(seen(), target.into(), archive_of("file", "x")).await.unwrap();
        assert!(world.path().join(there).exists(), "{there}");
    }
    // The machine's own mount of it stays as it was.
    std::fs::write(world.path().join("sealed/file"), "").unwrap();
}

#[test]
fn nothing_is_copied_below_what_is_for_reading_throughout() {
    if !is_root() || !runtime::can_seal_mounts_throughout() {
        return;
    }
    let world = world();
    let volume = world.path().join("volume");
    let below = volume.join("below");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::create_dir(world.path().join("within")).unwrap();
    symlink("/v/below", world.path().join("root/link")).unwrap();
    let part = |name: &str, access| Part { source: world.path().join(name), sub_path: String::new(), access };
    let seen = |access| {
        let parts = [("/v", part("volume", access)), ("/v/within", part("within", Access::Writable))];
        View { volumes: parts.map(|(target, part)| (target.to_owned(), part)).into(), ..view(world.path()) }
    };
    let try_all = || {
        unshare_files().unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        // It goes with the thread.
        nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let copy = |access, target: &str, name: &str| {
            executor.block_on(write(seen(access), target.to_owned(), archive_of(name, "x")))
        };
        for (target, name) in [("/link", "file"), ("/v/below", "file"), ("/", "v/below/file"), ("/v", "file")] {
            let refused = copy(Access::ReadOnlyThroughout, target, name).unwrap_err();
            assert!(matches!(refused, Error::Forbidden(_)), "{target}: {refused}");
        }
        assert!(!below.join("file").exists() && !volume.join("file").exists());
        // What the container has within it on its own is as it says, and so is the machine's.
        copy(Access::ReadOnlyThroughout, "/v/within", "file").unwrap();
        assert!(world.path().join("within/file").exists());
        copy(Access::ReadOnly, "/link", "file").unwrap();
        assert!(below.join("file").exists());
    };
    std::thread::scope(|scope| scope.spawn(try_all).join().unwrap());
}

#[tokio::test]
async fn nothing_is_copied_into_a_root_that_is_for_reading() {
    if !is_root() {
        return;
    }
    let world = world();
    let volume = world.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    // What a container may write leads to what it may not.
    symlink("/", volume.join("link")).unwrap();
    let seen = || {
        let part = Part { source: volume.clone(), sub_path: String::new(), access: Access::Writable };
        View { volumes: [("/v".to_owned(), part)].into(), read_only_root: true, ..view(world.path()) }
    };
    for target in ["/d", "/v/link/d"] {
        let refused = write(seen(), target.into(), archive_of("file", "x")).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Forbidden(text) if text == "container rootfs is marked read-only"),
            "{refused}"
        );
    }
    assert!(!world.path().join("root/d/file").exists());
    // Its place was made, and it can be written.
    write(seen(), "/v".into(), archive_of("file", "x")).await.unwrap();
    assert!(volume.join("file").exists() && !world.path().join("root/v/file").exists());
    let (_, stream) = read(seen(), "/d".into()).await.unwrap();
    assert_eq!(names(&bytes(stream).await), ["d"]);
    // The machine's own mount of it stays as it was.
    std::fs::write(world.path().join("root/d/file"), "").unwrap();
}

#[tokio::test]
async fn a_copy_tells_nothing_of_what_the_machine_has() {
    if !is_root() {
        return;
    }
    let world = world();
    let volume = world.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    symlink("/etc", volume.join("link")).unwrap();
    for (number, sub_path) in ["link", "../lower", "missing", "/etc"].into_iter().enumerate() {
        let part = Part { source: volume.clone(), sub_path: sub_path.to_owned(), access: Access::Writable };
        let place = format!("/place{number}");
        let view = View { volumes: [(place.clone(), part)].into(), ..view(world.path()) };
        assert!(matches!(statistics(view, place.clone()).await, Err(Error::NotFound(_))), "{sub_path}");
        assert!(!world.path().join(format!("root{place}")).exists(), "{sub_path}");
    }
}

#[tokio::test]
async fn changes_are_told_apart_and_packed_as_a_layer() {
    if !is_root() {
        return;
    }
    let world = world();
    let (upper, lower) = (world.path().join("root"), world.path().join("lower"));
    std::fs::write(lower.join("old"), "").unwrap();
    std::fs::write(lower.join("gone"), "").unwrap();
    std::fs::write(upper.join("old"), "changed").unwrap();
    std::fs::write(upper.join("new"), "").unwrap();
    std::fs::create_dir(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/hosts"), "").unwrap();
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, upper.join("gone"), whiteout, Mode::empty(), 0).unwrap();
    let list = changes(view(world.path())).await.unwrap();
    let told: Vec<_> = list.iter().map(|c| (c.path.display().to_string(), c.kind)).collect();
    let expected = [
        ("/d".to_owned(), FileChangeKind::Added),
        ("/gone".to_owned(), FileChangeKind::Deleted),
        ("/new".to_owned(), FileChangeKind::Added),
        ("/old".to_owned(), FileChangeKind::Modified),
    ];
    assert_eq!(told, expected);
    let packed = bytes(layer(view(world.path())).await.unwrap()).await;
    assert_eq!(names(&packed), ["d", ".wh.gone", "new", "old"]);
}
