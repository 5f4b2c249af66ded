//! Targets for fuzzing: what reads bytes that strangers send. A target panics when a claim does not hold.

use node::OutputStream;

use crate::hijack::{DetachKeys, frame};

/// Framed streams come apart as they were put together, wherever the pieces were cut.
pub fn stream_frames(data: &[u8]) {
    let (mut wire, mut expected) = (Vec::new(), Vec::new());
    for (index, piece) in data.split(|byte| *byte == b'\n').enumerate() {
        let (stream, number) =
            if index.is_multiple_of(2) { (OutputStream::Stdout, 1) } else { (OutputStream::Stderr, 2) };
        wire.extend_from_slice(&frame(stream, piece));
        expected.push((number, piece));
    }
    let mut rest = &wire[..];
    for (number, piece) in expected {
        let (head, after) = rest.split_at(8);
        let length = usize::try_from(u32::from_be_bytes([head[4], head[5], head[6], head[7]])).expect("a length");
        assert_eq!((head[0], &head[1..4], &after[..length]), (number, &[0, 0, 0][..], piece));
        rest = &after[length..];
    }
    assert!(rest.is_empty());
}

/// Detach keys: the first line names them, the rest is typed. Whatever is not part of the keys goes through, in order, and how the
/// typing is cut into pieces makes no difference.
pub fn detach_keys(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let keys = parts.next().and_then(|line| std::str::from_utf8(line).ok());
    let typed = parts.next().unwrap_or_default();
    let (whole, left) = DetachKeys::parse(keys).feed(typed);
    assert!(whole.len() <= typed.len());
    let mut detector = DetachKeys::parse(keys);
    let mut pieces = Vec::new();
    for byte in typed {
        let (pass, leaves) = detector.feed(std::slice::from_ref(byte));
        pieces.extend(pass);
        if leaves {
            assert!(left);
            break;
        }
    }
    assert_eq!(pieces, whole);
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzzing::smoke;

    #[test]
    fn frames_and_keys_of_any_content_come_apart() {
        let corpus: [&[u8]; 3] = [b"ctrl-p,ctrl-q\nab\x10\x10\x11c", b"a,a,b\naaaab", b"ctrl-@,\\\nx\0\\"];
        smoke(&corpus, 20_000, stream_frames);
        smoke(&corpus, 20_000, detach_keys);
    }
}
