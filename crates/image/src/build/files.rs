//! Finds, hashes and copies files for COPY and ADD. Both sides may be hostile: all goes through directory descriptors, and
//! paths never leave their roots.

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::build::ignore::Ignore;
use crate::error::{Error, Result};
use crate::layer::tree::{self, MAX_DEPTH, components, open_in};
use crate::pattern::{is_pattern, path_matches};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Most files that one wildcard may name.
const MAX_MATCHES: usize = 100_000;

/// Owner and mode of what is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// User and group; COPY makes all root's unless told otherwise.
    pub owner: (u32, u32),
    /// Mode; `None` keeps each file's.
    pub mode: Option<u32>,
}

fn failed(doing: &str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
    Error::io(format!("cannot {doing} {:?}", String::from_utf8_lossy(path)))
}

/// Opens what a source path means below its root (links are followed inside it). `None` when there is nothing.
pub fn open_source(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
    match open_in(root, path, OFlags::PATH) {
        Ok(fd) => {
            let stat = fs::fstat(&fd).map_err(failed("look at", path))?;
            Ok(Some((fd, stat)))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(failed("open", path)(error)),
    }
}

/// The paths below `root` that a source names; empty when there are none. A source that climbs out is refused.
pub fn find(root: BorrowedFd<'_>, source: &str) -> Result<Vec<String>> {
    let parts = components(source.as_bytes())
        .map_err(|_| Error::Invalid(format!("forbidden path outside the build context: {source} ()")))?;
    let clean: String = parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("/");
    if !is_pattern(&clean) {
        return Ok(open_source(root, clean.as_bytes())?.map(|_| clean).into_iter().collect());
    }
    let parts: Vec<&str> = clean.split('/').collect();
    let mut found = vec![String::new()];
    for part in parts {
        let mut next = Vec::new();
        for base in &found {
            let join = |name: &str| if base.is_empty() { name.to_owned() } else { format!("{base}/{name}") };
            if !is_pattern(part) {
                let path = join(part);
                if open_source(root, path.as_bytes())?.is_some() {
                    next.push(path);
                }
                continue;
            }
            let Ok(dir) = open_in(root, base.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
            for name in tree::names(dir.as_fd()).map_err(failed("list", base.as_bytes()))? {
                let name = name.to_string_lossy();
                if path_matches(part, &name) {
                    next.push(join(&name));
                }
            }
            if next.len() > MAX_MATCHES {
                return Err(Error::Invalid(format!("{source} names more than {MAX_MATCHES} files")));
            }
        }
        found = next;
    }
    Ok(found)
}

/// A digest over names, kinds, modes, owners, link targets and contents of a tree but for what is left out, not over times.
pub fn hash(root: BorrowedFd<'_>, path: &str, excludes: Option<&Ignore>) -> Result<(bool, String)> {
    let (fd, stat) = open_source(root, path.as_bytes())?.ok_or_else(|| gone(path))?;
    let mut hasher = Sha256::new();
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if directory {
        let dir = reopen(&fd, DIRECTORY - OFlags::NOFOLLOW).map_err(failed("open", path.as_bytes()))?;
        hash_directory(&mut hasher, dir.as_fd(), b"", 0, excludes)?;
    } else {
        let name = path.rsplit('/').next().unwrap_or(path);
        hash_stat(&mut hasher, name.as_bytes(), &stat);
        let file = reopen(&fd, FILE - OFlags::NOFOLLOW).map_err(failed("open", path.as_bytes()))?;
        hash_content(&mut hasher, file)?;
    }
    Ok((directory, hex::encode(hasher.finalize())))
}

fn gone(path: &str) -> Error {
    Error::NotFound(format!(
        "file not found in build context or excluded by .dockerignore: stat {path}: file does not exist"
    ))
}

/// Opens what an `O_PATH` descriptor stands for. Only files and directories come here, so that no driver is opened.
fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    fs::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags | OFlags::CLOEXEC, Mode::empty())
}

fn hash_stat(hasher: &mut Sha256, name: &[u8], stat: &Stat) {
    hasher.update((name.len() as u64).to_be_bytes());
    hasher.update(name);
    hasher.update(stat.st_mode.to_be_bytes());
    hasher.update(stat.st_uid.to_be_bytes());
    hasher.update(stat.st_gid.to_be_bytes());
}

fn hash_content(hasher: &mut Sha256, file: OwnedFd) -> Result<()> {
    let mut file = std::fs::File::from(file);
    let mut inner = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::io("cannot read a file of the build context"))? {
            0 => break,
            count => inner.update(&buffer[..count]),
        }
    }
    hasher.update(inner.finalize());
    Ok(())
}

/// Whether a path (with or without a leading slash) is left out.
fn is_excluded(excludes: Option<&Ignore>, path: &[u8]) -> bool {
    excludes.is_some_and(|excludes| excludes.ignores(String::from_utf8_lossy(path).trim_start_matches('/')))
}

