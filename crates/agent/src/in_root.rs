//! Files inside a container's root file system, opened so that no symbolic link leads out of it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};

/// Deepest tree that is copied.
const DEPTH_LIMIT: usize = 200;
/// Piece of a file that is copied at once. Units: bytes.
const COPY_PIECE: usize = 1 << 20;
/// openat2 reports EAGAIN when something was renamed meanwhile: try so often.
const TRIES: usize = 64;

/// Opens a path with `root` as its root directory. Magic links and mounts beyond are not followed out.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    resolve(root, path, flags, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens a path below `root` that no link leads along; empty is `root` itself.
///
/// Errors: ELOOP where there is a link on the way, or at the end unless the flags ask for links themselves.
pub fn open_straight(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    resolve(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn resolve(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode, how: ResolveFlags) -> io::Result<OwnedFd> {
    for _ in 0..TRIES {
        match fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, mode, how) {
            Err(rustix::io::Errno::AGAIN) => {}
            result => return Ok(result?),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Opens a directory of the machine.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory and its parents inside a root, each opened before the next is made.
pub fn make_directories(root: impl AsFd, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let mut reached = std::path::PathBuf::from(".");
    let mut current = open(&root, Path::new("."), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else {
            if part == std::path::Component::ParentDir {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            continue;
        };
        match fs::mkdirat(&current, name, mode) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        reached.push(name);
        // From the root again: a link on the way may be absolute.
        current = open(&root, &reached, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    }
    Ok(current)
}

/// Copies what an image has at `path` into an empty directory (a new volume), with owners and modes.
/// Does nothing when the image has nothing there or `target` is not empty.
pub fn copy_up(rootfs: &Path, path: &Path, target: &Path) -> io::Result<()> {
    let root = directory(rootfs)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let source = match open(&root, path.strip_prefix("/").unwrap_or(path), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let to = fs::openat(CWD, target, flags | OFlags::CLOEXEC, Mode::empty())?;
    if Dir::read_from(&to)?.filter_map(Result::ok).any(|e| !is_dot(e.file_name())) {
        return Ok(());
    }
    if let Err(error) = copy_directory(&source, &to, 0) {
        // Half a copy would look like a volume in use at the next start.
        for entry in std::fs::read_dir(target)?.flatten() {
            let path = entry.path();
            let _ = if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
        return Err(error);
    }
    let stat = fs::fstat(&source)?;
    fs::fchown(&to, Some(uid(stat.st_uid)), Some(gid(stat.st_gid)))?;
    fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(())
}

fn uid(raw: u32) -> fs::Uid {
    fs::Uid::from_raw(raw)
}

fn gid(raw: u32) -> fs::Gid {
    fs::Gid::from_raw(raw)
}

/// Whether a name in a directory is the directory's own, or its parent's.
pub fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_LIMIT {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_dot(name) {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

/// Copies bytes: in the kernel where both files allow it, by hand otherwise (overlayfs to another file system).
fn copy_content(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    loop {
        match fs::copy_file_range(source, None, target, None, COPY_PIECE) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let (mut from, mut to) = (std::fs::File::from(source.try_clone()?), std::fs::File::from(target.try_clone()?));
    io::copy(&mut from, &mut to).map(drop)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = fs::openat(from, name, flags, Mode::empty())?;
            fs::mkdirat(to, name, Mode::RWXU)?;
            let target = fs::openat(to, name, flags, Mode::empty())?;
            copy_directory(&inner, &target, depth + 1)?;
            fs::fchown(&target, Some(uid(stat.st_uid)), Some(gid(stat.st_gid)))?;
            fs::fchmod(&target, mode)?;
        }
        FileType::Symlink => {
            let link = fs::readlinkat(from, name, Vec::new())?;
            fs::symlinkat(link.as_c_str(), to, name)?;
            fs::chownat(to, name, Some(uid(stat.st_uid)), Some(gid(stat.st_gid)), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        FileType::RegularFile => {
            let source = fs::openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_content(&source, &target)?;
            fs::fchown(&target, Some(uid(stat.st_uid)), Some(gid(stat.st_gid)))?;
            fs::fchmod(&target, mode)?;
        }
        // Devices, sockets and pipes are not data.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_never_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "host").unwrap();
        let root_path = dir.path().join("root");
        std::fs::create_dir_all(root_path.join("etc")).unwrap();
        symlink(dir.path().join("secret"), root_path.join("etc/absolute")).unwrap();
        symlink("../../../../secret", root_path.join("etc/relative")).unwrap();
        let root = directory(&root_path).unwrap();
        for name in ["etc/absolute", "etc/relative", "../secret"] {
            assert!(open(&root, Path::new(name), OFlags::RDONLY, Mode::empty()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_straight_path_has_no_link() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/real")).unwrap();
        std::fs::write(dir.path().join("root/real/file"), "").unwrap();
        symlink("real", dir.path().join("root/link")).unwrap();
        symlink("file", dir.path().join("root/real/last")).unwrap();
        let root = directory(&dir.path().join("root")).unwrap();
        let opens = |path: &str, flags| open_straight(&root, Path::new(path), flags).is_ok();
        for path in ["", "real", "real/file"] {
            assert!(opens(path, OFlags::RDONLY), "{path}");
        }
        for path in ["link", "link/file", "real/last", "../root", "/"] {
            assert!(!opens(path, OFlags::RDONLY), "{path}");
        }
        // A link itself, but none on the way to it.
        assert!(opens("real/last", OFlags::PATH | OFlags::NOFOLLOW));
        assert!(!opens("link/last", OFlags::PATH | OFlags::NOFOLLOW));
    }

    #[test]
    fn copying_up_keeps_modes_and_links_and_follows_none() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        std::fs::create_dir_all(root.join("data/sub")).unwrap();
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(root.join("data/sub/file"), "text").unwrap();
        symlink("/etc/passwd", root.join("data/link")).unwrap();
        copy_up(&root, Path::new("/data"), &volume).unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("sub/file")).unwrap(), "text");
        assert_eq!(std::fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/passwd"));
        std::fs::write(root.join("data/new"), "").unwrap();
        copy_up(&root, Path::new("/data"), &volume).unwrap();
        assert!(!volume.join("new").exists(), "a volume in use is left alone");
        copy_up(&root, Path::new("/missing"), &volume).unwrap();
    }

    #[test]
    fn directories_are_made_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        symlink("/x", dir.path().join("root/x")).unwrap();
        let root = directory(&dir.path().join("root")).unwrap();
        make_directories(&root, Path::new("a/b"), Mode::RWXU).unwrap();
        assert!(dir.path().join("root/a/b").is_dir());
        assert!(make_directories(&root, Path::new("x/y"), Mode::RWXU).is_err());
        assert!(make_directories(&root, Path::new("../y"), Mode::RWXU).is_err());
    }
}
