//! Gives a directory or a stream of bytes to a client, which writes it where its user asked for it.
//! Source: fsutil, send.go; BuildKit's session/filesync.

use std::io::Read;
use std::path::{Path, PathBuf};

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::receive::{GO_DIRECTORY, GO_SYMLINK};
use crate::session::Session;
use crate::wire::session::{BytesMessage, Packet, PacketKind, Stat};

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Which of several exporters a stream is for.
const EXPORTER: &str = "buildkit-attachable-exporter-id";
/// Piece of a file. fsutil's own.
const PIECE: usize = 32 << 10;
/// Packets that wait for a slow client.
const QUEUE: usize = 64;
/// Most files of one export.
const MAX_FILES: usize = 1_000_000;

fn failed(error: impl std::fmt::Display) -> Status {
    Status::new(Code::Unavailable, error.to_string())
}

fn supported(session: &Session) -> Result<(), Status> {
    if session.supports(METHOD) {
        return Ok(());
    }
    Err(Status::new(Code::Unimplemented, format!("method {METHOD} not supported by the client")))
}

/// Sends a stream, to be one file of the client.
pub async fn bytes<S, B, E>(session: &Session, exporter: usize, pieces: S) -> Result<(), Status>
where
    S: Stream<Item = Result<B, E>> + Send + 'static,
    B: AsRef<[u8]> + Send,
    E: std::fmt::Display + Send,
{
    supported(session)?;
    let (failure, mut failures) = mpsc::unbounded_channel();
    // An error of ours ends the stream; the caller is told of it below.
    let messages = pieces
        .take_while(move |piece| {
            if let Err(error) = piece {
                let _ = failure.send(error.to_string());
            }
            std::future::ready(piece.is_ok())
        })
        .filter_map(|piece| std::future::ready(piece.ok().map(|b| BytesMessage { data: b.as_ref().to_vec() })));
    let metadata = [(EXPORTER, vec![exporter.to_string()])];
    let mut answers: Streaming<BytesMessage> = session.converse(METHOD, &metadata, messages).await?;
    while answers.message().await?.is_some() {}
    match failures.try_recv() {
        Ok(error) => Err(failed(error)),
        Err(_) => Ok(()),
    }
}

/// Sends a directory, to be one of the client.
pub async fn directory(session: &Session, exporter: usize, root: &Path) -> Result<(), Status> {
    supported(session)?;
    let (sender, queue) = mpsc::channel::<Packet>(QUEUE);
    let metadata = [(EXPORTER, vec![exporter.to_string()])];
    let root = root.to_owned();
    let listing = {
        let (root, sender) = (root.clone(), sender.clone());
        tokio::task::spawn_blocking(move || list(&root, &sender))
    };
    let mut answers: Streaming<Packet> = session.converse(METHOD, &metadata, ReceiverStream::new(queue)).await?;
    // Requests may come while the list is still on its way; they are answered when it is whole.
    let files = listing.await.map_err(failed)??;
    while let Some(packet) = answers.message().await? {
        match PacketKind::try_from(packet.kind) {
            Ok(PacketKind::Request) => send_file(&files, packet.id, &sender).await?,
            Ok(PacketKind::End) => {
                // The client may have closed already.
                let _ = sender.send(Packet { kind: PacketKind::End as i32, ..Packet::default() }).await;
                break;
            }
            Ok(PacketKind::Error) => return Err(failed(String::from_utf8_lossy(&packet.data))),
            _ => return Err(failed("a packet of a wrong kind")),
        }
    }
    drop(sender);
    while answers.message().await?.is_some() {}
    Ok(())
}

/// Tells all entries in fsutil's order; the paths by number.
fn list(root: &Path, sender: &mpsc::Sender<Packet>) -> Result<Vec<PathBuf>, Status> {
    let mut files = Vec::new();
    walk(root, "", sender, &mut files)?;
    let end = Packet { kind: PacketKind::Stat as i32, ..Packet::default() };
    sender.blocking_send(end).map_err(failed)?;
    Ok(files)
}

fn walk(dir: &Path, below: &str, sender: &mpsc::Sender<Packet>, files: &mut Vec<PathBuf>) -> Result<(), Status> {
    use std::os::unix::fs::MetadataExt;
    let mut entries: Vec<_> = std::fs::read_dir(dir).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let data = entry.metadata().map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = data.file_type();
        let (bits, link) = if kind.is_dir() {
            (GO_DIRECTORY, String::new())
        } else if kind.is_symlink() {
            (GO_SYMLINK, std::fs::read_link(entry.path()).map_err(failed)?.to_string_lossy().into_owned())
        } else if kind.is_file() {
            (0, String::new())
        } else {
            continue;
        };
        let mut mode = (data.mode() & 0o777) | bits;
        for (unix, go) in [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)] {
            if data.mode() & unix != 0 {
                mode |= go;
            }
        }
        let stat = Stat {
            path: path.clone(),
            mode,
            uid: data.uid(),
            gid: data.gid(),
            size: if kind.is_file() { i64::try_from(data.size()).unwrap_or(i64::MAX) } else { 0 },
            modified_ns: data.mtime().saturating_mul(1_000_000_000).saturating_add(data.mtime_nsec()),
            link,
            ..Stat::default()
        };
        if files.len() >= MAX_FILES {
            return Err(failed(format!("more than {MAX_FILES} files")));
        }
        files.push(entry.path());
        let packet = Packet { kind: PacketKind::Stat as i32, stat: Some(stat), ..Packet::default() };
        sender.blocking_send(packet).map_err(failed)?;
        if kind.is_dir() {
            walk(&entry.path(), &path, sender, files)?;
        }
    }
    Ok(())
}

async fn send_file(files: &[PathBuf], id: u32, sender: &mpsc::Sender<Packet>) -> Result<(), Status> {
    let path = usize::try_from(id).ok().and_then(|id| files.get(id)).cloned();
    let path = path.ok_or_else(|| failed("the client asks for a file that is not there"))?;
    let sender = sender.clone();
    let sent = tokio::task::spawn_blocking(move || -> Result<(), Status> {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut file = std::fs::File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            let data = buffer[..count].to_vec();
            sender
                .blocking_send(Packet { kind: PacketKind::Data as i32, id, data, ..Packet::default() })
                .map_err(failed)?;
            if count == 0 {
                return Ok(());
            }
        }
    });
    sent.await.map_err(failed)?
}
