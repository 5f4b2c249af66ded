//! Contexts: unpacking one that came as an archive, and what `.dockerignore` takes out of it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{FileType, OFlags};

use crate::build::{BuildInputs, files, ignore, lines};
use crate::error::{Error, Result};
use crate::layer::{Decompressor, Limits, UnpackOptions, tree};
use crate::types::Credentials;

/// A context that is here already.
pub(super) struct Unpacked(pub PathBuf);

#[async_trait]
impl BuildInputs for Unpacked {
    async fn context(&self, name: &str, _scratch: &Path) -> Result<PathBuf> {
        if name.is_empty() {
            return Ok(self.0.clone());
        }
        Err(Error::NotFound(format!("no context is named {name}")))
    }

    async fn secret(&self, _id: &str) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    async fn ssh(&self, _id: &str, _scratch: &Path) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    async fn credentials(&self, _registry: &str) -> Result<Option<Credentials>> {
        Ok(None)
    }
}

/// Unpacks a context, reads its Dockerfile, and removes what its `.dockerignore` names.
pub(super) fn unpack(context: &mut dyn Read, root: &Path, limits: Limits, name: &str) -> Result<String> {
    let name = if name.is_empty() { "Dockerfile" } else { name };
    let root = tree::open_root(root)?;
    let options = UnpackOptions { limits, whiteouts: false, owner: Some((0, 0)) };
    crate::layer::unpack(Decompressor::new(context, limits)?, root.as_fd(), &options)?;
    let missing = || Error::Invalid(format!("Cannot locate specified Dockerfile: {name}"));
    let dockerfile = read(root.as_fd(), name)?.ok_or_else(missing)?;
    if let Some(text) = read(root.as_fd(), ".dockerignore")? {
        let ignore = ignore::Ignore::parse(&text)?;
        if !ignore.is_empty() {
            files::remove_ignored(root.as_fd(), "", &ignore, 0)?;
        }
    }
    Ok(dockerfile)
}

fn read(root: BorrowedFd<'_>, name: &str) -> Result<Option<String>> {
    tree::components(name.as_bytes())?;
    let Some((_, stat)) = files::open_source(root, name.as_bytes())? else { return Ok(None) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let file = tree::open_in(root, name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(Error::io(format!("cannot open {name}")))?;
    let mut bytes = Vec::new();
    let most = lines::MAX_DOCKERFILE as u64 + 1;
    std::fs::File::from(file).take(most).read_to_end(&mut bytes).map_err(Error::io(format!("cannot read {name}")))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Removes from a directory what the text of a `.dockerignore` names.
///
/// Errors: `Invalid` for a bad pattern.
pub fn exclude_ignored(root: &Path, text: &str) -> Result<()> {
    let ignore = ignore::Ignore::parse(text)?;
    if ignore.is_empty() {
        return Ok(());
    }
    files::remove_ignored(tree::open_root(root)?.as_fd(), "", &ignore, 0)
}
