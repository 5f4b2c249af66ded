//! Entries of archives, of files that may change meanwhile: an entry is never longer or shorter than it says. Their names may begin
//! with a slash or with `./`, as Docker's clients expect it of `/` and of what ends in `/.`: they put another name in the place of
//! that beginning.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::in_root;

/// Appends a file or a whole tree; sockets are left out, as tar(1) does.
pub(super) fn append<W: Write>(archive: &mut tar::Builder<W>, path: &Path, name: &Path) -> io::Result<()> {
    let mut waiting = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = waiting.pop() {
        let Some(found) = Found::at(CWD, &path)? else { continue };
        if found.meta.is_dir() {
            let inner = found.names()?.into_iter().rev();
            waiting.extend(inner.map(|inner| (path.join(&inner), name.join(&inner))));
        }
        append_one(archive, &found, name.as_os_str().as_bytes())?;
    }
    Ok(())
}

/// Appends a tree by names that begin with `base`, which the library would not write. Sockets are left out, as tar(1) does.
pub(super) fn append_below<W: Write>(archive: &mut tar::Builder<W>, root: &Path, base: &[u8]) -> io::Result<()> {
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let Some(found) = Found::at(CWD, &path)? else { continue };
        let mut name = base.to_vec();
        name.extend_from_slice(path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes());
        if found.meta.is_dir() {
            waiting.extend(found.names()?.into_iter().rev().map(|inner| path.join(inner)));
            if name != base {
                name.push(b'/');
            }
        }
        append_one(archive, &found, &name)?;
    }
    Ok(())
}

/// This process' open files, by number.
static DESCRIPTORS: OnceLock<OwnedFd> = OnceLock::new();

/// Opens the list of this process' open files, once. Whoever changes its root calls this before: afterwards another's files may
/// lie at that path.
pub(super) fn descriptors() -> io::Result<&'static OwnedFd> {
    if let Some(opened) = DESCRIPTORS.get() {
        return Ok(opened);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    Ok(DESCRIPTORS.get_or_init(|| opened))
}

/// What has a name, and is held from then on: whatever takes that name later is something else. Held, it is only looked at. A pipe
/// that is opened would wait for ever for who writes into it, and to open a device is to use it.
#[derive(Debug)]
pub(super) struct Found {
    held: File,
    /// What it is like.
    pub(super) meta: Metadata,
}

