//! Hijacked connections: after `101 UPGRADED` (or a plain 200) the connection carries a process' streams, framed by
//! Docker's stdcopy header or raw on a terminal.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use node::{Output, OutputStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use axum::body::Body;
use axum::response::Response;

use crate::body;
use crate::call::Call;

/// Content type of output on a terminal.
pub(crate) const RAW_STREAM: &str = "application/vnd.docker.raw-stream";
/// Content type of framed output.
pub(crate) const MULTIPLEXED_STREAM: &str = "application/vnd.docker.multiplexed-stream";
/// Piece of standard input that is read at a time. Units: bytes.
const INPUT_PIECE: usize = 32 << 10;

/// Puts Docker's eight-byte header before a piece of output: stream number, three zeros, length.
pub(crate) fn frame(stream: OutputStream, data: &[u8]) -> Bytes {
    framed(
        match stream {
            OutputStream::Stdout => 1,
            OutputStream::Stderr => 2,
        },
        data,
    )
}

/// What a client is told on the stream of the daemon's own errors, upon which it fails. `Source:` moby, `stdcopy.Systemerr`.
pub(crate) fn system_error(text: &str) -> Bytes {
    framed(3, text.as_bytes())
}

fn framed(stream: u8, data: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(data.len() + 8);
    framed.put_u8(stream);
    framed.put_bytes(0, 3);
    framed.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    framed.put_slice(data);
    framed.freeze()
}

/// What a client wants of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// Raw instead of framed.
    pub(crate) terminal: bool,
    /// Typing the detach keys ends the session.
    pub(crate) detachable: bool,
}

/// The pieces of output as they go over the wire.
pub(crate) fn encode(
    output: Pin<Box<dyn Stream<Item = Output> + Send>>,
    wanted: Wanted,
) -> impl Stream<Item = Bytes> + Send + Unpin {
    Box::pin(output.filter_map(move |piece| {
        let skip = match piece.stream {
            OutputStream::Stdout => !wanted.stdout,
            OutputStream::Stderr => !wanted.stderr,
        };
        let encoded = (!skip && !piece.data.is_empty())
            .then(|| if wanted.terminal { piece.data } else { frame(piece.stream, &piece.data) });
        std::future::ready(encoded)
    }))
}

