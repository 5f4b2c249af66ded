//! Takes a directory from a client by fsutil's copy protocol. The client is hostile until proven otherwise: paths must be
//! clean, a parent must be a directory that came before, nothing is written through a link, and everything has a bound.
//! Source: fsutil, receive.go and types/wire.proto.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::session::Session;
use crate::wire::session::{Packet, PacketKind, Stat};

/// Most files and directories of one transfer.
const MAX_ENTRIES: usize = 1_000_000;
/// Most bytes of one transfer.
const MAX_BYTES: u64 = 64 << 30;
/// Longest path. Linux's own bound.
const MAX_PATH: usize = 4096;
/// Files that are asked for at once.
const WINDOW: usize = 128;
/// Go's bits of a mode.
pub const GO_DIRECTORY: u32 = 1 << 31;
pub const GO_SYMLINK: u32 = 1 << 27;
const GO_SPECIAL: u32 = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

/// What is wanted of a client's directory.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The name that the client gave to the directory.
    pub name: String,
    /// Only these paths, links followed; empty means all.
    pub follow: Vec<String>,
    /// What is left out, as in `.dockerignore`.
    pub exclude: Vec<String>,
}

fn status(code: Code, why: impl Into<String>) -> Status {
    Status::new(code, why.into())
}

/// Copies a client's directory into `target`, which must be empty and nobody else's.
///
/// Errors: of the client, and `InvalidArgument` for what no honest client sends; what came stays where it is.
pub async fn receive(session: &Session, wanted: &Wanted, target: &Path) -> Result<(), Status> {
    const METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";
    if !session.supports(METHOD) {
        return Err(status(Code::Unavailable, "no local sources enabled"));
    }
    let mut metadata = vec![("dir-name", vec![wanted.name.clone()])];
    for (name, values) in [("followpaths", &wanted.follow), ("exclude-patterns", &wanted.exclude)] {
        if !values.is_empty() {
            metadata.push((name, values.clone()));
        }
    }
    let (requests, queue) = mpsc::unbounded_channel();
    let packets: Streaming<Packet> = session.converse(METHOD, &metadata, UnboundedReceiverStream::new(queue)).await?;
    // Writing blocks; the packets go to a thread of their own, a few at a time.
    let (sender, receiver) = mpsc::channel(64);
    let target = target.to_owned();
    let writer = tokio::task::spawn_blocking(move || Receiver::new(&target, requests)?.run(receiver));
    let pumped = pump(packets, sender).await;
    let written = writer.await.map_err(|error| status(Code::Internal, error.to_string()))?;
    // What was wrong with a packet says more than that the stream broke.
    written.and(pumped)
}

async fn pump(mut packets: Streaming<Packet>, sender: mpsc::Sender<Packet>) -> Result<(), Status> {
    while let Some(packet) = packets.message().await? {
        let end = packet.kind == PacketKind::End as i32;
        if sender.send(packet).await.is_err() || end {
            break;
        }
    }
    Ok(())
}

/// The state of one transfer.
struct Receiver {
    root: OwnedFd,
    requests: mpsc::UnboundedSender<Packet>,
    /// Files that are open, by number.
    open: HashMap<u32, File>,
    /// Files that are still to be asked for.
    waiting: std::collections::VecDeque<(u32, Stat)>,
    entries: usize,
    bytes: u64,
    listed: bool,
    /// Directories, whose times and modes are set when all is in them.
    directories: Vec<Stat>,
}

struct File {
    file: std::fs::File,
    stat: Stat,
}

