//! Unpacked layers. Each is unpacked once, whoever asks, below a temporary name, and appears by one rename after its
//! digest was checked. An unpacked layer is not forced to the disk before it is used, since it can be made again from its
//! blob: until that has happened in the background it counts only in the same boot.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::digest::aside::HashingAside;
use crate::error::{Error, Result, into_io};
use crate::layer::compress::{START_BYTES, is_greedy};
use crate::layer::unpack::unpack_buffered;
use crate::layer::{Decompressor, UnpackOptions, tree};
use crate::manifest::Descriptor;
use crate::store::ImageStore;
use crate::store::blobs::{self, Lease};
use crate::store::index::Layer;

/// Layers that need much memory and are unpacked at once: windows of 128 MiB. All others wait for none of them.
const GREEDY_AT_ONCE: usize = 3;
/// All other layers that are unpacked at once, whoever asks: each has a window of up to 32 MiB, and one of the threads that starts and
/// mounts need too.
const MODEST_AT_ONCE: usize = 16;
/// Turns to unpack layers of the one kind and of the other, in the order in which they are asked for; work that begins has one until it
/// ends.
static GREEDY: Semaphore = Semaphore::const_new(GREEDY_AT_ONCE);
static MODEST: Semaphore = Semaphore::const_new(MODEST_AT_ONCE);

/// A reader that fails once nobody waits any more for what is read.
struct Awaited<'a, R> {
    inner: R,
    ends: &'a CancellationToken,
}

impl<R: Read> Read for Awaited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ends.is_cancelled() {
            return Err(into_io(nobody_waits()));
        }
        self.inner.read(buffer)
    }
}

fn nobody_waits() -> Error {
    Error::Internal("nobody waits for this layer any more".to_owned())
}

impl ImageStore {
    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    /// The unpacked layer, if it can be trusted.
    pub(crate) fn unpacked(&self, diff_id: &Digest) -> Option<Layer> {
        let layer = self.look(|index| index.layers.get(diff_id).cloned())?;
        let trusted = layer.unsynced_boot.as_ref().is_none_or(|boot| *boot == self.boot);
        (trusted && self.layer_dir(diff_id).join("fs").is_dir()).then_some(layer)
    }

    /// Makes sure that a layer is unpacked; at once when it is. Whoever stops waiting for it ends the work.
    ///
    /// Errors: `Corrupt` when the blob is not what its diff id says, `Hostile`; nothing is visible then.
    pub(crate) async fn ensure_unpacked(self: &Arc<Self>, diff_id: &Digest, blob: &Descriptor) -> Result<Layer> {
        self.ensure_unpacked_from(diff_id, blob, None).await
    }

    /// As [`ImageStore::ensure_unpacked`], from an open file whose digest was checked, that may not be in its place yet.
    pub(crate) async fn ensure_unpacked_from(
        self: &Arc<Self>,
        diff_id: &Digest,
        blob: &Descriptor,
        file: Option<File>,
    ) -> Result<Layer> {
        if let Some(layer) = self.unpacked(diff_id) {
            return Ok(layer);
        }
        let alone = self.busy(diff_id).lock_owned().await;
        if let Some(layer) = self.unpacked(diff_id) {
            return Ok(layer);
        }
        let (store, diff_id, blob) = (self.clone(), diff_id.clone(), blob.digest.clone());
        let (opened, name) = (self.clone(), blob.clone());
        let (file, greedy) = tokio::task::spawn_blocking(move || {
            let file = file.map_or_else(|| opened.blobs.file(&name), Ok)?;
            let mut start = [0; START_BYTES];
            let filled = file.read_at(&mut start, 0).map_err(Error::io(format!("cannot read blob {name}")))?;
            Ok::<_, Error>((file, is_greedy(&start[..filled])))
        })
        .await??;
        let turn = if greedy { GREEDY.acquire().await } else { MODEST.acquire().await };
        let turn = turn.map_err(|_| Error::Internal("layers are unpacked no more".to_owned()))?;
        let ends = CancellationToken::new();
        let _waiting = ends.clone().drop_guard();
        tokio::task::spawn_blocking(move || {
            // The lock and the turn are the work's own: whoever waits for it may be gone before it is done.
            let _held = (alone, turn);
            store.unpack_layer(&diff_id, &blob, &file, &ends)
        })
        .await?
    }

    /// Stores an uncompressed or compressed layer from a stream: as a blob and unpacked. Returns its diff id and blob.
    pub(crate) fn add_layer(&self, source: impl Read, lease: &Lease) -> Result<(Digest, Descriptor)> {
        let mut ingest = self.blobs.begin(crate::digest::Algorithm::Sha256)?;
        let mut source = Decompressor::new(source, self.options.limits)?;
        crate::layer::copy(&mut source, &mut ingest)
            .map_err(|error| crate::error::from_io("cannot store a layer", error))?;
        let (digest, size) = ingest.commit(None, lease)?;
        if self.unpacked(&digest).is_none() {
            self.unpack_layer(&digest, &digest, &self.blobs.file(&digest)?, &CancellationToken::new())?;
        }
        Ok((digest.clone(), Descriptor::new(crate::manifest::OCI_LAYER, digest, size)))
    }

