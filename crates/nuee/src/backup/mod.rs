//! One file that holds a Nuée at one revision: its objects, its settings and, under a passphrase, its keys.
//!
//! ```text
//! file = magic [8] | length of the manifest u32 | manifest (JSON) | parts, back to back | SHA-256 of all before [32]
//! ```
//! The manifest names each part with its length and SHA-256. A file of which any byte is changed or missing is refused as a
//! whole, before anything is made of it. `seal` encrypts parts; `create` writes the file; `restore` makes a data directory of it.

mod create;
mod restore;
mod seal;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use create::create;
pub use restore::{restore, verify};

const MAGIC: &[u8; 8] = b"NUEEFILE";
/// Newest format that this program writes and reads.
const FORMAT: u32 = 1;
/// Longest manifest; it names a dozen parts. Units: bytes.
const MAX_MANIFEST_BYTES: u32 = 1024 * 1024;
/// Length of SHA-256. Units: bytes.
const DIGEST_BYTES: u64 = 32;
/// How much is copied at once. Units: bytes.
const COPY_BYTES: usize = 128 * 1024;

/// The part that holds the objects of an embedded store.
const STORE: &str = "store";
/// The part that holds etcd's own snapshot.
const ETCD_SNAPSHOT: &str = "etcd-snapshot";
/// The part that holds the settings.
const CONFIG: &str = "config.yaml";
/// Prefix of the parts that hold certificates and keys.
const PKI: &str = "pki/";
/// The key that signs service account tokens. It is never restored: tokens that were revoked after the backup must stay so.
const TOKEN_KEY: &str = "service-account.key";

/// What a backup holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Revision of the store that it holds.
    pub revision: u64,
    /// When it was taken, RFC 3339.
    pub created_at: String,
    /// How the parts are encrypted; `None`: they are not.
    pub encryption: Option<seal::KeyDerivation>,
    /// Its parts, in the order in which they follow.
    pub parts: Vec<Part>,
}

/// One part of a backup.
#[derive(Debug, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Its length in the file.
    pub bytes: u64,
    /// Digest of these bytes, hexadecimal.
    pub sha256: String,
}

/// An open backup whose bytes are all as they were written.
struct Whole {
    file: File,
    manifest: Manifest,
    /// Where the first part begins.
    parts_at: u64,
}

impl Whole {
    /// Opens a backup and checks all of it.
    fn open(path: &Path) -> Result<Whole> {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        check_digest(&mut file).with_context(|| format!("{} is refused", path.display()))?;
        file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        ensure!(length <= MAX_MANIFEST_BYTES, "the manifest is too long");
        let mut text = vec![0; usize::try_from(length)?];
        file.read_exact(&mut text)?;
        let format: Format = serde_json::from_slice(&text).context("the manifest cannot be read")?;
        if format.format > FORMAT {
            bail!("the backup was made by a newer program (format {}, this one reads {FORMAT})", format.format);
        }
        let manifest: Manifest = serde_json::from_slice(&text).context("the manifest cannot be read")?;
        let whole = Whole { file, manifest, parts_at: MAGIC.len() as u64 + 4 + u64::from(length) };
        whole.check_parts()?;
        Ok(whole)
    }

    fn check_parts(&self) -> Result<()> {
        let lengths = self.manifest.parts.iter().map(|part| part.bytes);
        let end = lengths.chain([DIGEST_BYTES]).try_fold(self.parts_at, u64::checked_add);
        ensure!(end == Some(self.file.metadata()?.len()), "the manifest does not fit the file");
        for index in 0..self.manifest.parts.len() {
            let part = &self.manifest.parts[index];
            let known = part.name.strip_prefix(PKI).is_some_and(is_plain_name)
                || [STORE, ETCD_SNAPSHOT, CONFIG].contains(&part.name.as_str());
            ensure!(known, "a part has an unknown name: {:?}", part.name);
            let digest = digest_of(&mut self.part(index)?)?;
            ensure!(digest == part.sha256, "the digest of the part {} does not match the manifest", part.name);
        }
        Ok(())
    }

    /// The stored bytes of a part.
    fn part(&self, index: usize) -> Result<impl Read + use<>> {
        let before: u64 = self.manifest.parts[..index].iter().map(|part| part.bytes).sum();
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(self.parts_at + before))?;
        Ok(BufReader::with_capacity(COPY_BYTES, file).take(self.manifest.parts[index].bytes))
    }

    /// The key for the parts; `None` when they are not encrypted.
    fn key(&self, passphrase: Option<&str>) -> Result<Option<seal::Key>> {
        match (&self.manifest.encryption, passphrase) {
            (None, _) => Ok(None),
            (Some(derivation), Some(passphrase)) => derivation.key(passphrase).map(Some),
            (Some(_), None) => bail!("the backup is encrypted; name the file with its passphrase (--passphrase-file)"),
        }
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// Holds the file's last bytes against the digest of those before.
fn check_digest(file: &mut File) -> Result<()> {
    let length = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    if length < MAGIC.len() as u64 + 4 + DIGEST_BYTES || file.read_exact(&mut magic).is_err() || &magic != MAGIC {
        bail!("it is not a backup of Nuée");
    }
    file.rewind()?;
    let content = digest_of(&mut BufReader::with_capacity(COPY_BYTES, &*file).take(length - DIGEST_BYTES))?;
    let mut end = [0; 32];
    file.seek(SeekFrom::Start(length - DIGEST_BYTES))?;
    file.read_exact(&mut end)?;
    ensure!(content == hex::encode(end), "it is damaged or not whole: its digest does not match");
    Ok(())
}

fn digest_of(input: &mut impl Read) -> Result<String> {
    let mut digest = Sha256::new();
    std::io::copy(input, &mut digest)?;
    Ok(hex::encode(digest.finalize()))
}

/// A directory for work in progress; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    /// A new one of this name; what an interrupted run left there is removed.
    fn new(path: PathBuf) -> Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt;
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort; the next run removes what is left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Flushes a directory, so that the names in it last.
fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)?.sync_all().with_context(|| format!("cannot sync {}", path.display()))
}

#[cfg(test)]
mod tests;
