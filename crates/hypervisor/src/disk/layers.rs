//! Which layer lies on which. A layer is a qcow2 file that names no other; what it lies on stands in a small file beside it.
//! A disk is its top layer; clones and snapshots share what is below. A layer goes when nobody owns it and nothing lies on it.
//! Blocking, short work.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::create::{create_layer, sync_directory};
use super::header::VIRTUAL_SIZE_MAX;
use super::tool::TOOL_USER;
use crate::error::{Error, Result};

/// Layers of one disk. Each costs a look-up per cluster that is nowhere above it, and descriptors.
pub const DEPTH_MAX: usize = 64;

/// What is known of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What it lies on.
    pub parent: Option<String>,
    /// Size of the disk that it is the top of. Units: bytes.
    pub virtual_bytes: u64,
    /// Whose it is; nobody's when it is only needed by those above.
    pub owner: Option<String>,
}

/// The layers of one Nuée.
pub struct LayerStore {
    directory: PathBuf,
    known: Mutex<BTreeMap<String, Layer>>,
}

impl LayerStore {
    /// Opens it, and removes what a crash left half made.
    pub fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(Error::io("protect", directory))?;
        let mut known = BTreeMap::new();
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
            let path = entry.map_err(Error::io("list", directory))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match name.split_once('.') {
                Some((id, "json")) => {
                    let text = fs::read(&path).map_err(Error::io("read", &path))?;
                    let layer = serde_json::from_slice(&text).map_err(std::io::Error::from);
                    known.insert(id.to_owned(), layer.map_err(Error::io("decode", &path))?);
                }
                Some((id, _)) => files.push((id.to_owned(), path)),
                None => {}
            }
        }
        for (id, path) in files {
            if !known.contains_key(&id) || path.extension().is_none_or(|kind| kind != "qcow2") {
                tracing::info!(path = %path.display(), "removing a layer that was half made");
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(Self { directory: directory.to_owned(), known: Mutex::new(known) })
    }

    /// A path in the store for a file that is being made; it becomes a layer by [`LayerStore::adopt`], or goes at the next
    /// [`LayerStore::open`].
    pub fn scratch(&self) -> (String, PathBuf) {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = format!("{now:x}-{:x}-{:x}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = self.directory.join(format!("{id}.part"));
        (id, path)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.qcow2"))
    }

    /// Makes a finished file from [`LayerStore::scratch`] a layer that lies on nothing.
    pub fn adopt(&self, id: &str, virtual_bytes: u64, owner: &str) -> Result<()> {
        let (part, path) = (self.directory.join(format!("{id}.part")), self.file(id));
        fs::File::open(&part).and_then(|file| file.sync_all()).map_err(Error::io("sync", &part))?;
        chown(&part, Some(0), Some(TOOL_USER)).map_err(Error::io("own", &part))?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o640)).map_err(Error::io("protect", &part))?;
        fs::rename(&part, &path).map_err(Error::io("name", &path))?;
        sync_directory(&path)?;
        self.write(id, Layer { parent: None, virtual_bytes, owner: Some(owner.to_owned()) })
    }

    /// Makes an empty layer, on another or on nothing. Units: bytes; `None` takes the size of what it lies on.
    ///
    /// Errors: smaller than what it lies on; too many layers; no space.
    pub fn create(&self, parent: Option<&str>, bytes: Option<u64>, owner: &str) -> Result<String> {
        let below = parent.map(|id| self.get(id)).transpose()?;
        let least = below.as_ref().map_or(0, |layer| layer.virtual_bytes);
        let bytes = bytes.unwrap_or(least);
        if bytes < least || bytes == 0 || bytes > VIRTUAL_SIZE_MAX {
            return Err(Error::Invalid(format!("a disk of {bytes} bytes cannot hold an image of {least}")));
        }
        if let Some(parent) = parent
            && self.chain(parent)?.len() >= DEPTH_MAX
        {
            return Err(Error::Conflict(format!("the disk has {DEPTH_MAX} layers; copy it to a new image first")));
        }
        let (id, _) = self.scratch();
        let path = self.file(&id);
        let made = create_layer(&path, bytes).and_then(|()| {
            chown(&path, Some(0), Some(TOOL_USER)).map_err(Error::io("own", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).map_err(Error::io("protect", &path))?;
            let parent = parent.map(str::to_owned);
            self.write(&id, Layer { parent, virtual_bytes: bytes, owner: Some(owner.to_owned()) })
        });
        if made.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&path);
        }
        made.map(|()| id)
    }

    fn write(&self, id: &str, layer: Layer) -> Result<()> {
        let mut known = self.known.lock();
        let path = self.directory.join(format!("{id}.json"));
        let part = self.directory.join(format!("{id}.jsonpart"));
        let bytes = serde_json::to_vec(&layer).map_err(std::io::Error::from).map_err(Error::io("encode", &path))?;
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&part);
        let written = opened.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        if let Err(error) = written {
            // The first error is the one to tell.
            let _ = fs::remove_file(&part);
            return Err(Error::io("write", &part)(error));
        }
        fs::rename(&part, &path).map_err(Error::io("name", &path))?;
        sync_directory(&path)?;
        known.insert(id.to_owned(), layer);
        Ok(())
    }

    /// What is known of a layer.
    pub fn get(&self, id: &str) -> Result<Layer> {
        self.known.lock().get(id).cloned().ok_or_else(|| Error::NotFound(format!("disk layer {id}")))
    }

    /// The files of a disk: its top layer, and all below.
    pub fn chain(&self, id: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            if files.len() > DEPTH_MAX {
                return Err(Error::Invalid(format!("the layers below {id} have no end")));
            }
            files.push(self.file(&id));
            next = self.get(&id)?.parent;
        }
        Ok(files)
    }

    /// Notes that a disk has grown.
    pub fn set_size(&self, id: &str, bytes: u64) -> Result<()> {
        let layer = self.get(id)?;
        self.write(id, Layer { virtual_bytes: bytes, ..layer })
    }

    /// Gives a layer to another owner, or to nobody.
    pub fn set_owner(&self, id: &str, owner: Option<&str>) -> Result<()> {
        let layer = self.get(id)?;
        self.write(id, Layer { owner: owner.map(str::to_owned), ..layer })?;
        self.sweep()
    }

    /// All owners.
    pub fn owners(&self) -> HashSet<String> {
        self.known.lock().values().filter_map(|layer| layer.owner.clone()).collect()
    }

    /// Removes a layer that was just made and that nobody uses. Like [`Self::release`] it needs no space for what goes.
    ///
    /// Errors: something lies on it.
    pub fn discard(&self, id: &str) -> Result<()> {
        let mut known = self.known.lock();
        if known.values().any(|layer| layer.parent.as_deref() == Some(id)) {
            return Err(Error::Conflict(format!("something lies on layer {id}")));
        }
        self.remove(&mut known, id)
    }

    /// Takes everything from one owner.
    pub fn release(&self, owner: &str) -> Result<()> {
        // On a full disk nothing can be written, not even that somebody does not need it any more.
        self.sweep_with(Some(owner))?;
        let known = self.known.lock().clone();
        for (id, layer) in known.iter().filter(|(_, layer)| layer.owner.as_deref() == Some(owner)) {
            self.write(id, Layer { owner: None, ..layer.clone() })?;
        }
        self.sweep()
    }

    /// The layers of an owner, the oldest first.
    pub fn owned_by(&self, owner: &str) -> Vec<String> {
        let known = self.known.lock();
        known.iter().filter(|(_, layer)| layer.owner.as_deref() == Some(owner)).map(|(id, _)| id.clone()).collect()
    }

    /// Removes layers that nobody owns and on which nothing lies.
    fn sweep(&self) -> Result<()> {
        self.sweep_with(None)
    }

    /// The same, with those of an owner as if they were nobody's.
    fn sweep_with(&self, owner: Option<&str>) -> Result<()> {
        let mut known = self.known.lock();
        loop {
            let needed: HashSet<&String> = known.values().filter_map(|layer| layer.parent.as_ref()).collect();
            let unowned = |layer: &Layer| layer.owner.is_none() || layer.owner.as_deref() == owner;
            let gone = known.iter().find(|(id, layer)| unowned(layer) && !needed.contains(id));
            let Some(id) = gone.map(|(id, _)| id.clone()) else { return Ok(()) };
            self.remove(&mut known, &id)?;
        }
    }

    /// Removes a layer's files; the record first, since a file without one goes at the next opening.
    fn remove(&self, known: &mut BTreeMap<String, Layer>, id: &str) -> Result<()> {
        for path in [self.directory.join(format!("{id}.json")), self.file(id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        known.remove(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_layer_lives_as_long_as_somebody_needs_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let image = store.create(None, Some(1 << 30), "image").unwrap();
        let clone = store.create(Some(&image), Some(2 << 30), "guest").unwrap();
        assert_eq!(store.chain(&clone).unwrap().len(), 2);
        assert!(store.create(Some(&image), Some(1 << 20), "guest").is_err(), "smaller than its image");
        store.release("image").unwrap();
        assert_eq!(files(directory.path()), 4, "the clone still needs it");
        let store = LayerStore::open(directory.path()).unwrap();
        assert_eq!(store.get(&clone).unwrap().virtual_bytes, 2 << 30);
        assert_eq!(store.owners(), HashSet::from(["guest".to_owned()]));
        store.release("guest").unwrap();
        assert_eq!(files(directory.path()), 0);
    }

    #[test]
    fn what_goes_takes_no_space_and_what_others_lie_on_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let base = store.create(None, Some(1 << 20), "volume").unwrap();
        let top = store.create(Some(&base), None, "volume").unwrap();
        assert!(store.discard(&base).is_err(), "something lies on it");
        store.discard(&top).unwrap();
        assert_eq!(store.owned_by("volume"), std::slice::from_ref(&base));
        store.create(Some(&base), None, "clone").unwrap();
        store.create(Some(&base), None, "volume").unwrap();
        store.release("volume").unwrap();
        assert_eq!(files(directory.path()), 4, "the clone's, and the one that it lies on");
        store.release("clone").unwrap();
        assert_eq!(files(directory.path()), 0);
    }

    #[test]
    fn what_a_crash_left_half_made_is_gone_after_opening() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        fs::write(store.scratch().1, "half").unwrap();
        fs::write(directory.path().join("x.qcow2"), "no record").unwrap();
        fs::write(directory.path().join("y.jsonpart"), "{").unwrap();
        LayerStore::open(directory.path()).unwrap();
        assert_eq!(files(directory.path()), 0);
    }
}
