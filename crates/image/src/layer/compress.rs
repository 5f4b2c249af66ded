//! Compression of layers: known by their first bytes, never by what somebody says they are.

use std::io::{self, BufReader, Read};

use crate::error::{Error, into_io};
use crate::layer::{Limits, RATIO_GRACE_BYTES};

/// Compressed bytes that are read at once: after each of them a decompressor copies what it must remember. Units: bytes.
const PACKED_BYTES: usize = 128 << 10;
/// Window that a zstd stream may ask for. Units: log2 of bytes; 128 MiB is what zstd itself allows unasked.
const ZSTD_WINDOW_LOG: u32 = 27;
/// The same of one that counts as modest: zstd's levels up to 20 ask for no more. Units: log2 of bytes.
const ZSTD_WINDOW_LOG_MODEST: u32 = 25;
/// The first bytes, by which compression and need of memory are judged: the longest head of a zstd frame. Units: bytes.
pub const START_BYTES: usize = 18;

/// Memory that an xz stream may ask for: what it was made with `-9` needs 65 MiB. Units: bytes.
const XZ_MEMORY_BYTES: u64 = 128 << 20;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Compression {
    /// Judges by the first bytes.
    pub fn detect(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [b'B', b'Z', b'h', ..] => Compression::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            _ => Compression::Plain,
        }
    }
}

/// Whether to decompress what begins so may take more memory than a modest window, up to the bounds above.
pub fn is_greedy(start: &[u8]) -> bool {
    match Compression::detect(start) {
        Compression::Plain | Compression::Gzip | Compression::Bzip2 => false,
        Compression::Zstd => zstd_window(start).is_none_or(|bytes| bytes > 1 << ZSTD_WINDOW_LOG_MODEST),
        Compression::Xz => true,
    }
}

/// The window that a zstd frame asks for; `None` when that does not show, as of a frame that is to be skipped. Units: bytes.
/// `Source:` RFC 8878, 3.1.1.1.
fn zstd_window(start: &[u8]) -> Option<u64> {
    let rest = start.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = rest.split_first()?;
    let is_one_segment = descriptor & 0x20 != 0;
    if !is_one_segment {
        let window = rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // Such a frame has no window: its content is kept whole.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..length].copy_from_slice(rest.get(dictionary..)?.get(..length)?);
    let size = u64::from_le_bytes(size);
    Some(if length == 2 { size + 256 } else { size })
}

struct Counting<R> {
    inner: R,
    count: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// A reader of plain bytes over one of compressed bytes, which ends with an error when they blow up too much.
pub struct Decompressor<'a> {
    inner: Box<dyn Read + 'a>,
    packed: std::rc::Rc<std::cell::Cell<u64>>,
    unpacked: u64,
    limits: Limits,
}

impl<'a> Decompressor<'a> {
    /// Looks at the first bytes and decompresses as they say.
    pub fn new(inner: impl Read + 'a, limits: Limits) -> Result<Decompressor<'a>, Error> {
        let packed = std::rc::Rc::new(std::cell::Cell::new(0));
        let mut inner = BufReader::with_capacity(PACKED_BYTES, Counting { inner, count: packed.clone() });
        let mut start = [0; START_BYTES];
        let mut filled = 0;
        while filled < start.len() {
            match inner.read(&mut start[filled..]).map_err(Error::io("cannot read an archive"))? {
                0 => break,
                count => filled += count,
            }
        }
        let compression = Compression::detect(&start[..filled]);
        // A later frame must not ask for more than the first one made to expect.
        let window_log = if is_greedy(&start[..filled]) { ZSTD_WINDOW_LOG } else { ZSTD_WINDOW_LOG_MODEST };
        let whole = io::Cursor::new(start).take(filled as u64).chain(inner);
        let inner: Box<dyn Read + 'a> = match compression {
            Compression::Plain => Box::new(whole),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(whole).map_err(Error::io("cannot start zstd"))?;
                decoder.window_log_max(window_log).map_err(Error::io("cannot start zstd"))?;
                Box::new(decoder)
            }
            Compression::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(whole)),
            Compression::Xz => {
                let stream =
                    liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)
                        .map_err(|error| Error::Internal(format!("cannot start xz: {error}")))?;
                Box::new(liblzma::read::XzDecoder::new_stream(whole, stream))
            }
        };
        Ok(Decompressor { inner, packed, unpacked: 0, limits })
    }
}