impl Receiver {
    fn new(target: &Path, requests: mpsc::UnboundedSender<Packet>) -> Result<Receiver, Status> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(target, flags, Mode::empty())
            .map_err(|error| status(Code::Internal, format!("cannot open {}: {error}", target.display())))?;
        Ok(Receiver {
            root,
            requests,
            open: HashMap::new(),
            waiting: std::collections::VecDeque::new(),
            entries: 0,
            bytes: 0,
            listed: false,
            directories: Vec::new(),
        })
    }

    fn run(mut self, mut packets: mpsc::Receiver<Packet>) -> Result<(), Status> {
        loop {
            let packet = packets.blocking_recv();
            let packet = packet.ok_or_else(|| status(Code::Unavailable, "the client left in the middle of a copy"))?;
            if self.take(packet)? {
                return self.finish();
            }
            while self.open.len() < WINDOW
                && let Some((id, stat)) = self.waiting.pop_front()
            {
                let file = self.create(&stat)?;
                self.open.insert(id, File { file, stat });
                self.say(PacketKind::Request, id);
            }
            if self.listed && self.open.is_empty() && self.waiting.is_empty() {
                self.say(PacketKind::End, 0);
            }
        }
    }

    fn say(&self, kind: PacketKind, id: u32) {
        // A client that has gone is noticed when its packets end.
        let _ = self.requests.send(Packet { kind: kind as i32, id, ..Packet::default() });
    }

    /// Takes one packet; says whether it was the last.
    fn take(&mut self, packet: Packet) -> Result<bool, Status> {
        match PacketKind::try_from(packet.kind) {
            Ok(PacketKind::Stat) => match packet.stat {
                None => self.listed = true,
                Some(_) if self.listed => {
                    return Err(status(Code::InvalidArgument, "a file after the end of the list"));
                }
                Some(stat) => self.entry(stat)?,
            },
            Ok(PacketKind::Data) => self.data(packet.id, &packet.data)?,
            Ok(PacketKind::End) => {
                if !(self.listed && self.open.is_empty() && self.waiting.is_empty()) {
                    return Err(status(Code::InvalidArgument, "the copy ended early"));
                }
                return Ok(true);
            }
            Ok(PacketKind::Error) => {
                let text = String::from_utf8_lossy(&packet.data).into_owned();
                return Err(status(Code::Unknown, format!("error from sender: {text}")));
            }
            Ok(PacketKind::Request) | Err(_) => return Err(status(Code::InvalidArgument, "a packet of a wrong kind")),
        }
        Ok(false)
    }

    fn entry(&mut self, stat: Stat) -> Result<(), Status> {
        let number = u32::try_from(self.entries).map_err(|_| status(Code::InvalidArgument, "too many files"))?;
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(status(Code::InvalidArgument, format!("more than {MAX_ENTRIES} files")));
        }
        let (parent, name) = self.place(&stat.path)?;
        let failed = |error: Errno| status(Code::InvalidArgument, format!("cannot make {:?}: {error}", stat.path));
        if stat.mode & GO_DIRECTORY != 0 {
            rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)).map_err(failed)?;
            self.directories.push(stat);
        } else if stat.mode & GO_SYMLINK != 0 {
            rustix::fs::symlinkat(stat.link.as_str(), &parent, &name).map_err(failed)?;
            let times = modified(&stat);
            let _ = rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW);
        } else if stat.mode & GO_SPECIAL != 0 {
            // Pipes, sockets and devices are nothing that a build could use.
        } else if !stat.link.is_empty() {
            let (from, old) = self.place(&stat.link)?;
            rustix::fs::linkat(&from, &old, &parent, &name, AtFlags::empty()).map_err(failed)?;
        } else {
            self.waiting.push_back((number, stat));
        }
        Ok(())
    }

    /// The open parent directory and the name of a path. No part of it may be a link.
    fn place(&self, path: &str) -> Result<(OwnedFd, String), Status> {
        let bad =
            || status(Code::InvalidArgument, format!("invalid path {:?}", path.chars().take(80).collect::<String>()));
        let clean = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if path.len() > MAX_PATH || !path.split('/').all(clean) {
            return Err(bad());
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent =
            rustix::fs::openat2(self.root.as_fd(), parent, flags, Mode::empty(), resolve).map_err(|_| bad())?;
        Ok((parent, name.to_owned()))
    }

    fn create(&self, stat: &Stat) -> Result<std::fs::File, Status> {
        let (parent, name) = self.place(&stat.path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600));
        made.map(std::fs::File::from)
            .map_err(|error| status(Code::InvalidArgument, format!("cannot make {:?}: {error}", stat.path)))
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), Status> {
        let unknown = || status(Code::InvalidArgument, "data of a file that was not asked for");
        if data.is_empty() {
            let done = self.open.remove(&id).ok_or_else(unknown)?;
            return attributes(done.file.as_fd(), &done.stat);
        }
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if self.bytes > MAX_BYTES {
            return Err(status(Code::InvalidArgument, format!("more than {MAX_BYTES} bytes")));
        }
        let open = self.open.get_mut(&id).ok_or_else(unknown)?;
        open.file.write_all(data).map_err(|error| status(Code::ResourceExhausted, format!("cannot write: {error}")))
    }

    /// Directories get their times and modes last, the deepest first.
    fn finish(self) -> Result<(), Status> {
        for stat in self.directories.iter().rev() {
            let (parent, name) = self.place(&stat.path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&parent, &name, flags, Mode::empty())
                .map_err(|error| status(Code::Internal, format!("cannot open {:?}: {error}", stat.path)))?;
            attributes(dir.as_fd(), stat)?;
        }
        Ok(())
    }
}

fn modified(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: stat.modified_ns.rem_euclid(1_000_000_000),
    };
    Timestamps { last_access: time, last_modification: time }
}

