//! Writes a backup: the parts are gathered and digested first, then go into one file behind the manifest, whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::seal::{Key, KeyDerivation};
use super::{CONFIG, COPY_BYTES, FORMAT, MAGIC, MAX_MANIFEST_BYTES, Manifest, PKI, Part, Scratch, sync_directory};
use crate::daemon::control;
use crate::instance::Instance;

/// Takes a backup of the instance, whether its daemon runs or not. Without a passphrase the keys are left out.
///
/// `Errors:` the store cannot be read, or the file cannot be written; nothing is left of it then.
pub fn create(instance: &Instance, target: &Path, passphrase: Option<&str>) -> Result<Manifest> {
    if target.exists() {
        bail!("{} is there already; a backup is never overwritten", target.display());
    }
    let run = instance.path("run");
    std::fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    let lock = File::create(run.join("backup.lock")).context("cannot make the lock of backups")?;
    let Ok(_held) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { bail!("another backup is being taken") };
    let scratch = Scratch::new(run.join("backup"))?;
    let encryption = passphrase.map(|_| KeyDerivation::new()).transpose()?;
    let key = match (&encryption, passphrase) {
        (Some(encryption), Some(passphrase)) => Some(encryption.key(passphrase)?),
        _ => None,
    };
    let state = scratch.0.join("state");
    let (revision, state_part) = control::backup_state(instance, &state)?;
    let mut sources = vec![(state_part.to_owned(), state), (CONFIG.to_owned(), instance.path(CONFIG))];
    if key.is_some() {
        sources.extend(keys(instance)?);
    }
    let mut gathered = Vec::new();
    for (index, (name, source)) in (0_u32..).zip(sources) {
        if source.exists() {
            let staged = scratch.0.join(format!("part-{index}"));
            // The number that a part is sealed under is its place in the manifest.
            let number = u32::try_from(gathered.len())?;
            gathered.push((stage(&name, &source, &staged, key.as_ref(), number)?, staged));
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").into(),
        revision,
        created_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        encryption,
        parts: Vec::new(),
    };
    assemble(target, manifest, gathered)
}

fn keys(instance: &Instance) -> Result<Vec<(String, PathBuf)>> {
    let directory = instance.path("pki");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a file of the certificates has a strange name")?;
        if entry.file_type()?.is_file() && super::is_plain_name(&name) && name != super::TOKEN_KEY {
            found.push((format!("{PKI}{name}"), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Copies a source to where it waits, encrypted when there is a key, and digests what it wrote.
fn stage(name: &str, source: &Path, staged: &Path, key: Option<&Key>, number: u32) -> Result<Part> {
    let read = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut read = BufReader::with_capacity(COPY_BYTES, read);
    let mut write = Digesting { inner: BufWriter::new(private_file(staged)?), digest: Sha256::new(), bytes: 0 };
    match key {
        Some(key) => key.seal(number, &mut read, &mut write)?,
        None => std::io::copy(&mut read, &mut write).map(drop).context("cannot copy a part of the backup")?,
    }
    write.flush()?;
    Ok(Part { name: name.into(), bytes: write.bytes, sha256: hex::encode(write.digest.finalize()) })
}

fn assemble(target: &Path, mut manifest: Manifest, gathered: Vec<(Part, PathBuf)>) -> Result<Manifest> {
    let partial = PathBuf::from(format!("{}.partial", target.display()));
    let (parts, staged): (Vec<Part>, Vec<PathBuf>) = gathered.into_iter().unzip();
    manifest.parts = parts;
    let written = write_whole(&partial, &manifest, &staged).and_then(|()| {
        std::fs::rename(&partial, target).with_context(|| format!("cannot make {}", target.display()))?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_directory(parent.unwrap_or(Path::new(".")))
    });
    if written.is_err() {
        // Best effort; its name says that it is no backup.
        let _ = std::fs::remove_file(&partial);
    }
    written.map(|()| manifest)
}

fn write_whole(partial: &Path, manifest: &Manifest, staged: &[PathBuf]) -> Result<()> {
    let say = || format!("cannot write {}", partial.display());
    let text = serde_json::to_vec(manifest)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= MAX_MANIFEST_BYTES);
    let length = length.context("the manifest is too long")?;
    let file = private_file(partial)?;
    let mut out = Digesting { inner: BufWriter::new(&file), digest: Sha256::new(), bytes: 0 };
    out.write_all(MAGIC).with_context(say)?;
    out.write_all(&length.to_le_bytes()).with_context(say)?;
    out.write_all(&text).with_context(say)?;
    for path in staged {
        let mut read = BufReader::with_capacity(COPY_BYTES, File::open(path)?);
        std::io::copy(&mut read, &mut out).with_context(say)?;
    }
    let Digesting { mut inner, digest, .. } = out;
    inner.write_all(&digest.finalize()).with_context(say)?;
    inner.flush().with_context(say)?;
    drop(inner);
    file.sync_all().with_context(say)
}

fn private_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Counts and digests what passes through.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Copies all of a reader to a new private file.
pub(super) fn save(read: &mut impl Read, path: &Path) -> Result<()> {
    let mut file = private_file(path)?;
    std::io::copy(read, &mut file).with_context(|| format!("cannot write {}", path.display()))?;
    file.sync_all().with_context(|| format!("cannot sync {}", path.display()))
}
