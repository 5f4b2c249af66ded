//! Unpacks an archive below a directory. The archive is hostile until proven otherwise: every path goes through
//! [`tree`](crate::layer::tree), existing files are unlinked rather than opened, device nodes are left out, and all is
//! bounded. Whiteouts become overlayfs' own.
//! Sources: OCI image specification, layer.md; overlayfs in the kernel's documentation.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, from_io};
use crate::layer::read::{Archive, Header, Kind};
use crate::layer::tree::{self, components, make_directories_as, open_in, part};
use crate::layer::{Limits, copy_buffered};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";
/// overlayfs' mark on a directory that hides what lies below it.
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const CAPABILITY_XATTR: &str = "security.capability";
/// Names of directories that are kept to restore their times; beyond it times are not restored.
const MAX_KEPT_NAMES: usize = 64 << 20;
/// Largest total of extended attributes of one entry, as the kernel bounds one of them.
const MAX_XATTRS: usize = 64 << 10;
/// Bytes of an archive that are read at once.
const READ_BYTES: usize = 128 << 10;

/// How to unpack.
#[derive(Clone, Debug, Default)]
pub struct UnpackOptions {
    /// Bounds.
    pub limits: Limits,
    /// Turn `.wh.` names into overlayfs' whiteouts; otherwise they are plain files.
    pub whiteouts: bool,
    /// Everything belongs to this user and group (ADD and COPY).
    pub owner: Option<(u32, u32)>,
}

/// What an archive held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Device nodes that were left out.
    pub devices_left_out: u64,
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    options: &'a UnpackOptions,
    done: Unpacked,
    /// The directory of the last entry: most entries follow their sibling.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    directory_times: Vec<(Vec<u8>, i64)>,
    kept_names: usize,
    /// Paths whited out so far, for directories that come back under the same name.
    whited_out: HashSet<Vec<u8>>,
}

/// Unpacks a tar archive below `root`, reads it to its end, and says what it held.
///
/// Errors: `Hostile` for what no honest archive does and for broken bounds; the caller throws the directory away.
pub fn unpack(archive: impl Read, root: BorrowedFd<'_>, options: &UnpackOptions) -> Result<Unpacked> {
    unpack_buffered(BufReader::with_capacity(READ_BYTES, archive), root, options)
}

/// As [`unpack`], from a reader whose buffer is what files are written from: a large one.
pub fn unpack_buffered(archive: impl BufRead, root: BorrowedFd<'_>, options: &UnpackOptions) -> Result<Unpacked> {
    let mut archive = Archive::new(archive, options.limits.entries);
    let mut unpacker = Unpacker {
        root,
        options,
        done: Unpacked::default(),
        last_parent: None,
        directory_times: Vec::new(),
        kept_names: 0,
        whited_out: HashSet::new(),
    };
    while let Some(header) = archive.next()? {
        unpacker.entry(&header, &mut archive)?;
    }
    archive.drain()?;
    unpacker.restore_times();
    Ok(unpacker.done)
}

fn failed(doing: &str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
    let path: String = String::from_utf8_lossy(path).chars().take(120).collect();
    let doing = format!("cannot {doing} {path:?} of the archive");
    move |error| match error {
        // These come from the archive's own contradictions (a file where a directory is needed).
        Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::EXIST => Error::Hostile(format!("{doing}: {error}")),
        other => Error::Io { doing, source: other.into() },
    }
}

