//! Writable snapshots of a build, and what becomes of their changes.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::pack_changes;
use crate::store::ImageStore;
use crate::types::Snapshot;

/// An archive with nothing in it but its end.
const EMPTY_ARCHIVE: u64 = 1024;

/// A mounted snapshot of a build. After an error or a cancelled build it goes with the build's own directory.
pub(crate) struct Work {
    store: Arc<ImageStore>,
    /// 64 hex digits.
    pub id: String,
    pub snapshot: Snapshot,
}

impl Work {
    /// Mounts a snapshot of an image (`None`: of nothing) below `scratch`.
    pub async fn mount(
        store: &Arc<ImageStore>,
        image: Option<&Digest>,
        scratch: &Path,
        read_only: bool,
    ) -> Result<Work> {
        let id = container_id();
        let dir = scratch.join(&id[..12]);
        // Snapshots of builds are known by their name, so that a start can sweep up what a crash left.
        let name = format!("{}{id}", crate::store::BUILD_PREFIX);
        let snapshot = match image {
            Some(image) => store.prepare(&name, &image.to_string(), &dir).await?,
            None => store.prepare_empty(&name, &dir)?,
        };
        let work = Work { store: store.clone(), id, snapshot };
        if read_only {
            store.mount_read_only(&work.snapshot).await?;
        } else {
            store.mount(&work.snapshot).await?;
        }
        Ok(work)
    }

    pub async fn unmount(&self) -> Result<()> {
        self.store.unmount(&self.snapshot).await
    }

    pub async fn remove(self) -> Result<()> {
        let dir = self.snapshot.rootfs.parent().map(std::path::Path::to_owned);
        self.store.remove_snapshot(&self.snapshot.container_id).await?;
        if let Some(dir) = dir {
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// 64 hex digits.
pub(super) fn container_id() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// Packs changes into a file without a name. `None` when there are none.
pub(super) fn pack_to_file(store: &ImageStore, upper: &Path) -> Result<Option<File>> {
    let file = nameless(store, |out| pack_changes(upper, out))?;
    let size = file.metadata().map_err(Error::io("cannot pack a layer"))?.len();
    Ok((size > EMPTY_ARCHIVE).then_some(file))
}

/// A file without a name that holds what is packed.
pub(super) fn nameless(
    store: &ImageStore,
    pack: impl FnOnce(BufWriter<File>) -> Result<BufWriter<File>>,
) -> Result<File> {
    use std::io::Seek;
    let doing = "cannot pack a layer";
    let path = store.dir.join("ingest").join(format!("{:032x}", rand::random::<u128>()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(Error::io(doing))?;
    std::fs::remove_file(&path).map_err(Error::io(doing))?;
    let out = pack(BufWriter::with_capacity(128 << 10, file))?;
    let mut file = out.into_inner().map_err(|error| Error::io(doing)(error.into_error()))?;
    file.rewind().map_err(Error::io(doing))?;
    Ok(file)
}
