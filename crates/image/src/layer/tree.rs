//! Works on directory trees that somebody hostile wrote: every step goes through directory descriptors, and path
//! resolution can never leave the root. Must never open a path of such a tree by its host path.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Deepest path. Real trees stay under 50 levels; the kernel has no bound below PATH_MAX.
pub const MAX_DEPTH: usize = 512;
/// Levels that a removal holds open at once; deeper directories are first moved up.
const REMOVE_LEVELS: usize = 64;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Splits a path into its parts as seen from the root. Empty for the root itself.
///
/// Errors: `Hostile` when `..` climbs above the root, or it is too deep.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    let path = String::from_utf8_lossy(path).chars().take(80).collect::<String>();
                    return Err(Error::Hostile(format!("path {path:?} leaves the root")));
                }
            }
            _ => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(Error::Hostile(format!("a path is deeper than {MAX_DEPTH} levels")));
    }
    Ok(parts)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::Hostile("a path holds a NUL byte".to_owned()))
}

fn failed(doing: &str, name: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
    Error::io(format!("cannot {doing} {:?}", String::from_utf8_lossy(name)))
}

/// Opens a directory of the host, such as the root of a tree.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd> {
    fs::open(path, DIRECTORY, Mode::empty()).map_err(Error::io(format!("cannot open {}", path.display())))
}

/// Opens something below the root; symbolic links on the way are followed inside the root.
pub fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    // The kernel gives EAGAIN when a rename elsewhere made it unsure about `..`.
    for _ in 0..16 {
        match fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a directory below the root and makes those of its parents that are missing (root's, mode 0755). Symbolic links
/// on the way are followed inside the root.
pub fn make_directories(root: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<OwnedFd> {
    make_directories_as(root, parts, None)
}

/// As [`make_directories`], with an owner for the new ones.
pub fn make_directories_as(root: BorrowedFd<'_>, parts: &[&[u8]], owner: Option<(u32, u32)>) -> Result<OwnedFd> {
    let whole = parts.join(&b'/');
    match open_in(root, &whole, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("open", &whole)(error)),
    }
    let mut current = open_in(root, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open", b"/"))?;
    for depth in 1..=parts.len() {
        let prefix = parts[..depth].join(&b'/');
        current = match open_in(root, &prefix, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let name = c_string(parts[depth - 1])?;
                fs::mkdirat(&current, &name, Mode::from_raw_mode(0o755)).map_err(|error| match error {
                    // There is something that resolved to nothing: a link out of the root, or to nowhere.
                    Errno::EXIST => {
                        let path = String::from_utf8_lossy(&prefix).into_owned();
                        Error::Hostile(format!("{path:?} is a link that leads to nothing inside the root"))
                    }
                    other => failed("make", &prefix)(other),
                })?;
                let fd = fs::openat(&current, &name, DIRECTORY, Mode::empty()).map_err(failed("open", &prefix))?;
                if let Some((uid, gid)) = owner {
                    chown(fd.as_fd(), uid, gid).map_err(failed("own", &prefix))?;
                }
                fd
            }
            Err(error) => return Err(failed("open", &prefix)(error)),
        };
    }
    Ok(current)
}

/// Changes owner and group of an open file.
pub fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    fs::fchown(fd, Some(fs::Uid::from_raw(uid)), Some(fs::Gid::from_raw(gid)))
}

/// What a name in a directory is; `None` when nothing is there. Links are not followed.
pub fn kind_of(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<FileType>, Errno> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a name and, if it is a directory, everything below. However deep it is, few descriptors and little stack are
/// used: a container may make trees of any depth. Nothing there is no error.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let gone = |error: &Errno| *error == Errno::NOENT;
    let top = match fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(error) if gone(&error) => return Ok(()),
        other => other?,
    };
    // Directories that lie too deep are moved here, to the top, one after the other.
    let mut moved = 0_u64;
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Empties a directory. What is gone already (somebody else removes it too) is no error.
fn empty(top: BorrowedFd<'_>, dir: BorrowedFd<'_>, level: usize, moved: &mut u64) -> Result<(), Errno> {
    for name in names(dir)? {
        match remove_child(top, dir, &name, level, moved) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove_child(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
    level: usize,
    moved: &mut u64,
) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    if fs::unlinkat(dir, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    if level >= REMOVE_LEVELS {
        *moved += 1;
        let temporary = format!(".nuee-removed-{moved}-{:016x}", rand::random::<u64>());
        return fs::renameat(dir, name, top, temporary.as_str());
    }
    let child = fs::openat(dir, name, DIRECTORY, Mode::empty())?;
    empty(top, child.as_fd(), level + 1, moved)?;
    fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// The names in a directory, without `.` and `..`, sorted.
pub fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a directory of ours with all below it, by its host path.
pub fn remove_path(path: &std::path::Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = match fs::open(parent, DIRECTORY - OFlags::NOFOLLOW, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("open", parent.as_os_str().as_bytes())(error)),
    };
    remove(parent.as_fd(), &c_string(name.as_bytes())?).map_err(failed("remove", path.as_os_str().as_bytes()))
}

/// A part of a path for the calls that take C strings.
pub fn part(bytes: &[u8]) -> Result<CString> {
    c_string(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_and_never_climb() {
        assert_eq!(components(b"/a/./b//c/").unwrap(), [b"a", b"b", b"c"]);
        assert_eq!(components(b"a/../b").unwrap(), [b"b"]);
        assert!(components(b"./").unwrap().is_empty());
        assert!(components(b"../x").is_err());
        assert!(components(b"a/../../x").is_err());
        assert!(components(&b"d/".repeat(600)).is_err());
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("deep");
        std::fs::create_dir(&top).unwrap();
        let mut current = open_root(&top).unwrap();
        for _ in 0..3000 {
            fs::mkdirat(&current, c"d", Mode::from_raw_mode(0o755)).unwrap();
            current = fs::openat(&current, c"d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(current);
        remove_path(&top).unwrap();
        assert!(!top.exists());
        remove_path(&top).unwrap();
    }
}
