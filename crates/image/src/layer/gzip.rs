//! Compresses with gzip in blocks, each of which needs nothing of the others but the plain bytes right before it: so every
//! processor may work at one layer, and the result is the same however many do. What does not compress is stored, without
//! the time that trying it costs. Knows bytes alone.
//! Source: RFC 1951 (deflate), RFC 1952 (gzip).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use crate::digest::{Algorithm, Digest, Hasher};

/// Plain bytes of a block, but for the last. Units: bytes.
pub const BLOCK: usize = 256 << 10;
/// How far deflate looks back. Units: bytes.
const WINDOW: usize = 32 << 10;
/// How hard is compressed: the least that finds more than repeated bytes.
const LEVEL: u32 = 2;
/// Bytes of a block that are tried, in how many pieces, to see whether it compresses.
const SAMPLE: usize = 8 << 10;
const SAMPLE_PIECES: usize = 4;
/// Longest stored block of deflate. Units: bytes.
const STORED: usize = 0xffff;
/// The head of a stream that says nothing of when, where and from what file it was made.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// One block.
pub struct Block {
    plain: Vec<u8>,
    packed: Vec<u8>,
    crc: Crc,
}

/// Blocks of a file with so many bytes; an empty file has one too.
pub fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64).max(1)
}

/// Reads and compresses one block of a file of `size` bytes that does not change.
pub fn block(file: &File, size: u64, number: u64) -> io::Result<Block> {
    let from = number.saturating_mul(BLOCK as u64);
    let before = if number == 0 { 0 } else { WINDOW };
    let length = usize::try_from(size.saturating_sub(from)).unwrap_or(BLOCK).min(BLOCK);
    let mut bytes = vec![0; before + length];
    file.read_exact_at(&mut bytes, from.saturating_sub(before as u64))?;
    let plain = bytes.split_off(before);
    let mut crc = Crc::new();
    crc.update(&plain);
    let packed = compress(&bytes, &plain, number + 1 >= blocks(size))?;
    Ok(Block { plain, packed, crc })
}

/// The deflate blocks of `plain`, which `window` comes before, and which end at a whole byte.
fn compress(window: &[u8], plain: &[u8], last: bool) -> io::Result<Vec<u8>> {
    if promising(plain)? { deflated(window, plain, last) } else { Ok(stored(plain, last)) }
}

/// Whether a sample of the bytes gets smaller by more than a thirtieth.
fn promising(plain: &[u8]) -> io::Result<bool> {
    if plain.len() <= 2 * SAMPLE {
        return Ok(true);
    }
    let (piece, step) = (SAMPLE / SAMPLE_PIECES, plain.len() / SAMPLE_PIECES);
    let sample: Vec<u8> = plain.chunks(step).flat_map(|part| &part[..piece.min(part.len())]).copied().collect();
    let packed = deflated(&[], &sample, true)?;
    Ok(packed.len() + sample.len() / 30 < sample.len())
}

fn deflated(window: &[u8], plain: &[u8], last: bool) -> io::Result<Vec<u8>> {
    // A state that was reset still finds other matches than a new one, and who had it before is a matter of chance.
    let mut deflate = Compress::new(Compression::new(LEVEL), false);
    if !window.is_empty() {
        deflate.set_dictionary(window)?;
    }
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut packed = Vec::with_capacity(plain.len() + plain.len() / 64 + 64);
    loop {
        let done = usize::try_from(deflate.total_in()).unwrap_or(usize::MAX).min(plain.len());
        let status = deflate.compress_vec(&plain[done..], &mut packed, flush)?;
        // With room left, nothing more is to come.
        if status == Status::StreamEnd || (!last && packed.len() < packed.capacity()) {
            return Ok(packed);
        }
        packed.reserve(plain.len() / 8 + 64);
    }
}

fn stored(plain: &[u8], last: bool) -> Vec<u8> {
    let pieces = plain.chunks(STORED);
    let mut packed = Vec::with_capacity(plain.len() + pieces.len() * 5);
    let end = pieces.len();
    for (number, piece) in pieces.enumerate() {
        packed.push(u8::from(last && number + 1 == end));
        // `STORED` is what two bytes hold.
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(&(!length).to_le_bytes());
        packed.extend_from_slice(piece);
    }
    packed
}

/// What a stream adds up to, piece by piece in their order.
pub struct Sums {
    packed: Hasher,
    packed_bytes: u64,
    plain: Hasher,
    plain_bytes: u64,
    crc: Crc,
    whole: bool,
}

impl Sums {
    /// Of nothing yet; the digest of the plain bytes is of this kind, that of the stream always sha256.
    pub fn new(algorithm: Algorithm) -> Sums {
        let (packed, plain) = (Hasher::new(Algorithm::Sha256), Hasher::new(algorithm));
        Sums { packed, packed_bytes: 0, plain, plain_bytes: 0, crc: Crc::new(), whole: false }
    }

