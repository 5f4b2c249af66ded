//! Entries of archives, of files that may change meanwhile: an entry is never longer or shorter than it says. Their names may begin
//! with a slash or with `./`, as Docker's clients expect it of `/` and of what ends in `/.`: they put another name in the place of
//! that beginning.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Appends a file or a whole tree; sockets are left out, as tar(1) does.
pub(super) fn append<W: Write>(archive: &mut tar::Builder<W>, path: &Path, name: &Path) -> io::Result<()> {
    let mut waiting = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = waiting.pop() {
        let Some(meta) = there(path.symlink_metadata())? else { continue };
        if meta.is_dir() {
            let Some(entries) = there(std::fs::read_dir(&path))? else { continue };
            let mut entries: Vec<_> = entries.collect::<io::Result<_>>()?;
            entries.sort_by_key(|e| std::cmp::Reverse(e.file_name()));
            waiting.extend(entries.into_iter().map(|e| (e.path(), name.join(e.file_name()))));
        }
        append_one(archive, &path, name.as_os_str().as_bytes(), &meta)?;
    }
    Ok(())
}

/// Appends a tree by names that begin with `base`, which the library would not write. Sockets are left out, as tar(1) does.
pub(super) fn append_below<W: Write>(archive: &mut tar::Builder<W>, root: &Path, base: &[u8]) -> io::Result<()> {
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let Some(meta) = there(path.symlink_metadata())? else { continue };
        let mut name = base.to_vec();
        name.extend_from_slice(path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes());
        if meta.is_dir() {
            let Some(entries) = there(std::fs::read_dir(&path))? else { continue };
            let mut entries: Vec<_> = entries.collect::<io::Result<_>>()?;
            entries.sort_by_key(|e| std::cmp::Reverse(e.file_name()));
            waiting.extend(entries.into_iter().map(|e| e.path()));
            if name != base {
                name.push(b'/');
            }
        }
        append_one(archive, &path, &name, &meta)?;
    }
    Ok(())
}

/// What was found, or nothing where it is gone since it was listed: a running container may do that.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        found => found.map(Some),
    }
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

/// Opens a file to read it, if it is one still. Whatever else took its place is only looked at: a pipe would wait for ever for who
/// writes into it, and to open a device is to use it.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::open(path, flags, Mode::empty()) {
        // Gone, or below a link by now.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        found => found?,
    };
    if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
        return Ok(None);
    }
    // By its number, the very file that was looked at. Where a program holds a lease on it, this waits until that is broken, for at
    // most the kernel's `lease-break-time`. `Source:` proc_pid_fd(5), fcntl(2)
    let number = found.as_raw_fd().to_string();
    let file = rustix::fs::openat(descriptors()?, number, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Some(file.into()))
}

/// Appends what a path is, without what lies below it. A file is as long as it is when it is opened: what is written to it later is
/// left out, and what is cut off is made up for by zeros. Holes are read as zeros too.
pub(super) fn append_one<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    name: &[u8],
    meta: &Metadata,
) -> io::Result<()> {
    let kind = meta.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let file = match meta.is_file() {
        false => None,
        true => match open_file(path)? {
            Some(file) => Some(file),
            None => return Ok(()),
        },
    };
    // What was opened may be another file than what was looked at.
    let opened = file.as_ref().map(File::metadata).transpose()?;
    let meta = opened.as_ref().unwrap_or(meta);
    let mut header = tar::Header::new_gnu();
    header.set_metadata(meta);
    header.set_size(if file.is_some() { meta.len() } else { 0 });
    if kind.is_symlink() {
        let target = match path.read_link() {
            Ok(target) => target,
            // Gone, or no link any more.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let target = target.as_os_str().as_bytes();
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
            rustix::fs::mknodat(rustix::fs::CWD, &device, FileType::CharacterDevice, Mode::RUSR, zero).unwrap();
            // Here whoever opens a device is told so.
            assert_eq!(File::open(&device).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            let meta = file.symlink_metadata().unwrap();
            let mut builder = tar::Builder::new(Vec::new());
            append_one(&mut builder, &device, b"device", &meta).unwrap();
            append_one(&mut builder, &file, b"file", &meta).unwrap();
            let packed = builder.into_inner().unwrap();
            let mut archive = tar::Archive::new(packed.as_slice());
            let found: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
            assert_eq!(found, [Path::new("file")]);
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
        // A file that became a pipe since it was looked at.
        append_one(&mut builder, &pipe, b"./swapped", &root.join("file").symlink_metadata().unwrap()).unwrap();
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
