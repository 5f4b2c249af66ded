//! What a container of Docker's sees over its image: `/.dockerenv`, by which programs know that they are in one, and
//! `/etc/mtab`, where old programs look for mounts. They are a layer between the image and what the container writes, so
//! they are neither changes nor part of a commit. Containers whose images have the same there share one: a start only looks
//! whether it is there.
//!
//! Nothing is ever made inside an image, whose links may lead anywhere: the layer is a directory of the store's own, and the
//! image is only looked at.
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
use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::pack;
use crate::layer::unpack::OPAQUE_XATTR;

/// The directory of these layers, in that of the store.
pub(super) const DIRECTORY: &str = "marks";
/// How many letters of a digest name one.
const NAME_LETTERS: usize = 32;
/// By which programs know a container.
const FLAG: &str = ".dockerenv";
/// Mode of that file, as dockerd makes it.
const FLAG_MODE: u32 = 0o755;
/// Where mounts are listed for old programs.
const MTAB: &str = "mtab";
/// What that leads to.
const MOUNTS: &str = "/proc/mounts";

/// What a directory is like: mode, owner, group.
type Like = (u32, u32, u32);

/// All that makes one such layer another than the next one.
#[derive(Debug, Serialize)]
struct Layer {
    /// The root.
    root: Like,
    /// Whether the flag is in it.
    flag: bool,
    /// The directory of `mtab`.
    etc: Option<Etc>,
}

#[derive(Debug, Serialize)]
struct Etc {
    like: Like,
    /// Units: seconds and nanoseconds.
    modified: (i64, i64),
    attributes: Vec<(String, Vec<u8>)>,
}

/// The layer for an image of these layers, the highest one first, below the directory `all`; made when there is none yet.
pub(super) fn layer(all: &Path, lower: &[PathBuf]) -> Result<PathBuf> {
    let failed = || Error::io(format!("cannot make a layer in {}", all.display()));
    let wanted = Layer::over(lower).map_err(failed())?;
    let described = serde_json::to_vec(&wanted).map_err(|error| Error::Internal(error.to_string()))?;
    let name: String = Digest::of(&described).hex().chars().take(NAME_LETTERS).collect();
    let path = all.join(&name);
    if path.is_dir() {
        return Ok(path);
    }
    // It appears whole, whoever else makes the same one.
    let temporary = all.join(format!("tmp-{:032x}", rand::random::<u128>()));
    let made = wanted.make(&temporary).and_then(|()| std::fs::rename(&temporary, &path));
    if let Err(error) = made {
        let _ = crate::layer::tree::remove_path(&temporary);
        if !path.is_dir() {
            return Err(failed()(error));
        }
    }
    Ok(path)
}

/// Whether a layer of a snapshot is one of these.
pub(super) fn is_one(layer: &Path) -> bool {
    layer.parent().and_then(Path::file_name).is_some_and(|parent| parent == DIRECTORY)
}

impl Layer {
    fn over(lower: &[PathBuf]) -> io::Result<Self> {
        let root = lower.first().map(std::fs::metadata).transpose()?;
        let root = root.as_ref().map_or(USUAL, like);
        // A directory of the image stays in its place, as with dockerd.
        let flag = !find(lower, FLAG).is_some_and(|(_, found)| found.is_dir());
        let etc = match find(lower, "etc") {
            // A link or a file: what it means is the image's business.
            Some((_, found)) if !found.is_dir() => None,
            _ if has_mtab_directory(lower) => None,
            // The highest directory of a name is the one whose attributes are seen.
            Some((layer, found)) => {
                let attributes = pack::xattrs(File::open(layer.join("etc"))?.as_fd());
                Some(Etc { like: like(&found), modified: (found.mtime(), found.mtime_nsec()), attributes })
            }
            None => Some(Etc { like: USUAL, modified: (0, 0), attributes: Vec::new() }),
        };
        Ok(Self { root, flag, etc })
    }

    fn make(&self, directory: &Path) -> io::Result<()> {
        make_directory(directory, self.root)?;
        if self.flag {
            make_flag(&directory.join(FLAG))?;
        }
        let Some(Etc { like, modified: (seconds, nanoseconds), attributes }) = &self.etc else { return Ok(()) };
        let path = directory.join("etc");
        make_directory(&path, *like)?;
        symlink(MOUNTS, path.join(MTAB))?;
        let opened = File::open(&path)?;
        for (name, value) in attributes {
            match rustix::fs::fsetxattr(&opened, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let time = Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
        Ok(futimens(&opened, &Timestamps { last_access: time, last_modification: time })?)
    }
}

/// Root's, and readable for all.
const USUAL: Like = (0o755, 0, 0);

fn like(found: &Metadata) -> Like {
    (found.mode() & 0o7777, found.uid(), found.gid())
}

fn make_directory(path: &Path, (mode, uid, gid): Like) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    chown(path, Some(uid), Some(gid))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_flag(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(FLAG_MODE).open(path)?;
    fchown(&file, Some(0), Some(0))?;
    file.set_permissions(Permissions::from_mode(FLAG_MODE))
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
