//! Root file systems of containers: an overlayfs of an image's layers and a directory of the container's own.
//! Source: the kernel's documentation of overlayfs.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::blobs::{Lease, lock};
use crate::store::index::{EntryLayer, Index};
use crate::store::{ImageStore, marks, no_such_image};
use crate::types::Snapshot;

/// The kernel takes one page of mount options.
const MAX_OPTIONS: usize = 4095;
/// Nothing but plain copy-up: the other features leave marks in the writable directory that a layer cannot express.
const FEATURES: &str = "index=off,metacopy=off,redirect_dir=nofollow";

/// Where in the work directory overlayfs says that it was mounted with `volatile`: a directory with a file in it.
const VOLATILE_MARK: &str = "work/incompat/volatile";

/// Name of an empty directory among the short names of layers; no random name is as short.
pub(super) const EMPTY_LAYER: &str = "0";

/// A snapshot on the disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    image_id: Digest,
    layers: Vec<Digest>,
    dir: PathBuf,
    /// Layers of the image, highest first, as paths. A daemon of before there were marks mounts all of them by their short names.
    lower: Vec<PathBuf>,
    /// What the container sees over them.
    #[serde(default)]
    marks: Option<PathBuf>,
}

pub(super) fn read_all(dir: &Path) -> Result<BTreeMap<String, Snapshot>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("cannot list snapshots"))?.flatten() {
        let path = entry.path();
        let (Some(id), Some("json")) = (path.file_stem(), path.extension().and_then(|e| e.to_str())) else { continue };
        let id = id.to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).map_err(Error::io(format!("cannot read {}", path.display())))?;
        match serde_json::from_slice::<Stored>(&bytes) {
            Ok(stored) => drop(found.insert(id.clone(), stored.snapshot(id))),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a snapshot's file is damaged and ignored"),
        }
    }
    Ok(found)
}

impl Stored {
    fn snapshot(mut self, container_id: String) -> Snapshot {
        // For a short while they were among the layers.
        if self.lower.first().is_some_and(|layer| marks::is_one(layer)) {
            self.marks = Some(self.lower.remove(0));
        }
        Snapshot {
            container_id,
            image_id: self.image_id,
            rootfs: self.dir.join("rootfs"),
            upper: self.dir.join("upper"),
            work: self.dir.join("work"),
            lower: self.lower,
            marks: self.marks,
        }
    }
}

impl ImageStore {
    /// Makes the root file system of a container below `dir` (`rootfs`, `upper`, `work`), and keeps the image's layers for
    /// it until [`ImageStore::remove_snapshot`]. Unpacks layers that are not yet. Again for the same container it gives
    /// the same snapshot, with what was written.
    ///
    /// Errors: `NotFound` when there is no such image, `Conflict` when the container has one of another image.
    pub async fn prepare(self: &Arc<Self>, container_id: &str, image: &str, dir: &Path) -> Result<Snapshot> {
        self.prepare_over(container_id, image, dir, false).await
    }

    /// As [`ImageStore::prepare`], for a container that sees over its image what those of Docker's see.
    pub async fn prepare_marked(self: &Arc<Self>, container_id: &str, image: &str, dir: &Path) -> Result<Snapshot> {
        self.prepare_over(container_id, image, dir, true).await
    }

    async fn prepare_over(
        self: &Arc<Self>,
        container_id: &str,
        image: &str,
        dir: &Path,
        marked: bool,
    ) -> Result<Snapshot> {
        check_id(container_id)?;
        let lease = self.blobs.lease();
        let (image_id, layers) = self.leased_layers(image, &lease)?;
        if let Some(snapshot) = self.snapshot(container_id)
            && snapshot.image_id != image_id
        {
            return Err(Error::Conflict(format!("container {container_id} has a root file system of another image")));
        }
        let mut lower = Vec::new();
        for layer in &layers {
            let unpacked = self.ensure_unpacked(&layer.diff_id, &layer.blob).await?;
            lower.push(self.dir.join("l").join(unpacked.link));
        }
        lower.reverse();
        let layers = layers.into_iter().map(|layer| layer.diff_id).collect();
        let mut stored = Stored { image_id, layers, dir: dir.to_owned(), lower, marks: None };
        let (store, id) = (self.clone(), container_id.to_owned());
        let keep = move || {
            // Until the snapshot is known, nobody may take its marks away.
            let _held = store.marks.read().unwrap_or_else(PoisonError::into_inner);
            if marked {
                stored.marks = Some(marks::layer(&store.dir.join(marks::DIRECTORY), &stored.lower)?);
            }
            store.keep_snapshot(&id, stored)
        };
        // The lease ends after the snapshot itself holds the layers.
        let snapshot = tokio::task::spawn_blocking(keep).await?;
        drop(lease);
        snapshot
    }

