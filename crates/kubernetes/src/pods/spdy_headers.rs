//! SPDY's header blocks: zlib with a preset dictionary in, stored blocks out (which every inflater takes).

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT};

use super::spdy::Broken;

/// The words of the dictionary, each with its length before it. `Source:` draft-mbelshe-httpbis-spdy-00, 2.6.10.1.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age \
    allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
    if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
    www-authenticate method get status 200\u{a0}OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// What follows the words, as it is.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// Inflate's window. Units: bytes.
const WINDOW_BYTES: usize = 32 * 1024;
/// Largest header block once inflated. Units: bytes.
const MAX_BLOCK_BYTES: usize = 64 * 1024;
/// Most headers of one stream.
const MAX_HEADERS: u32 = 100;

fn dictionary() -> Vec<u8> {
    let mut out = Vec::new();
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('\u{a0}', " ");
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

/// The checksum by which zlib names a dictionary.
fn adler(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % MODULUS;
        (a, (b + a) % MODULUS)
    });
    b << 16 | a
}

/// Inflates the header blocks of one connection, which share their history.
#[derive(Default)]
pub(super) struct HeaderDecoder(Option<Box<Inflater>>);

struct Inflater {
    state: DecompressorOxide,
    window: Vec<u8>,
    at: usize,
}

impl HeaderDecoder {
    /// One block.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<BTreeMap<String, String>, Broken> {
        let mut input = block;
        let inflater = match &mut self.0 {
            Some(inflater) => inflater,
            none => none.insert(Box::new(Inflater::start(&mut input)?)),
        };
        parse(Bytes::from(inflater.inflate(input)?))
    }
}

impl Inflater {
    /// Reads zlib's head; the dictionary becomes the window's history.
    fn start(input: &mut &[u8]) -> Result<Inflater, Broken> {
        const PRESET: u16 = 0x20;
        let head = input.try_get_u16().map_err(|_| Broken)?;
        if head % 31 != 0 || head >> 8 & 0xf != 8 {
            return Err(Broken);
        }
        let mut inflater = Inflater { state: DecompressorOxide::new(), window: vec![0; WINDOW_BYTES], at: 0 };
        if head & PRESET != 0 {
            let dictionary = dictionary();
            if input.try_get_u32().map_err(|_| Broken)? != adler(&dictionary) {
                return Err(Broken);
            }
            inflater.at = dictionary.len();
            inflater.window[..dictionary.len()].copy_from_slice(&dictionary);
        }
        Ok(inflater)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::new();
        loop {
            let (status, read, written) =
                decompress(&mut self.state, input, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            out.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW_BYTES;
            input = &input[read..];
            match status {
                _ if out.len() > MAX_BLOCK_BYTES => return Err(Broken),
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if input.is_empty() => return Ok(out),
                TINFLStatus::NeedsMoreInput if read > 0 || written > 0 => {}
                _ => return Err(Broken),
            }
        }
    }
}

fn parse(mut block: Bytes) -> Result<BTreeMap<String, String>, Broken> {
    let count = block.try_get_u32().map_err(|_| Broken)?;
    if count > MAX_HEADERS {
        return Err(Broken);
    }
    let text = |block: &mut Bytes| -> Result<String, Broken> {
        let length = usize::try_from(block.try_get_u32().map_err(|_| Broken)?).map_err(|_| Broken)?;
        if length > block.len() {
            return Err(Broken);
        }
        Ok(String::from_utf8_lossy(&block.split_to(length)).into_owned())
    };
    let mut headers = BTreeMap::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        let value = text(&mut block)?;
        // Several values are joined by NUL; the first is what counts here.
        headers.insert(name, value.split('\0').next().unwrap_or_default().to_owned());
    }
    Ok(headers)
}

/// Writes header blocks. We never have anything to say in them.
#[derive(Default)]
pub(super) struct HeaderEncoder {
    started: bool,
}

impl HeaderEncoder {
    /// A block without headers: zlib's head once, then a stored block with a zero count and an empty one, at which
    /// inflaters (Go's for one) hand out what they have.
    pub(super) fn empty(&mut self) -> Vec<u8> {
        const HEAD: [u8; 2] = [0x78, 0x01];
        const STORED_ZERO_COUNT: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.started, true) {
            out.extend_from_slice(&HEAD);
        }
        out.extend_from_slice(&STORED_ZERO_COUNT);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_published_one() {
        // Length and checksum that every SPDY/3 peer puts on the wire.
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(adler(&dictionary()), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_of_zlib_with_the_dictionary_are_read_with_their_shared_history() {
        // Two blocks of one stream, written by zlib itself.
        let blocks = [
            "78f9e3c6a7c202253a48f95b044aab4c1606e0545752949a980b2d58585341c10e6470164122311394b8190d00000000ffff",
            "22422ba84c4ac4d409000000ffff",
        ];
        let mut decoder = HeaderDecoder::default();
        for (block, kind) in blocks.iter().zip(["error", "data"]) {
            let bytes: Vec<u8> =
                (0..block.len()).step_by(2).map(|at| u8::from_str_radix(&block[at..at + 2], 16).unwrap()).collect();
            let headers = decoder.decode(&bytes).unwrap();
            assert_eq!((headers["streamtype"].as_str(), headers["port"].as_str()), (kind, "80"));
        }
    }

    #[test]
    fn our_own_blocks_are_read_back() {
        let (mut encoder, mut decoder) = (HeaderEncoder::default(), HeaderDecoder::default());
        for _ in 0..3 {
            assert_eq!(decoder.decode(&encoder.empty()), Ok(BTreeMap::new()));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_block_panics(block: Vec<u8>) {
            let _ = HeaderDecoder::default().decode(&[&[0x78, 0x01][..], &block].concat());
        }
    }
}
