//! The image store: opening it, names, and reading what is there. On the disk, below its directory:
//! `blobs/<algorithm>/<hex>`, `ingest/` (half-written blobs), `index.json`, `layers/<hex>/fs` (unpacked), `l/<link>` (short
//! names of those), `snapshots/<container>.json`, `repositories.json` and `uploads/` (the registry's).

pub mod blobs;
mod builds;
mod garbage;
pub mod index;
mod layers;
mod marks;
mod remove;
mod repositories;
mod served;
mod snapshots;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::{ImageConfig, parse_time_ns};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::Limits;
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::reference::Reference;
use crate::types::{HistoryEntry, ImageRecord, ImageSummary, ListFilter, Snapshot};
use blobs::{Blobs, Lease, lock};
pub use builds::{BuildCache, Mounted};
use index::{Entry, EntryLayer, Index};
pub use repositories::{Repositories, Repository, StoredManifest, Upload};

/// How the ids of builds' snapshots begin.
pub(crate) const BUILD_PREFIX: &str = "build-";
/// Beginning of the cache keys of steps that BuildKit's dialect made. Their images are seen only in a list of all.
pub(crate) const BUILDKIT_KEY: &str = "buildkit:";
/// Directory of the cache mounts.
pub(crate) const CACHE_MOUNTS: &str = "cache-mounts";

/// Settings of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Registry hosts (`host` or `host:port`) that are spoken to without TLS; loopback addresses always may be.
    pub plain_http: Vec<String>,
    /// Registries (`host`, `host:port`, or with `http://` or `https://` before it) that are asked before the default
    /// registry when an image of its is pulled. They get no credentials.
    pub mirrors: Vec<String>,
    /// File of root certificates (PEM); `None` takes the system's.
    pub root_certificates: Option<PathBuf>,
    /// Certificates (PEM) that are trusted beside the roots.
    pub authorities: Vec<String>,
    /// Bounds on layers and archives.
    pub limits: Limits,
}

/// Images of one machine, as all see them or in one view. Cheap to share; every method may be called at once with every
/// other.
pub struct ImageStore {
    shared: Arc<Shared>,
    /// Whose names come first, see [`ImageStore::view`].
    view: Option<String>,
}

impl std::ops::Deref for ImageStore {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What all views of a store have in common.
#[doc(hidden)]
pub struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) options: StoreOptions,
    pub(crate) blobs: Blobs,
    index: Mutex<Index>,
    snapshots: Mutex<BTreeMap<String, Snapshot>>,
    /// Held for reading by whoever makes a snapshot, and for writing by whoever takes away what none has over its image.
    marks: std::sync::RwLock<()>,
    /// One lock per layer that is being unpacked or fetched, so that it happens once.
    busy: Mutex<HashMap<Digest, std::sync::Weak<tokio::sync::Mutex<()>>>>,
    repositories: Repositories,
    cache_locks: crate::build::mounts::CacheLocks,
    /// Places for fetches from URLs.
    pub(crate) fetches: Arc<tokio::sync::Semaphore>,
    boot: String,
}

/// The index, or a copy of what a view sees of it.
enum Seen<'a> {
    All(MutexGuard<'a, Index>),
    View(Box<Index>),
}

impl std::ops::Deref for Seen<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        match self {
            Seen::All(index) => index,
            Seen::View(index) => index,
        }
    }
}

/// An image that is about to be entered into the index.
pub(crate) struct NewImage<'a> {
    pub config: &'a [u8],
    pub layers: Vec<EntryLayer>,
    /// The manifest as it came; `None` makes one.
    pub manifest: Option<Descriptor>,
    pub parent: Option<Digest>,
    pub cache_key: Option<String>,
}

impl ImageStore {
    /// Opens the store in a directory, which is made when missing, with default settings.
    pub fn open(dir: &Path) -> Result<Arc<ImageStore>> {
        ImageStore::open_with(dir, StoreOptions::default())
    }

    /// Opens the store in a directory, which is made when missing. One process at a time may have it open.
    ///
    /// Errors: `Corrupt` or `NotSupported` when the index cannot be trusted; nothing is changed then.
    pub fn open_with(dir: &Path, options: StoreOptions) -> Result<Arc<ImageStore>> {
        for sub in ["layers", "l", marks::DIRECTORY, "snapshots", "trash", "uploads"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        }
        let empty = dir.join("l").join(snapshots::EMPTY_LAYER);
        std::fs::create_dir_all(&empty).map_err(Error::io(format!("cannot make {}", empty.display())))?;
        let dir = dir.canonicalize().map_err(Error::io(format!("cannot open {}", dir.display())))?;
        let index = Index::read(&dir.join("index.json"))?;
        let shared = Shared {
            blobs: Blobs::open(&dir)?,
            snapshots: Mutex::new(snapshots::read_all(&dir.join("snapshots"))?),
            marks: std::sync::RwLock::default(),
            index: Mutex::new(index),
            busy: Mutex::default(),
            cache_locks: Mutex::default(),
            fetches: Arc::new(tokio::sync::Semaphore::new(crate::build::FETCHES_MAX)),
            repositories: Repositories::open(&dir)?,
            // Without it every layer counts as surely written, as it does on a machine that cannot tell boots apart.
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            options,
            dir,
        };
        let store = ImageStore { shared: Arc::new(shared), view: None };
        store.sweep_builds()?;
        store.sweep_leftovers()?;
        Ok(Arc::new(store))
    }

