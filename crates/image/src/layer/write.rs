//! Writes tar archives: ustar, with PAX headers where a field does not fit. The same input gives the same bytes.

use std::io::{Read, Write};

use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// Largest size that a ustar header holds.
const MAX_USTAR_SIZE: u64 = 0o77_777_777_777;
/// Largest id that a ustar header holds.
const MAX_USTAR_ID: u32 = 0o7_777_777;

/// One entry to write.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Type flag of the format: `0` file, `1` hard link, `2` symbolic link, `5` directory, `6` pipe.
    pub kind: u8,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data.
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub mtime: i64,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry { kind: b'0', mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 0, link: Vec::new(), xattrs: Vec::new() }
    }
}

/// A writer of archives.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Writer<W> {
        Writer { out }
    }

    /// Writes one entry with exactly `entry.size` bytes of `data`.
    pub fn entry(&mut self, path: &[u8], entry: &Entry, data: impl Read) -> Result<()> {
        self.header(path, entry)?;
        let copied = crate::layer::copy(&mut data.take(entry.size), &mut self.out)
            .map_err(Error::io("cannot write an archive"))?;
        if copied != entry.size {
            return Err(Error::Internal("a file is shorter than its header says".to_owned()));
        }
        self.pad(entry.size)
    }

    /// Writes the end and gives back the writer below.
    pub fn finish(mut self) -> Result<W> {
        self.bytes(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(Error::io("cannot write an archive"))?;
        Ok(self.out)
    }

    fn header(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let mut pax = Vec::new();
        let split = split_path(path);
        if split.is_none() || !path.is_ascii() {
            record(&mut pax, "path", path);
        }
        if entry.link.len() > 100 || !entry.link.is_ascii() {
            record(&mut pax, "linkpath", &entry.link);
        }
        if entry.size > MAX_USTAR_SIZE {
            record(&mut pax, "size", entry.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if id > MAX_USTAR_ID {
                record(&mut pax, key, id.to_string().as_bytes());
            }
        }
        if entry.mtime < 0 {
            record(&mut pax, "mtime", entry.mtime.to_string().as_bytes());
        }
        for (name, value) in &entry.xattrs {
            record(&mut pax, &format!("SCHILY.xattr.{name}"), value);
        }
        if !pax.is_empty() {
            let extension = Entry { kind: b'x', size: pax.len() as u64, ..Entry::default() };
            self.bytes(&block(b"", b"PaxHeaders.0/header", &extension))?;
            self.bytes(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        let (prefix, name) = split.unwrap_or((b"", &path[..path.len().min(100)]));
        self.bytes(&block(prefix, name, entry))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.bytes(&[0; BLOCK][..padding])
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("cannot write an archive"))
    }
}

/// Splits a path into ustar's prefix and name, at a slash.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    let at =
        path[..path.len() - 1].iter().enumerate().rev().find_map(|(i, b)| (*b == b'/' && i <= 155).then_some(i))?;
    let (prefix, name) = (&path[..at], &path[at + 1..]);
    (!prefix.is_empty() && name.len() <= 100).then_some((prefix, name))
}

fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn block(prefix: &[u8], name: &[u8], entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let octal = |width: usize, value: u64| format!("{value:0width$o}\0").into_bytes();
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, &octal(7, u64::from(entry.mode)));
    put(108, &octal(7, u64::from(entry.uid.min(MAX_USTAR_ID))));
    put(116, &octal(7, u64::from(entry.gid.min(MAX_USTAR_ID))));
    put(124, &octal(11, entry.size.min(MAX_USTAR_SIZE)));
    put(136, &octal(11, u64::try_from(entry.mtime).unwrap_or(0).min(MAX_USTAR_SIZE)));
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(345, prefix);
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::read::Archive;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            path in "[a-zé]{1,40}(/[a-z]{1,90}){0,5}",
            link in "[a-zé/]{0,150}",
            uid in 0_u32..=0x7fff_ffff,
            mtime in -5_i64..5_000_000_000,
            data in proptest::collection::vec(any::<u8>(), 0..1500),
            xattr in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let entry = Entry {
                uid, mtime, size: data.len() as u64, link: link.clone().into_bytes(),
                xattrs: vec![("user.x".to_owned(), xattr.clone())], ..Entry::default()
            };
            let mut writer = Writer::new(Vec::new());
            writer.entry(path.as_bytes(), &entry, &data[..]).unwrap();
            let bytes = writer.finish().unwrap();
            let mut archive = Archive::new(&bytes[..], 10);
            let header = archive.next().unwrap().unwrap();
            prop_assert_eq!(header.path, path.as_bytes());
            prop_assert_eq!(header.link, link.as_bytes());
            prop_assert_eq!((header.uid, header.mtime), (uid, mtime));
            prop_assert_eq!(header.xattrs, vec![("user.x".to_owned(), xattr)]);
            let mut read = Vec::new();
            archive.read_to_end(&mut read).unwrap();
            prop_assert_eq!(read, data);
            prop_assert!(archive.next().unwrap().is_none());
        }
    }
}
