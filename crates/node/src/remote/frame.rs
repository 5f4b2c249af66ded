//! Frames: one byte of kind, four of length (big endian), the bytes.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Error, LogLine, OutputStream, Result};

/// Largest content of a frame. Streams are cut into smaller pieces; the largest whole thing is the list of a container's
/// changed files. Units: bytes.
const BYTES_MAX: usize = 16 << 20;
/// Pieces that streams are cut into. Units: bytes.
pub(super) const PIECE_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 5;
/// Timestamp and stream before a log line's text. Units: bytes.
const LOG_HEADER_BYTES: usize = 9;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON: what is asked.
    Call = 1,
    /// JSON: what is answered.
    Answer = 2,
    /// JSON: what went wrong; the last frame.
    Failure = 3,
    /// Bytes of a stream: standard input, or an archive.
    Data = 4,
    /// Bytes of standard output.
    Stdout = 5,
    /// Bytes of standard error.
    Stderr = 6,
    /// JSON: a new size of the terminal.
    Resize = 7,
    /// The stream of this direction is complete.
    End = 8,
    /// JSON: how a process ended.
    Exit = 9,
    /// Time, stream and text of a log line.
    Log = 10,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        use Kind::{Answer, Call, Data, End, Exit, Failure, Log, Resize, Stderr, Stdout};
        let all = [Call, Answer, Failure, Data, Stdout, Stderr, Resize, End, Exit, Log];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) data: Bytes,
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("the connection to the machine broke: {what}"))
}

impl Frame {
    pub(super) fn new(kind: Kind, data: impl Into<Bytes>) -> Frame {
        Frame { kind, data: data.into() }
    }

    pub(super) fn of_json(kind: Kind, value: &impl Serialize) -> Result<Frame> {
        serde_json::to_vec(value).map(|data| Frame::new(kind, data)).map_err(|error| Error::Internal(error.to_string()))
    }

    pub(super) fn of_line(line: &LogLine) -> Frame {
        let mut data = BytesMut::with_capacity(LOG_HEADER_BYTES + line.data.len());
        data.put_i64(line.timestamp_ns);
        data.put_u8(u8::from(line.stream == OutputStream::Stderr));
        data.extend_from_slice(&line.data);
        Frame::new(Kind::Log, data.freeze())
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.data).map_err(|error| broken(format!("unreadable {:?}: {error}", self.kind)))
    }

    pub(super) fn log_line(&self) -> Result<LogLine> {
        let stamp = self.data.get(..8).and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
        match (stamp, self.data.get(8)) {
            (Some(timestamp_ns), Some(stream)) => Ok(LogLine {
                timestamp_ns,
                stream: if *stream == 0 { OutputStream::Stdout } else { OutputStream::Stderr },
                data: self.data.slice(LOG_HEADER_BYTES..),
            }),
            _ => Err(broken("a log line is too short")),
        }
    }
}

/// Reads exactly one frame, and nothing of what follows it; `None` at the end of the connection.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>> {
    let mut header = [0; HEADER_BYTES];
    match from.read(&mut header[..1]).await {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(broken(error)),
    }
    from.read_exact(&mut header[1..]).await.map_err(broken)?;
    let [kind, length @ ..] = header;
    let kind = Kind::of(kind).ok_or_else(|| broken("unknown kind of frame"))?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > BYTES_MAX {
        return Err(broken(format!("a frame of {length} bytes")));
    }
    // Grows with what really comes, so that a lie about the length costs nothing.
    let mut data = Vec::with_capacity(length.min(PIECE_BYTES));
    let expected = u64::try_from(length).unwrap_or(u64::MAX);
    let count = AsyncReadExt::take(from, expected).read_to_end(&mut data).await.map_err(broken)?;
    if count < length { Err(broken("it ended within a frame")) } else { Ok(Some(Frame::new(kind, data))) }
}

/// Writes one frame, a stream's bytes in pieces.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<()> {
    if frame.data.len() > BYTES_MAX {
        return Err(Error::Internal(format!("an answer of {} bytes is too large", frame.data.len())));
    }
    let length = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
    let mut header = [0; HEADER_BYTES];
    header[0] = frame.kind as u8;
    header[1..].copy_from_slice(&length.to_be_bytes());
    to.write_all(&header).await.map_err(broken)?;
    to.write_all(&frame.data).await.map_err(broken)?;
    to.flush().await.map_err(broken)
}

/// Writes bytes of a stream in pieces.
pub(super) async fn write_pieces(to: &mut (impl AsyncWrite + Unpin), kind: Kind, mut data: Bytes) -> Result<()> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(PIECE_BYTES));
        write(to, &Frame::new(kind, piece)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wait<T>(work: impl Future<Output = T>) -> T {
        futures::executor::block_on(work)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number in 1u8..=10, data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let frame = Frame::new(Kind::of(number).unwrap(), data);
            let mut wire = Vec::new();
            wait(write(&mut wire, &frame)).unwrap();
            wire.push(7);
            let mut rest = wire.as_slice();
            prop_assert_eq!(wait(read(&mut rest)).unwrap(), Some(frame));
            prop_assert_eq!(rest, &[7]);
        }

        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            wait(super::super::fuzz(&data));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let mut wire: &[u8] = &[4, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert!(wait(read(&mut wire)).is_err());
        assert_eq!(wire.len(), 3);
    }

    #[test]
    fn a_log_line_keeps_its_time() {
        let line = LogLine { timestamp_ns: -5, stream: OutputStream::Stderr, data: "x\n".into() };
        assert_eq!(Frame::of_line(&line).log_line().unwrap(), line);
        assert!(Frame::new(Kind::Log, "short").log_line().is_err());
    }
}