impl Unpacker<'_> {
    fn entry(&mut self, header: &Header, data: &mut impl BufRead) -> Result<()> {
        self.done.entries += 1;
        let parts = components(&header.path)?;
        let Some((name, parents)) = parts.split_last() else {
            // The root itself: only its attributes.
            if header.kind != Kind::Directory {
                return Err(Error::Hostile("the root of the archive is no directory".to_owned()));
            }
            let root = open_in(self.root, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open", b"/"))?;
            return self.attributes(root.as_fd(), header, b"/");
        };
        let parent_path = parents.join(&b'/');
        let parent = match self.last_parent.take() {
            Some((path, fd)) if path == parent_path => fd,
            _ => make_directories_as(self.root, parents, self.options.owner)?,
        };
        let whole = parts.join(&b'/');
        if self.options.whiteouts && name.starts_with(WHITEOUT) {
            self.whiteout(parent.as_fd(), name, &parent_path)?;
        } else {
            self.place(parent.as_fd(), header, name, &whole, data)?;
        }
        // After a link or a replaced directory the same path may mean another directory.
        if matches!(header.kind, Kind::Regular | Kind::Device | Kind::Fifo) {
            self.last_parent = Some((parent_path, parent));
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &[u8], parent_path: &[u8]) -> Result<()> {
        if name == OPAQUE {
            return fs::fsetxattr(parent, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(failed("mark", parent_path));
        }
        if name.starts_with(RESERVED) {
            return Ok(()); // aufs' own bookkeeping
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::Hostile("a whiteout of a directory's own or parent's name".to_owned()));
        }
        let target = part(hidden)?;
        match tree::kind_of(parent, &target).map_err(failed("look at", hidden))? {
            // A whiteout hides what lies below this layer, never this layer's own entries.
            Some(FileType::Directory) => {
                let dir =
                    fs::openat(parent, &target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(failed("open", hidden))?;
                fs::fsetxattr(&dir, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(failed("mark", hidden))
            }
            Some(_) => Ok(()),
            None => {
                fs::mknodat(parent, &target, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(failed("make a whiteout of", hidden))?;
                self.whited_out.insert([parent_path, hidden].join(&b'/'));
                Ok(())
            }
        }
    }

    fn place(
        &mut self,
        parent: BorrowedFd<'_>,
        header: &Header,
        name: &[u8],
        whole: &[u8],
        data: &mut impl BufRead,
    ) -> Result<()> {
        let target = part(name)?;
        let existing = tree::kind_of(parent, &target).map_err(failed("look at", whole))?;
        let both_directories = existing == Some(FileType::Directory) && header.kind == Kind::Directory;
        if header.kind == Kind::Device {
            self.done.devices_left_out += 1;
            return Ok(());
        }
        // Resolve a hard link before its own name goes, or a link to itself would lose the file.
        let source = if header.kind == Kind::HardLink { Some(self.link_source(header, whole)?) } else { None };
        if let Some((dir, name)) = &source
            && same_file(dir.as_fd(), name, parent, &target)
        {
            return Ok(());
        }
        if existing.is_some() && !both_directories {
            tree::remove(parent, &target).map_err(failed("replace", whole))?;
        }
        match header.kind {
            Kind::Directory => self.directory(parent, header, &target, whole, both_directories),
            Kind::Regular => self.regular(parent, header, &target, whole, data),
            Kind::Symlink => {
                fs::symlinkat(header.link.as_slice(), parent, &target).map_err(failed("make", whole))?;
                self.attributes_of_name(parent, &target, header, whole)
            }
            Kind::Fifo => {
                fs::mknodat(parent, &target, FileType::Fifo, Mode::from_raw_mode(header.mode & 0o777), 0)
                    .map_err(failed("make", whole))?;
                self.attributes_of_name(parent, &target, header, whole)
            }
            Kind::HardLink => match source {
                Some((dir, source)) => {
                    fs::linkat(&dir, &source, parent, &target, AtFlags::empty()).map_err(failed("link", whole))
                }
                None => Ok(()),
            },
            Kind::Device => Ok(()),
        }
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        header: &Header,
        target: &CString,
        whole: &[u8],
        exists: bool,
    ) -> Result<()> {
        if !exists {
            fs::mkdirat(parent, target, Mode::from_raw_mode(0o700)).map_err(failed("make", whole))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = fs::openat(parent, target, flags, Mode::empty()).map_err(failed("open", whole))?;
        if self.whited_out.remove(whole) {
            // The name was whited out before: what lies below stays hidden.
            fs::fsetxattr(&dir, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(failed("mark", whole))?;
        }
        self.kept_names += whole.len();
        if self.kept_names <= MAX_KEPT_NAMES {
            self.directory_times.push((whole.to_vec(), header.mtime));
        }
        self.attributes(dir.as_fd(), header, whole)
    }

    fn regular(
        &mut self,
        parent: BorrowedFd<'_>,
        header: &Header,
        target: &CString,
        whole: &[u8],
        data: &mut impl BufRead,
    ) -> Result<()> {
        self.done.size_bytes = self.done.size_bytes.saturating_add(header.size);
        if self.done.size_bytes > self.options.limits.total_bytes {
            let bound = self.options.limits.total_bytes;
            return Err(Error::Hostile(format!("the files of the archive are larger than {bound} bytes")));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(parent, target, flags, Mode::from_raw_mode(0o600)).map_err(failed("make", whole))?;
        let mut file = std::fs::File::from(file);
        let written =
            copy_buffered(&mut data.take(header.size), &mut file).map_err(|error| match error.raw_os_error() {
                Some(_) => Error::Io { doing: "cannot write a file of the archive".to_owned(), source: error },
                None => from_io("cannot read the archive", error),
            })?;
        if written != header.size {
            return Err(Error::Invalid("the archive ends early".to_owned()));
        }
        self.attributes(file.as_fd(), header, whole)
    }

    /// The directory and name that a hard link points to. The last part is never followed.
    fn link_source(&self, header: &Header, whole: &[u8]) -> Result<(OwnedFd, CString)> {
        let parts = components(&header.link)?;
        let missing = || {
            let link = String::from_utf8_lossy(&header.link);
            Error::Hostile(format!(
                "hard link {:?} to {link:?}, which is not in the archive",
                String::from_utf8_lossy(whole)
            ))
        };
        let (name, parents) = parts.split_last().ok_or_else(missing)?;
        let dir =
            open_in(self.root, &parents.join(&b'/'), OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| missing())?;
        let name = part(name)?;
        match tree::kind_of(dir.as_fd(), &name) {
            Ok(Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo)) => Ok((dir, name)),
            _ => Err(missing()),
        }
    }

    fn owner(&self, header: &Header) -> (u32, u32) {
        self.options.owner.unwrap_or((header.uid, header.gid))
    }

    fn attributes(&self, fd: BorrowedFd<'_>, header: &Header, whole: &[u8]) -> Result<()> {
        let (uid, gid) = self.owner(header);
        tree::chown(fd, uid, gid).map_err(failed("own", whole))?;
        // After the owner, whose change clears the set-id bits.
        fs::fchmod(fd, Mode::from_raw_mode(header.mode)).map_err(failed("set the mode of", whole))?;
        let mut total = 0;
        for (name, value) in &header.xattrs {
            // trusted.* would speak to overlayfs, system.* and security.* to the host's policies.
            if name != CAPABILITY_XATTR && !name.starts_with("user.") {
                continue;
            }
            total += name.len() + value.len();
            if total > MAX_XATTRS {
                return Err(Error::Hostile("too many extended attributes".to_owned()));
            }
            match fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(error) => return Err(failed("set an attribute of", whole)(error)),
            }
        }
        fs::futimens(fd, &times(header.mtime)).map_err(failed("set the time of", whole))
    }

    fn attributes_of_name(&self, parent: BorrowedFd<'_>, name: &CString, header: &Header, whole: &[u8]) -> Result<()> {
        let (uid, gid) = self.owner(header);
        let ids = (Some(fs::Uid::from_raw(uid)), Some(fs::Gid::from_raw(gid)));
        fs::chownat(parent, name, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("own", whole))?;
        if header.kind == Kind::Fifo {
            fs::chmodat(parent, name, Mode::from_raw_mode(header.mode), AtFlags::empty())
                .map_err(failed("set the mode of", whole))?;
        }
        fs::utimensat(parent, name, &times(header.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the time of", whole))
    }

    fn restore_times(&self) {
        for (path, mtime) in self.directory_times.iter().rev() {
            // A directory that a later entry replaced has no time to restore.
            if let Ok(dir) = open_in(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                let _ = fs::futimens(&dir, &times(*mtime));
            }
        }
    }
}

fn same_file(a: BorrowedFd<'_>, a_name: &CString, b: BorrowedFd<'_>, b_name: &CString) -> bool {
    let stat = |dir, name: &CString| fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    match (stat(a, a_name), stat(b, b_name)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime.clamp(-(1 << 33), 1 << 33), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