    /// An image's id and layers, which are kept by the lease.
    pub(crate) fn leased_layers(&self, image: &str, lease: &Lease) -> Result<(Digest, Vec<EntryLayer>)> {
        let id = self.resolve(image)?;
        let layers = |index: &Index| index.images.get(&id).map(|entry| entry.layers.clone());
        let held = self.look(layers).ok_or_else(|| no_such_image(image))?;
        for layer in &held {
            lease.keep(&layer.diff_id);
            lease.keep(&layer.blob.digest);
        }
        // The lease counts from now on: what was removed before it must not be used.
        self.look(layers).ok_or_else(|| no_such_image(image))?;
        Ok((id, held))
    }

    fn keep_snapshot(&self, container_id: &str, stored: Stored) -> Result<Snapshot> {
        let dir = stored.dir.clone();
        for sub in ["rootfs", "upper", "work"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        }
        // The writable directory's own attributes are those of the root: take them from the image.
        let upper = dir.join("upper");
        let (mode, uid, gid) = match stored.lower.first().map(std::fs::metadata) {
            Some(Ok(data)) => (data.mode() & 0o7777, data.uid(), data.gid()),
            _ => (0o755, 0, 0),
        };
        let doing = || format!("cannot make {}", upper.display());
        if upper.read_dir().is_ok_and(|mut entries| entries.next().is_none()) {
            chown(&upper, Some(uid), Some(gid)).map_err(Error::io(doing()))?;
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(mode)).map_err(Error::io(doing()))?;
        }
        let bytes = serde_json::to_vec(&stored).map_err(|error| Error::Internal(error.to_string()))?;
        super::blobs::replace_file_soon(&self.snapshot_file(container_id), &bytes)?;
        let snapshot = stored.snapshot(container_id.to_owned());
        lock(&self.snapshots).insert(container_id.to_owned(), snapshot.clone());
        Ok(snapshot)
    }

    /// The snapshot of a build from nothing. It stands for no image.
    pub(crate) fn prepare_empty(&self, container_id: &str, dir: &Path) -> Result<Snapshot> {
        let image_id = Digest::of(b"");
        self.keep_snapshot(
            container_id,
            Stored { image_id, layers: Vec::new(), dir: dir.to_owned(), lower: Vec::new(), marks: None },
        )
    }

    /// At the start: what builds left that a crash ended.
    pub(super) fn sweep_builds(&self) -> Result<()> {
        self.remove_build(&self.dir.join("builds"))
    }

    /// Removes the directory of a build, and first unmounts and forgets the snapshots in it.
    pub(crate) fn remove_build(&self, dir: &Path) -> Result<()> {
        for snapshot in self.snapshots().into_iter().filter(|snapshot| snapshot.rootfs.starts_with(dir)) {
            unmount(&snapshot.rootfs)?;
            let _ = std::fs::remove_file(self.snapshot_file(&snapshot.container_id));
            lock(&self.snapshots).remove(&snapshot.container_id);
        }
        crate::layer::tree::remove_path(dir)
    }

    fn snapshot_file(&self, container_id: &str) -> PathBuf {
        self.dir.join("snapshots").join(format!("{container_id}.json"))
    }

    /// The snapshot of a container.
    pub fn snapshot(&self, container_id: &str) -> Option<Snapshot> {
        lock(&self.snapshots).get(container_id).cloned()
    }

    /// All snapshots.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        lock(&self.snapshots).values().cloned().collect()
    }

    /// Mounts a snapshot at its `rootfs`. Mounted already is no error.
    pub async fn mount(&self, snapshot: &Snapshot) -> Result<()> {
        let (links, snapshot) = (self.dir.join("l"), snapshot.clone());
        tokio::task::spawn_blocking(move || mount_overlay(&links, &snapshot, Mode::Durable)).await?
    }

    /// Mounts a snapshot whose writable directory need not survive a crash of the machine: nothing that is written waits
    /// for the disk, and neither does the unmount, which otherwise writes back all that the disk's file system holds.
    pub async fn mount_scratch(&self, snapshot: &Snapshot) -> Result<()> {
        let (links, snapshot) = (self.dir.join("l"), snapshot.clone());
        tokio::task::spawn_blocking(move || mount_overlay(&links, &snapshot, Mode::Scratch)).await?
    }

    /// Mounts a snapshot at its `rootfs` for reading only, without its writable directory.
    pub async fn mount_read_only(&self, snapshot: &Snapshot) -> Result<()> {
        let (links, snapshot) = (self.dir.join("l"), snapshot.clone());
        tokio::task::spawn_blocking(move || mount_overlay(&links, &snapshot, Mode::ReadOnly)).await?
    }

    /// Unmounts a snapshot. Not mounted is no error.
    pub async fn unmount(&self, snapshot: &Snapshot) -> Result<()> {
        let rootfs = snapshot.rootfs.clone();
        tokio::task::spawn_blocking(move || unmount(&rootfs)).await?
    }

    /// Unmounts and removes a container's snapshot with all that it wrote. No snapshot is no error.
    pub async fn remove_snapshot(self: &Arc<Self>, container_id: &str) -> Result<()> {
        check_id(container_id)?;
        let Some(snapshot) = self.snapshot(container_id) else { return Ok(()) };
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            unmount(&snapshot.rootfs)?;
            for path in [&snapshot.upper, &snapshot.work, &snapshot.rootfs] {
                crate::layer::tree::remove_path(path)?;
            }
            let file = store.snapshot_file(&snapshot.container_id);
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io(format!("cannot remove {}", file.display()))(error))
                }
                _ => {
                    lock(&store.snapshots).remove(&snapshot.container_id);
                    Ok(())
                }
            }
        })
        .await?
    }
}