    /// The same images with names of a group's own: they come before the shared ones, and only this view sees them.
    pub fn view(&self, name: &str) -> Arc<ImageStore> {
        Arc::new(ImageStore { shared: self.shared.clone(), view: Some(name.to_owned()) })
    }

    /// The store without a view: what collects garbage must see all.
    fn whole(&self) -> ImageStore {
        ImageStore { shared: self.shared.clone(), view: None }
    }

    /// Forgets the names of all views whose own name begins like this, but for one.
    pub fn forget_views(&self, prefix: &str, but: Option<&str>) -> Result<()> {
        let gone = |name: &String| name.starts_with(prefix) && but != Some(name.as_str());
        let mut index = lock(&self.index);
        if index.views.keys().any(gone) {
            let mut edited = index.clone();
            edited.views.retain(|name, _| !gone(name));
            edited.write(&self.dir.join("index.json"))?;
            *index = edited;
        }
        Ok(())
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The registry's view: repositories and uploads.
    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// The settings.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// Finds an image by name, id, or the beginning of an id.
    ///
    /// Errors: `NotFound` in Docker's words (`No such image: …`), `Invalid` for what is no name, or an ambiguous id.
    pub fn get(&self, name: &str) -> Result<ImageRecord> {
        let index = self.seen();
        let id = resolve(&index, name)?;
        let entry = index.images.get(&id).ok_or_else(|| no_such_image(name))?;
        let mut record = ImageRecord {
            references: familiar_names(index.names_of(&id)),
            digests: familiar_names(index.digests_of(&id)),
            config: ImageConfig::default(),
            size_bytes: index.size_of(entry),
            created_ns: entry.created_ns,
            layers: entry.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
            parent: entry.parent.clone(),
            last_tagged_ns: entry.last_tagged_ns,
            id,
        };
        drop(index);
        record.config = self.config(&record.id)?;
        Ok(record)
    }

    /// The id of an image by name, id, or the beginning of an id. Errors as [`ImageStore::get`].
    pub fn resolve(&self, name: &str) -> Result<Digest> {
        resolve(&self.seen(), name)
    }

    /// Reads an image's configuration.
    pub fn config(&self, id: &Digest) -> Result<ImageConfig> {
        let bytes = self.blobs.document(id)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Invalid(format!("invalid image configuration: {error}")))
    }

    /// The manifest of an image: where it is and what it is.
    pub fn manifest(&self, id: &Digest) -> Result<Descriptor> {
        let index = self.seen();
        index.images.get(id).map(|entry| entry.manifest.clone()).ok_or_else(|| no_such_image(&id.to_string()))
    }

    /// Lists images, newest first.
    pub fn list(&self, filter: &ListFilter) -> Result<Vec<ImageSummary>> {
        let index = self.seen();
        let instant = |name: &Option<String>| -> Result<Option<i64>> {
            let Some(name) = name else { return Ok(None) };
            let id = resolve(&index, name)?;
            Ok(index.images.get(&id).map(|entry| entry.created_ns))
        };
        let (before, since) = (instant(&filter.before)?, instant(&filter.since)?);
        let mut found = Vec::new();
        for (id, entry) in &index.images {
            let references = familiar_names(index.names_of(id));
            let digests = familiar_names(index.digests_of(id));
            let untagged = references.is_empty();
            let step = entry.cache_key.as_ref().is_some_and(|key| key.starts_with(BUILDKIT_KEY));
            let inner = untagged && digests.is_empty() && (step || index.has_children(id));
            let wanted = (filter.all || !inner)
                && filter
                    .dangling
                    .is_none_or(|dangling| dangling == (untagged && !inner && !index.is_named_in_a_view(id)))
                && before.is_none_or(|before| entry.created_ns < before)
                && since.is_none_or(|since| entry.created_ns > since)
                && filter.until_ns.is_none_or(|until| entry.created_ns < until)
                && filter.labels.iter().all(|label| has_label(&entry.labels, label))
                && !filter.without_labels.iter().any(|label| has_label(&entry.labels, label));
            let (references, digests) = match filter.references.as_slice() {
                [] => (references, digests),
                patterns => (matching(references, patterns), matching(digests, patterns)),
            };
            if !wanted || (!filter.references.is_empty() && references.is_empty() && digests.is_empty()) {
                continue;
            }
            found.push(ImageSummary {
                id: id.clone(),
                references,
                digests,
                labels: entry.labels.clone(),
                size_bytes: index.size_of(entry),
                created_ns: entry.created_ns,
                parent: entry.parent.clone(),
            });
        }
        found.sort_by(|a, b| b.created_ns.cmp(&a.created_ns).then_with(|| a.id.cmp(&b.id)));
        Ok(found)
    }