fn hash_directory(
    hasher: &mut Sha256,
    dir: BorrowedFd<'_>,
    path: &[u8],
    depth: usize,
    excludes: Option<&Ignore>,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::Hostile(format!("a directory is deeper than {MAX_DEPTH} levels")));
    }
    for name in tree::names(dir).map_err(failed("list", path))? {
        let stat = fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", name.to_bytes()))?;
        let whole = [path, b"/", name.to_bytes()].concat();
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_excluded(excludes, &whole) && !(directory && excludes.is_some_and(Ignore::has_exceptions)) {
            continue;
        }
        hash_stat(hasher, &whole, &stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = fs::openat(dir, &name, DIRECTORY, Mode::empty()).map_err(failed("open", &whole))?;
                hash_directory(hasher, child.as_fd(), &whole, depth + 1, excludes)?;
            }
            FileType::RegularFile => {
                hash_content(hasher, fs::openat(dir, &name, FILE, Mode::empty()).map_err(failed("open", &whole))?)?;
            }
            FileType::Symlink => {
                let target = fs::readlinkat(dir, &name, Vec::new()).map_err(failed("read", &whole))?;
                hasher.update((target.as_bytes().len() as u64).to_be_bytes());
                hasher.update(target.as_bytes());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Copies a source to a destination directory: the content of a directory, or a file under `name`.
pub fn copy(
    source_root: BorrowedFd<'_>,
    source: &str,
    destination: BorrowedFd<'_>,
    name: Option<&CStr>,
    attributes: Attributes,
    excludes: Option<&Ignore>,
) -> Result<()> {
    let (fd, stat) = open_source(source_root, source.as_bytes())?.ok_or_else(|| gone(source))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let dir = reopen(&fd, DIRECTORY - OFlags::NOFOLLOW).map_err(failed("open", source.as_bytes()))?;
            copy_directory(dir.as_fd(), destination, attributes, (b"", 0), excludes)
        }
        FileType::RegularFile => {
            let name = name.ok_or_else(|| Error::Internal("a file is copied without a name".to_owned()))?;
            let file = reopen(&fd, FILE - OFlags::NOFOLLOW).map_err(failed("open", source.as_bytes()))?;
            copy_file(file, destination, name, attributes)
        }
        _ => Err(Error::Invalid(format!("{source} is neither a file nor a directory"))),
    }
}

/// Writes bytes as a file (here-documents).
pub fn write(destination: BorrowedFd<'_>, name: &CStr, bytes: &[u8], attributes: Attributes) -> Result<()> {
    use std::io::Write;
    let mut file = create(destination, name)?;
    file.write_all(bytes).map_err(Error::io("cannot write a file"))?;
    finish(file.as_fd(), attributes, attributes.mode.unwrap_or(0o644), None)
}

fn create(dir: BorrowedFd<'_>, name: &CStr) -> Result<std::fs::File> {
    // A link of that name is replaced, never written through; a directory stays in the way.
    match tree::kind_of(dir, name).map_err(failed("look at", name.to_bytes()))? {
        None => {}
        Some(FileType::Directory) => {
            return Err(Error::Invalid(format!("cannot copy a file over the directory {}", name.to_string_lossy())));
        }
        Some(_) => fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed("replace", name.to_bytes()))?,
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("make", name.to_bytes()))?;
    Ok(std::fs::File::from(file))
}

fn finish(fd: BorrowedFd<'_>, attributes: Attributes, mode: u32, times: Option<&Stat>) -> Result<()> {
    tree::chown(fd, attributes.owner.0, attributes.owner.1).map_err(failed("own", b"a copied file"))?;
    fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(failed("set the mode of", b"a copied file"))?;
    if let Some(stat) = times {
        fs::futimens(fd, &modified(stat)).map_err(failed("set the time of", b"a copied file"))?;
    }
    Ok(())
}

