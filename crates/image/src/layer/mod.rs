//! Layers: reading hostile archives, unpacking them, and packing changes. Knows bytes and file systems; must never know
//! images or their names.

use std::io::{self, BufRead, Read, Write};

pub mod compress;
pub mod difference;
pub mod gzip;
pub mod pack;
pub mod read;
pub mod tree;
pub mod unpack;
pub mod write;

pub use compress::{Compression, Decompressor};
pub use difference::pack_difference;
pub use pack::{pack_changes, pack_tree};
pub use unpack::{UnpackOptions, Unpacked, unpack};

/// What large files are copied by. Units: bytes.
const COPY_BYTES: usize = 128 << 10;

/// Like [`std::io::copy`], whose 8 KiB at a time cost more than all else of a large layer. Small files get by with as little.
pub fn copy(reader: &mut impl Read, writer: &mut impl Write) -> io::Result<u64> {
    let mut small = [0; 8 << 10];
    let mut large = Vec::new();
    let mut copied = 0;
    loop {
        let buffer = if copied < small.len() as u64 {
            &mut small[..]
        } else {
            large.resize(COPY_BYTES, 0);
            &mut large[..]
        };
        let count = match reader.read(buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        writer.write_all(&buffer[..count])?;
        copied += count as u64;
    }
}

/// Copies out of the reader's own buffer.
pub fn copy_buffered(reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let count = match reader.fill_buf() {
            Ok([]) => return Ok(copied),
            Ok(bytes) => {
                writer.write_all(bytes)?;
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        reader.consume(count);
        copied += count as u64;
    }
}

/// Bounds on one layer or archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub total_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Largest ratio of unpacked to packed bytes, judged after the first [`RATIO_GRACE_BYTES`].
    pub ratio: u64,
}

/// Bytes that a layer may unpack to before its compression ratio is judged: small layers of zeros are common.
pub const RATIO_GRACE_BYTES: u64 = 64 << 20;

impl Default for Limits {
    fn default() -> Limits {
        // The largest layers in public use are about 20 GiB (machine learning) and 400,000 entries. Real data packs at
        // most about 50:1; gzip's bombs reach 1,000:1.
        Limits { total_bytes: 64 << 30, entries: 1_000_000, ratio: 200 }
    }
}
