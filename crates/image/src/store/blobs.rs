//! Blobs by digest in a directory. A blob becomes visible by one rename after all of it is on the disk, so that a crash
//! leaves either all of it or nothing. Must never know what a blob means.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};

/// Largest manifest or configuration that is read into memory. Source: OCI distribution specification (4 MiB).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// What is in use right now, although no image refers to it yet.
type Leases = Arc<Mutex<HashMap<Digest, usize>>>;

/// A directory of blobs.
pub struct Blobs {
    dir: PathBuf,
    ingest: PathBuf,
    leases: Leases,
}

/// Keeps blobs and layers from being collected as garbage while an operation works with them. Dropping it ends that.
pub struct Lease {
    leases: Leases,
    held: Mutex<Vec<Digest>>,
}

impl Lease {
    /// Keeps this digest, whether it exists yet or not. Look whether it exists after this, not before.
    pub fn keep(&self, digest: &Digest) {
        *lock(&self.leases).entry(digest.clone()).or_default() += 1;
        lock(&self.held).push(digest.clone());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.leases);
        for digest in lock(&self.held).drain(..) {
            if let Some(count) = leases.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    leases.remove(&digest);
                }
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The data behind our mutexes is changed in single steps: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blobs {
    /// Opens the directory, and throws away what a crash left half written.
    pub fn open(root: &Path) -> Result<Blobs> {
        let blobs = Blobs { dir: root.join("blobs"), ingest: root.join("ingest"), leases: Leases::default() };
        for dir in [blobs.dir.join("sha256"), blobs.dir.join("sha512"), blobs.ingest.clone()] {
            fs::create_dir_all(&dir).map_err(Error::io(format!("cannot make {}", dir.display())))?;
        }
        for entry in fs::read_dir(&blobs.ingest).map_err(Error::io("cannot list ingest"))?.flatten() {
            // Partial downloads are kept: a pull goes on where it was.
            if !entry.file_name().as_encoded_bytes().starts_with(b"partial-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(blobs)
    }

    /// A lease on nothing yet.
    pub fn lease(&self) -> Lease {
        Lease { leases: self.leases.clone(), held: Mutex::default() }
    }

    /// Calls `remove` unless the digest is leased, with leases standing still meanwhile.
    pub fn unless_leased(&self, digest: &Digest, remove: impl FnOnce()) -> bool {
        let leases = lock(&self.leases);
        let free = !leases.contains_key(digest);
        if free {
            remove();
        }
        free
    }

    /// Where the blob lies, if it does.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.algorithm().name()).join(digest.hex())
    }

    /// Bytes of the blob; `None` when it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|data| data.len())
    }

    /// Whether the blob is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// Opens the blob.
    pub fn file(&self, digest: &Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(format!("content {digest} not found")),
            _ => Error::io(format!("cannot open blob {digest}"))(error),
        })
    }

    /// Reads a manifest or configuration, and checks its digest once more.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let file = self.file(digest)?;
        let size = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_DOCUMENT);
        // With room for all of it and one byte more, the end is seen by the second read.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        let mut file = file.take(MAX_DOCUMENT + 1);
        file.read_to_end(&mut bytes).map_err(Error::io(format!("cannot read blob {digest}")))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::Invalid(format!("document {digest} is larger than {MAX_DOCUMENT} bytes")));
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(Error::Corrupt(format!("blob {digest} is damaged on the disk")));
        }
        Ok(bytes)
    }

    /// Reads all of a blob once more. Errors: `Corrupt` when it is not what it was.
    pub fn verify(&self, digest: &Digest) -> Result<()> {
        verify(digest, &self.file(digest)?)
    }

    /// Stores a small document.
    pub fn put(&self, bytes: &[u8], lease: &Lease) -> Result<Digest> {
        self.put_as(Algorithm::Sha256, bytes, lease)
    }

    /// Stores a small document under a digest of this kind.
    pub fn put_as(&self, algorithm: Algorithm, bytes: &[u8], lease: &Lease) -> Result<Digest> {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        let digest = hasher.finish();
        lease.keep(&digest);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut ingest = self.begin(algorithm)?;
        ingest.write_all(bytes).map_err(Error::io("cannot write a blob"))?;
        Ok(ingest.commit(None, lease)?.0)
    }

    /// Starts to write a blob.
    pub fn begin(&self, algorithm: Algorithm) -> Result<Ingest<'_>> {
        let path = self.ingest.join(format!("{:032x}", rand::random::<u128>()));
        let file = File::options()
            .write(true)
            .read(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Ingest { blobs: self, path: Some(path), file, hasher: Hasher::new(algorithm), size: 0 })
    }

    /// Makes a file that lies beside the blobs (a finished download or upload) into a blob. Its digest must be known
    /// already from its bytes.
    pub fn adopt(&self, path: &Path, digest: &Digest, lease: &Lease) -> Result<()> {
        lease.keep(digest);
        let doing = || format!("cannot store blob {digest}");
        File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(doing()))?;
        let target = self.path(digest);
        fs::rename(path, &target).map_err(Error::io(doing()))?;
        sync_parent(&target)
    }

    /// Where a partial download of this blob is kept.
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.ingest.join(format!("partial-{}-{}", digest.algorithm().name(), digest.hex()))
    }

    /// Throws away downloads that nobody went on with for so long. Returns the bytes won.
    pub fn remove_stale_partials(&self, age: std::time::Duration) -> u64 {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.ingest).into_iter().flatten().flatten() {
            let Ok(data) = entry.metadata() else { continue };
            let old = data.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|passed| passed > age);
            if entry.file_name().as_encoded_bytes().starts_with(b"partial-") && old {
                bytes += data.len();
                let _ = fs::remove_file(entry.path());
            }
        }
        bytes
    }

    /// All blobs with their sizes.
    pub fn all(&self) -> Result<Vec<(Digest, u64)>> {
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let dir = self.dir.join(algorithm);
            for entry in fs::read_dir(&dir).map_err(Error::io(format!("cannot list {}", dir.display())))?.flatten() {
                let name = entry.file_name();
                let digest = format!("{algorithm}:{}", name.to_string_lossy()).parse();
                if let (Ok(digest), Ok(data)) = (digest, entry.metadata()) {
                    found.push((digest, data.len()));
                }
            }
        }
        Ok(found)
    }
}

