//! One call on the machine itself.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{self, Frame, Kind};
use super::{Answer, Call};
use crate::{ByteStream, Duplex, Error, LogStream, Output, OutputStream, Result, Session, SharedNode, Workload};

/// How long a caller may take to say what it wants.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one call; returns when it is done or its caller is gone. Whoever calls this has decided that the other end may ask.
///
/// `Errors:` the connection breaks, or carries something else.
pub async fn serve(mut connection: Box<dyn Duplex>, node: SharedNode) -> Result<()> {
    let first = tokio::time::timeout(CALL_TIMEOUT, frame::read(&mut connection)).await;
    let first = first.map_err(|_| Error::Invalid("nothing was asked in time".into()))??;
    let Some(frame) = first.filter(|frame| frame.kind == Kind::Call) else {
        return Err(Error::Invalid("the connection does not begin with a call".into()));
    };
    match carry_out(&mut connection, &node, frame.json()?).await {
        Err(error) => frame::write(&mut connection, &Frame::of_json(Kind::Failure, &error)?).await,
        Ok(()) => {
            // A clean end tells the other side that nothing was cut off.
            let _ = connection.shutdown().await;
            Ok(())
        }
    }
}

async fn answer(to: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> Result<()> {
    frame::write(to, &Frame::of_json(Kind::Answer, answer)?).await
}

async fn carry_out(connection: &mut Box<dyn Duplex>, node: &SharedNode, call: Call) -> Result<()> {
    match call {
        Call::Logs(workload, options) => {
            let lines = node.logs(&workload, options).await?;
            answer(connection, &Answer::Done).await?;
            send_lines(connection, lines).await
        }
        Call::Exec(workload, request) => session(connection, node.exec(&workload, request).await?).await,
        Call::Attach(workload, options) => session(connection, node.attach(&workload, options).await?).await,
        Call::PortForward(workload, port) => {
            let mut port = node.port_forward(&workload, port).await?;
            answer(connection, &Answer::Done).await?;
            let copied = tokio::io::copy_bidirectional(connection, &mut port).await;
            copied.map(drop).or(Ok(()))
        }
        Call::ReadArchive(workload, path) => {
            let (found, archive) = node.read_archive(&workload, &path).await?;
            answer(connection, &Answer::Path(found)).await?;
            send_bytes(connection, archive).await
        }
        Call::WriteArchive(workload, path) => write_archive(connection, node, &workload, &path).await,
        Call::Export(workload) => {
            let archive = node.export(&workload).await?;
            answer(connection, &Answer::Done).await?;
            send_bytes(connection, archive).await
        }
        Call::ChangesLayer(workload) => {
            let archive = node.changes_layer(&workload).await?;
            answer(connection, &Answer::Done).await?;
            send_bytes(connection, archive).await
        }
        short => {
            let found = at_once(node, short).await?;
            answer(connection, &found).await
        }
    }
}

/// The calls without a stream.
async fn at_once(node: &SharedNode, call: Call) -> Result<Answer> {
    Ok(match call {
        Call::Resize(workload, size) => node.resize(&workload, size).await.map(|()| Answer::Done)?,
        Call::Signal(workload, signal) => node.signal(&workload, signal).await.map(|()| Answer::Done)?,
        Call::Statistics(workload) => Answer::Statistics(node.statistics(&workload).await?),
        Call::Processes(workload, arguments) => Answer::Processes(node.processes(&workload, &arguments).await?),
        Call::PathStatistics(workload, path) => Answer::Path(node.path_statistics(&workload, &path).await?),
        Call::Changes(workload) => Answer::Changes(node.changes(&workload).await?),
        _ => return Err(Error::Internal("a call with a stream is no short one".into())),
    })
}

/// Resolves when the caller is gone: it says nothing while it listens.
async fn gone(reader: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0; 1];
    while matches!(reader.read(&mut byte).await, Ok(1..)) {}
}

async fn send_lines(connection: &mut Box<dyn Duplex>, mut lines: LogStream) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let sending = async {
        while let Some(line) = lines.next().await {
            frame::write(&mut writer, &Frame::of_line(&line?)).await?;
        }
        frame::write(&mut writer, &Frame::new(Kind::End, Bytes::new())).await
    };
    tokio::select! {
        sent = sending => sent,
        () = gone(&mut reader) => Ok(()),
    }
}

async fn send_bytes(connection: &mut Box<dyn Duplex>, mut archive: ByteStream) -> Result<()> {
    while let Some(piece) = archive.next().await {
        let piece = piece.map_err(|error| Error::Internal(error.to_string()))?;
        frame::write_pieces(connection, Kind::Data, piece).await?;
    }
    frame::write(connection, &Frame::new(Kind::End, Bytes::new())).await
}

async fn write_archive(
    connection: &mut Box<dyn Duplex>,
    node: &SharedNode,
    workload: &Workload,
    path: &str,
) -> Result<()> {
    let (pieces, archive) = tokio::sync::mpsc::channel(1);
    let archive: ByteStream =
        Box::pin(futures::stream::unfold(archive, |mut archive: tokio::sync::mpsc::Receiver<_>| async move {
            archive.recv().await.map(|piece| (piece, archive))
        }));
    let receiving = async {
        loop {
            let piece = match frame::read(connection).await {
                Ok(Some(Frame { kind: Kind::Data, data })) => Ok(data),
                Ok(Some(Frame { kind: Kind::End, .. })) => break,
                Ok(_) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                Err(error) => Err(std::io::Error::other(error)),
            };
            let broken = piece.is_err();
            if pieces.send(piece).await.is_err() || broken {
                break;
            }
        }
        drop(pieces);
    };
    let (written, ()) = tokio::join!(node.write_archive(workload, path, archive), receiving);
    written?;
    answer(connection, &Answer::Done).await
}

async fn session(connection: &mut Box<dyn Duplex>, session: Session) -> Result<()> {
    let Session { mut stdin, mut output, resize, mut exit, pid } = session;
    answer(connection, &Answer::Session(pid, stdin.is_some())).await?;
    let (mut reader, mut writer) = tokio::io::split(connection);
    let receiving = async {
        while let Some(frame) = frame::read(&mut reader).await? {
            match (frame.kind, &mut stdin) {
                (Kind::Data, Some(input)) => {
                    // A process that closed its input does not end the session.
                    let written = input.write_all(&frame.data).await;
                    if written.is_err() {
                        stdin = None;
                    }
                }
                (Kind::End, Some(input)) => {
                    let _ = input.shutdown().await;
                    stdin = None;
                }
                (Kind::Resize, _) => {
                    let _ = resize.send(frame.json()?).await;
                }
                _ => {}
            }
        }
        Ok(())
    };
    let sending = async {
        let (mut reading, mut running) = (true, true);
        while reading || running {
            let frame = tokio::select! {
                piece = output.next(), if reading => match piece {
                    Some(Output { stream: OutputStream::Stdout, data }) => Frame::new(Kind::Stdout, data),
                    Some(Output { stream: OutputStream::Stderr, data }) => Frame::new(Kind::Stderr, data),
                    None => {
                        reading = false;
                        Frame::new(Kind::End, Bytes::new())
                    }
                },
                status = &mut exit, if running => {
                    running = false;
                    match status {
                        Ok(status) => Frame::of_json(Kind::Exit, &status)?,
                        Err(error) => Frame::of_json(Kind::Failure, &error)?,
                    }
                }
            };
            frame::write(&mut writer, &frame).await?;
        }
        Ok(())
    };
    tokio::select! {
        sent = sending => sent,
        // The caller went away: the process goes on without it.
        received = receiving => received,
    }
}
