//! Packs the writable directory of an overlay as a layer: overlayfs' whiteouts become `.wh.` names. What a container
//! wrote is hostile: nothing is followed, and depth is bounded.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::layer::read::MAX_PATH;
use crate::layer::tree::{self, MAX_DEPTH};
use crate::layer::unpack::OPAQUE_XATTR;
use crate::layer::write::{Entry, Writer};

/// Files with several names that are remembered; more are packed as files of their own.
const MAX_HARD_LINKS: usize = 1 << 20;
/// Longest extended attribute, as the kernel bounds it.
const MAX_XATTR: usize = 64 << 10;

pub(super) struct Packer<W> {
    pub(super) out: Writer<W>,
    whiteouts: bool,
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// Packs the writable directory of an overlay as an uncompressed layer.
pub fn pack_changes<W: Write>(upper: &Path, out: W) -> Result<W> {
    pack(upper, out, true)
}

/// Packs a whole tree (such as a mounted root file system) as an uncompressed archive.
pub fn pack_tree<W: Write>(root: &Path, out: W) -> Result<W> {
    pack(root, out, false)
}

fn pack<W: Write>(root: &Path, out: W, whiteouts: bool) -> Result<W> {
    let root = tree::open_root(root)?;
    let mut packer = Packer::new(out, whiteouts);
    packer.directory(root.as_fd(), &mut Vec::new(), 0)?;
    packer.finish()
}

pub(super) fn failed(doing: &str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
    Error::io(format!("cannot {doing} {:?}", String::from_utf8_lossy(path)))
}

impl<W: Write> Packer<W> {
    pub(super) fn new(out: W, whiteouts: bool) -> Packer<W> {
        Packer { out: Writer::new(out), whiteouts, links: HashMap::new() }
    }

    pub(super) fn finish(self) -> Result<W> {
        self.out.finish()
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::Hostile(format!("a directory is deeper than {MAX_DEPTH} levels")));
        }
        for name in tree::names(dir).map_err(failed("list", path))? {
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            if path.len() > MAX_PATH {
                return Err(Error::Hostile(format!("a path is longer than {MAX_PATH} bytes")));
            }
            self.child(dir, &name, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// Packs what has this name in a directory, with all that lies below it.
    pub(super) fn child(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()), // gone meanwhile
            Err(error) => return Err(failed("look at", path)(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = fs::openat(dir, name, flags, Mode::empty()).map_err(failed("open", path))?;
                let entry = directory_entry(child.as_fd(), &stat);
                self.out.entry(&[path.as_slice(), b"/"].concat(), &entry, io::empty())?;
                if self.whiteouts && is_opaque(child.as_fd()) {
                    let opaque = [path.as_slice(), b"/.wh..wh..opq"].concat();
                    self.out.entry(&opaque, &Entry::default(), io::empty())?;
                }
                self.directory(child.as_fd(), path, depth + 1)
            }
            FileType::RegularFile => self.regular(dir, name, path, &stat),
            FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new()).map_err(failed("read", path))?;
                let entry = Entry { link: target.into_bytes(), ..entry(b'2', &stat) };
                self.out.entry(path, &entry, io::empty())
            }
            FileType::Fifo => self.out.entry(path, &entry(b'6', &stat), io::empty()),
            FileType::CharacterDevice if stat.st_rdev == 0 && self.whiteouts => {
                let at = path.len() - name.to_bytes().len();
                let whiteout = [&path[..at], b".wh.", name.to_bytes()].concat();
                self.out.entry(&whiteout, &Entry::default(), io::empty())
            }
            // Sockets have no place in an archive, and devices are never unpacked.
            _ => Ok(()),
        }
    }

    fn regular(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<()> {
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&id) {
                let entry = Entry { link: first.clone(), ..entry(b'1', stat) };
                return self.out.entry(path, &Entry { size: 0, ..entry }, io::empty());
            }
            if self.links.len() < MAX_HARD_LINKS {
                self.links.insert(id, path.to_vec());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(dir, name, flags, Mode::empty()).map_err(failed("open", path))?;
        let stat = fs::fstat(&file).map_err(failed("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(()); // replaced meanwhile
        }
        let mut entry = entry(b'0', &stat);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = xattrs(file.as_fd());
        // A file that shrinks while it is read is filled up with zeros: the header is already out.
        self.out.entry(path, &entry, std::fs::File::from(file).chain(io::repeat(0)))
    }
}

pub(super) fn directory_entry(fd: BorrowedFd<'_>, stat: &Stat) -> Entry {
    Entry { xattrs: xattrs(fd), ..entry(b'5', stat) }
}

fn entry(kind: u8, stat: &Stat) -> Entry {
    Entry {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        #[allow(clippy::useless_conversion)] // the type differs between machines
        mtime: i64::try_from(stat.st_mtime).unwrap_or(0),
        ..Entry::default()
    }
}

fn is_opaque(fd: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 1];
    matches!(fs::fgetxattr(fd, OPAQUE_XATTR, &mut value), Ok(1)) && value == *b"y"
}

/// The extended attributes that a layer keeps.
pub(crate) fn xattrs(fd: BorrowedFd<'_>) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0_u8; MAX_XATTR];
    let Ok(length) = fs::flistxattr(fd, &mut list) else { return Vec::new() };
    let mut found = Vec::new();
    for name in list[..length].split(|b| *b == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name != "security.capability" && !name.starts_with("user.") {
            continue;
        }
        let mut value = vec![0_u8; MAX_XATTR];
        if let Ok(length) = fs::fgetxattr(fd, name, &mut value) {
            value.truncate(length);
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    found
}
