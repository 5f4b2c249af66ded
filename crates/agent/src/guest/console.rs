//! What a guest says on its serial line, and is told there. All that it says is in a log of two files, of which the older half goes when
//! it grows too long; one session at a time may type.

use std::io::{Read, Seek, SeekFrom};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use node::{AttachOptions, Error, ExitStatus, LogLine, LogOptions, LogStream, Output, OutputStream, Result, Session};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Key};
use crate::error::chain;

/// What of its past a new session is shown. Units: bytes.
const PAST_BYTES: u64 = 16 << 10;
/// The most of a log that is read at once; what was said before is left out. Both files are hardly ever longer together. Units: bytes.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// Largest piece that is passed on at once. Units: bytes.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces that wait for a slow listener.
const WAITING_MAX: usize = 64;
/// A console that ends has no outcome.
const END: ExitStatus = ExitStatus { code: 0, out_of_memory: false };
/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The files of a guest's log, the older first.
fn files(context: &Context, uid: &str) -> [PathBuf; 2] {
    let newer = context.guests.directory(uid).join("console.log");
    [newer.with_extension("log.1"), newer]
}

fn known(context: &Context, key: &Key) -> Result<String> {
    let uid = context.guests.uid(key);
    uid.ok_or_else(|| Error::NotFound(format!("virtual machine {} is not on machine {}", key.name, context.node_name)))
}

/// The last of what was said, at most so many bytes, and where the newer file ended then. Blocking.
fn past(files: &[PathBuf; 2], most: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let (newer, place) = end_of(&files[1], most)?;
    let left = most.saturating_sub(u64::try_from(newer.len()).unwrap_or(u64::MAX));
    let (mut text, _) = end_of(&files[0], left)?;
    text.extend(newer);
    Ok((text, place))
}

/// The end of a file, at most so many bytes, and the place up to which it was read: more may have come since.
fn end_of(path: &Path, most: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        opened => opened?,
    };
    let begin = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    let place = begin.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
    Ok((text, place))
}

/// The same as [`past`], without holding others up.
async fn read_past(context: &Context, uid: &str, most: u64) -> Result<(Vec<u8>, u64)> {
    let files = files(context, uid);
    let read = tokio::task::spawn_blocking(move || past(&files, most)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| Error::Internal(format!("cannot read the log: {error}")))
}

/// Where the last so many lines begin; what comes after the last line feed is a line too.
fn last_lines(text: &[u8], lines: usize) -> usize {
    let within = text.strip_suffix(b"\n").unwrap_or(text);
    let Some(nth) = lines.checked_sub(1) else { return text.len() };
    within.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(nth).map_or(0, |(at, _)| at + 1)
}

fn line(data: Bytes) -> LogLine {
    LogLine { timestamp_ns: 0, stream: OutputStream::Stdout, data }
}

/// Reads the log. The serial line carries no times, so all that ask for some get everything.
pub fn log(context: &Arc<Context>, key: Key, options: LogOptions) -> Result<LogStream> {
    let uid = known(context, &key)?;
    Ok(Box::pin(stream::once(read_log(context.clone(), key, uid, options)).flatten()))
}

async fn read_log(context: Arc<Context>, key: Key, uid: String, options: LogOptions) -> LogStream {
    let (mut text, place) = match read_past(&context, &uid, LOG_BYTES_MAX).await {
        Ok(found) => found,
        Err(error) => return Box::pin(stream::iter([Err::<LogLine, _>(error)])),
    };
    let begin = options.tail.map_or(0, |lines| last_lines(&text, lines));
    text.drain(..begin);
    let pieces = text.chunks(PIECE_BYTES).map(|piece| Ok(line(Bytes::copy_from_slice(piece))));
    let pieces = stream::iter(pieces.collect::<Vec<Result<LogLine>>>());
    if options.follow { Box::pin(pieces.chain(follow(context, key, uid, place))) } else { Box::pin(pieces) }
}

