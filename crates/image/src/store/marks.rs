//! What a container of Docker's sees over its image: `/.dockerenv`, by which programs know that they are in one, and
//! `/etc/mtab`, where old programs look for mounts. They are a layer of the container's own between the image and what it
//! writes, so they are neither changes nor part of a commit.
//!
//! Nothing is ever made inside an image, whose links may lead anywhere: the layer is an own directory, and the image is only
//! looked at.
//!
//! `Source:` moby, `daemon/initlayer`; the kernel's documentation of overlayfs.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::{Timespec, Timestamps, XattrFlags, futimens};

use crate::error::{Error, Result};
use crate::layer::pack;
use crate::layer::unpack::OPAQUE_XATTR;

/// Name of the layer's directory, beside what the container writes.
pub(super) const DIRECTORY: &str = "marks";
/// By which programs know a container.
const FLAG: &str = ".dockerenv";
/// Mode of that file, as dockerd makes it.
const FLAG_MODE: u32 = 0o755;
/// Where mounts are listed for old programs.
const MTAB: &str = "mtab";
/// What that leads to.
const MOUNTS: &str = "/proc/mounts";

/// Makes the layer for an image of these layers, the highest one first. What is there already stays.
pub(super) fn make(directory: &Path, lower: &[PathBuf]) -> Result<()> {
    let failed = || Error::io(format!("cannot make {}", directory.display()));
    let root = lower.first().and_then(|top| std::fs::metadata(top).ok());
    make_directory(directory, root.as_ref()).map_err(failed())?;
    // A directory of the image stays in its place, as with dockerd.
    if !find(lower, FLAG).is_some_and(|(_, found)| found.is_dir()) {
        make_flag(&directory.join(FLAG)).map_err(failed())?;
    }
    let image = find(lower, "etc");
    let own = directory.join("etc");
    match &image {
        // A link or a file: what it means is the image's business.
        Some((_, found)) if !found.is_dir() => return Ok(()),
        _ if has_mtab_directory(lower) => return Ok(()),
        Some((_, found)) => make_directory(&own, Some(found)).map_err(failed())?,
        None => make_directory(&own, None).map_err(failed())?,
    }
    ignore_existing(symlink(MOUNTS, own.join(MTAB))).map_err(failed())?;
    // The highest directory of a name is the one whose attributes are seen.
    match &image {
        Some((layer, found)) => copy_attributes(&layer.join("etc"), found, &own).map_err(failed()),
        None => Ok(()),
    }
}

/// A directory with the mode and owner of another one; without one, root's that all may read.
fn make_directory(path: &Path, like: Option<&Metadata>) -> io::Result<()> {
    ignore_existing(DirBuilder::new().mode(0o700).create(path))?;
    let (mode, owner) = like.map_or((0o755, (0, 0)), |like| (like.mode() & 0o7777, (like.uid(), like.gid())));
    chown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_flag(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(FLAG_MODE).open(path)?;
    fchown(&file, Some(0), Some(0))?;
    file.set_permissions(Permissions::from_mode(FLAG_MODE))
}

fn copy_attributes(from: &Path, found: &Metadata, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::open(to)?);
    for (name, value) in pack::xattrs(from.as_fd()) {
        match rustix::fs::fsetxattr(&to, name.as_str(), &value, XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let time = Timespec { tv_sec: found.mtime(), tv_nsec: found.mtime_nsec() };
    Ok(futimens(&to, &Timestamps { last_access: time, last_modification: time })?)
}

fn ignore_existing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// What the image has of this name at its root, and in which layer. No link is followed.
fn find<'a>(lower: &'a [PathBuf], name: &str) -> Option<(&'a PathBuf, Metadata)> {
    let mut all = lower.iter().filter_map(|layer| Some((layer, layer.join(name).symlink_metadata().ok()?)));
    all.next().filter(|(_, found)| !is_whiteout(found))
}

/// Whether the image has a directory in the place of `/etc/mtab`.
fn has_mtab_directory(lower: &[PathBuf]) -> bool {
    for layer in lower {
        let etc = layer.join("etc");
        match etc.symlink_metadata() {
            Err(_) => continue,
            // Only below a directory there is no link on the way.
            Ok(found) if !found.is_dir() => return false,
            Ok(_) => {}
        }
        if let Ok(found) = etc.join(MTAB).symlink_metadata() {
            return found.is_dir();
        }
        let mut value = [0_u8; 1];
        if rustix::fs::lgetxattr(&etc, OPAQUE_XATTR, &mut value).is_ok_and(|length| length == 1 && value == *b"y") {
            return false;
        }
    }
    false
}

fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}
