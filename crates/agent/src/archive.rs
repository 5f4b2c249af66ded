//! Files of containers as archives (cp, diff, export, commit). Everything that follows a path of the container runs in a
//! thread of its own, in a mount namespace of its own, with the container's root as its root: nothing that the container
//! does meanwhile can lead it out. What reads the writable layer itself (diff, commit) goes down in it by descriptors and
//! follows no link. Source: CVE-2018-15664, CVE-2019-14271.

mod entries;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use image::Snapshot;
use node::{ByteStream, Error, FileChange, FileChangeKind, PathStatistics, Result};
use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, mount_remount, move_mount,
    open_tree,
};
use rustix::thread::UnshareFlags;
use tokio::sync::{mpsc, oneshot};

use self::entries::Found;
use crate::in_root;
use crate::launch::Access;

/// Pieces of an archive on their way.
const PIECES: usize = 16;
/// Mount points of every container, relative to its root.
const RUNTIME_PLACES: [&str; 11] = [
    "dev",
    "proc",
    "sys",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "dev/mqueue",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "sbin/docker-init",
];
/// Size of a piece. Units: bytes.
const PIECE: usize = 64 << 10;

/// A container's files: the mounted snapshot, and volumes by their place in it.
#[derive(Debug)]
pub struct View {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What is mounted, by target.
    pub volumes: BTreeMap<String, Part>,
    /// Whether nothing may be written to the snapshot itself.
    pub read_only_root: bool,
}

/// Something of the machine's that the container sees.
#[derive(Debug)]
pub struct Part {
    /// A file or directory.
    pub source: PathBuf,
    /// The path in it that is seen; empty for all of it.
    pub sub_path: String,
    /// Whether it can be written.
    pub access: Access,
}

/// Runs a job in a thread that sees the container's root as its own.
fn inside<T: Send + 'static>(
    view: View,
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> oneshot::Receiver<Result<T>> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("container-files".into());
    let spawned = thread.spawn(move || {
        let result = enter(&view)
            .map_err(|e| Error::Internal(format!("cannot enter the container's files: {e}")))
            .and_then(|()| job());
        let _ = sender.send(result);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a container's files");
    }
    receiver
}

async fn answer<T>(receiver: oneshot::Receiver<Result<T>>) -> Result<T> {
    receiver.await.unwrap_or_else(|_| Err(Error::Internal("the thread for the container's files failed".to_owned())))
}

/// Leaves the machine's files for good: own mounts, volumes put in their places, root changed.
fn enter(view: &View) -> io::Result<()> {
    entries::descriptors()?;
    // SAFETY of the thread: it ends after its job and is nobody else's; a mount namespace of its own implies its own root.
    unshare_files()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let mut root = in_root::directory(&view.snapshot.rootfs)?;
    if view.read_only_root {
        // One more mount of it, whose flags are nobody else's.
        let own = clone_mount(&root)?;
        attach(&own, &root)?;
        root = own;
    }
    let mut for_reading = Vec::new();
    for (target, part) in &view.volumes {
        let access = part.access;
        // What is not there, no container sees: it does not start.
        let Some(part) = open_part(part)? else { continue };
        let inside = Path::new(target).strip_prefix("/").unwrap_or(Path::new(target));
        let place = match in_root::open(&root, inside, OFlags::PATH, Mode::empty()) {
            // Before the first start the mount point may be missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_directory(&part)? => {
                in_root::make_directories(&root, inside, Mode::from_raw_mode(0o755))
            }
            opened => opened,
        };
        let Ok(place) = place else { continue };
        let tree = match clone_mount(&part) {
            // An image that is taken off at this moment, since the container has ended, or what may not be mounted again.
            Err(Errno::INVAL) => continue,
            tree => tree?,
        };
        attach(&tree, &place)?;
        if access == Access::ReadOnlyThroughout {
            // Before anything else of the container's is put within.
            runtime::seal_mounts_below(tree.as_fd())?;
        }
        if access != Access::Writable {
            for_reading.push(tree);
        }
    }
    if view.read_only_root {
        for_reading.push(root);
    }
    // After the last: the place of another may have to be made within.
    for_reading.iter().try_for_each(seal)?;
    rustix::process::fchdir(in_root::directory(&view.snapshot.rootfs)?)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// A mount of what is open, with all that is mounted below it, that is in no place yet.
fn clone_mount(of: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(of.as_fd(), "", flags | OpenTreeFlags::AT_EMPTY_PATH)
}

