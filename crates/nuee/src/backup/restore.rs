//! Makes a data directory of a backup. Everything is checked first and made beside the place where it will be; one rename puts it
//! there, so that a restore that fails or is killed leaves nothing that looks like a Nuée.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::create::save;
use super::{ETCD_SNAPSHOT, Manifest, PKI, STORE, Scratch, TOKEN_KEY, Whole, seal, sync_directory};

/// What a restore made.
pub struct Restored {
    /// What the backup holds.
    pub manifest: Manifest,
    /// Revision at which the restored store begins; `None` when its objects are in an etcd snapshot.
    pub revision: Option<u64>,
    /// etcd's snapshot, which etcd's own tool has to restore.
    pub etcd_snapshot: Option<PathBuf>,
}

/// Checks a backup without restoring it. Without its passphrase an encrypted one is checked by its digests alone.
///
/// `Errors:` it is damaged, not whole, of a newer program, or the passphrase is wrong.
pub fn verify(file: &Path, passphrase: Option<&str>) -> Result<Manifest> {
    let whole = Whole::open(file)?;
    if whole.manifest.encryption.is_some() && passphrase.is_none() {
        return Ok(whole.manifest);
    }
    let key = whole.key(passphrase)?;
    let scratch = Scratch::new(beside(file, ".verifying"))?;
    for index in 0..whole.manifest.parts.len() {
        let path = scratch.0.join("part");
        unpack(&whole, index, key.as_ref(), &path)?;
        if whole.manifest.parts[index].name == STORE {
            check_store(&path, &whole.manifest)?;
        }
    }
    Ok(whole.manifest)
}

/// Makes the data directory `directory`, which must be missing or empty, from a backup.
///
/// `Errors:` as [`verify`]; there is something in the directory; the disk is full. Nothing is made then.
pub fn restore(file: &Path, directory: &Path, passphrase: Option<&str>) -> Result<Restored> {
    if std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; a restore makes a new Nuée and never changes one", directory.display());
    }
    let whole = Whole::open(file)?;
    let key = whole.key(passphrase)?;
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let scratch = Scratch::new(beside(directory, ".restoring"))?;
    let made = scratch.0.join("data");
    DirBuilder::new().mode(0o711).create(&made).with_context(|| format!("cannot make {}", made.display()))?;
    let (mut revision, mut etcd_snapshot) = (None, None);
    for index in 0..whole.manifest.parts.len() {
        match whole.manifest.parts[index].name.as_str() {
            STORE => {
                let part = scratch.0.join("part");
                unpack(&whole, index, key.as_ref(), &part)?;
                check_store(&part, &whole.manifest)?;
                let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
                let restored = store::EmbeddedStore::restore(&part, &made.join("store"), now);
                revision = Some(restored.context("cannot restore the store")?);
            }
            ETCD_SNAPSHOT => {
                unpack(&whole, index, key.as_ref(), &made.join(ETCD_SNAPSHOT))?;
                etcd_snapshot = Some(directory.join(ETCD_SNAPSHOT));
            }
            name => {
                if let Some(file) = name.strip_prefix(PKI) {
                    let pki = made.join("pki");
                    if !pki.exists() {
                        DirBuilder::new().mode(0o700).create(&pki)?;
                    }
                    if file == TOKEN_KEY {
                        continue;
                    }
                }
                unpack(&whole, index, key.as_ref(), &made.join(name))?;
            }
        }
    }
    if made.join("pki").exists() {
        sync_directory(&made.join("pki"))?;
    }
    sync_directory(&made)?;
    std::fs::rename(&made, directory).with_context(|| format!("cannot make {}", directory.display()))?;
    sync_directory(directory.parent().unwrap_or(Path::new("/")))?;
    Ok(Restored { manifest: whole.manifest, revision, etcd_snapshot })
}

fn unpack(whole: &Whole, index: usize, key: Option<&seal::Key>, path: &Path) -> Result<()> {
    let mut stored = whole.part(index)?;
    let name = &whole.manifest.parts[index].name;
    match key {
        None => save(&mut stored, path),
        Some(key) => {
            let mut out = std::fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(out.write(true).create(true).truncate(true), 0o600);
            let mut out = out.open(path).with_context(|| format!("cannot make {}", path.display()))?;
            key.open(u32::try_from(index)?, &mut stored, &mut out).with_context(|| format!("cannot open {name}"))?;
            out.sync_all().with_context(|| format!("cannot sync {}", path.display()))
        }
    }
}

fn check_store(part: &Path, manifest: &Manifest) -> Result<()> {
    let found = store::EmbeddedStore::verify_backup(part).context("the store in the backup is damaged")?;
    if found != manifest.revision {
        bail!("the store in the backup has revision {found}, the manifest says {}", manifest.revision);
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}
