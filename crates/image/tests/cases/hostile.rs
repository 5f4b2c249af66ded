//! Hostile layers. Each is loaded next to a canary directory of the host that must stay as it was; the negative control
//! at the end shows that the canary would notice.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::layer::Limits;
use image::{Digest, Error, ImageStore, StoreOptions};

use crate::helpers::{Item, archive_with_diff_ids, count, load, tar_of};

/// A directory of the host with a secret in it, and what it looked like.
struct Canary {
    path: PathBuf,
    outer: tempfile::TempDir,
}

impl Canary {
    fn new() -> Canary {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("canary");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(path.join("secret"), b"secret").unwrap();
        Canary { path, outer }
    }

    fn text(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    fn unchanged(&self) -> bool {
        let meta = std::fs::metadata(&self.path).unwrap();
        let secret = self.path.join("secret");
        let intact = std::fs::read(&secret).is_ok_and(|text| text == b"secret")
            && std::fs::metadata(&secret).is_ok_and(|meta| meta.nlink() == 1 && meta.mode() & 0o777 == 0o644);
        intact && meta.mode() & 0o7777 == 0o700 && count(&self.path) == 1
    }
}

/// Loads a layer; gives the store, the result, and the directory of the unpacked layer.
async fn try_layer(canary: &Canary, layer: Vec<u8>) -> (Arc<ImageStore>, image::Result<Digest>, PathBuf) {
    let images = canary.outer.path().join("images");
    let store = ImageStore::open(&images).unwrap();
    let fs = images.join("layers").join(Digest::of(&layer).hex()).join("fs");
    let result = load(&store, &[layer], "evil:1").await;
    assert!(canary.unchanged(), "the layer reached the host");
    if result.is_err() {
        assert_eq!(count(&images.join("layers")), 0, "a refused layer leaves nothing");
        assert!(store.get("evil:1").is_err());
    }
    (store, result, fs)
}

fn refused(result: &image::Result<Digest>) -> bool {
    matches!(result, Err(Error::Hostile(_)))
}

#[tokio::test]
async fn names_that_climb_are_refused_and_absolute_ones_stay_inside() {
    let canary = Canary::new();
    let outside = canary.text();
    let climbing = format!("../../../../../../../../..{outside}/pwn");
    let (_, result, _) = try_layer(&canary, tar_of(&[Item::File(&climbing, b"x", 0o644)])).await;
    assert!(refused(&result), "{result:?}");
    let absolute = format!("{outside}/pwn");
    let (_, result, fs) = try_layer(&canary, tar_of(&[Item::File(&absolute, b"x", 0o644)])).await;
    assert!(result.is_ok() && fs.join(absolute.trim_start_matches('/')).is_file());
}

#[tokio::test]
async fn links_to_the_host_are_followed_inside_the_layer_only() {
    for (case, with_target) in (0..5).flat_map(|case| [(case, false), (case, true)]) {
        let canary = Canary::new();
        let outside = canary.text();
        let up = format!("../../../../../../../..{outside}");
        let inside = outside.trim_start_matches('/').to_owned();
        let mut items = match case {
            0 => vec![Item::Symlink("d", &outside), Item::File("d/pwn", b"x", 0o644)],
            1 => vec![Item::Symlink("a", "b"), Item::Symlink("b", &up), Item::File("a/pwn", b"x", 0o644)],
            2 => vec![Item::Symlink("etc", &outside), Item::File("etc/resolv.conf", b"x", 0o644)],
            3 => vec![Item::Symlink("d", &outside), Item::File("d/.wh.secret", b"", 0o644)],
            _ => vec![Item::Symlink("d", "/proc/self/root"), Item::File("d/pwn", b"x", 0o644)],
        };
        // With the directory present inside the layer the write lands there; without it, it is refused.
        if with_target {
            items.insert(0, Item::Directory(&inside, 0o755));
            items.insert(0, Item::Directory("proc/self/root", 0o755));
        }
        let (_, result, fs) = try_layer(&canary, tar_of(&items)).await;
        assert_eq!(refused(&result), !with_target, "case {case}: {result:?}");
        if with_target {
            assert!(count(&fs.join(&inside)) + count(&fs.join("proc/self/root")) == 1, "case {case}");
        }
    }
}

#[tokio::test]
async fn hard_links_reach_only_the_layer_itself() {
    let canary = Canary::new();
    let secret = format!("{}/secret", canary.text());
    for items in [
        vec![Item::HardLink("h", &secret), Item::File("h", b"overwritten", 0o644)],
        vec![Item::Symlink("d", "/"), Item::HardLink("h", "d/etc/passwd")],
        vec![Item::HardLink("h", "../../../../../../etc/passwd")],
    ] {
        let (_, result, _) = try_layer(&canary, tar_of(&items)).await;
        assert!(refused(&result), "{result:?}");
    }
    // To a symbolic link: the link itself gets a second name.
    let items = [Item::Symlink("s", &secret), Item::HardLink("h", "s"), Item::File("h", b"mine", 0o600)];
    let (_, result, fs) = try_layer(&canary, tar_of(&items)).await;
    assert!(result.is_ok() && std::fs::symlink_metadata(fs.join("h")).unwrap().is_file());
}

#[tokio::test]
async fn a_directory_in_the_place_of_a_link_changes_no_mode_outside() {
    let canary = Canary::new();
    let outside = canary.text();
    let (_, result, fs) =
        try_layer(&canary, tar_of(&[Item::Symlink("d", &outside), Item::Directory("d", 0o777)])).await;
    assert!(result.is_ok() && std::fs::symlink_metadata(fs.join("d")).unwrap().is_dir());
    let canary = Canary::new();
    let outside = canary.text();
    let (_, result, _) =
        try_layer(&canary, tar_of(&[Item::Symlink(".", &outside), Item::File("./pwn", b"x", 0o644)])).await;
    assert!(refused(&result));
}

#[tokio::test]
async fn devices_are_left_out_and_only_harmless_attributes_are_kept() {
    let canary = Canary::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let records: Vec<(&str, &[u8])> = vec![
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
        ("SCHILY.xattr.user.kept", b"yes"),
    ];
    let mut layer = Vec::new();
    {
        layer.extend_from_slice(&tar_of(&[Item::Device("dev/mem")])[..512]);
        let mut inner = tar::Builder::new(&mut layer);
        let mut device = tar::Header::new_gnu();
        device.set_entry_type(tar::EntryType::Block);
        device.set_size(0);
        device.set_mode(0o666);
        device.set_device_major(254).unwrap();
        device.set_device_minor(0).unwrap();
        inner.append_data(&mut device, "dev/vda", &b""[..]).unwrap();
        inner.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_mode(0o6755);
        inner.append_data(&mut header, "su", &b"x"[..]).unwrap();
        inner.finish().unwrap();
    }
    let (_, result, fs) = try_layer(&canary, layer).await;
    result.unwrap();
    assert_eq!(count(&fs.join("dev")), 0, "no device node");
    let su = fs.join("su");
    assert_eq!(std::fs::metadata(&su).unwrap().mode() & 0o7777, 0o6755);
    let get = |name: &str| {
        let mut value = vec![0; 100];
        rustix::fs::getxattr(&su, name, &mut value).map(|length| value[..length].to_vec())
    };
    assert_eq!(get("security.capability").unwrap(), capability);
    assert_eq!(get("user.kept").unwrap(), b"yes");
    assert!(get("trusted.overlay.opaque").is_err() && get("trusted.overlay.redirect").is_err());
}

#[tokio::test]
async fn whiteouts_of_a_directory_itself_are_refused() {
    let canary = Canary::new();
    for name in ["a/.wh...", "a/.wh..", "a/.wh."] {
        let (_, result, _) =
            try_layer(&canary, tar_of(&[Item::Directory("a", 0o755), Item::File(name, b"", 0o644)])).await;
        assert!(refused(&result), "{name} {result:?}");
    }
}

#[tokio::test]
async fn bombs_stop_at_their_bounds() {
    let canary = Canary::new();
    // 512 MiB of zeros in a few KiB.
    let mut header = tar::Header::new_gnu();
    header.set_size(512 << 20);
    header.set_path("zero").unwrap();
    header.set_cksum();
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    bomb.write_all(header.as_bytes()).unwrap();
    for _ in 0..512 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let store = ImageStore::open(&canary.outer.path().join("images")).unwrap();
    let archive = archive_with_diff_ids(&[bomb], &[Digest::of(b"whatever").to_string()], "bomb:1");
    let error = store.load(std::io::Cursor::new(archive), &image::Progress::none()).await.unwrap_err();
    assert!(matches!(error, Error::Hostile(_)), "{error}");
    drop(store);

    let limits = Limits { total_bytes: 1 << 20, entries: 100, ..Limits::default() };
    let small =
        ImageStore::open_with(&canary.outer.path().join("small"), StoreOptions { limits, ..StoreOptions::default() });
    let small = small.unwrap();
    let names: Vec<String> = (0..200).map(|i| format!("f{i}")).collect();
    let many: Vec<Item<'_>> = names.iter().map(|name| Item::File(name, b"", 0o644)).collect();
    assert!(refused(&load(&small, &[tar_of(&many)], "many:1").await));
    assert!(load(&small, &[tar_of(&many[..50])], "few:1").await.is_ok());
    let big = vec![1; 2 << 20];
    assert!(refused(&load(&small, &[tar_of(&[Item::File("big", &big, 0o644)])], "big:1").await));

    // Paths that are too deep or too long, and ids that turn negative.
    let deep = "d/".repeat(3000) + "x";
    for extension in [("path", deep.as_bytes()), ("uid", &b"2147483648"[..]), ("gid", &b"140737488355327"[..])] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([extension]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        builder.append_data(&mut header, "x", &b""[..]).unwrap();
        let (_, result, _) = try_layer(&canary, builder.into_inner().unwrap()).await;
        assert!(refused(&result), "{}: {result:?}", extension.0);
    }
}

#[tokio::test]
async fn a_pax_size_counts_as_in_gnu_tar() {
    let canary = Canary::new();
    let inner = tar_of(&[Item::File("smuggled", b"evil", 0o644)]);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("size", inner.len().to_string().as_bytes())]).unwrap();
    let mut layer = builder.into_inner().unwrap();
    layer.truncate(1024);
    let mut header = tar::Header::new_ustar();
    header.set_path("outer.bin").unwrap();
    header.set_size(0);
    header.set_cksum();
    layer.extend_from_slice(header.as_bytes());
    layer.extend_from_slice(&inner);
    layer.extend_from_slice(&[0; 1024]);
    let path = canary.outer.path().join("desync.tar");
    std::fs::write(&path, &layer).unwrap();
    let listed = std::process::Command::new("tar").arg("tf").arg(&path).output().unwrap().stdout;
    assert_eq!(String::from_utf8(listed).unwrap().trim(), "outer.bin");
    let (_, result, fs) = try_layer(&canary, layer).await;
    result.unwrap();
    assert_eq!((count(&fs), std::fs::metadata(fs.join("outer.bin")).unwrap().len()), (1, inner.len() as u64));
}

#[test]
fn the_canary_notices_a_naive_reader() {
    let canary = Canary::new();
    naive(&tar_of(&[Item::Symlink("d", &canary.text()), Item::File("d/pwn", b"x", 0o644)]), canary.outer.path());
    assert!(!canary.unchanged());
    let canary = Canary::new();
    naive(&tar_of(&[Item::Symlink("d", &canary.text()), Item::Directory("d", 0o777)]), canary.outer.path());
    assert!(!canary.unchanged());
}

/// What must not be done.
fn naive(layer: &[u8], root: &Path) {
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = root.join(entry.path().unwrap());
        match entry.header().entry_type() {
            tar::EntryType::Symlink => std::os::unix::fs::symlink(entry.link_name().unwrap().unwrap(), path).unwrap(),
            tar::EntryType::Directory => {
                let _ = std::fs::create_dir(&path);
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
            }
            _ => drop(std::io::copy(&mut entry, &mut std::fs::File::create(path).unwrap()).unwrap()),
        }
    }
}