fn attach(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", place.as_fd(), "", both)
}

/// Opens what a container sees of the machine's: no link in a volume leads out of it. `None` where there is no such thing, or no
/// more: images go when their container ends.
fn open_part(part: &Part) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let whole = match rustix::fs::open(&part.source, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        whole => whole?,
    };
    if part.sub_path.is_empty() {
        return Ok(Some(whole));
    }
    Ok(in_root::open(&whole, Path::new(&part.sub_path), OFlags::PATH, Mode::empty()).ok())
}

/// Lets nobody write through a mount of this thread's. What is mounted below it stays as it is.
fn seal(mount: &OwnedFd) -> io::Result<()> {
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    // In a container, whose root may run this, what came with these flags never loses them.
    let now = rustix::fs::fstatvfs(mount)?.f_flag;
    for (there, kept) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        flags.set(kept, now.contains(there));
    }
    Ok(mount_remount(format!("/proc/self/fd/{}", mount.as_raw_fd()), flags, "")?)
}

fn is_directory(file: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode).is_dir())
}

#[allow(unsafe_code)] // The one call here that the safe wrappers leave out.
fn unshare_files() -> io::Result<()> {
    // SAFETY: called at the start of a thread that was just spawned and shares no borrowed file state with others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.map_err(Into::into)
}

fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path.trim_start_matches('/'))
}

fn not_found(path: &str, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound(format!("Could not find the file {path} in container")),
        _ => Error::Invalid(format!("{path}: {error}")),
    }
}

fn describe(path: &str) -> Result<PathStatistics> {
    let full = absolute(path);
    // A path that ends in a slash or a dot means what a link leads to.
    let follow = path.ends_with('/') || path.ends_with("/.");
    let meta = if follow { full.metadata() } else { full.symlink_metadata() }.map_err(|e| not_found(path, &e))?;
    let link = if meta.is_symlink() {
        full.read_link().map(|l| l.to_string_lossy().into_owned()).unwrap_or_default()
    } else {
        String::new()
    };
    let name = full.file_name().map_or_else(|| "/".to_owned(), |n| n.to_string_lossy().into_owned());
    Ok(PathStatistics {
        name,
        size_bytes: meta.size(),
        mode: meta.mode(),
        modified_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        link_target: link,
    })
}

/// Describes a path.
pub async fn statistics(view: View, path: String) -> Result<PathStatistics> {
    answer(inside(view, move || describe(&path))).await
}

/// Sends what is written into it in pieces; a reader that went away is an error to the writer.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Pieces {
    fn new() -> (Self, ByteStream) {
        let (sender, receiver) = mpsc::channel(PIECES);
        let stream = futures::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|item| (item, r)) });
        (Self { sender, buffer: Vec::with_capacity(PIECE) }, stream.boxed())
    }
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE)));
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Packs, and tells the reader when that fails.
fn pack(mut pieces: Pieces, fill: impl FnOnce(&mut tar::Builder<&mut Pieces>) -> io::Result<()>) {
    let mut archive = tar::Builder::new(&mut pieces);
    archive.follow_symlinks(false);
    let done = fill(&mut archive).and_then(|()| archive.finish());
    drop(archive);
    if let Err(error) = done.and_then(|()| pieces.flush()) {
        let _ = pieces.sender.blocking_send(Err(error));
    }
}

/// Reads a path as an archive whose entries begin with the path's own name: with `.` if it ends in that, and with a slash for
/// the root, as clients expect that put another name there.
pub async fn read(view: View, path: String) -> Result<(PathStatistics, ByteStream)> {
    let (pieces, stream) = Pieces::new();
    let (sender, receiver) = oneshot::channel();
    let job = inside(view, move || {
        let found = describe(&path);
        let plain = found.as_ref().ok().map(|f| f.name.clone());
        let described = found.is_ok();
        let _ = sender.send(found);
        if let (true, Some(name)) = (described, plain) {
            let full = absolute(&path);
            pack(pieces, |archive| {
                if name == "/" {
                    entries::append_below(archive, &full, b"/")
                } else if path.ends_with("/.") {
                    entries::append_below(archive, &full, b"./")
                } else {
                    entries::append(archive, &full, Path::new(&name))
                }
            });
        }
        Ok(())
    });
    match receiver.await {
        Ok(found) => Ok((found?, stream)),
        Err(_) => answer(job).await.and_then(|()| Err(Error::Internal("no answer about the path".to_owned()))),
    }
}

