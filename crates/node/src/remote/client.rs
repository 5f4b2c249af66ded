//! Another machine, as its callers see it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

use super::frame::{self, Frame, Kind, PIECE_BYTES};
use super::{Answer, Call};
use crate::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, ExitStatus, FileChange, LogOptions, LogStream, Node, Output,
    OutputStream, PathStatistics, ProcessTable, Result, Session, Statistics, TerminalSize, Workload,
};

/// Pieces of a session that wait for their reader.
const WAITING_MAX: usize = 16;

/// Makes connections to one machine.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// A new connection on which the machine awaits a call.
    ///
    /// `Errors:` [`Error::Unavailable`].
    async fn dial(&self) -> Result<Box<dyn Duplex>>;
}

/// A machine at the other end of connections.
pub struct RemoteNode {
    dial: Arc<dyn Dial>,
}

type Connection = Box<dyn Duplex>;

fn surprise(what: &str) -> Error {
    Error::Unavailable(format!("the machine answered with {what}, which was not asked for"))
}

async fn next(connection: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<Frame> {
    let found = frame::read(connection).await?;
    found.ok_or_else(|| Error::Unavailable("the machine closed the connection".into()))
}

async fn answer(connection: &mut Connection) -> Result<Answer> {
    let frame = next(connection).await?;
    match frame.kind {
        Kind::Answer => frame.json(),
        Kind::Failure => Err(frame.json::<Error>()?),
        other => Err(surprise(&format!("{other:?}"))),
    }
}

impl RemoteNode {
    /// The machine that these connections lead to.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial }
    }

    async fn send(&self, call: Call) -> Result<Connection> {
        let mut connection = self.dial.dial().await?;
        frame::write(&mut connection, &Frame::of_json(Kind::Call, &call)?).await?;
        Ok(connection)
    }

    async fn ask(&self, call: Call) -> Result<(Answer, Connection)> {
        let mut connection = self.send(call).await?;
        Ok((answer(&mut connection).await?, connection))
    }

    async fn order(&self, call: Call) -> Result<()> {
        match self.ask(call).await?.0 {
            Answer::Done => Ok(()),
            other => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn session(&self, call: Call) -> Result<Session> {
        match self.ask(call).await? {
            (Answer::Session(pid, stdin), connection) => Ok(session(connection, pid, stdin)),
            (other, _) => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn bytes(&self, call: Call) -> Result<ByteStream> {
        match self.ask(call).await? {
            (Answer::Done, connection) => Ok(bytes(connection)),
            (other, _) => Err(surprise(&format!("{other:?}"))),
        }
    }
}

/// The frames of a stream, to its end or its error.
fn frames(connection: Connection) -> impl futures::Stream<Item = Result<Frame>> + Send {
    futures::stream::unfold(Some(connection), |connection| async move {
        let mut connection = connection?;
        match next(&mut connection).await {
            Ok(frame) if frame.kind == Kind::End => None,
            Ok(frame) if frame.kind == Kind::Failure => Some((Err(frame.json().unwrap_or_else(|error| error)), None)),
            Ok(frame) => Some((Ok(frame), Some(connection))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

fn bytes(connection: Connection) -> ByteStream {
    Box::pin(frames(connection).map(|frame| frame.map(|frame| frame.data).map_err(std::io::Error::other)))
}

/// Standard input: bytes become frames; shutting it down says so, dropping it says nothing.
struct Input {
    frames: PollSender<Frame>,
}

impl Input {
    fn push(&mut self, cx: &mut Context<'_>, frame: impl FnOnce() -> Frame) -> Poll<std::io::Result<()>> {
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        match self.frames.poll_reserve(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(self.frames.send_item(frame()).map_err(|_| gone())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(gone())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        let piece = &data[..data.len().min(PIECE_BYTES)];
        self.push(cx, || Frame::new(Kind::Data, Bytes::copy_from_slice(piece))).map_ok(|()| piece.len())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.push(cx, || Frame::new(Kind::End, Bytes::new()))
    }
}

/// Two tasks carry a session: one reads until the process has ended or nobody listens any more, one writes until then.
fn session(connection: Connection, pid: u32, has_stdin: bool) -> Session {
    let (reader, writer) = tokio::io::split(connection);
    let (frames, to_send) = mpsc::channel(WAITING_MAX);
    let (resize, sizes) = mpsc::channel(WAITING_MAX);
    let (outputs, output) = mpsc::channel(WAITING_MAX);
    let (ended, exit) = oneshot::channel();
    let sending = tokio::spawn(send(writer, to_send, sizes));
    tokio::spawn(async move {
        receive(reader, outputs, ended).await;
        sending.abort();
    });
    let exit = async move {
        exit.await.unwrap_or_else(|_| Err(Error::Unavailable("the connection to the machine is lost".into())))
    };
    Session {
        stdin: has_stdin
            .then(|| Box::pin(Input { frames: PollSender::new(frames) }) as Pin<Box<dyn AsyncWrite + Send>>),
        output: Box::pin(futures::stream::unfold(output, |mut output: mpsc::Receiver<Output>| async move {
            output.recv().await.map(|piece| (piece, output))
        })),
        resize,
        exit: Box::pin(exit),
        pid,
    }
}

async fn send(
    mut writer: WriteHalf<Connection>,
    mut frames: mpsc::Receiver<Frame>,
    mut sizes: mpsc::Receiver<TerminalSize>,
) {
    loop {
        let frame = tokio::select! {
            Some(frame) = frames.recv() => Ok(frame),
            Some(size) = sizes.recv() => Frame::of_json(Kind::Resize, &size),
            // Nobody has anything to say any more; the connection stays for the other direction.
            else => return std::future::pending().await,
        };
        let Ok(frame) = frame else { continue };
        if frame::write(&mut writer, &frame).await.is_err() {
            return;
        }
    }
}

async fn receive(
    mut reader: ReadHalf<Connection>,
    outputs: mpsc::Sender<Output>,
    ended: oneshot::Sender<Result<ExitStatus>>,
) {
    let (mut outputs, mut ended) = (Some(outputs), Some(ended));
    while outputs.is_some() || ended.is_some() {
        let unheard = async {
            match (&outputs, &mut ended) {
                (Some(outputs), Some(ended)) => {
                    tokio::join!(outputs.closed(), ended.closed());
                }
                (Some(outputs), None) => outputs.closed().await,
                (None, Some(ended)) => ended.closed().await,
                (None, None) => {}
            }
        };
        let frame = tokio::select! {
            frame = next(&mut reader) => frame,
            () = unheard => return,
        };
        let (stream, data) = match frame {
            Ok(Frame { kind: Kind::Stdout, data }) => (OutputStream::Stdout, data),
            Ok(Frame { kind: Kind::Stderr, data }) => (OutputStream::Stderr, data),
            Ok(Frame { kind: Kind::End, .. }) => {
                outputs = None;
                continue;
            }
            Ok(frame @ Frame { kind: Kind::Exit | Kind::Failure, .. }) => {
                let status = match frame.kind {
                    Kind::Exit => frame.json(),
                    _ => Err(frame.json().unwrap_or_else(|error| error)),
                };
                if let Some(ended) = ended.take() {
                    let _ = ended.send(status);
                }
                continue;
            }
            Ok(_) => continue,
            Err(error) => {
                if let Some(ended) = ended.take() {
                    let _ = ended.send(Err(error));
                }
                return;
            }
        };
        if let Some(outputs) = &outputs {
            // Who only waits for the exit does not read.
            let _ = outputs.send(Output { stream, data }).await;
        }
    }
}

#[async_trait]
impl Node for RemoteNode {
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream> {
        match self.ask(Call::Logs(workload.clone(), options)).await? {
            (Answer::Done, connection) => {
                Ok(Box::pin(frames(connection).map(|frame| frame.and_then(|frame| frame.log_line()))))
            }
            (other, _) => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn exec(&self, workload: &Workload, request: ExecRequest) -> Result<Session> {
        self.session(Call::Exec(workload.clone(), request)).await
    }

    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session> {
        self.session(Call::Attach(workload.clone(), options)).await
    }

    async fn resize(&self, workload: &Workload, size: TerminalSize) -> Result<()> {
        self.order(Call::Resize(workload.clone(), size)).await
    }

    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()> {
        self.order(Call::Signal(workload.clone(), signal)).await
    }

    async fn port_forward(&self, workload: &Workload, port: u16) -> Result<Box<dyn Duplex>> {
        match self.ask(Call::PortForward(workload.clone(), port)).await? {
            // From here on the connection carries nothing but the port's bytes.
            (Answer::Done, connection) => Ok(connection),
            (other, _) => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn statistics(&self, workload: &Workload) -> Result<Statistics> {
        match self.ask(Call::Statistics(workload.clone())).await?.0 {
            Answer::Statistics(found) => Ok(found),
            other => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn processes(&self, workload: &Workload, arguments: &str) -> Result<ProcessTable> {
        match self.ask(Call::Processes(workload.clone(), arguments.to_owned())).await?.0 {
            Answer::Processes(found) => Ok(found),
            other => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn path_statistics(&self, workload: &Workload, path: &str) -> Result<PathStatistics> {
        match self.ask(Call::PathStatistics(workload.clone(), path.to_owned())).await?.0 {
            Answer::Path(found) => Ok(found),
            other => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)> {
        match self.ask(Call::ReadArchive(workload.clone(), path.to_owned())).await? {
            (Answer::Path(found), connection) => Ok((found, bytes(connection))),
            (other, _) => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn write_archive(&self, workload: &Workload, path: &str, mut archive: ByteStream) -> Result<()> {
        let mut connection = self.send(Call::WriteArchive(workload.clone(), path.to_owned())).await?;
        let mut sent = Ok(());
        while let (Ok(()), Some(piece)) = (&sent, archive.next().await) {
            // A broken archive ends without the mark of its end, and is refused.
            let piece = piece.map_err(|error| Error::Invalid(error.to_string()))?;
            sent = frame::write_pieces(&mut connection, Kind::Data, piece).await;
        }
        if sent.is_ok() {
            sent = frame::write(&mut connection, &Frame::new(Kind::End, Bytes::new())).await;
        }
        // Who stopped listening has said why.
        match (answer(&mut connection).await, sent) {
            (Ok(Answer::Done), Ok(())) => Ok(()),
            (Ok(_), Err(error)) | (Err(error), _) => Err(error),
            (Ok(other), Ok(())) => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn changes(&self, workload: &Workload) -> Result<Vec<FileChange>> {
        match self.ask(Call::Changes(workload.clone())).await?.0 {
            Answer::Changes(found) => Ok(found),
            other => Err(surprise(&format!("{other:?}"))),
        }
    }

    async fn export(&self, workload: &Workload) -> Result<ByteStream> {
        self.bytes(Call::Export(workload.clone())).await
    }

    async fn changes_layer(&self, workload: &Workload) -> Result<ByteStream> {
        self.bytes(Call::ChangesLayer(workload.clone())).await
    }
}
