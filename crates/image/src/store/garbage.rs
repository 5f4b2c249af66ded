//! Garbage collection: whatever no image, no snapshot, no repository and no running operation refers to goes. What is
//! leased is looked at under the same lock that gives leases out, so that nothing in use is ever removed.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::blobs::lock;
use crate::store::index::{Entry, Index};
use crate::store::{ImageStore, marks};
use crate::types::{Garbage, Removal};

/// How long an upload or partial download may lie still before it goes.
const STALE: Duration = Duration::from_secs(24 * 3600);

impl ImageStore {
    /// Removes what nothing refers to. Safe at any time.
    pub async fn collect_garbage(self: &Arc<Self>) -> Result<Garbage> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let garbage = store.whole().sweep()?;
            store.empty_trash()?;
            Ok(garbage)
        })
        .await?
    }

    fn sweep(&self) -> Result<Garbage> {
        self.repositories.forget_stale(STALE)?;
        let mut garbage = self.sweep_layers()?;
        self.sweep_marks()?;
        garbage.bytes += self.blobs.remove_stale_partials(STALE);
        // List first and look for references afterwards: what is referred to later than the list is leased until then.
        for (digest, size) in self.blobs.all()? {
            let mut removed = false;
            self.blobs.unless_leased(&digest, || {
                let used = self.look(|index| uses_blob(index, &digest)) || self.repositories.uses(&digest);
                if !used {
                    removed = std::fs::remove_file(self.blobs.path(&digest)).is_ok();
                }
            });
            if removed {
                garbage.blobs += 1;
                garbage.bytes += size;
            }
        }
        Ok(garbage)
    }

    fn sweep_layers(&self) -> Result<Garbage> {
        let mut garbage = Garbage::default();
        let candidates: Vec<Digest> = self.look(|index| index.layers.keys().cloned().collect());
        for digest in candidates {
            self.blobs.unless_leased(&digest, || {
                let in_snapshots = self.links_in_snapshots();
                let link = self.look(|index| {
                    let of = |entry: &Entry| entry.layers.iter().any(|layer| layer.diff_id == digest);
                    let used = index.images.values().any(of);
                    index.layers.get(&digest).filter(|_| !used).map(|layer| layer.link.clone())
                });
                let Some(link) = link.filter(|link| !in_snapshots.contains(link)) else { return };
                // First out of the index: what is lost between the two is swept up at the next start.
                let forgotten = self.change(|index| {
                    index.compressed.remove(&digest);
                    Ok(index.layers.remove(&digest))
                });
                if forgotten.is_ok() && self.discard(&self.layer_dir(&digest)).is_ok() {
                    let _ = std::fs::remove_file(self.dir.join("l").join(&link));
                    garbage.layers += 1;
                }
            });
        }
        Ok(garbage)
    }

    fn links_in_snapshots(&self) -> BTreeSet<String> {
        lock(&self.snapshots)
            .values()
            .flat_map(|snapshot| snapshot.lower.iter().chain(&snapshot.marks))
            .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
            .collect()
    }

    /// After a removal: at once what is cheap to find; the rest waits for the next collection.
    pub(crate) fn sweep_unreferenced(&self, removals: &[Removal]) {
        if !removals.iter().any(|removal| matches!(removal, Removal::Deleted(_))) {
            return;
        }
        if let Err(error) = self.whole().sweep() {
            tracing::warn!(error = %error.chain(), "cannot remove the blobs of a removed image");
        }
    }

    /// What no snapshot has over its image.
    fn sweep_marks(&self) -> Result<()> {
        let _alone = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        let used = self.links_in_snapshots();
        let path = self.dir.join(marks::DIRECTORY);
        for entry in std::fs::read_dir(&path).map_err(Error::io("cannot list marks"))?.flatten() {
            if !used.contains(&*entry.file_name().to_string_lossy()) {
                self.discard(&entry.path())?;
            }
        }
        Ok(())
    }

    /// At the start: half-unpacked layers, layers and links that the index does not know, and the trash.
    pub(super) fn sweep_leftovers(&self) -> Result<()> {
        let known: BTreeSet<String> = self.look(|index| index.layers.keys().map(|id| id.hex().to_owned()).collect());
        let links: BTreeSet<String> = self.look(|index| index.layers.values().map(|l| l.link.clone()).collect());
        let mut links: BTreeSet<String> = links.union(&self.links_in_snapshots()).cloned().collect();
        links.insert(super::snapshots::EMPTY_LAYER.to_owned());
        for (dir, known) in [("layers", &known), ("l", &links)] {
            let path = self.dir.join(dir);
            for entry in std::fs::read_dir(&path).map_err(Error::io(format!("cannot list {dir}")))?.flatten() {
                if !known.contains(&*entry.file_name().to_string_lossy()) {
                    self.discard(&entry.path())?;
                }
            }
        }
        self.sweep_marks()?;
        self.empty_trash()
    }
}

fn uses_blob(index: &Index, digest: &Digest) -> bool {
    index.images.contains_key(digest)
        || index.images.values().any(|entry| {
            entry.manifest.digest == *digest || entry.layers.iter().any(|layer| layer.blob.digest == *digest)
        })
        || index
            .digests
            .keys()
            .chain(index.views.values().flat_map(|own| own.digests.keys()))
            .any(|name| name.ends_with(&digest.to_string()))
}
