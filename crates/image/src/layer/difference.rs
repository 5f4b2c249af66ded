//! Packs as a layer what one tree has otherwise than another: both are mounted images of one store, the second one lies under
//! the new layer. Files are told apart by their place on the disk first: images that share a layer share its files.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::pack::{self, Packer};
use crate::layer::read::MAX_PATH;
use crate::layer::tree::{self, MAX_DEPTH};
use crate::layer::write::Entry;

/// A directory on the way to what is packed; told only when something below it is.
struct Parent {
    path: Vec<u8>,
    entry: Entry,
    told: bool,
}

struct Difference<W> {
    packer: Packer<W>,
    parents: Vec<Parent>,
}

/// Packs, as an uncompressed layer, what makes the tree `after` of the tree `before`.
pub fn pack_difference<W: Write>(before: &Path, after: &Path, out: W) -> Result<W> {
    let (before, after) = (tree::open_root(before)?, tree::open_root(after)?);
    let mut difference = Difference { packer: Packer::new(out, false), parents: Vec::new() };
    difference.directory(before.as_fd(), after.as_fd(), &mut Vec::new(), 0)?;
    difference.packer.finish()
}

impl<W: Write> Difference<W> {
    fn directory(
        &mut self,
        before: BorrowedFd<'_>,
        after: BorrowedFd<'_>,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::Hostile(format!("a directory is deeper than {MAX_DEPTH} levels")));
        }
        let length = path.len();
        for name in tree::names(after).map_err(pack::failed("list", path))? {
            below(path, name.to_bytes())?;
            self.child(before, after, &name, path, depth)?;
            path.truncate(length);
        }
        for name in tree::names(before).map_err(pack::failed("list", path))? {
            if look(after, &name, path)?.is_none() {
                below(path, &[b".wh.", name.to_bytes()].concat())?;
                self.tell_parents()?;
                self.packer.out.entry(path, &Entry::default(), io::empty())?;
                path.truncate(length);
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        before: BorrowedFd<'_>,
        after: BorrowedFd<'_>,
        name: &CStr,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        let Some(new) = look(after, name, path)? else { return Ok(()) };
        let old = look(before, name, path)?;
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match old {
            Some(old) if is_directory(&old) && is_directory(&new) => {
                let (before, after) = (open(before, name, path)?, open(after, name, path)?);
                let was = pack::directory_entry(before.as_fd(), &old);
                let entry = pack::directory_entry(after.as_fd(), &new);
                let is_same = same_attributes(&old, &new) && same_extended(&was, &entry);
                self.parents.push(Parent { path: [path.as_slice(), b"/"].concat(), entry, told: false });
                if !is_same {
                    self.tell_parents()?;
                }
                self.directory(before.as_fd(), after.as_fd(), path, depth + 1)?;
                self.parents.pop();
                Ok(())
            }
            // Two of the same place on the disk are one file, if nothing says otherwise.
            Some(old) if !is_directory(&new) && old.st_ino == new.st_ino && same_attributes(&old, &new) => Ok(()),
            _ => {
                self.tell_parents()?;
                self.packer.child(after, name, path, depth)
            }
        }
    }

    /// A layer says of every directory that it has what the directory is like.
    fn tell_parents(&mut self) -> Result<()> {
        for parent in self.parents.iter_mut().filter(|parent| !parent.told) {
            self.packer.out.entry(&parent.path, &parent.entry, io::empty())?;
            parent.told = true;
        }
        Ok(())
    }
}

fn below(path: &mut Vec<u8>, name: &[u8]) -> Result<()> {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    if path.len() > MAX_PATH {
        return Err(Error::Hostile(format!("a path is longer than {MAX_PATH} bytes")));
    }
    Ok(())
}

fn look(dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Option<Stat>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(pack::failed("look at", path)(error)),
    }
}

fn open(dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty()).map_err(pack::failed("open", path))
}

/// The size of a directory says nothing.
fn same_attributes(old: &Stat, new: &Stat) -> bool {
    let plain = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
    (old.st_mode, old.st_uid, old.st_gid, old.st_mtime, old.st_mtime_nsec)
        == (new.st_mode, new.st_uid, new.st_gid, new.st_mtime, new.st_mtime_nsec)
        && (!plain(new) || old.st_size == new.st_size)
}

/// Whether two have the same extended attributes, in whatever order.
fn same_extended(old: &Entry, new: &Entry) -> bool {
    let set = |entry: &Entry| entry.xattrs.iter().cloned().collect::<BTreeSet<_>>();
    set(old) == set(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_attributes_are_compared_as_a_set() {
        let entry = |names: &[&str]| Entry {
            xattrs: names.iter().map(|name| ((*name).to_owned(), b"value".to_vec())).collect(),
            ..Entry::default()
        };
        assert!(same_extended(&entry(&["user.a", "user.b"]), &entry(&["user.b", "user.a"])));
        assert!(!same_extended(&entry(&["user.a"]), &entry(&["user.a", "system.posix_acl_access"])));
    }
}
