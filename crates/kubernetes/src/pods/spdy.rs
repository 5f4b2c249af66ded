//! SPDY/3.1 as far as Kubernetes streams use it: frames in and out, no I/O. No flow control, as Kubernetes' own library
//! has none. `Source:` draft-mbelshe-httpbis-spdy-00.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::spdy_headers::{HeaderDecoder, HeaderEncoder};

/// Largest frame that a client may send. Units: bytes.
const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Largest payload of a data frame that we send. Units: bytes.
pub(super) const MAX_DATA_BYTES: usize = 64 * 1024;
const HEAD_BYTES: usize = 8;
const CONTROL: u16 = 0x8003;
const FLAG_FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// The `Upgrade` header, in lower case.
pub(super) fn upgrade_header(headers: &http::HeaderMap) -> Option<String> {
    headers.get(http::header::UPGRADE).and_then(|value| value.to_str().ok()).map(str::to_ascii_lowercase)
}

/// What a client sent.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// A new stream; header names in lower case.
    Open { stream: u32, headers: BTreeMap<String, String> },
    /// Bytes of a stream.
    Data { stream: u32, data: Bytes },
    /// The client will send no more on a stream.
    Finished { stream: u32 },
    /// The stream is void.
    Reset { stream: u32 },
    /// To be answered with the same number.
    Ping(u32),
    /// The client will open no more streams.
    GoAway,
}

/// The bytes are no SPDY.
#[derive(Debug, PartialEq)]
pub(super) struct Broken;

/// Takes bytes as they come, gives frames.
#[derive(Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    headers: HeaderDecoder,
    /// The end of a stream that came as a flag of the frame before.
    finished: Option<u32>,
}

impl Reader {
    /// Adds bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, when it is complete.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, Broken> {
        loop {
            if let Some(stream) = self.finished.take() {
                return Ok(Some(Incoming::Finished { stream }));
            }
            let Some(head) = self.buffer.get(..HEAD_BYTES) else { return Ok(None) };
            let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            if length > MAX_FRAME_BYTES {
                return Err(Broken);
            }
            if self.buffer.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            let mut head = self.buffer.split_to(HEAD_BYTES);
            let payload = self.buffer.split_to(length).freeze();
            let (first, flags) = (head.get_u32(), head[0]);
            let fin = flags & FLAG_FIN != 0;
            if first >> 31 == 0 {
                self.finished = fin.then_some(first);
                if !payload.is_empty() {
                    return Ok(Some(Incoming::Data { stream: first, data: payload }));
                }
            } else if let Some(frame) = self.control(first, fin, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, first: u32, fin: bool, mut payload: Bytes) -> Result<Option<Incoming>, Broken> {
        if first >> 16 != u32::from(CONTROL) {
            return Err(Broken);
        }
        let number = |payload: &mut Bytes| payload.try_get_u32().map_err(|_| Broken);
        let kind = first & 0xffff;
        Ok(match u16::try_from(kind).map_err(|_| Broken)? {
            SYN_STREAM => {
                let stream = number(&mut payload)? & 0x7fff_ffff;
                // Associated stream, priority and slot mean nothing here.
                number(&mut payload)?;
                payload.try_get_u16().map_err(|_| Broken)?;
                let headers = self.headers.decode(&payload)?;
                self.finished = fin.then_some(stream);
                Some(Incoming::Open { stream, headers })
            }
            RST_STREAM => Some(Incoming::Reset { stream: number(&mut payload)? & 0x7fff_ffff }),
            PING => Some(Incoming::Ping(number(&mut payload)?)),
            GOAWAY => Some(Incoming::GoAway),
            _ => None,
        })
    }
}

fn frame(first: u32, flags: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    out.put_u32(first);
    // Payloads are bounded by MAX_DATA_BYTES, far below the 24 bits of the length.
    out.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap_or_default());
    out.extend_from_slice(payload);
    out.freeze()
}

fn control(kind: u16, payload: &[u8]) -> Bytes {
    frame(u32::from(CONTROL) << 16 | u32::from(kind), 0, payload)
}

/// A data frame; the payload is at most [`MAX_DATA_BYTES`].
pub(super) fn data(stream: u32, payload: &[u8], fin: bool) -> Bytes {
    frame(stream, if fin { FLAG_FIN } else { 0 }, payload)
}

/// Accepts a stream.
pub(super) fn reply(stream: u32, encoder: &mut HeaderEncoder) -> Bytes {
    control(SYN_REPLY, &[&stream.to_be_bytes()[..], &encoder.empty()].concat())
}

/// Answers a ping.
pub(super) fn ping(number: u32) -> Bytes {
    control(PING, &number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_however_the_bytes_are_cut() {
        let bytes = [data(3, b"abc", false), ping(9), data(3, b"d", true)].concat();
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            let mut found = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(frame) = reader.next().unwrap() {
                    found.push(frame);
                }
            }
            let data = |text: &'static str| Incoming::Data { stream: 3, data: text.into() };
            assert_eq!(found, [data("abc"), Incoming::Ping(9), data("d"), Incoming::Finished { stream: 3 }]);
        }
    }

    #[test]
    fn oversize_and_foreign_frames_are_refused() {
        for bytes in [[0, 0, 0, 1, 0, 0xff, 0xff, 0xff], [0x80, 2, 0, 1, 0, 0, 0, 0]] {
            let mut reader = Reader::default();
            reader.push(&bytes);
            assert_eq!(reader.next(), Err(Broken));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let mut reader = Reader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