    /// Gives an image one more name.
    pub fn tag(&self, source: &str, target: &str) -> Result<()> {
        let reference = tag_target(target)?;
        if self.view.is_none() && self.is_tagged(source, &reference) {
            return Ok(());
        }
        self.change(|index| {
            let id = resolve(index, source)?;
            set_name(index, &reference, &id);
            Ok(())
        })
    }

    /// Whether an image has a name already; then only the time of its last naming changes, which is written with the next
    /// change: a build whose steps are all known writes nothing.
    fn is_tagged(&self, source: &str, reference: &Reference) -> bool {
        let name = Reference { digest: None, ..reference.clone() }.to_string();
        let known = self.look(|index| resolve(index, source).ok().filter(|id| index.names.get(&name) == Some(id)));
        let Some(id) = known else { return false };
        let mut index = lock(&self.index);
        let still = index.images.get_mut(&id);
        still.map(|entry| entry.last_tagged_ns = now_ns()).is_some()
    }

    /// How an image came about, newest first.
    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        let record = self.get(name)?;
        let index = self.seen();
        let mut sizes = record.layers.iter().map(|id| index.layers.get(id).map_or(0, |layer| layer.size_bytes));
        let mut entries: Vec<HistoryEntry> = record
            .config
            .history
            .iter()
            .map(|step| HistoryEntry {
                id: None,
                created_ns: parse_time_ns(step.created.as_deref().unwrap_or_default()),
                created_by: step.created_by.clone(),
                references: Vec::new(),
                size_bytes: if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
                comment: step.comment.clone().unwrap_or_default(),
            })
            .collect();
        entries.reverse();
        // The chain of parents names the steps that were made here.
        let mut id = Some(record.id);
        for entry in &mut entries {
            let Some(current) = id else { break };
            entry.references = familiar_names(index.names_of(&current));
            id = index.images.get(&current).and_then(|image| image.parent.clone());
            entry.id = Some(current);
        }
        Ok(entries)
    }

    /// Changes the index in memory and on the disk, or neither.
    pub(crate) fn change<T>(&self, edit: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let mut index = lock(&self.index);
        let (edited, result) = match &self.view {
            None => {
                let mut edited = index.clone();
                let result = edit(&mut edited)?;
                (edited, result)
            }
            Some(view) => index.edited_by(view, edit)?,
        };
        edited.write(&self.dir.join("index.json"))?;
        *index = edited;
        Ok(result)
    }

    /// The index as this view sees it.
    fn seen(&self) -> Seen<'_> {
        let index = lock(&self.index);
        match &self.view {
            None => Seen::All(index),
            Some(view) => Seen::View(Box::new(index.seen_by(view))),
        }
    }

    /// Looks at the index.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.seen())
    }

    /// Enters an image whose blobs are here under `lease`, with names. Its layers need not be unpacked yet.
    pub(crate) fn enter(&self, new: NewImage<'_>, names: &[Reference], lease: &Lease) -> Result<Digest> {
        let id = self.blobs.put(new.config, lease)?;
        let config: ImageConfig = serde_json::from_slice(new.config)
            .map_err(|error| Error::Invalid(format!("invalid image configuration: {error}")))?;
        if config.rootfs.diff_ids.len() != new.layers.len()
            || config.rootfs.diff_ids.iter().zip(&new.layers).any(|(id, layer)| *id != layer.diff_id)
        {
            return Err(Error::Invalid("the layers of the image are not those of its configuration".to_owned()));
        }
        let manifest = match new.manifest {
            Some(manifest) => manifest,
            None => {
                let document = Manifest {
                    schema_version: 2,
                    media_type: OCI_MANIFEST.to_owned(),
                    artifact_type: None,
                    config: Descriptor::new(OCI_CONFIG, id.clone(), new.config.len() as u64),
                    layers: new.layers.iter().map(|layer| layer.blob.clone()).collect(),
                    subject: None,
                    annotations: None,
                };
                let bytes = serde_json::to_vec(&document)
                    .map_err(|error| Error::Internal(format!("cannot write a manifest: {error}")))?;
                Descriptor::new(OCI_MANIFEST, self.blobs.put(&bytes, lease)?, bytes.len() as u64)
            }
        };
        let entry = Entry {
            manifest,
            layers: new.layers,
            created_ns: config.created_ns(),
            labels: config.config.labels,
            parent: new.parent,
            cache_key: new.cache_key,
            last_tagged_ns: 0,
        };
        self.change(|index| {
            match index.images.entry(id.clone()) {
                std::collections::btree_map::Entry::Vacant(slot) => drop(slot.insert(entry)),
                std::collections::btree_map::Entry::Occupied(mut slot) => {
                    // Known already: the blobs that came now are as good, and surely here.
                    let known = slot.get_mut();
                    (known.manifest, known.layers) = (entry.manifest, entry.layers);
                    known.parent = known.parent.take().or(entry.parent);
                    known.cache_key = known.cache_key.take().or(entry.cache_key);
                }
            }
            for name in names {
                set_name(index, name, &id);
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// The lock of a cache mount that builds use one after the other.
    pub(crate) fn cache_lock(&self, path: &Path) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.cache_locks).entry(path.to_owned()).or_default().clone()
    }

    /// The lock under which a layer is fetched or unpacked.
    pub(crate) fn busy(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = lock(&self.busy);
        busy.retain(|_, held| held.strong_count() > 0);
        if let Some(held) = busy.get(digest).and_then(std::sync::Weak::upgrade) {
            return held;
        }
        let held = Arc::new(tokio::sync::Mutex::new(()));
        busy.insert(digest.clone(), Arc::downgrade(&held));
        held
    }
}

/// A name that may be given to an image: a tag, never a digest.
pub(crate) fn tag_target(target: &str) -> Result<Reference> {
    let reference = Reference::parse_tagged(target)?;
    if reference.digest.is_some() {
        return Err(Error::Invalid("refusing to create a tag with a digest reference".to_owned()));
    }
    Ok(reference)
}

pub(crate) fn set_name(index: &mut Index, reference: &Reference, id: &Digest) {
    if reference.digest.is_some() {
        index.digests.insert(Reference { tag: None, ..reference.clone() }.to_string(), id.clone());
    }
    if reference.tag.is_some() {
        index.names.insert(Reference { digest: None, ..reference.clone() }.to_string(), id.clone());
    }
    if let Some(entry) = index.images.get_mut(id) {
        entry.last_tagged_ns = now_ns();
    }
}

/// The time now, nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

pub(crate) fn no_such_image(name: &str) -> Error {
    let name = Reference::parse_tagged(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar());
    Error::NotFound(format!("No such image: {name}"))
}

fn familiar_names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.map(|name| Reference::parse(name).map_or_else(|_| name.clone(), |reference| reference.familiar())).collect()
}