/// Ids become file names.
fn check_id(id: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(good) {
        return Err(Error::Invalid(format!("invalid container id {id:?}")));
    }
    Ok(())
}

fn unmount(rootfs: &Path) -> Result<()> {
    crate::mounts::detach(rootfs).map_err(Error::io(format!("cannot unmount {}", rootfs.display())))
}

fn is_mounted(rootfs: &Path) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|data| data.dev());
    match (device(rootfs), rootfs.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// How a snapshot is mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Writable, as any file system is.
    Durable,
    /// Writable, and lost with the machine.
    Scratch,
    /// Without the writable directory.
    ReadOnly,
}

fn mount_overlay(links: &Path, snapshot: &Snapshot, mode: Mode) -> Result<()> {
    if is_mounted(&snapshot.rootfs) {
        return Ok(());
    }
    for path in [&snapshot.upper, &snapshot.work] {
        if path.as_os_str().as_encoded_bytes().iter().any(|b| matches!(b, b':' | b',' | b'\\')) {
            return Err(Error::NotSupported(format!("the path {} has a comma, colon or backslash", path.display())));
        }
    }
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // A crash of the machine may have taken marks along that were made just before it.
    let over = snapshot.marks.iter().filter(|path| path.is_dir()).filter_map(name);
    let over = over.map(|name| format!("../{}/{name}", marks::DIRECTORY));
    let mut lower: Vec<String> = over.chain(snapshot.lower.iter().filter_map(name)).collect();
    // overlayfs wants at least one layer, and two when nothing is writable: an empty one does no harm.
    if lower.is_empty() || (mode == Mode::ReadOnly && lower.len() == 1) {
        lower.push(EMPTY_LAYER.to_owned());
    }
    let lower = lower.join(":");
    let (upper, work) = (snapshot.upper.display(), snapshot.work.display());
    if mode == Mode::ReadOnly {
        return relative_mount(links, &snapshot.rootfs, format!("lowerdir={lower},{FEATURES}"), MsFlags::MS_RDONLY);
    }
    // The kernel leaves this mark when it mounts a scratch file system, and refuses to mount where it is, as nobody knows
    // what a crash left. Whoever mounts again after a crash knows that the container was to go with it.
    let mark = snapshot.work.join(VOLATILE_MARK);
    match std::fs::remove_dir_all(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("cannot remove {}", mark.display()))(error));
        }
        _ => {}
    }
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},{FEATURES}");
    if mode == Mode::Scratch {
        match relative_mount(links, &snapshot.rootfs, format!("{options},volatile"), MsFlags::empty()) {
            // Kernels before 5.10 do not know the option.
            Err(error) => tracing::debug!(%error, "mounting without it"),
            Ok(()) => return Ok(()),
        }
    }
    relative_mount(links, &snapshot.rootfs, options, MsFlags::empty())
}

