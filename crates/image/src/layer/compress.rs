//! Compression of layers: known by their first bytes, never by what somebody says they are.

use std::io::{self, BufReader, Read};

use crate::error::{Error, into_io};
use crate::layer::{Limits, RATIO_GRACE_BYTES};

/// Compressed bytes that are read at once: after each of them a decompressor copies what it must remember. Units: bytes.
const PACKED_BYTES: usize = 128 << 10;
/// Window that a zstd stream may ask for. Units: log2 of bytes; 128 MiB is what zstd itself allows unasked.
const ZSTD_WINDOW_LOG: u32 = 27;

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
        let mut start = [0; 6];
        let mut filled = 0;
        while filled < start.len() {
            match inner.read(&mut start[filled..]).map_err(Error::io("cannot read an archive"))? {
                0 => break,
                count => filled += count,
            }
        }
        let compression = Compression::detect(&start[..filled]);
        let whole = io::Cursor::new(start).take(filled as u64).chain(inner);
        let inner: Box<dyn Read + 'a> = match compression {
            Compression::Plain => Box::new(whole),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(whole).map_err(Error::io("cannot start zstd"))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Error::io("cannot start zstd"))?;
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

    #[test]
    fn each_compression_is_read_and_bombs_are_stopped() {
        let plain = b"some text that is long enough".repeat(10);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&plain).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let xz = xz.finish().unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for packed in [plain.clone(), gzip.finish().unwrap(), bzip2.finish().unwrap(), xz.clone(), zstd] {
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
        assert!(cut(b"BZh9xxxxxxxx").is_err() && cut(&xz[..xz.len() - 9]).is_err());
        let mut bomb = liblzma::write::XzEncoder::new(Vec::new(), 1);
        io::copy(&mut io::repeat(0).take(80 << 20), &mut bomb).unwrap();
        let bomb = bomb.finish().unwrap();
        let mut reader = Decompressor::new(&bomb[..], Limits::default()).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(matches!(from_io("x", error), Error::Hostile(_)));
    }
}