/// Finds an image as Docker does: full ids first, then names, then beginnings of ids.
pub(crate) fn resolve(index: &Index, name: &str) -> Result<Digest> {
    let full = if name.contains(':') { name.to_owned() } else { format!("sha256:{name}") };
    if let Ok(id) = full.parse::<Digest>() {
        return if index.images.contains_key(&id) { Ok(id) } else { Err(no_such_image(name)) };
    }
    let reference = Reference::parse_tagged(name);
    if let Ok(reference) = &reference {
        let by_digest = reference
            .digest
            .as_ref()
            .and_then(|_| index.digests.get(&Reference { tag: None, ..reference.clone() }.to_string()));
        // A digest that is given must be the right one, whatever the tag says.
        let by_tag = || match &reference.digest {
            Some(_) => None,
            None => index.names.get(&reference.to_string()),
        };
        if let Some(id) = by_digest.or_else(by_tag) {
            return Ok(id.clone());
        }
    }
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    if !prefix.is_empty() && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let mut hits = index.images.keys().filter(|id| id.hex().starts_with(prefix));
        match (hits.next(), hits.next()) {
            (Some(id), None) => return Ok(id.clone()),
            (Some(_), Some(_)) => return Err(Error::Invalid(format!("image ID prefix {prefix:?} is ambiguous"))),
            _ => {}
        }
    }
    reference?;
    Err(no_such_image(name))
}

fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|held| held == value),
        None => labels.contains_key(wanted),
    }
}

/// Names of which the whole, or the part before tag or digest, fits one of the patterns.
fn matching(names: Vec<String>, patterns: &[String]) -> Vec<String> {
    let fits = |name: &String| {
        let bare = Reference::parse(name).map(|reference| reference.familiar_name()).unwrap_or_default();
        patterns
            .iter()
            .any(|pattern| crate::pattern::path_matches(pattern, name) || crate::pattern::path_matches(pattern, &bare))
    };
    names.into_iter().filter(fits).collect()
}
