//! Small JSON files that come and go atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, IoContext, Result};

/// A bound on what we read back: our files are a few hundred bytes, publications of many ports some kilobytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// How the names of this process' temporary files begin.
fn own_prefix() -> String {
    format!(".tmp-{}-", std::process::id())
}

/// Writes a temporary file next to `path`.
fn write_temporary<T: Serialize>(path: &Path, value: &T) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!("{}{number}", own_prefix()));
    let bytes = serde_json::to_vec(value).map_err(io::Error::from).at("encode", path)?;
    File::create(&temporary).and_then(|mut f| f.write_all(&bytes)).at("write", &temporary)?;
    Ok(temporary)
}

/// Makes the file, with its content, unless there is one. Whether it was made.
pub(crate) fn create<T: Serialize>(path: &Path, value: &T) -> Result<bool> {
    let temporary = write_temporary(path, value)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary).at("remove", &temporary)?;
    match linked {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).at("create", path),
    }
}

/// Makes or replaces the file.
pub(crate) fn replace<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let temporary = write_temporary(path, value)?;
    fs::rename(&temporary, path).at("replace", path)
}

/// Removes the file; it may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// Reads all files of a directory, by name. Left-over temporary files and files that make no sense are removed.
pub(crate) fn read_all<T: DeserializeOwned>(directory: &Path) -> Result<Vec<(String, T)>> {
    fs::create_dir_all(directory).at("create", directory)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).at("list", directory)? {
        let path = entry.at("list", directory)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            continue;
        }
        // A temporary file of this very process is being written by another thread.
        if name.starts_with(&own_prefix()) {
            continue;
        }
        match read(&path) {
            Ok(value) if !name.starts_with('.') => found.push((name, value)),
            _ => {
                tracing::warn!(path = %path.display(), "dropping a file that was written only in part");
                remove(&path)?;
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let size = fs::metadata(path).at("read", path)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Error::Invalid(format!("{} is too large", path.display())));
    }
    serde_json::from_slice(&fs::read(path).at("read", path)?).map_err(io::Error::from).at("decode", path)
}