    fn passes(&mut self, bytes: &[u8]) {
        self.packed.update(bytes);
        self.packed_bytes += bytes.len() as u64;
    }

    /// What the stream begins with.
    pub fn head(&mut self) -> Vec<u8> {
        self.passes(&HEAD);
        HEAD.to_vec()
    }

    /// The bytes of the next block.
    pub fn add(&mut self, block: Block) -> Vec<u8> {
        self.plain.update(&block.plain);
        self.plain_bytes += block.plain.len() as u64;
        self.crc.combine(&block.crc);
        self.passes(&block.packed);
        block.packed
    }

    /// What the stream ends with.
    pub fn tail(&mut self) -> Vec<u8> {
        let tail = [self.crc.sum().to_le_bytes(), self.crc.amount().to_le_bytes()].concat();
        self.passes(&tail);
        self.whole = true;
        tail
    }

    /// Plain bytes so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Digests of the plain and of the compressed bytes, and the number of the latter; `None` before the end.
    pub fn finish(&self) -> Option<(Digest, Digest, u64)> {
        self.whole.then(|| (self.plain.clone().finish(), self.packed.clone().finish(), self.packed_bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn packed(plain: &[u8]) -> (Vec<u8>, Sums) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(plain).unwrap();
        let size = plain.len() as u64;
        let mut sums = Sums::new(Algorithm::Sha256);
        let mut out = sums.head();
        for number in 0..blocks(size) {
            out.extend(sums.add(block(&file, size, number).unwrap()));
        }
        out.extend(sums.tail());
        (out, sums)
    }

    fn check(plain: &[u8]) -> usize {
        let (out, sums) = packed(plain);
        let mut back = Vec::new();
        // Not a reader of several members: all of it must be one.
        let mut reader = flate2::bufread::GzDecoder::new(&out[..]);
        reader.read_to_end(&mut back).unwrap();
        assert!(reader.into_inner().is_empty(), "bytes after the end");
        assert!(back == plain, "{} bytes came back as {}", plain.len(), back.len());
        let (plain_digest, digest, size) = sums.finish().unwrap();
        assert_eq!((plain_digest, digest), (Digest::of(plain), Digest::of(&out)));
        assert_eq!(size, out.len() as u64);
        out.len()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn every_length_around_the_edges_comes_back() {
        for length in [0, 1, 1024, 2 * SAMPLE, 2 * SAMPLE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77] {
            check(&vec![b'x'; length]);
            let size = check(&noise(length));
            assert!(size <= length + length / 1000 + 64, "{length} bytes of noise became {size}");
        }
    }

    #[test]
    fn blocks_cost_little_and_find_what_the_one_before_held() {
        let words: Vec<u8> =
            (0..400_000_u32).flat_map(|n| format!("line {} of a text\n", n / 3).into_bytes()).collect();
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        whole.write_all(&words).unwrap();
        let whole = whole.finish().unwrap().len();
        let ours = check(&words);
        assert!(ours < whole + whole / 50, "{ours} bytes, in one go {whole}");
        // Noise that comes again within the window, so that one part alone is no good sample.
        let mixed = [noise(BLOCK), words[..BLOCK].to_vec(), noise(BLOCK / 2), words[..BLOCK].to_vec()].concat();
        assert!(check(&mixed) < 2 * BLOCK);
    }

    #[test]
    fn a_stream_does_not_depend_on_what_was_compressed_before_it_or_where() {
        let text = |seed: u32| -> Vec<u8> {
            (0..60_000_u32).flat_map(|n| format!("{} of text {n}\n", n.wrapping_mul(seed) % 977).into_bytes()).collect()
        };
        let first = packed(&text(3)).0;
        for seed in [5, 7, 11] {
            packed(&[noise(BLOCK), text(seed)].concat());
            assert!(packed(&text(3)).0 == first, "another stream after {seed}");
        }
        let elsewhere = std::thread::scope(|scope| scope.spawn(|| packed(&text(3)).0).join().unwrap());
        assert!(elsewhere == first, "another stream on another thread");
    }

    #[test]
    fn what_is_not_at_its_end_has_no_digest() {
        let mut sums = Sums::new(Algorithm::Sha256);
        sums.head();
        assert!(sums.finish().is_none());
        sums.tail();
        assert!(sums.finish().is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_mixture_comes_back(parts in proptest::collection::vec((any::<u8>(), any::<bool>(), 0..200_000_usize), 0..6)) {
            let mut plain = Vec::new();
            for (byte, random, length) in parts {
                plain.extend(if random { noise(length) } else { vec![byte; length] });
            }
            check(&plain);
        }
    }
}