    fn unpack_layer(&self, diff_id: &Digest, blob: &Digest, file: &File, ends: &CancellationToken) -> Result<Layer> {
        let temporary = self.dir.join("layers").join(format!("tmp-{:032x}", rand::random::<u128>()));
        let result = self.unpack_to(diff_id, (blob, file), &temporary, ends);
        if result.is_err() {
            let _ = tree::remove_path(&temporary);
        }
        result
    }

    fn unpack_to(
        &self,
        diff_id: &Digest,
        (blob, file): (&Digest, &File),
        temporary: &Path,
        ends: &CancellationToken,
    ) -> Result<Layer> {
        let root = temporary.join("fs");
        std::fs::create_dir_all(&root).map_err(Error::io(format!("cannot make {}", root.display())))?;
        set_root_mode(&root)?;
        let limits = self.options.limits;
        let mut plain = HashingAside::new(Awaited { inner: Decompressor::new(file, limits)?, ends });
        let options = UnpackOptions { limits, whiteouts: true, owner: None };
        let unpacked = unpack_buffered(&mut plain, tree::open_root(&root)?.as_fd(), &options);
        let (found, archive_bytes) = plain.finish().map_err(Error::io("cannot compute the digest of a layer"))?;
        if unpacked.is_err() && ends.is_cancelled() {
            return Err(nobody_waits());
        }
        if unpacked.is_err() || found != *diff_id {
            // The disk may have changed the blob since it came.
            blobs::verify(blob, file)?;
        }
        let unpacked = unpacked?;
        if found != *diff_id {
            return Err(Error::Corrupt(format!("layer {blob} unpacks to {found}, not to {diff_id}")));
        }
        if let Some(layer) = self.unpacked(diff_id) {
            // Loaded or built meanwhile; what is there may be mounted already.
            tree::remove_path(temporary)?;
            return Ok(layer);
        }
        let target = self.layer_dir(diff_id);
        // What is there under this name is not trusted, or was left by a crash before the index knew it.
        self.discard(&target)?;
        std::fs::rename(temporary, &target).map_err(Error::io(format!("cannot make {}", target.display())))?;
        let layer = Layer {
            link: self.link(diff_id)?,
            size_bytes: unpacked.size_bytes,
            archive_bytes,
            unsynced_boot: Some(self.boot.clone()),
        };
        self.change(|index| Ok(index.layers.insert(diff_id.clone(), layer.clone())))?;
        Ok(layer)
    }

    /// A short name for the layer: overlayfs' options must fit in one page.
    fn link(&self, diff_id: &Digest) -> Result<String> {
        let target = format!("../layers/{}/fs", diff_id.hex());
        // A link that was given before stays: containers may be mounted by it.
        if let Some(layer) = self.look(|index| index.layers.get(diff_id).cloned()) {
            let path = self.dir.join("l").join(&layer.link);
            if std::fs::read_link(&path).is_ok_and(|held| held == Path::new(&target)) {
                return Ok(layer.link);
            }
        }
        for _ in 0..64 {
            let name = short_name(rand::random());
            match std::os::unix::fs::symlink(&target, self.dir.join("l").join(&name)) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("cannot link layer {diff_id}"))(error)),
            }
        }
        Err(Error::Internal("no short name for a layer is free".to_owned()))
    }

    /// Moves a directory out of sight at once; its content goes in [`ImageStore::empty_trash`].
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let trash = self.dir.join("trash").join(format!("{:032x}", rand::random::<u128>()));
        match std::fs::rename(path, &trash) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(format!("cannot remove {}", path.display()))(error)),
        }
    }

    /// Removes what was thrown away.
    pub(crate) fn empty_trash(&self) -> Result<()> {
        let trash = self.dir.join("trash");
        for entry in std::fs::read_dir(&trash).map_err(Error::io("cannot list the trash"))?.flatten() {
            tree::remove_path(&entry.path())?;
        }
        Ok(())
    }

    /// Forces unpacked layers to the disk, so that they count after a crash of the machine too. Call it from time to time
    /// or after pulls; without it such layers are unpacked again after a reboot.
    pub async fn sync_layers(self: &Arc<Self>) -> Result<()> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let pending: Vec<Digest> = store.look(|index| {
                index.layers.iter().filter(|(_, l)| l.unsynced_boot.is_some()).map(|(id, _)| id.clone()).collect()
            });
            let pending: Vec<Digest> = pending.into_iter().filter(|id| store.unpacked(id).is_some()).collect();
            if pending.is_empty() {
                return Ok(());
            }
            let dir = tree::open_root(&store.dir)?;
            rustix::fs::syncfs(&dir).map_err(Error::io("cannot sync layers"))?;
            store.change(|index| {
                for id in pending {
                    if let Some(layer) = index.layers.get_mut(&id) {
                        layer.unsynced_boot = None;
                    }
                }
                Ok(())
            })
        })
        .await?
    }
}

fn set_root_mode(root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).map_err(Error::io("cannot set a mode"))
}