/// Detects the keys that detach a client (`ctrl-p,ctrl-q`).
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q` notation; empty means just that, and what cannot be read means none.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let text = text.filter(|t| !t.is_empty()).unwrap_or("ctrl-p,ctrl-q");
        let keys = text
            .split(',')
            .map(|key| match key.strip_prefix("ctrl-") {
                Some(letter) => match letter.as_bytes() {
                    [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                    [b'@'] => Some(0),
                    [b'['] => Some(27),
                    [b'\\'] => Some(28),
                    [b']'] => Some(29),
                    [b'^'] => Some(30),
                    [b'_'] => Some(31),
                    _ => None,
                },
                None => match key.as_bytes() {
                    [byte] => Some(*byte),
                    _ => None,
                },
            })
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_default();
        Self { keys, matched: 0 }
    }

    /// Takes in typed bytes; gives back what goes to the process, and whether the client leaves.
    pub(crate) fn feed(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(input.len());
        for byte in input {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (pass, true);
                }
                continue;
            }
            pass.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(byte) {
                self.matched = 1;
                if self.keys.len() == 1 {
                    self.matched = 0;
                    return (pass, true);
                }
            } else {
                pass.push(*byte);
            }
        }
        (pass, false)
    }
}

/// A process' streams that go to a client.
pub(crate) struct Streams {
    pub(crate) stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    pub(crate) output: Pin<Box<dyn Stream<Item = Output> + Send>>,
    pub(crate) wanted: Wanted,
    pub(crate) detach_keys: DetachKeys,
    /// Called when the client typed the detach keys.
    pub(crate) detached: Box<dyn FnOnce() + Send>,
}

/// Content type of a workload's output.
pub(crate) fn content_type(call: &Call, terminal: bool) -> &'static str {
    let multiplexed_known = call.version.minor >= 42;
    if terminal || !multiplexed_known { RAW_STREAM } else { MULTIPLEXED_STREAM }
}

/// The head that hands the connection over.
fn switching(content_type: &'static str) -> Response {
    let mut response = body::typed(StatusCode::SWITCHING_PROTOCOLS, content_type, Body::empty());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    response
}

/// Answers with streams that are opened only when the client has the connection (or at once without an upgrade).
pub(crate) async fn respond_later(
    call: &mut Call,
    wanted: Wanted,
    open: impl Future<Output = Streams> + Send + 'static,
) -> Response {
    match call.upgrade.take() {
        Some(upgrade) => {
            tokio::spawn(over_connection(upgrade, open));
            switching(content_type(call, wanted.terminal))
        }
        None => respond(call, open.await),
    }
}

/// Answers with the streams: over the upgraded connection when the client asked for that, else as the answer's body.
pub(crate) fn respond(call: &mut Call, streams: Streams) -> Response {
    let content_type = content_type(call, streams.wanted.terminal);
    match call.upgrade.take() {
        Some(upgrade) => {
            tokio::spawn(over_connection(upgrade, std::future::ready(streams)));
            switching(content_type)
        }
        None => {
            let Streams { stdin, output, wanted, .. } = streams;
            if let Some(mut stdin) = stdin {
                let mut input = body::byte_stream(std::mem::take(&mut call.body));
                tokio::spawn(async move {
                    while let Some(Ok(piece)) = input.next().await {
                        if stdin.write_all(&piece).await.is_err() {
                            return;
                        }
                    }
                    let _ = stdin.shutdown().await;
                });
            }
            body::stream(content_type, encode(output, wanted).map(Ok::<_, std::io::Error>))
        }
    }
}

/// Pumps both directions until the output ends, or the client leaves.
async fn over_connection(upgrade: OnUpgrade, open: impl Future<Output = Streams>) {
    let connection = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => {
            tracing::debug!(%error, "client left before the upgrade");
            return;
        }
    };
    let (reader, mut writer) = tokio::io::split(connection);
    let Streams { stdin, output, wanted, mut detach_keys, detached } = open.await;
    let mut output = encode(output, wanted);
    let input = async move {
        let left = pump_input(reader, stdin, &mut detach_keys, wanted.detachable).await;
        if left {
            detached();
        } else {
            // End of input does not end the session: the process may still write.
            std::future::pending::<()>().await;
        }
    };
    let outward = async {
        while let Some(piece) = output.next().await {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outward => {}
        () = input => {}
    }
    let _ = writer.shutdown().await;
}

/// Copies what the client sends to the process; true when the client detached by keys.
async fn pump_input(
    mut reader: impl AsyncRead + Unpin,
    mut stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    detach_keys: &mut DetachKeys,
    detachable: bool,
) -> bool {
    let mut buffer = vec![0_u8; INPUT_PIECE];
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let (pass, left) =
            if detachable { detach_keys.feed(&buffer[..count]) } else { (buffer[..count].to_vec(), false) };
        if let Some(pipe) = stdin.as_mut()
            && (pipe.write_all(&pass).await.is_err() || pipe.flush().await.is_err())
        {
            // The process closed its input; go on reading so that the client does not block.
            stdin = None;
        }
        if left {
            return true;
        }
    }
    if let Some(mut pipe) = stdin {
        let _ = pipe.shutdown().await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_stream_and_length() {
        assert_eq!(&frame(OutputStream::Stderr, b"hi")[..], b"\x02\0\0\0\0\0\0\x02hi");
    }

    #[test]
    fn detach_keys_are_found_across_pieces_and_given_back_when_incomplete() {
        let mut keys = DetachKeys::parse(None);
        assert_eq!(keys.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.feed(b"\x11"), (Vec::new(), true));
        assert_eq!(keys.feed(b"\x10x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.feed(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
        let mut own = DetachKeys::parse(Some("ctrl-a,d"));
        assert_eq!(own.feed(b"\x01d"), (Vec::new(), true));
    }

    proptest::proptest! {
        #[test]
        fn detach_keys_lose_no_byte_however_the_input_is_cut(input: Vec<u8>, cut in 0_usize..64) {
            let whole = DetachKeys::parse(None).feed(&input);
            let at = cut.min(input.len());
            let mut keys = DetachKeys::parse(None);
            let (mut first, mut left) = keys.feed(&input[..at]);
            if !left {
                let (second, then) = keys.feed(&input[at..]);
                first.extend(second);
                left = then;
            }
            proptest::prop_assert_eq!(whole, (first, left));
        }
    }
}