/// Files of a context are root's, as the client itself says of them.
fn attributes(fd: std::os::fd::BorrowedFd<'_>, stat: &Stat) -> Result<(), Status> {
    let mut mode = stat.mode & 0o777;
    for (go, bit) in [(GO_SETUID, 0o4000), (GO_SETGID, 0o2000), (GO_STICKY, 0o1000)] {
        if stat.mode & go != 0 {
            mode |= bit;
        }
    }
    let failed = |error: Errno| status(Code::Internal, format!("cannot set attributes of {:?}: {error}", stat.path));
    rustix::fs::fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(failed)?;
    rustix::fs::futimens(fd, &modified(stat)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stat(path: &str, mode: u32) -> Packet {
        let stat = Stat { path: path.to_owned(), mode, ..Stat::default() };
        Packet { kind: PacketKind::Stat as i32, stat: Some(stat), ..Packet::default() }
    }

    fn link(path: &str, mode: u32, target: &str) -> Packet {
        let stat = Stat { path: path.to_owned(), mode, link: target.to_owned(), ..Stat::default() };
        Packet { kind: PacketKind::Stat as i32, stat: Some(stat), ..Packet::default() }
    }

    fn bare(kind: PacketKind, id: u32, data: &[u8]) -> Packet {
        Packet { kind: kind as i32, id, data: data.to_vec(), ..Packet::default() }
    }

    fn run(target: &Path, packets: Vec<Packet>) -> Result<(), Status> {
        let (requests, _queue) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::channel(packets.len().max(1));
        for packet in packets {
            sender.try_send(packet).unwrap();
        }
        drop(sender);
        Receiver::new(target, requests)?.run(receiver)
    }

    #[test]
    fn a_tree_arrives_as_it_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let packets = vec![
            stat("d", GO_DIRECTORY | 0o750),
            stat("d/f", 0o640 | GO_SETUID),
            link("d/hard", 0o640, "d/f2"),
            link("l", GO_SYMLINK | 0o777, "/etc/passwd"),
        ];
        // A hard link to what has not come yet is refused.
        assert!(run(dir.path(), packets).is_err());
        let dir = tempfile::tempdir().unwrap();
        let packets = vec![
            stat("d", GO_DIRECTORY | 0o750),
            stat("d/f", 0o640),
            link("l", GO_SYMLINK | 0o777, "/etc/passwd"),
            Packet { kind: PacketKind::Stat as i32, ..Packet::default() },
            bare(PacketKind::Data, 1, b"hel"),
            bare(PacketKind::Data, 1, b"lo"),
            bare(PacketKind::Data, 1, b""),
            bare(PacketKind::End, 0, b""),
        ];
        run(dir.path(), packets).unwrap();
        assert_eq!(std::fs::read(dir.path().join("d/f")).unwrap(), b"hello");
        assert_eq!(std::fs::read_link(dir.path().join("l")).unwrap(), Path::new("/etc/passwd"));
    }

    #[test]
    fn nothing_is_written_outside() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        let hostile = [
            vec![stat("../x", 0o600)],
            vec![stat("/x", 0o600)],
            vec![stat("a//b", 0o600)],
            vec![stat("", 0o600)],
            vec![link("l", GO_SYMLINK, target), stat("l/x", 0o600)],
            vec![link("l", GO_SYMLINK, target), stat("l/d", GO_DIRECTORY)],
            vec![link("h", 0o600, "/etc/passwd")],
            vec![link("l", GO_SYMLINK, "/etc"), link("h", 0o600, "l/passwd")],
            vec![link("l", GO_SYMLINK, target), stat("l", 0o600)],
            vec![stat("f", 0o600), bare(PacketKind::Data, 7, b"x")],
            vec![bare(PacketKind::End, 0, b"")],
            vec![bare(PacketKind::Request, 0, b"")],
            vec![bare(PacketKind::Error, 0, b"no")],
        ];
        for packets in hostile {
            let dir = tempfile::tempdir().unwrap();
            assert!(run(dir.path(), packets.clone()).is_err(), "{packets:?}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{packets:?}");
        }
    }

    proptest! {
        #[test]
        fn no_packets_make_it_panic_or_escape(
            packets in prop::collection::vec(
                ("[a-c./]{0,8}", any::<u32>(), "[a-c./]{0,8}", 0..6_i32, 0..4_u32, prop::collection::vec(any::<u8>(), 0..8)),
                0..20,
            ),
        ) {
            let outer = tempfile::tempdir().unwrap();
            let inner = outer.path().join("inner");
            std::fs::create_dir(&inner).unwrap();
            let packets = packets.into_iter().map(|(path, mode, link, kind, id, data)| {
                let stat = (kind == 0 && !path.is_empty()).then_some(Stat { path, mode, link, ..Stat::default() });
                Packet { kind, id, data, stat }
            });
            let _ = run(&inner, packets.collect());
            prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
        }
    }
}