/// Five characters out of 32: 33 million names.
fn short_name(mut random: u32) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut name = String::new();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[(random % 32) as usize]));
        random /= 32;
    }
    name
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    /// How long a layer of a few bytes may take on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// An empty archive that differs by its length.
    fn archive(blocks: usize) -> Vec<u8> {
        vec![0; 512 * blocks]
    }

    fn stored(store: &ImageStore, lease: &Lease, bytes: &[u8]) -> Descriptor {
        Descriptor::new(crate::manifest::OCI_LAYER, store.blobs.put(bytes, lease).unwrap(), bytes.len() as u64)
    }

    #[tokio::test]
    async fn layers_wait_for_those_that_need_much_memory_only_if_they_do_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let lease = store.blobs.lease();
        let busy = GREEDY.acquire_many(u32::try_from(GREEDY_AT_ONCE).unwrap()).await.unwrap();
        let (plain, other) = (archive(2), archive(4));
        let modest = stored(&store, &lease, &zstd::encode_all(&plain[..], 1).unwrap());
        let diff_id = Digest::of(&plain);
        let unpacked = store.ensure_unpacked(&diff_id, &modest);
        tokio::time::timeout(PATIENCE, unpacked).await.expect("it waited for others").unwrap();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&other[..1]).unwrap();
        encoder.flush().unwrap();
        encoder.write_all(&other[1..]).unwrap();
        let greedy = stored(&store, &lease, &encoder.finish().unwrap());
        let diff_id = Digest::of(&other);
        let mut unpacked = std::pin::pin!(store.ensure_unpacked(&diff_id, &greedy));
        tokio::select! {
            _ = &mut unpacked => panic!("it had no turn"),
            () = tokio::time::sleep(Duration::from_millis(50)) => drop(busy),
        }
        tokio::time::timeout(PATIENCE, unpacked).await.expect("its turn did not come").unwrap();
    }

    #[tokio::test]
    async fn no_more_layers_are_unpacked_at_once_than_have_turns() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let lease = store.blobs.lease();
        let plain = archive(6);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        let modest = stored(&store, &lease, &encoder.finish().unwrap());
        let busy = MODEST.acquire_many(u32::try_from(MODEST_AT_ONCE).unwrap()).await.unwrap();
        let diff_id = Digest::of(&plain);
        let mut unpacked = std::pin::pin!(store.ensure_unpacked(&diff_id, &modest));
        tokio::select! {
            _ = &mut unpacked => panic!("it had no turn"),
            () = tokio::time::sleep(Duration::from_millis(50)) => drop(busy),
        }
        tokio::time::timeout(PATIENCE, unpacked).await.expect("its turn did not come").unwrap();
    }

    #[test]
    fn a_layer_that_nobody_waits_for_is_not_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let lease = store.blobs.lease();
        let bytes = archive(2);
        let blob = stored(&store, &lease, &bytes).digest;
        let ends = CancellationToken::new();
        ends.cancel();
        let unpack =
            |ends: &CancellationToken| store.unpack_layer(&blob, &blob, &store.blobs.file(&blob).unwrap(), ends);
        assert!(matches!(unpack(&ends), Err(Error::Internal(_))));
        assert!(store.unpacked(&blob).is_none());
        assert_eq!(std::fs::read_dir(dir.path().join("layers")).unwrap().count(), 0, "something was left");
        unpack(&CancellationToken::new()).unwrap();
        assert!(store.unpacked(&blob).is_some());
    }

    #[tokio::test]
    async fn the_work_on_a_layer_ends_when_nobody_waits_for_it_any_more() {
        // So many zeros that nobody is through with them within the patience. They take no place on the disk.
        const ZEROS: u64 = 1 << 39;
        let dir = tempfile::tempdir().unwrap();
        let limits = crate::layer::Limits { total_bytes: ZEROS, ..crate::layer::Limits::default() };
        let store = ImageStore::open_with(
            &dir.path().join("images"),
            crate::store::StoreOptions { limits, ..crate::store::StoreOptions::default() },
        )
        .unwrap();
        let path = dir.path().join("zeros");
        File::create(&path).unwrap().set_len(ZEROS).unwrap();
        let blob = Descriptor::new(crate::manifest::OCI_LAYER, Digest::of(b"zeros"), ZEROS);
        let directories = || std::fs::read_dir(store.dir.join("layers")).unwrap().count();
        let file = Some(File::open(&path).unwrap());
        let mut unpacked = Box::pin(store.ensure_unpacked_from(&blob.digest, &blob, file));
        while directories() == 0 {
            let ended = tokio::time::timeout(Duration::from_millis(10), &mut unpacked).await;
            assert!(ended.is_err(), "it ended: {:?}", ended.map(|layer| layer.map(drop)));
        }
        drop(unpacked);
        // The work has the lock of its layer until it ends.
        let lock = store.busy(&blob.digest).lock_owned();
        drop(tokio::time::timeout(PATIENCE, lock).await.expect("it goes on"));
        assert_eq!(directories(), 0, "something was left");
    }
}
