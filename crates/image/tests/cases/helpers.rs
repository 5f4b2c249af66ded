//! Makes layers and images for the tests.

use std::path::Path;
use std::sync::Arc;

use image::{Digest, ImageStore};

/// One entry of a layer.
pub enum Item<'a> {
    File(&'a str, &'a [u8], u32),
    Directory(&'a str, u32),
    Symlink(&'a str, &'a str),
    HardLink(&'a str, &'a str),
    Device(&'a str),
}

/// A tar archive whose names are written as they are, however hostile.
pub fn tar_of(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        let (name, data): (&str, &[u8]) = match item {
            Item::File(name, data, mode) => {
                header.set_mode(*mode);
                header.set_size(data.len() as u64);
                (name, data)
            }
            Item::Directory(name, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                (name, b"")
            }
            Item::Symlink(name, target) | Item::HardLink(name, target) => {
                let hard = matches!(item, Item::HardLink(..));
                header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                header.set_mode(0o777);
                raw(&mut header.as_mut_bytes()[157..257], target);
                (name, b"")
            }
            Item::Device(name) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_mode(0o666);
                header.set_device_major(1).unwrap();
                header.set_device_minor(1).unwrap();
                (name, b"")
            }
        };
        raw(&mut header.as_mut_bytes()[..100], name);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn raw(field: &mut [u8], text: &str) {
    assert!(text.len() < field.len(), "the helper writes short names only");
    field.fill(0);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// A docker-archive of one image.
pub fn docker_archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    archive_with_diff_ids(layers, &diff_ids, tag)
}

/// The same with diff ids that may be wrong.
pub fn archive_with_diff_ids(layers: &[Vec<u8>], diff_ids: &[String], tag: &str) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"made-by": "tests"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": diff_ids.iter().map(|_| serde_json::json!({"created_by": "test"})).collect::<Vec<_>>(),
    });
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let config = config.to_string();
    let mut items = vec![
        Item::File("config.json", config.as_bytes(), 0o644),
        Item::File("manifest.json", manifest.as_bytes(), 0o644),
    ];
    for (name, layer) in names.iter().zip(layers) {
        items.push(Item::File(name, layer, 0o644));
    }
    tar_of(&items)
}

/// A layer with a static busybox as /bin/busybox and /bin/sh.
pub fn busybox_layer() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("the package busybox-static is installed");
    tar_of(&[
        Item::Directory("bin/", 0o755),
        Item::File("bin/busybox", &program, 0o755),
        Item::HardLink("bin/sh", "bin/busybox"),
        Item::Directory("tmp/", 0o1777),
    ])
}

/// Loads an image of these layers.
pub async fn load(store: &Arc<ImageStore>, layers: &[Vec<u8>], tag: &str) -> image::Result<Digest> {
    let archive = std::io::Cursor::new(docker_archive(layers, tag));
    let loaded = store.load(archive, &image::Progress::none()).await?;
    assert_eq!(loaded.len(), 1);
    Ok(loaded[0].id.clone())
}

/// Number of names in a directory.
pub fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}