/// Reads all of a blob's file once more. Errors: `Corrupt` when it is not what it was.
pub(crate) fn verify(digest: &Digest, mut file: &File) -> Result<()> {
    let read = file.rewind().and_then(|()| Hasher::new(digest.algorithm()).read(file));
    let (found, _) = read.map_err(Error::io(format!("cannot read blob {digest}")))?;
    if found == *digest { Ok(()) } else { Err(Error::Corrupt(format!("blob {digest} is damaged on the disk"))) }
}

/// Puts a rename onto the disk.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io(format!("cannot sync {}", parent.display())))
}

/// Like [`replace_file`], but comes to the disk after the return: for what is acknowledged elsewhere and can be made again,
/// where the wait for the disk would be part of every start of a container.
pub(crate) fn replace_file_soon(path: &Path, bytes: &[u8]) -> Result<()> {
    write_and_rename(path, bytes, false)?;
    let path = path.to_owned();
    let sync = move || {
        // It may be gone again; and a failing disk is told by whatever must be durable.
        let _ = File::open(&path).and_then(|file| file.sync_all());
        let _ = sync_parent(&path);
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(sync)),
        Err(_) => sync(),
    }
    Ok(())
}

/// Replaces a small file so that a crash leaves the old or the new one whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_and_rename(path, bytes, true)?;
    sync_parent(path)
}

fn write_and_rename(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let temporary = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let doing = || format!("cannot write {}", path.display());
    let write = || -> io::Result<()> {
        let mut file = File::create_new(&temporary)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(doing())(error));
    }
    Ok(())
}

/// A blob that is being written. Dropped without a commit, it was never there.
pub struct Ingest<'a> {
    blobs: &'a Blobs,
    path: Option<PathBuf>,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Ingest<'_> {
    /// Digest of what was written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Makes the blob visible.
    ///
    /// Errors: `Corrupt` when it is not what was expected.
    pub fn commit(mut self, expected: Option<&Digest>, lease: &Lease) -> Result<(Digest, u64)> {
        let digest = self.digest();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::Corrupt(format!("the content has digest {digest}, not {expected}")));
        }
        let path = self.path.take().ok_or_else(|| Error::Internal("blob committed twice".to_owned()))?;
        lease.keep(&digest);
        // What is here already was checked when it came.
        if self.blobs.size(&digest) == Some(self.size) {
            let _ = fs::remove_file(&path);
            return Ok((digest, self.size));
        }
        let adopted = self.blobs.adopt(&path, &digest, lease);
        if adopted.is_err() {
            let _ = fs::remove_file(&path);
        }
        adopted.map(|()| (digest, self.size))
    }
}

impl Write for Ingest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Ingest<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_become_visible_whole_and_only_with_the_right_digest() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let lease = blobs.lease();
        let wrong = Digest::of(b"other");
        let mut ingest = blobs.begin(Algorithm::Sha256).unwrap();
        ingest.write_all(b"content").unwrap();
        assert!(matches!(ingest.commit(Some(&wrong), &lease), Err(Error::Corrupt(_))));
        assert!(blobs.all().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
        let digest = blobs.put(b"content", &lease).unwrap();
        assert_eq!(blobs.document(&digest).unwrap(), b"content");
        fs::write(blobs.path(&digest), b"damaged").unwrap();
        assert!(matches!(blobs.document(&digest), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_lease_holds_until_its_last_holder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let (one, two) = (blobs.lease(), blobs.lease());
        let digest = blobs.put(b"x", &one).unwrap();
        two.keep(&digest);
        drop(one);
        assert!(!blobs.unless_leased(&digest, || ()));
        drop(two);
        assert!(blobs.unless_leased(&digest, || ()));
    }
}