/// Reads what a stream sends, from a thread.
struct Source {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(into.len());
        into[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Unpacks an archive under a directory.
pub async fn write(view: View, path: String, mut content: ByteStream) -> Result<()> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let read_only_root = view.read_only_root;
    let job = inside(view, move || {
        let target = absolute(&path);
        let meta = target.metadata().map_err(|e| not_found(&path, &e))?;
        if !meta.is_dir() {
            return Err(Error::Invalid("extraction point is not a directory".to_owned()));
        }
        // Here all links are followed, so that none leads past what the container's specification says.
        let mounted = rustix::fs::statvfs(&target).map_err(|e| not_found(&path, &e.into()))?;
        if mounted.f_flag.contains(StatVfsMountFlags::RDONLY) {
            let is_root = Path::new("/").metadata().is_ok_and(|root| root.dev() == meta.dev());
            let what = if read_only_root && is_root { "container rootfs" } else { "mounted volume" };
            return Err(Error::Forbidden(format!("{what} is marked read-only")));
        }
        let mut archive = tar::Archive::new(Source { receiver, rest: Bytes::new() });
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_overwrite(true);
        let problem = |e: io::Error| {
            let text = format!("cannot unpack the archive: {}", crate::error::chain(&e));
            match e.kind() {
                io::ErrorKind::ReadOnlyFilesystem => Error::Forbidden(text),
                _ => Error::Invalid(text),
            }
        };
        for entry in archive.entries().map_err(problem)? {
            let mut entry = entry.map_err(problem)?;
            refuse_type_change(&target, &entry).map_err(Error::Invalid)?;
            entry.unpack_in(&target).map_err(problem)?;
        }
        Ok(())
    });
    let feed = async {
        while let Some(piece) = content.next().await {
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let (result, ()) = tokio::join!(answer(job), feed);
    result
}

/// A directory never replaces a file, nor a file a directory. Source: Docker, `noOverwriteDirNonDir`.
fn refuse_type_change<R: Read>(target: &Path, entry: &tar::Entry<'_, R>) -> std::result::Result<(), String> {
    let Ok(path) = entry.path() else { return Ok(()) };
    let Ok(there) = target.join(&path).symlink_metadata() else { return Ok(()) };
    match (there.is_dir(), entry.header().entry_type().is_dir()) {
        (true, false) => Err(format!("cannot overwrite directory {:?} with non-directory", path.display())),
        (false, true) if !there.is_symlink() => {
            Err(format!("cannot overwrite non-directory {:?} with directory", path.display()))
        }
        _ => Ok(()),
    }
}

/// Packs the whole root.
pub async fn export(view: View) -> Result<ByteStream> {
    let (pieces, stream) = Pieces::new();
    let (sender, receiver) = oneshot::channel();
    let job = inside(view, move || {
        let _ = sender.send(());
        pack(pieces, |archive| {
            let mut entries: Vec<_> = std::fs::read_dir("/")?.collect::<io::Result<_>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            entries.into_iter().try_for_each(|e| entries::append(archive, &e.path(), Path::new(&e.file_name())))
        });
        Ok(())
    });
    match receiver.await {
        Ok(()) => Ok(stream),
        Err(_) => answer(job).await.and_then(|()| Err(Error::Internal("no answer about the root".to_owned()))),
    }
}

fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> {
    let task = tokio::task::spawn_blocking(job);
    async move {
        let result = task.await.map_err(|e| Error::Internal(e.to_string()))?;
        result.map_err(|e| Error::Internal(format!("cannot read the container's changes: {e}")))
    }
}

/// Opens a directory of the writable layer; `None` where there is none by now, but nothing or a link.
fn open_directory(upper: &OwnedFd, relative: &Path) -> io::Result<Option<OwnedFd>> {
    // What overlayfs removes it moves out of the layer first.
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV];
    match in_root::open_straight(upper, relative, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(error) if Errno::from_io_error(&error).is_some_and(|error| gone.contains(&error)) => Ok(None),
        opened => opened.map(Some),
    }
}

/// What the writable layer holds, each with its path in it, the names of a directory in order. The container may change it
/// meanwhile: what is gone since it was listed is left out.
fn walk(upper: &OwnedFd, visit: &mut dyn FnMut(&Path, &Found) -> io::Result<()>) -> io::Result<()> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let Some(directory) = open_directory(upper, &relative)? else { continue };
        let mut inner = Vec::new();
        for name in entries::names(&directory)? {
            let Some(found) = Found::at(&directory, &name)? else { continue };
            let path = relative.join(&name);
            visit(&path, &found)?;
            if found.meta.is_dir() {
                inner.push(path);
            }
        }
        waiting.extend(inner.into_iter().rev());
    }
    Ok(())
}

