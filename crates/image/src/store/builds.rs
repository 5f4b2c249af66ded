//! What builds leave in a store: the images of their steps, their cache mounts, and the directories of those that run.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use crate::build::work::Work;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::tree;
use crate::store::{BUILDKIT_KEY, CACHE_MOUNTS, ImageStore};
use crate::types::RemoveOptions;

/// One thing that a build may use again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildCache {
    /// Its id.
    pub id: String,
    /// What made it.
    pub description: String,
    /// Whether it is a cache mount, else it is the image of a step.
    pub mount: bool,
    /// Bytes.
    pub size_bytes: u64,
}

/// A mounted image whose files are read.
pub struct Mounted(Work);

impl Mounted {
    /// Where its files are.
    pub fn rootfs(&self) -> &Path {
        &self.0.snapshot.rootfs
    }

    /// Unmounts it.
    pub async fn remove(self) -> Result<()> {
        self.0.remove().await
    }
}

impl ImageStore {
    /// Where directories of running builds lie. What is below it goes at the next start.
    pub fn builds_directory(&self) -> PathBuf {
        self.dir.join("builds")
    }

    /// Mounts an image below a directory of a build, to read its files.
    pub async fn mount_for_export(self: &Arc<Self>, image: &Digest, scratch: &Path) -> Result<Mounted> {
        Work::mount(self, Some(image), scratch, true).await.map(Mounted)
    }

    /// What builds may use again: images of BuildKit's steps that nothing else is built on, and cache mounts.
    pub async fn build_cache(self: &Arc<Self>) -> Result<Vec<BuildCache>> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut found = store.step_images();
            found.extend(store.cache_mounts()?);
            Ok(found)
        })
        .await?
    }

    /// Removes what [`ImageStore::build_cache`] lists; cache mounts only with `all`. Says what went.
    pub async fn prune_build_cache(self: &Arc<Self>, all: bool) -> Result<Vec<BuildCache>> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut gone = Vec::new();
            // One image at a time: what it was built on may be free then.
            let mut kept = BTreeSet::new();
            while let Some(cache) = store.step_images().into_iter().find(|cache| !kept.contains(&cache.id)) {
                kept.insert(cache.id.clone());
                let options = RemoveOptions { force: true, no_prune: true, ..RemoveOptions::default() };
                match store.remove(&cache.id, &options) {
                    Ok(_) => gone.push(cache),
                    Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            for cache in if all { store.cache_mounts()? } else { Vec::new() } {
                store.discard(&store.dir.join(CACHE_MOUNTS).join(&cache.id))?;
                gone.push(cache);
            }
            store.empty_trash()?;
            Ok(gone)
        })
        .await?
    }

    fn step_images(&self) -> Vec<BuildCache> {
        self.whole().look(|index| {
            let of_a_step = |id: &Digest, entry: &crate::store::index::Entry| {
                entry.cache_key.as_ref().is_some_and(|key| key.starts_with(BUILDKIT_KEY))
                    && index.names_of(id).next().is_none()
                    && index.digests_of(id).next().is_none()
                    && !index.is_named_in_a_view(id)
                    && !index.has_children(id)
            };
            let size = |entry: &crate::store::index::Entry| {
                entry.layers.last().and_then(|layer| index.layers.get(&layer.diff_id)).map_or(0, |l| l.size_bytes)
            };
            let steps = index.images.iter().filter(|(id, entry)| of_a_step(id, entry));
            steps
                .map(|(id, entry)| BuildCache {
                    id: id.to_string(),
                    description: "step of a build".to_owned(),
                    mount: false,
                    size_bytes: size(entry),
                })
                .collect()
        })
    }

    fn cache_mounts(&self) -> Result<Vec<BuildCache>> {
        let dir = self.dir.join(CACHE_MOUNTS);
        let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("cannot list cache mounts"))?;
            found.push(BuildCache {
                id: entry.file_name().to_string_lossy().into_owned(),
                description: "cache mount".to_owned(),
                mount: true,
                size_bytes: tree_bytes(&entry.path()),
            });
        }
        Ok(found)
    }
}

/// Bytes of the files below a directory. Links are not followed, whatever a step changes meanwhile.
fn tree_bytes(root: &Path) -> u64 {
    tree::open_root(root).map_or(0, |root| bytes_below(root.as_fd(), 0))
}

fn bytes_below(dir: BorrowedFd<'_>, depth: usize) -> u64 {
    let mut bytes = 0_u64;
    for name in tree::names(dir).unwrap_or_default() {
        let Ok(stat) = fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let found = if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else if depth < tree::MAX_DEPTH {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = fs::openat(dir, &name, flags, Mode::empty());
            below.map_or(0, |below| bytes_below(below.as_fd(), depth + 1))
        } else {
            0
        };
        bytes = bytes.saturating_add(found);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_below_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("in/deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("large"), vec![1; 100_000]).unwrap();
        for file in ["file", "in/file", "in/deep/file"] {
            std::fs::write(tree.join(file), vec![1; 1000]).unwrap();
        }
        assert_eq!(tree_bytes(&tree), 3000);
        std::os::unix::fs::symlink(&outside, tree.join("in/link")).unwrap();
        assert!((3000..10_000).contains(&tree_bytes(&tree)));
        assert_eq!(tree_bytes(&dir.path().join("none")), 0);
    }
}