fn modified(stat: &Stat) -> Timestamps {
    #[allow(clippy::useless_conversion)] // the types differ between machines
    let time = Timespec { tv_sec: i64::try_from(stat.st_mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn copy_file(source: OwnedFd, dir: BorrowedFd<'_>, name: &CStr, attributes: Attributes) -> Result<()> {
    let stat = fs::fstat(&source).map_err(failed("look at", name.to_bytes()))?;
    let mut source = std::fs::File::from(source);
    let mut file = create(dir, name)?;
    std::io::copy(&mut source, &mut file).map_err(Error::io("cannot copy a file"))?;
    let mut value = [0_u8; 64];
    if let Ok(length) = fs::fgetxattr(&source, "security.capability", &mut value) {
        let _ = fs::fsetxattr(&file, "security.capability", &value[..length], XattrFlags::empty());
    }
    finish(file.as_fd(), attributes, attributes.mode.unwrap_or(stat.st_mode & 0o7777), Some(&stat))
}

fn copy_directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    attributes: Attributes,
    (path, depth): (&[u8], usize),
    excludes: Option<&Ignore>,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::Hostile(format!("a directory is deeper than {MAX_DEPTH} levels")));
    }
    for name in tree::names(from).map_err(failed("list", b"a directory"))? {
        let bytes = name.to_bytes();
        let whole = [path, b"/", bytes].concat();
        let stat = fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", bytes))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_excluded(excludes, &whole) && !(directory && excludes.is_some_and(Ignore::has_exceptions)) {
            continue;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = fs::openat(from, &name, DIRECTORY, Mode::empty()).map_err(failed("open", bytes))?;
                let target = make_directory(to, &name)?;
                copy_directory(child.as_fd(), target.as_fd(), attributes, (&whole, depth + 1), excludes)?;
                finish(target.as_fd(), attributes, attributes.mode.unwrap_or(stat.st_mode & 0o7777), Some(&stat))?;
            }
            FileType::RegularFile => {
                let file = fs::openat(from, &name, FILE, Mode::empty()).map_err(failed("open", bytes))?;
                copy_file(file, to, &name, attributes)?;
            }
            FileType::Symlink => {
                let target = fs::readlinkat(from, &name, Vec::new()).map_err(failed("read", bytes))?;
                if tree::kind_of(to, &name).map_err(failed("look at", bytes))?.is_some() {
                    fs::unlinkat(to, &name, AtFlags::empty()).map_err(failed("replace", bytes))?;
                }
                fs::symlinkat(target.as_c_str(), to, &name).map_err(failed("make", bytes))?;
                let (uid, gid) = attributes.owner;
                let ids = (Some(fs::Uid::from_raw(uid)), Some(fs::Gid::from_raw(gid)));
                fs::chownat(to, &name, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("own", bytes))?;
                let _ = fs::utimensat(to, &name, &modified(&stat), AtFlags::SYMLINK_NOFOLLOW);
            }
            // Pipes, sockets and devices are not copied.
            _ => {}
        }
    }
    Ok(())
}

fn make_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let bytes = name.to_bytes();
    match tree::kind_of(parent, name).map_err(failed("look at", bytes))? {
        Some(FileType::Directory) => {}
        Some(_) => {
            return Err(Error::Invalid(format!("cannot copy to non-directory: {}", name.to_string_lossy())));
        }
        None => fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed("make", bytes))?,
    }
    fs::openat(parent, name, DIRECTORY, Mode::empty()).map_err(failed("open", bytes))
}

/// Removes from a context what `.dockerignore` names.
pub fn remove_ignored(
    dir: BorrowedFd<'_>,
    path: &str,
    ignore: &crate::build::ignore::Ignore,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::Hostile(format!("a directory is deeper than {MAX_DEPTH} levels")));
    }
    for name in tree::names(dir).map_err(failed("list", path.as_bytes()))? {
        let text = name.to_string_lossy();
        let whole = if path.is_empty() { text.into_owned() } else { format!("{path}/{text}") };
        let ignored = ignore.ignores(&whole);
        let is_directory =
            tree::kind_of(dir, &name).map_err(failed("look at", whole.as_bytes()))? == Some(FileType::Directory);
        if is_directory && (!ignored || ignore.has_exceptions()) {
            let child = fs::openat(dir, &name, DIRECTORY, Mode::empty()).map_err(failed("open", whole.as_bytes()))?;
            remove_ignored(child.as_fd(), &whole, ignore, depth + 1)?;
            if ignored {
                // Goes only when no exception is left in it.
                let _ = fs::unlinkat(dir, &name, AtFlags::REMOVEDIR);
            }
        } else if ignored {
            tree::remove(dir, &name).map_err(failed("remove", whole.as_bytes()))?;
        }
    }
    Ok(())
}

/// How Docker begins to say that a user or group is not there.
pub const CHOWN_REFUSED: &str = "unable to convert uid/gid chown string to host mapping";

/// Finds a user or group by name in a file of the root file system (`/etc/passwd`, `/etc/group`): the third field.
pub fn lookup_id(root: BorrowedFd<'_>, file: &str, name: &str) -> Result<(u32, Option<u32>)> {
    /// Longest file that is read.
    const MAX: u64 = 1 << 20;
    if let Ok(id) = name.parse::<u32>() {
        return Ok((id, None));
    }
    let (what, id) = if file.ends_with("passwd") { ("user", "uid") } else { ("group", "gid") };
    let missing =
        || Error::Invalid(format!("{CHOWN_REFUSED}: can't find {id} for {what} {name}: no such {what}: {name}"));
    let fd = open_in(root, file.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK).map_err(|_| missing())?;
    let mut text = String::new();
    std::fs::File::from(fd).take(MAX).read_to_string(&mut text).map_err(|_| missing())?;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.first() == Some(&name)
            && let Some(id) = fields.get(2).and_then(|id| id.parse().ok())
        {
            return Ok((id, fields.get(3).and_then(|id| id.parse().ok())));
        }
    }
    Err(missing())
}
