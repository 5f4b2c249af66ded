//! What a registry serves from this store: repositories with tags, manifests and links to blobs, and uploads that go on
//! over several requests. One small file that is replaced whole. Must never know HTTP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::store::blobs::{Blobs, Lease, lock, replace_file};
use crate::store::now_ns;

/// Most uploads that may be open at once: each is a file.
const MAX_UPLOADS: usize = 1000;
/// Largest upload, as a bound on disk use by one request chain.
const MAX_UPLOAD_BYTES: u64 = 64 << 30;

/// All repositories.
pub struct Repositories {
    path: PathBuf,
    uploads: PathBuf,
    state: Mutex<BTreeMap<String, Repository>>,
}

/// One repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Repository {
    /// Manifests by tag.
    pub tags: BTreeMap<String, Digest>,
    /// Manifests.
    pub manifests: BTreeMap<Digest, StoredManifest>,
    /// Blobs that may be read through this repository, with the time they came (seconds since the Unix epoch).
    pub blobs: BTreeMap<Digest, i64>,
}

/// A manifest of a repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredManifest {
    /// Its descriptor, as a list of referrers shows it.
    pub descriptor: Descriptor,
    /// The manifest that it says something about.
    #[serde(default)]
    pub subject: Option<Digest>,
    /// Blobs and manifests that it needs.
    #[serde(default)]
    pub needs: Vec<Digest>,
}

/// An upload that goes on.
#[derive(Debug)]
pub struct Upload {
    path: PathBuf,
    /// Bytes so far.
    pub size: u64,
}

impl Repositories {
    pub(super) fn open(dir: &Path) -> Result<Repositories> {
        let path = dir.join("repositories.json");
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Corrupt(format!("{} is damaged: {error}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()))(error)),
        };
        Ok(Repositories { path, uploads: dir.join("uploads"), state: Mutex::new(state) })
    }

    /// Looks at one repository.
    pub fn look<T>(&self, name: &str, read: impl FnOnce(&Repository) -> T) -> Option<T> {
        lock(&self.state).get(name).map(read)
    }

    /// Names of all repositories, sorted.
    pub fn names(&self) -> Vec<String> {
        lock(&self.state).keys().cloned().collect()
    }

    /// Changes one repository in memory and on the disk, or neither. It is made when missing, and goes when empty.
    pub fn change<T>(&self, name: &str, edit: impl FnOnce(&mut Repository) -> Result<T>) -> Result<T> {
        let mut state = lock(&self.state);
        let mut edited = state.clone();
        let repository = edited.entry(name.to_owned()).or_default();
        let result = edit(repository)?;
        if repository.tags.is_empty() && repository.manifests.is_empty() && repository.blobs.is_empty() {
            edited.remove(name);
        }
        self.write(&edited)?;
        *state = edited;
        Ok(result)
    }

    fn write(&self, state: &BTreeMap<String, Repository>) -> Result<()> {
        let bytes = serde_json::to_vec(state).map_err(|error| Error::Internal(error.to_string()))?;
        replace_file(&self.path, &bytes)
    }

    /// Lets a repository serve a blob that is here.
    pub fn link_blob(&self, name: &str, digest: &Digest) -> Result<()> {
        if self.look(name, |repository| repository.blobs.contains_key(digest)) == Some(true) {
            return Ok(());
        }
        self.change(name, |repository| {
            repository.blobs.insert(digest.clone(), now_ns() / 1_000_000_000);
            Ok(())
        })
    }

    /// Whether any repository refers to it.
    pub(super) fn uses(&self, digest: &Digest) -> bool {
        lock(&self.state).values().any(|repository| {
            repository.blobs.contains_key(digest)
                || repository.manifests.contains_key(digest)
                || repository.manifests.values().any(|manifest| manifest.needs.contains(digest))
        })
    }

    /// Forgets blobs that no manifest took up, and uploads that lie still, for so long.
    pub(super) fn forget_stale(&self, age: Duration) -> Result<()> {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        let before = (now_ns() / 1_000_000_000).saturating_sub(seconds);
        let names = self.names();
        for name in names {
            let stale = self.look(&name, |repository| stale_blobs(repository, before)).unwrap_or_default();
            if stale.is_empty() {
                continue;
            }
            self.change(&name, |repository| {
                repository.blobs.retain(|digest, _| !stale.contains(digest));
                Ok(())
            })?;
        }
        for entry in fs::read_dir(&self.uploads).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|data| data.modified()).ok();
            if modified.and_then(|time| time.elapsed().ok()).is_some_and(|passed| passed > age) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Starts an upload to a repository; returns its id.
    pub fn begin_upload(&self, name: &str) -> Result<String> {
        let open = fs::read_dir(&self.uploads).map_err(Error::io("cannot list uploads"))?.count();
        if open >= MAX_UPLOADS {
            return Err(Error::Unavailable("too many uploads are open".to_owned()));
        }
        let id = format!("{:032x}", rand::random::<u128>());
        File::create_new(self.upload_path(name, &id)?).map_err(Error::io("cannot start an upload"))?;
        Ok(id)
    }

    /// An upload belongs to its repository: its file is named by both.
    fn upload_path(&self, name: &str, id: &str) -> Result<PathBuf> {
        if id.len() != 32 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::NotFound("blob upload unknown to registry".to_owned()));
        }
        Ok(self.uploads.join(format!("{id}-{}", &Digest::of(name.as_bytes()).hex()[..16])))
    }

    /// Looks at an upload.
    pub fn upload(&self, name: &str, id: &str) -> Result<Upload> {
        let path = self.upload_path(name, id)?;
        match fs::metadata(&path) {
            Ok(data) => Ok(Upload { path, size: data.len() }),
            Err(_) => Err(Error::NotFound("blob upload unknown to registry".to_owned())),
        }
    }

    /// Throws an upload away.
    pub fn cancel_upload(&self, name: &str, id: &str) -> Result<()> {
        let upload = self.upload(name, id)?;
        fs::remove_file(&upload.path).map_err(Error::io("cannot remove an upload"))
    }
}

fn stale_blobs(repository: &Repository, before: i64) -> Vec<Digest> {
    let needed = |digest: &Digest| repository.manifests.values().any(|manifest| manifest.needs.contains(digest));
    let stale = |(digest, came): &(&Digest, &i64)| **came < before && !needed(digest);
    repository.blobs.iter().filter(stale).map(|(digest, _)| digest.clone()).collect()
}

impl Upload {
    /// Opens it for appending.
    pub fn append(&self) -> Result<File> {
        let mut file = File::options().write(true).open(&self.path).map_err(Error::io("cannot open an upload"))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("cannot open an upload"))?;
        Ok(file)
    }

    /// Whether so many bytes are too many for one upload.
    pub fn is_too_large(size: u64) -> bool {
        size > MAX_UPLOAD_BYTES
    }

    /// Checks the digest of all that was uploaded and makes it a blob.
    ///
    /// Errors: `Corrupt` when it is another; the upload is gone then.
    pub fn finish(self, blobs: &Blobs, digest: &Digest, lease: &Lease) -> Result<u64> {
        let file = File::open(&self.path).map_err(Error::io("cannot read an upload"))?;
        let read = Hasher::new(digest.algorithm()).read(file);
        let (found, size) = read.map_err(Error::io("cannot read an upload"))?;
        if found != *digest {
            let _ = fs::remove_file(&self.path);
            return Err(Error::Corrupt("provided digest did not match uploaded content".to_owned()));
        }
        blobs.adopt(&self.path, digest, lease)?;
        Ok(size)
    }
}