impl Read for Decompressor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.unpacked += count as u64;
        // Headers and padding come on top of the files, hence the factor.
        let too_long = self.unpacked / 2 > self.limits.total_bytes;
        let too_dense = self.unpacked > RATIO_GRACE_BYTES && self.unpacked / self.limits.ratio > self.packed.get();
        if too_long || too_dense {
            return Err(into_io(Error::Hostile(format!(
                "a compressed archive of {} bytes unpacks to more than {} bytes",
                self.packed.get(),
                self.unpacked
            ))));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::error::from_io;

    /// The same bytes as they are, by gzip, bzip2, xz and zstd.
    fn packed_each_way(plain: &[u8]) -> [Vec<u8>; 5] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(plain).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(plain).unwrap();
        let zstd = zstd::encode_all(plain, 1).unwrap();
        [plain.to_vec(), gzip.finish().unwrap(), bzip2.finish().unwrap(), xz.finish().unwrap(), zstd]
    }

    #[test]
    fn each_compression_is_read_and_bombs_are_stopped() {
        let plain = b"some text that is long enough".repeat(10);
        let each = packed_each_way(&plain);
        for packed in &each {
            let mut out = Vec::new();
            Decompressor::new(&packed[..], Limits::default()).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, plain);
        }
        let bomb = zstd::encode_all(io::repeat(0).take(256 << 20), 1).unwrap();
        let mut reader = Decompressor::new(&bomb[..], Limits::default()).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(matches!(from_io("x", error), Error::Hostile(_)));
        let mut reader = Decompressor::new(&bomb[..], Limits { ratio: u64::MAX, ..Limits::default() }).unwrap();
        assert!(io::copy(&mut reader, &mut io::sink()).is_ok(), "the bound is what stops it");
        let cut = |bytes: &[u8]| Decompressor::new(bytes, Limits::default()).unwrap().read_to_end(&mut Vec::new());
        assert!(cut(b"BZh9xxxxxxxx").is_err() && cut(&each[3][..each[3].len() - 9]).is_err());
        let mut bomb = liblzma::write::XzEncoder::new(Vec::new(), 1);
        io::copy(&mut io::repeat(0).take(80 << 20), &mut bomb).unwrap();
        let bomb = bomb.finish().unwrap();
        let mut reader = Decompressor::new(&bomb[..], Limits::default()).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(matches!(from_io("x", error), Error::Hostile(_)));
    }

    #[test]
    fn why_what_comes_ends_is_told_through_each_compression() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(into_io(Error::Unavailable("no end in time".to_owned())))
            }
        }
        let plain = b"some text that is long enough".repeat(10);
        for packed in packed_each_way(&plain) {
            let begun = &packed[..packed.len() - 9];
            let mut reader = Decompressor::new(begun.chain(Failing), Limits::default()).unwrap();
            let told = from_io("x", reader.read_to_end(&mut Vec::new()).unwrap_err());
            assert!(matches!(&told, Error::Unavailable(text) if text == "no end in time"), "{told:?}");
        }
    }

    #[test]
    fn need_of_much_memory_shows_in_the_first_bytes_and_not_later() {
        let packed = |window_log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            // If its length were known at the beginning, the window would be as short.
            encoder.write_all(b"some text").unwrap();
            encoder.flush().unwrap();
            encoder.write_all(b" and more").unwrap();
            encoder.finish().unwrap()
        };
        let (modest, greedy) = (packed(ZSTD_WINDOW_LOG_MODEST), packed(ZSTD_WINDOW_LOG_MODEST + 1));
        assert!(!is_greedy(&modest) && is_greedy(&greedy));
        let read = |bytes: &[u8]| Decompressor::new(bytes, Limits::default()).unwrap().read_to_end(&mut Vec::new());
        assert_eq!(read(&modest).unwrap(), 18);
        assert_eq!(read(&[&greedy[..], &modest].concat()).unwrap(), 36);
        assert!(read(&[&modest[..], &greedy].concat()).is_err());
        // One segment of 3 GiB, one of 300 bytes with a dictionary, a frame to skip, xz, gzip, nothing.
        for (start, expected) in [
            (&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0xc0][..], true),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0x61, 7, 44, 0], false),
            (&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0], true),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], true),
            (&[0x1f, 0x8b, 8], false),
            (&[], false),
        ] {
            assert_eq!(is_greedy(start), expected, "{start:x?}");
        }
    }
}
