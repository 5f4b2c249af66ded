//! The index of a store: which images there are, their names, and their unpacked layers. One small file that is replaced
//! whole; 1,000 images are about 600 KiB. Must never know how blobs are stored.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::store::blobs::replace_file;
use crate::store::views::Names;

/// Form of the file; a newer one is not touched.
const VERSION: u32 = 1;

/// All that is in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Index {
    /// Form of the file.
    pub version: u32,
    /// Images by id.
    pub images: BTreeMap<Digest, Entry>,
    /// Ids by full name with tag.
    pub names: BTreeMap<String, Digest>,
    /// Ids by full name with digest.
    pub digests: BTreeMap<String, Digest>,
    /// Names that only one group of users has, by the group's own name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub views: BTreeMap<String, Names>,
    /// Unpacked layers by diff id.
    pub layers: BTreeMap<Digest, Layer>,
    /// What layers were when they were compressed and sent, by diff id. The blobs are at registries, not here.
    #[serde(default)]
    pub compressed: BTreeMap<Digest, Descriptor>,
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<EntryLayer>,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// Labels, for filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The image that it was built on here.
    #[serde(default)]
    pub parent: Option<Digest>,
    /// Key of the build step that made it.
    #[serde(default)]
    pub cache_key: Option<String>,
    /// When a name was last given to it, nanoseconds since the Unix epoch.
    #[serde(default)]
    pub last_tagged_ns: i64,
}

/// A layer of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EntryLayer {
    /// Digest uncompressed.
    pub diff_id: Digest,
    /// The blob that holds it.
    pub blob: Descriptor,
}

/// An unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// Its short name, for overlayfs' options.
    pub link: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Bytes of the uncompressed archive.
    pub archive_bytes: u64,
    /// Boot in which it was unpacked; `None` once it is surely on the disk.
    #[serde(default)]
    pub unsynced_boot: Option<String>,
}

impl Index {
    /// Reads the file; an empty index when there is none.
    ///
    /// Errors: `NotSupported` for a newer form, `Corrupt` for damage.
    pub fn read(path: &Path) -> Result<Index> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Index { version: VERSION, ..Index::default() });
            }
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()))(error)),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Corrupt(format!("{} is damaged: {error}", path.display())))?;
        if index.version != VERSION {
            let version = index.version;
            return Err(Error::NotSupported(format!("{} has the form {version} of a newer program", path.display())));
        }
        Ok(index)
    }

    /// Replaces the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes =
            serde_json::to_vec(self).map_err(|error| Error::Internal(format!("cannot write the index: {error}")))?;
        replace_file(path, &bytes)
    }

    /// Whether another image was built on this one.
    pub fn has_children(&self, id: &Digest) -> bool {
        self.images.values().any(|entry| entry.parent.as_ref() == Some(id))
    }

    /// Full names with tags of an image.
    pub fn names_of<'a>(&'a self, id: &'a Digest) -> impl Iterator<Item = &'a String> {
        self.names.iter().filter(move |(_, named)| *named == id).map(|(name, _)| name)
    }

    /// Full names with digests of an image.
    pub fn digests_of<'a>(&'a self, id: &'a Digest) -> impl Iterator<Item = &'a String> {
        self.digests.iter().filter(move |(_, named)| *named == id).map(|(name, _)| name)
    }

    /// Bytes of an image's files; of its blobs where layers are not unpacked yet.
    pub fn size_of(&self, entry: &Entry) -> u64 {
        let size = |layer: &EntryLayer| self.layers.get(&layer.diff_id).map_or(layer.blob.size, |l| l.size_bytes);
        entry.layers.iter().map(size).sum()
    }
}