impl Found {
    /// Finds what has a name in a directory, links too; `None` where it is gone since it was listed: a running container may do
    /// that.
    pub(super) fn at(directory: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            held => File::from(held?),
        };
        let meta = held.metadata()?;
        Ok(Some(Self { held, meta }))
    }

    /// Opens a directory to read it; `None` where it was removed.
    pub(super) fn directory(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.held, ".", flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    /// The names in a directory, in order; none where it was removed.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        self.directory()?.map_or_else(|| Ok(Vec::new()), |directory| names(&directory))
    }

    /// Opens a file to read it: by its number, the very one that was looked at. Where a program holds a lease on it, this waits until
    /// that is broken, for at most the kernel's `lease-break-time`. `Source:` proc_pid_fd(5), fcntl(2)
    fn file(&self) -> io::Result<File> {
        let number = self.held.as_raw_fd().to_string();
        Ok(rustix::fs::openat(descriptors()?, number, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Where a link leads.
    fn link(&self) -> io::Result<CString> {
        Ok(rustix::fs::readlinkat(&self.held, "", Vec::new())?)
    }
}

/// The names in a directory, in order; none where it was removed since it was opened.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let entries = match Dir::read_from(directory) {
        Err(Errno::NOENT) => return Ok(names),
        entries => entries?,
    };
    for entry in entries {
        let entry = match entry {
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        if !in_root::is_dot(entry.file_name()) {
            names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Appends what was found, without what lies below it. A file is as long as it is when it is opened: what is written to it later is
/// left out, and what is cut off is made up for by zeros. Holes are read as zeros too.
pub(super) fn append_one<W: Write>(archive: &mut tar::Builder<W>, found: &Found, name: &[u8]) -> io::Result<()> {
    let kind = found.meta.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let file = if kind.is_file() { Some(found.file()?) } else { None };
    // It may have been written to since it was looked at.
    let opened = file.as_ref().map(File::metadata).transpose()?;
    let meta = opened.as_ref().unwrap_or(&found.meta);
    let mut header = tar::Header::new_gnu();
    header.set_metadata(meta);
    header.set_size(if file.is_some() { meta.len() } else { 0 });
    if kind.is_symlink() {
        let target = found.link()?;
        let target = target.to_bytes();
        let room = header.as_old().linkname.len();
        if target.len() > room {
            append_long(archive, tar::EntryType::GNULongLink, target)?;
        }
        let kept = target.len().min(room);
        header.as_old_mut().linkname[..kept].copy_from_slice(&target[..kept]);
    } else if kind.is_block_device() || kind.is_char_device() {
        header.set_device_major(rustix::fs::major(meta.rdev()))?;
        header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
    }
    let room = header.as_old().name.len();
    if name.len() > room {
        append_long(archive, tar::EntryType::GNULongName, name)?;
    }
    let kept = name.len().min(room);
    header.as_old_mut().name[..kept].copy_from_slice(&name[..kept]);
    header.set_cksum();
    match file {
        Some(file) => archive.append(&header, file.chain(io::repeat(0)).take(meta.len())),
        None => archive.append(&header, io::empty()),
    }
}

/// An entry before another that gives it a name, or a link's target, for which its header has no room.
/// `Source:` GNU tar, "Basic Tar Format".
fn append_long<W: Write>(archive: &mut tar::Builder<W>, kind: tar::EntryType, text: &[u8]) -> io::Result<()> {
    const LONG_LINK: &[u8] = b"././@LongLink";
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(text.len() as u64 + 1);
    header.set_cksum();
    archive.append(&header, text.chain(&b"\0"[..]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Keeps what is written, and changes a file once a part of that is there.
    struct Meddler<F> {
        written: Vec<u8>,
        after: usize,
        change: Option<F>,
    }

    impl<F: FnOnce()> Write for Meddler<F> {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.written.extend_from_slice(data);
            if self.written.len() >= self.after
                && let Some(change) = self.change.take()
            {
                change();
            }
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_packed_spoils_no_other() {
        const LENGTH: usize = 100_000;
        // After the headers of the directory and of the file, and then within its content.
        for (length, after) in [(0, 1024), (3, 1024), (LENGTH * 2, 1024), (3, 30_000), (LENGTH * 2, 30_000)] {
            let directory = tempfile::tempdir().unwrap();
            let changing = directory.path().join("a");
            std::fs::write(&changing, vec![b'x'; LENGTH]).unwrap();
            std::fs::write(directory.path().join("b"), "next").unwrap();
            let change = || std::fs::write(&changing, vec![b'y'; length]).unwrap();
            let mut builder = tar::Builder::new(Meddler { written: Vec::new(), after, change: Some(change) });
            append(&mut builder, directory.path(), Path::new("d")).unwrap();
            let packed = builder.into_inner().unwrap().written;
            let mut archive = tar::Archive::new(packed.as_slice());
            let found: Vec<_> = archive
                .entries()
                .unwrap()
                .map(|entry| {
                    let mut entry = entry.unwrap();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    (entry.path().unwrap().display().to_string(), content)
                })
                .collect();
            let lengths: Vec<_> = found.iter().map(|(name, content)| (name.as_str(), content.len())).collect();
            assert_eq!(lengths, [("d", 0), ("d/a", LENGTH), ("d/b", 4)], "{length} after {after}");
            assert_eq!(found[2].1, b"next");
        }
    }

    #[test]
    fn no_device_is_opened_that_took_a_files_place() {
        crate::directories::tests::on_a_shared_disk(|disk| {
            let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_NODEV);
            let closed = disk.join("closed");
            std::fs::create_dir(&closed).unwrap();
            nix::mount::mount(Some("tmpfs"), &closed, Some("tmpfs"), flags, none).unwrap();
            let (file, device) = (closed.join("file"), closed.join("device"));
            std::fs::write(&file, "text").unwrap();
            let zero = rustix::fs::makedev(1, 5);
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(CWD, &device, kind, Mode::RUSR, zero).unwrap();
            let found = Found::at(CWD, &file).unwrap().unwrap();
            std::fs::rename(&device, &file).unwrap();
            // Here whoever opens a device is told so.
            assert_eq!(File::open(&file).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            let mut builder = tar::Builder::new(Vec::new());
            append_one(&mut builder, &found, b"file").unwrap();
            append_one(&mut builder, &Found::at(CWD, &file).unwrap().unwrap(), b"device").unwrap();
            let packed = builder.into_inner().unwrap();
            let mut archive = tar::Archive::new(packed.as_slice());
            let found: Vec<_> = archive
                .entries()
                .unwrap()
                .map(|entry| {
                    let (mut entry, mut text) = (entry.unwrap(), String::new());
                    entry.read_to_string(&mut text).unwrap();
                    (entry.header().entry_type(), text)
                })
                .collect();
            assert_eq!(found, [(tar::EntryType::Regular, "text".to_owned()), (tar::EntryType::Char, String::new())]);
        });
    }

    #[test]
    fn long_links_pipes_and_what_vanishes_are_no_loss() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let far = format!("../{}", "store/".repeat(40));
        symlink(&far, root.join("far")).unwrap();
        symlink("near", root.join("near")).unwrap();
        std::fs::write(root.join("file"), "text").unwrap();
        let long = "n".repeat(150);
        symlink(&far, root.join(&long)).unwrap();
        let pipe = root.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        append_below(&mut builder, root, b"./").unwrap();
        append_below(&mut builder, &root.join("none"), b"./").unwrap();
        let packed = builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let link = entry.link_name_bytes().map(|bytes| text(&bytes)).unwrap_or_default();
                (text(&entry.path_bytes()), entry.header().entry_type(), link)
            })
            .collect();
        let one = |name: &str, kind, link: &str| (name.to_owned(), kind, link.to_owned());
        let expected = [
            one("./", tar::EntryType::Directory, ""),
            one("./far", tar::EntryType::Symlink, &far),
            one("./file", tar::EntryType::Regular, ""),
            one("./near", tar::EntryType::Symlink, "near"),
            one(&format!("./{long}"), tar::EntryType::Symlink, &far),
            one("./pipe", tar::EntryType::Fifo, ""),
        ];
        assert_eq!(found, expected);
    }
}
