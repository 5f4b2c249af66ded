//! The client's SSH agent, as a socket in a build's own directory. Each connection is one stream of the session.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::session::Session;
use crate::wire::control::Empty;
use crate::wire::session::{BytesMessage, CheckAgentRequest};

const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// Connections to one agent at once.
const MAX_CONNECTIONS: usize = 32;
/// Piece that is read at a time.
const PIECE: usize = 32 << 10;

/// A socket that leads to the client's agent; `None` when it has none of that name. It ends with its directory.
pub async fn forward(session: &Session, id: &str, scratch: &Path) -> Result<Option<PathBuf>, Status> {
    if !session.supports(CHECK) {
        return Ok(None);
    }
    match session.ask::<_, Empty>(CHECK, CheckAgentRequest { id: id.to_owned() }).await {
        Ok(_) => {}
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unknown) => return Ok(None),
        Err(status) => return Err(status),
    }
    let path = scratch.join(format!("ssh-{:08x}", rand::random::<u32>()));
    let listener = UnixListener::bind(&path).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    let (session, id, watched) = (session.clone(), id.to_owned(), path.clone());
    tokio::spawn(async move {
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::time::timeout(std::time::Duration::from_secs(1), listener.accept()).await;
            // The build has ended when its socket is gone.
            if !watched.exists() {
                return;
            }
            let (Ok(Ok((stream, _))), Ok(slot)) = (accepted, slots.clone().try_acquire_owned()) else { continue };
            let (session, id) = (session.clone(), id.clone());
            tokio::spawn(async move {
                if let Err(error) = carry(&session, &id, stream).await {
                    tracing::debug!(%error, "a connection to an agent ended");
                }
                drop(slot);
            });
        }
    });
    Ok(Some(path))
}

async fn carry(session: &Session, id: &str, stream: UnixStream) -> Result<(), Status> {
    let (mut reader, mut writer) = stream.into_split();
    let (sender, queue) = mpsc::channel::<BytesMessage>(8);
    let outward = tokio::spawn(async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                return;
            }
        }
    });
    let metadata = [("buildkit.ssh.id", vec![id.to_owned()])];
    let mut answers: Streaming<BytesMessage> = session.converse(FORWARD, &metadata, ReceiverStream::new(queue)).await?;
    while let Some(Ok(message)) = answers.next().await {
        if writer.write_all(&message.data).await.is_err() {
            break;
        }
    }
    outward.abort();
    Ok(())
}