fn is_whiteout(meta: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&meta.file_type()) && meta.rdev() == 0
}

/// Whether a directory hides what lies below it. Source: kernel, overlayfs, `trusted.overlay.opaque`.
fn is_opaque(found: &Found) -> io::Result<bool> {
    let Some(directory) = found.directory()? else { return Ok(false) };
    let mut value = [0u8; 4];
    let length = rustix::fs::fgetxattr(&directory, "trusted.overlay.opaque", &mut value);
    Ok(length.is_ok_and(|n| n == 1 && value[0] == b'y'))
}

/// Places that the runtime made as mount points, and directories that changed only for them: not the user's changes.
fn own_places(upper: &OwnedFd) -> io::Result<BTreeSet<PathBuf>> {
    let mut own = BTreeSet::new();
    walk(upper, &mut |relative, found| {
        if !RUNTIME_PLACES.iter().any(|place| relative == Path::new(place)) {
            return Ok(());
        }
        let bare = match found.meta.is_dir() {
            true => found.names()?.is_empty(),
            false => found.meta.len() == 0 && !is_whiteout(&found.meta),
        };
        if bare {
            own.insert(relative.to_owned());
        }
        Ok(())
    })?;
    for parent in ["dev", "etc", "sbin"] {
        let Some(directory) = open_directory(upper, Path::new(parent))? else { continue };
        let names = entries::names(&directory)?;
        let all_own = names.iter().all(|name| own.contains(&Path::new(parent).join(name)));
        if !names.is_empty() && all_own {
            own.insert(parent.into());
        }
    }
    Ok(own)
}

/// Lists changes.
pub async fn changes(view: View) -> Result<Vec<FileChange>> {
    blocking(move || {
        let mut list: Vec<FileChange> = Vec::new();
        let upper = in_root::directory(&view.snapshot.upper)?;
        let lower = view.snapshot.marks.iter().chain(&view.snapshot.lower);
        let lower: Vec<_> = lower.filter_map(|layer| in_root::directory(layer).ok()).collect();
        let own = own_places(&upper)?;
        walk(&upper, &mut |relative, found| {
            if own.contains(relative) {
                return Ok(());
            }
            // Whether a file is in the image must not be asked of what a link of the image leads to: that is the machine's.
            let below = |layer: &OwnedFd| {
                let there = in_root::open_straight(layer, relative, OFlags::PATH | OFlags::NOFOLLOW);
                there.and_then(|there| File::from(there).metadata()).is_ok_and(|meta| !is_whiteout(&meta))
            };
            let kind = match (is_whiteout(&found.meta), lower.iter().any(below)) {
                (true, _) => FileChangeKind::Deleted,
                (false, true) => FileChangeKind::Modified,
                (false, false) => FileChangeKind::Added,
            };
            list.push(FileChange { path: Path::new("/").join(relative), kind });
            Ok(())
        })?;
        Ok(list)
    })
    .await
}

/// An empty entry whose name says all.
fn mark<W: Write>(archive: &mut tar::Builder<W>, name: &Path) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, io::empty())
}

fn append_change<W: Write>(archive: &mut tar::Builder<W>, relative: &Path, found: &Found) -> io::Result<()> {
    if is_whiteout(&found.meta) {
        let mut name = OsString::from(".wh.");
        name.push(relative.file_name().unwrap_or_default());
        return mark(archive, &relative.with_file_name(name));
    }
    entries::append_one(archive, found, relative.as_os_str().as_bytes())?;
    if found.meta.is_dir() && is_opaque(found)? {
        mark(archive, &relative.join(".wh..wh..opq"))?;
    }
    Ok(())
}

/// Packs the changes as an OCI layer. Source: OCI image specification, layer.md, whiteouts.
pub async fn layer(view: View) -> Result<ByteStream> {
    let (pieces, stream) = Pieces::new();
    std::thread::Builder::new()
        .name("container-layer".into())
        .spawn(move || {
            pack(pieces, |archive| {
                let upper = in_root::directory(&view.snapshot.upper)?;
                let own = own_places(&upper)?;
                walk(&upper, &mut |relative, found| match own.contains(relative) {
                    true => Ok(()),
                    false => append_change(archive, relative, found),
                })
            });
        })
        .map_err(|e| Error::Internal(format!("no thread to pack the layer: {e}")))?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
