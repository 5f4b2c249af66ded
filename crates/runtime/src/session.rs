//! The daemon's end of a connection to a shim: requests with their answers, and live sessions.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use node::{Output, OutputStream, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::protocol::{CarriedPort, FrameKind, HEADER_BYTES, Refusal, decode_header, encode_size, frame};
use crate::state::{ExitRecord, ShimDir};
use crate::{Error, Result};

/// How long a shim may take to answer; more than it grants the OCI runtime.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// Pieces of output that wait for the consumer.
const OUTPUT_QUEUE: usize = 16;
/// Standard input on its way.
const INPUT_BUFFER_BYTES: usize = 64 << 10;
/// Sizes of the terminal on their way.
const RESIZE_QUEUE: usize = 8;

/// A connection to the shim of `id`.
pub(crate) struct Connection {
    id: String,
    stream: UnixStream,
}

impl Connection {
    /// Connects. Errors: `NotFound` when no shim listens.
    pub async fn open(id: &str, directory: &ShimDir) -> Result<Self> {
        let not_there = |_| Error::NotFound(id.to_owned());
        // A socket's address holds 108 bytes; the detour over the descriptor makes every directory short enough.
        let directory = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&directory.0)
            .map_err(not_there)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()));
        let stream = tokio::time::timeout(ANSWER_TIMEOUT, UnixStream::connect(&path))
            .await
            .map_err(|_| Error::Timeout(format!("connecting to the shim of {id}")))?
            .map_err(not_there)?;
        Ok(Self { id: id.to_owned(), stream })
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::Shim { id: self.id.clone(), message: error.to_string() }
    }

    /// Sends a request and reads its answer.
    pub async fn request(&mut self, kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>> {
        let bytes = frame(kind, payload);
        tokio::time::timeout(ANSWER_TIMEOUT, self.stream.write_all(&bytes))
            .await
            .map_err(|_| Error::Timeout(format!("the shim of {} did not read", self.id)))?
            .map_err(|error| self.failed(&error))?;
        self.answer().await
    }

    /// Reads the answer to a request.
    async fn answer(&mut self) -> Result<Vec<u8>> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, read_frame(&mut self.stream))
            .await
            .map_err(|_| Error::Timeout(format!("the shim of {} did not answer", self.id)))?;
        match answer.map_err(|error| self.failed(&error))? {
            Some((FrameKind::Ok, payload)) => Ok(payload),
            Some((FrameKind::Refused, payload)) => {
                let refusal: Refusal = serde_json::from_slice(&payload)
                    .map_err(|error| Error::Shim { id: self.id.clone(), message: error.to_string() })?;
                Err(match refusal.code {
                    0 => Error::Conflict(refusal.message),
                    code => Error::CannotStart { code, message: refusal.message },
                })
            }
            _ => Err(Error::Shim { id: self.id.clone(), message: "no answer".to_owned() }),
        }
    }

    /// Has the shim carry ports, whose sockets go along.
    pub async fn carry(mut self, ports: &[CarriedPort], sockets: &[OwnedFd]) -> Result<()> {
        let payload = serde_json::to_vec(ports).map_err(|error| Error::Invalid(error.to_string()))?;
        let bytes = frame(FrameKind::Carry, &payload);
        let rights: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let sending = async {
            let sent = self.stream.async_io(tokio::io::Interest::WRITABLE, || {
                let control = [ControlMessage::ScmRights(&rights)];
                let control = if rights.is_empty() { &[][..] } else { &control[..] };
                let parts = [std::io::IoSlice::new(&bytes)];
                Ok(sendmsg::<()>(self.stream.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?)
            });
            let sent = sent.await?;
            self.stream.write_all(&bytes[sent..]).await
        };
        let sent = tokio::time::timeout(ANSWER_TIMEOUT, sending).await;
        sent.map_err(|_| Error::Timeout(format!("the shim of {} did not read", self.id)))?
            .map_err(|error| self.failed(&error))?;
        self.answer().await.map(drop)
    }

    /// Waits for the end of the container; `None` when the shim goes without saying it.
    pub async fn wait(mut self) -> Result<Option<ExitRecord>> {
        let request = frame(FrameKind::Wait, &[]);
        if self.stream.write_all(&request).await.is_err() {
            return Ok(None);
        }
        loop {
            match read_frame(&mut self.stream).await {
                Ok(Some((FrameKind::Exit, payload))) => return Ok(serde_json::from_slice(&payload).ok()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }

    /// Turns an answered attach or exec connection into a session. `before` is output that comes first.
    pub fn into_session(
        self,
        stdin: bool,
        pid: u32,
        before: Option<std::pin::Pin<Box<dyn Stream<Item = Output> + Send>>>,
        fallback: impl Future<Output = node::Result<node::ExitStatus>> + Send + 'static,
    ) -> node::Session {
        let (reader, writer) = self.stream.into_split();
        let (output_sender, output) = mpsc::channel(OUTPUT_QUEUE);
        let (exit_sender, exit) = oneshot::channel();
        let (end_sender, end) = oneshot::channel();
        let (resize, resizes) = mpsc::channel(RESIZE_QUEUE);
        let (input, input_reader) = tokio::io::simplex(INPUT_BUFFER_BYTES).swap();
        tokio::spawn(read_session(reader, output_sender, exit_sender, end_sender));
        tokio::spawn(write_session(writer, stdin.then_some(input_reader), resizes, end));
        let live =
            futures::stream::unfold(
                output,
                |mut output| async move { output.recv().await.map(|piece| (piece, output)) },
            );
        let output: std::pin::Pin<Box<dyn Stream<Item = Output> + Send>> = match before {
            Some(before) => Box::pin(before.chain(live)),
            None => Box::pin(live),
        };
        let exit = async move {
            match exit.await {
                Ok(record) => Ok(record.into()),
                Err(_) => fallback.await,
            }
        };
        node::Session { stdin: stdin.then(|| Box::pin(input) as _), output, resize, exit: exit.boxed(), pid }
    }
}

/// Puts the writing end first, as it is used here.
trait Swap<A, B> {
    fn swap(self) -> (B, A);
}

impl<A, B> Swap<A, B> for (A, B) {
    fn swap(self) -> (B, A) {
        (self.1, self.0)
    }
}

/// Reads frames until the process has ended, or nobody wants to know any more.
async fn read_session(
    mut reader: OwnedReadHalf,
    output: mpsc::Sender<Output>,
    mut exit: oneshot::Sender<ExitRecord>,
    end: oneshot::Sender<()>,
) {
    loop {
        let read = tokio::select! {
            read = read_frame(&mut reader) => read,
            () = async { tokio::join!(output.closed(), exit.closed()); } => break,
        };
        let (stream, payload) = match read {
            Ok(Some((FrameKind::Stdout, payload))) => (OutputStream::Stdout, payload),
            Ok(Some((FrameKind::Stderr, payload))) => (OutputStream::Stderr, payload),
            Ok(Some((FrameKind::Exit, payload))) => {
                if let Ok(record) = serde_json::from_slice(&payload) {
                    // Whether anybody waits for it is the session's own business.
                    let _ = exit.send(record);
                }
                break;
            }
            Ok(Some(_)) => continue,
            Ok(None) | Err(_) => break,
        };
        // Nobody reads: go on for the sake of the exit status.
        let _ = output.send(Output { stream, data: Bytes::from(payload) }).await;
    }
    let _ = end.send(());
}

/// Sends input and sizes until the session ends. Keeps the connection open when both are done.
async fn write_session(
    mut writer: OwnedWriteHalf,
    mut input: Option<tokio::io::ReadHalf<tokio::io::SimplexStream>>,
    mut resizes: mpsc::Receiver<TerminalSize>,
    mut end: oneshot::Receiver<()>,
) {
    let mut buffer = vec![0; INPUT_BUFFER_BYTES / 2];
    let mut resizing = true;
    loop {
        let read = async {
            match &mut input {
                Some(input) => input.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        let bytes = tokio::select! {
            _ = &mut end => return,
            size = resizes.recv(), if resizing => match size {
                Some(size) => frame(FrameKind::Resize, &encode_size(size.columns, size.rows)),
                None => { resizing = false; continue; }
            },
            count = read => match count {
                Ok(0) | Err(_) => { input = None; frame(FrameKind::StdinEnd, &[]) }
                Ok(count) => frame(FrameKind::Stdin, buffer.get(..count).unwrap_or_default()),
            },
        };
        let written = tokio::select! {
            _ = &mut end => return,
            written = writer.write_all(&bytes) => written,
        };
        if written.is_err() {
            return;
        }
    }
}

/// One frame; `None` at the end of the connection.
async fn read_frame(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Option<(FrameKind, Vec<u8>)>> {
    let mut header = [0; HEADER_BYTES];
    match reader.read_exact(&mut header).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let (kind, length) = decode_header(header).ok_or_else(|| std::io::Error::other("not a frame"))?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Some((kind, payload)))
}