/// What a guest says from a place in the newer file on.
fn follow(context: Arc<Context>, key: Key, uid: String, place: u64) -> impl Stream<Item = Result<LogLine>> + Send {
    let [_, file] = files(&context, &uid);
    stream::unfold(place, move |mut place| {
        let (context, key, uid, file) = (context.clone(), key.clone(), uid.clone(), file.clone());
        async move {
            loop {
                match read_on(&file, &mut place).await {
                    Ok(found) if found.is_empty() => {}
                    Ok(found) => return Some((Ok(line(found)), place)),
                    Err(error) => return Some((Err(Error::Internal(format!("cannot read the log: {error}"))), place)),
                }
                // It went, or is on another host.
                if context.guests.uid(&key).as_deref() != Some(uid.as_str()) {
                    return None;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    })
}

/// What is there after this place; a file that was cut short is read from its beginning.
async fn read_on(path: &Path, place: &mut u64) -> std::io::Result<Bytes> {
    let mut file = match tokio::fs::File::open(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Bytes::new()),
        opened => opened?,
    };
    if file.metadata().await?.len() < *place {
        *place = 0;
    }
    file.seek(SeekFrom::Start(*place)).await?;
    let mut buffer = vec![0; PIECE_BYTES];
    let count = file.read(&mut buffer).await?;
    buffer.truncate(count);
    *place = place.saturating_add(u64::try_from(count).unwrap_or(0));
    Ok(buffer.into())
}

/// Connects to the console. A session that has it ends: who lost a connection need not wait for it.
///
/// Errors: the guest does not run.
pub async fn attach(context: &Arc<Context>, key: &Key, options: AttachOptions) -> Result<Session> {
    let uid = known(context, key)?;
    let guest = context.guests.guest(key);
    let guest = guest.ok_or_else(|| Error::Conflict(format!("virtual machine {} does not run", key.name)))?;
    let mine = CancellationToken::new();
    // Whatever becomes of this, nobody has the console any more after it.
    let held = mine.clone().drop_guard();
    {
        let mut consoles = context.guests.consoles.lock();
        consoles.retain(|_, other| !other.is_cancelled());
        if let Some(other) = consoles.insert(uid.clone(), mine.clone()) {
            other.cancel();
        }
    }
    let stream = guest.console().await.map_err(|error| Error::Conflict(chain(&error)))?;
    let connection = stream.as_fd().try_clone_to_owned();
    let connection = connection.map_err(|error| Error::Internal(format!("cannot hold the console: {error}")))?;
    let begin = if options.replay_logs { read_past(context, &uid, PAST_BYTES).await?.0 } else { Vec::new() };
    let (reader, writer) = tokio::io::split(stream);
    let (pieces, heard) = mpsc::channel(WAITING_MAX);
    let (ended, exit) = oneshot::channel();
    let taken = mine.clone();
    tokio::spawn(async move {
        let _held = held;
        let _ = ended.send(hear_and_hang_up(reader, connection.into(), pieces, &taken).await);
    });
    let output = stream::unfold(heard, |mut heard: mpsc::Receiver<Bytes>| async move {
        Some((Output { stream: OutputStream::Stdout, data: heard.recv().await? }, heard))
    });
    let begin = (!begin.is_empty()).then(|| Output { stream: OutputStream::Stdout, data: begin.into() });
    let stdin = options.stdin.then(|| Box::pin(Typed { writer, taken: mine }) as Pin<Box<dyn AsyncWrite + Send>>);
    let (resize, _) = mpsc::channel(1);
    Ok(Session {
        stdin,
        output: Box::pin(stream::iter(begin).chain(output)),
        resize,
        exit: Box::pin(async move { exit.await.unwrap_or(Ok(END)) }),
        pid: 0,
    })
}

/// The same as [`hear`]; then the connection is over for all that hold a part of it. Who types may hold one for long yet, and the hypervisor
/// serves the next session only when this one's connection has ended.
async fn hear_and_hang_up(
    reader: ReadHalf<UnixStream>,
    connection: std::os::unix::net::UnixStream,
    pieces: mpsc::Sender<Bytes>,
    taken: &CancellationToken,
) -> Result<ExitStatus> {
    let outcome = hear(reader, pieces, taken).await;
    // It fails where the guest has hung up before.
    let _ = connection.shutdown(Shutdown::Both);
    outcome
}

/// Passes on what comes from a console until it ends, somebody else takes it, or nobody listens. Who listens too slowly misses some: the
/// guest is not held up for it, and the log has everything.
async fn hear(
    mut reader: ReadHalf<UnixStream>,
    pieces: mpsc::Sender<Bytes>,
    taken: &CancellationToken,
) -> Result<ExitStatus> {
    loop {
        let mut buffer = vec![0; PIECE_BYTES];
        let count = tokio::select! {
            read = reader.read(&mut buffer) => read.unwrap_or(0),
            () = pieces.closed() => return Ok(END),
            () = taken.cancelled() => return Err(Error::Conflict("another session has the console now".into())),
        };
        if count == 0 {
            return Ok(END);
        }
        buffer.truncate(count);
        let _ = pieces.try_send(buffer.into());
    }
}

/// What is typed. Its end is not the console's, which would then say nothing more.
struct Typed {
    writer: WriteHalf<UnixStream>,
    taken: CancellationToken,
}

impl AsyncWrite for Typed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        data: &[u8],
    ) -> task::Poll<std::io::Result<usize>> {
        if self.taken.is_cancelled() {
            return task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> task::Poll<std::io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_with_and_without_an_end() {
        for (text, lines, expected) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 2, "b\nc"), ("a\n", 5, "a\n"), ("a\nb", 0, ""), ("", 1, "")]
        {
            assert_eq!(&text[last_lines(text.as_bytes(), lines)..], expected, "{text:?} {lines}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_read_from_both_files() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["console.log.1", "console.log"].map(|name| directory.path().join(name));
        assert_eq!(past(&files, 10).unwrap(), (Vec::new(), 0));
        std::fs::write(&files[0], "older").unwrap();
        assert_eq!(past(&files, 10).unwrap(), (b"older".to_vec(), 0));
        std::fs::write(&files[1], "newer").unwrap();
        for (most, expected) in [(100, "oldernewer"), (7, "ernewer"), (5, "newer"), (2, "er"), (0, "")] {
            assert_eq!(past(&files, most).unwrap(), (expected.as_bytes().to_vec(), 5), "{most}");
        }
    }

    #[tokio::test]
    async fn a_console_that_is_taken_ends_though_nobody_lets_go_of_it() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let connection = near.as_fd().try_clone_to_owned().unwrap();
        let (reader, _writer) = tokio::io::split(near);
        let (pieces, _heard) = mpsc::channel(1);
        let taken = CancellationToken::new();
        taken.cancel();
        assert!(hear_and_hang_up(reader, connection.into(), pieces, &taken).await.is_err());
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_log_that_was_cut_is_read_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut place = 0;
        assert!(read_on(&path, &mut place).await.unwrap().is_empty());
        std::fs::write(&path, "first").unwrap();
        assert_eq!(read_on(&path, &mut place).await.unwrap(), "first");
        assert!(read_on(&path, &mut place).await.unwrap().is_empty());
        std::fs::write(&path, "new").unwrap();
        assert_eq!(read_on(&path, &mut place).await.unwrap(), "new");
    }
}
