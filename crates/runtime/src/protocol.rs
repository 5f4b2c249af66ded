//! The framed protocol between the daemon and a shim, over a Unix socket that only root reaches: one byte of kind, four
//! bytes of length (little-endian), the payload. One connection carries one request; [`FrameKind::Attach`] and
//! [`FrameKind::Exec`] connections then carry streams, a [`FrameKind::Wait`] connection stays until the end.

use serde::{Deserialize, Serialize};

/// Bytes before each payload.
pub(crate) const HEADER_BYTES: usize = 5;
/// Largest payload: an exec request with a large environment.
pub(crate) const PAYLOAD_MAX_BYTES: usize = 4 << 20;
/// Largest piece of stream data in one frame.
pub(crate) const DATA_MAX_BYTES: usize = 64 << 10;

macro_rules! frame_kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum FrameKind { $($(#[$doc])* $name = $value,)* }

        impl FrameKind {
            /// The kind of a first byte.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

frame_kinds! {
    /// Request: let the main process go.
    Start = 1,
    /// Request: send a signal to the main process (payload: number, 4 bytes).
    Kill = 2,
    /// Request, or within a stream: columns and rows, 2 bytes each.
    Resize = 3,
    /// Request: connect to the main process (payload: [`AttachRequest`]).
    Attach = 4,
    /// Request: run one more process (payload: [`ExecStart`]).
    Exec = 5,
    /// Request: say when the main process has ended and its exit status is in a file.
    Wait = 6,
    /// Within a stream: standard input.
    Stdin = 7,
    /// Within a stream: end of standard input.
    StdinEnd = 8,
    /// Request: carry ports whose sockets come with the header (payload: list of [`CarriedPort`]); an empty list ends all.
    Carry = 9,
    /// Answer: done (payload depends on the request).
    Ok = 16,
    /// Answer: refused (payload: [`Refusal`]).
    Refused = 17,
    /// Within a stream: standard output.
    Stdout = 18,
    /// Within a stream: standard error.
    Stderr = 19,
    /// The process ended (payload: [`crate::ExitRecord`]).
    Exit = 20,
}

/// Payload of [`FrameKind::Attach`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct AttachRequest {
    pub stdin: bool,
    /// The client is going to read the log up to here: write unfinished lines to it.
    pub replay: bool,
}

/// Answer to [`FrameKind::Attach`]: up to where the log holds what this client will not be sent.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Attached {
    /// The current log file, whatever its name will be when the client reads it; 0 without a log.
    pub log_inode: u64,
    /// How long it is.
    pub log_bytes: u64,
    pub pid: u32,
}

/// Payload of [`FrameKind::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecStart {
    /// OCI `process` object.
    pub process: serde_json::Value,
    pub terminal: bool,
    pub stdin: bool,
    pub columns: u16,
    pub rows: u16,
    /// `None` when the OCI runtime must run it.
    #[serde(default)]
    pub joining: Option<Joining>,
}

/// What a shim must know to join its container by itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Joining {
    /// The container's system calls are filtered, by a program that is in the OCI runtime's state.
    pub filtered: bool,
}

/// A port in the payload of [`FrameKind::Carry`]; the sockets come in the same order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CarriedPort {
    /// UDP.
    pub is_datagram: bool,
    /// Where it leads.
    pub target: std::net::SocketAddrV4,
}

/// Ports in one [`FrameKind::Carry`]: what one message may bring of descriptors, with room to spare.
///
/// Source: unix(7), SCM_MAX_FD.
pub(crate) const CARRIED_AT_ONCE: usize = 128;

/// Payload of [`FrameKind::Refused`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// 126 or 127 when a program could not be started; 0 otherwise.
    pub code: i32,
    pub message: String,
}

/// Appends a frame.
pub(crate) fn encode(out: &mut Vec<u8>, kind: FrameKind, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.push(kind as u8);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
}

/// One frame as bytes.
pub(crate) fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    encode(&mut out, kind, payload);
    out
}

/// A frame whose payload is JSON.
pub(crate) fn json_frame<T: Serialize>(kind: FrameKind, value: &T) -> Vec<u8> {
    // The types above hold only strings and numbers, whose serialization cannot fail; an empty payload is refused by the reader.
    frame(kind, &serde_json::to_vec(value).unwrap_or_default())
}

/// Kind and payload length of a header; `None` when it is not one.
pub(crate) fn decode_header(header: [u8; HEADER_BYTES]) -> Option<(FrameKind, usize)> {
    let [kind, a, b, c, d] = header;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    (length <= PAYLOAD_MAX_BYTES).then_some((FrameKind::from_byte(kind)?, length))
}

/// Columns and rows of a [`FrameKind::Resize`] payload.
pub(crate) fn decode_size(payload: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = payload else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// Payload of a [`FrameKind::Resize`].
pub(crate) fn encode_size(columns: u16, rows: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let bytes = frame(FrameKind::Stdout, b"hello");
        let header: [u8; HEADER_BYTES] = bytes[..HEADER_BYTES].try_into().unwrap();
        assert_eq!(decode_header(header), Some((FrameKind::Stdout, 5)));
        assert_eq!(decode_size(&encode_size(80, 24)), Some((80, 24)));
    }

    #[test]
    fn unknown_kinds_and_endless_lengths_are_refused() {
        assert_eq!(decode_header([99, 0, 0, 0, 0]), None);
        assert_eq!(decode_header([1, 255, 255, 255, 255]), None);
    }
}