/// Mounts with paths relative to `links`, so that hundreds of layers fit in the options. The working directory belongs to
/// a whole process: a thread of its own leaves it to itself first.
fn relative_mount(links: &Path, rootfs: &Path, options: String, flags: MsFlags) -> Result<()> {
    if options.len() > MAX_OPTIONS {
        return Err(Error::NotSupported("the image has too many layers to mount".to_owned()));
    }
    let doing = format!("cannot mount {}", rootfs.display());
    let (links, rootfs) = (links.to_owned(), rootfs.to_owned());
    let thread = std::thread::Builder::new().name("mount".to_owned()).spawn(move || -> std::io::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(&links)?;
        Ok(mount(Some("overlay"), &rootfs, Some("overlay"), flags, Some(options.as_str()))?)
    });
    thread
        .map_err(Error::io("cannot start a thread"))?
        .join()
        .map_err(|_| Error::Internal("the thread that mounts panicked".to_owned()))?
        .map_err(Error::io(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is stored, as it was before there were marks.
    #[derive(Serialize, Deserialize)]
    struct StoredBefore {
        image_id: Digest,
        layers: Vec<Digest>,
        dir: PathBuf,
        lower: Vec<PathBuf>,
    }

    #[test]
    fn snapshots_are_read_by_a_daemon_of_before_and_from_one() {
        let [layer, marks] = ["/images/l/abcde", "/images/marks/0123"].map(PathBuf::from);
        let now = Stored {
            image_id: Digest::of(b""),
            layers: vec![Digest::of(b"layer")],
            dir: "/containers/c".into(),
            lower: vec![layer.clone()],
            marks: Some(marks.clone()),
        };
        let mut before: StoredBefore = serde_json::from_slice(&serde_json::to_vec(&now).unwrap()).unwrap();
        assert_eq!(before.lower, std::slice::from_ref(&layer), "all of them have a short name");
        let read = |stored: &StoredBefore| {
            let stored: Stored = serde_json::from_slice(&serde_json::to_vec(stored).unwrap()).unwrap();
            let snapshot = stored.snapshot("c".to_owned());
            (snapshot.lower, snapshot.marks)
        };
        assert_eq!(read(&before), (vec![layer.clone()], None));
        before.lower.insert(0, marks.clone());
        assert_eq!(read(&before), (vec![layer], Some(marks)));
    }

    /// On mounts that are shared, as systemd makes those of a machine. Only root may mount.
    #[test]
    fn what_is_mounted_below_a_snapshot_stays_where_it_came_from() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = std::fs::canonicalize(directory.path()).unwrap();
        let run = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let put = |place: &Path| mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            put(&disk);
            mount(none, &disk, none, MsFlags::MS_SHARED, none).unwrap();
            let (original, rootfs) = (disk.join("original"), disk.join("rootfs"));
            std::fs::create_dir_all(original.join("nested")).unwrap();
            std::fs::create_dir(&rootfs).unwrap();
            put(&original.join("nested"));
            std::fs::write(original.join("nested/data"), "kept").unwrap();
            // One over another.
            for _ in 0..2 {
                put(&rootfs);
                std::fs::create_dir(rootfs.join("in")).unwrap();
                let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(&original), &rootfs.join("in"), none, bind, none).unwrap();
                assert!(rootfs.join("in/nested/data").exists());
            }
            for _ in 0..2 {
                unmount(&rootfs).unwrap();
                assert!(rootfs.is_dir() && !rootfs.join("in").exists());
            }
            assert_eq!(std::fs::read_to_string(original.join("nested/data")).unwrap(), "kept");
            unmount(&disk.join("none")).unwrap();
        };
        std::thread::spawn(run).join().unwrap();
    }
}
