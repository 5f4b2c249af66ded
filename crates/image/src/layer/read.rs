//! Reads tar archives that may be hostile: ustar, GNU long names and PAX, with a bound on everything that is kept in
//! memory. Where honest readers disagree about an archive it is refused, so that nobody sees other files than we do.
//! Sources: POSIX pax, GNU tar manual, and how GNU tar 1.34 reads.

use std::io::{self, BufRead, Read};

use crate::error::{Error, Result, from_io};

const BLOCK: usize = 512;
/// Longest PAX header or GNU long name. PAX headers hold at most a few paths and attributes; attributes are 64 KiB each.
const MAX_EXTENSION: u64 = 1 << 20;
/// Longest path, as in the kernel (PATH_MAX).
pub const MAX_PATH: usize = 4096;
/// Largest user or group id that we hand to the kernel: higher ones turn negative in other programs.
pub const MAX_ID: u64 = (1 << 31) - 1;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    Regular,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// One entry of an archive.
#[derive(Clone, Debug)]
pub struct Header {
    /// Its name as it stands.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data.
    pub size: u64,
    /// Modification time: seconds since the Unix epoch.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// The PAX records that we use, and GNU's long names.
#[derive(Default)]
struct Extensions {
    pax: bool,
    gnu: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A reader of archives. Reading from it gives the data of the entry that [`Archive::next`] returned last.
pub struct Archive<R> {
    inner: R,
    remaining: u64,
    padding: u64,
    entries: u64,
    max_entries: u64,
    ended: bool,
}

fn hostile<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Hostile(why.into()))
}

impl<R: Read> Archive<R> {
    /// Reads an archive of at most so many entries.
    pub fn new(inner: R, max_entries: u64) -> Archive<R> {
        Archive { inner, remaining: 0, padding: 0, entries: 0, max_entries, ended: false }
    }

    /// The next entry; what was not read of the one before is skipped.
    ///
    /// Errors: `Hostile` for what no honest archive holds, `Invalid` for damage.
    #[allow(clippy::should_implement_trait)] // it can fail, and lends the data out
    pub fn next(&mut self) -> Result<Option<Header>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(block) = self.header_block()? else {
                if extensions.pax || extensions.gnu {
                    return hostile("the archive ends after an extended header");
                }
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > self.max_entries {
                return hostile(format!("the archive has more than {} entries", self.max_entries));
            }
            let size = number(&block[124..136]).ok_or_else(|| damaged("size"))?;
            match block[156] {
                b'x' | b'X' => {
                    if extensions.pax || extensions.gnu {
                        return hostile("two extended headers for one entry");
                    }
                    parse_pax(&self.extension(size)?, &mut extensions)?;
                }
                // Global headers say nothing about files that we honour; Docker ignores them too.
                b'g' => drop(self.extension(size)?),
                b'L' | b'K' => {
                    let mut text = self.extension(size)?;
                    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
                    let slot = if block[156] == b'L' { &mut extensions.path } else { &mut extensions.link };
                    if extensions.pax || slot.is_some() {
                        return hostile("two names for one entry");
                    }
                    *slot = Some(text);
                    extensions.gnu = true;
                }
                _ => return self.entry(&block, size, extensions).map(Some),
            }
        }
    }

    /// Reads to the end of the stream below, so that its digest covers all of it.
    pub fn drain(&mut self) -> Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map_err(|error| from_io("cannot read the archive", error))?;
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, extensions: Extensions) -> Result<Header> {
        let size = extensions.size.unwrap_or(size);
        let path = extensions.path.unwrap_or_else(|| short_name(block));
        let link = extensions.link.unwrap_or_else(|| text(&block[157..257]));
        let mut kind = match block[156] {
            0 | b'0' | b'7' => Kind::Regular,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(Error::NotSupported("sparse files in archives are not supported".to_owned())),
            other => return hostile(format!("unknown entry type {other:#04x}")),
        };
        // GNU and BSD tar take a file whose name ends in a slash for a directory.
        if kind == Kind::Regular && path.ends_with(b"/") {
            kind = Kind::Directory;
        }
        if kind != Kind::Regular && size != 0 {
            return hostile("an entry that is no file has data, which readers disagree about");
        }
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return hostile(format!("a path is longer than {MAX_PATH} bytes"));
        }
        if path.contains(&0) || link.contains(&0) {
            return hostile("a path holds a NUL byte");
        }
        let id = |field: &[u8], given: Option<u64>, what: &str| -> Result<u32> {
            let value = given.or_else(|| number(field)).ok_or_else(|| damaged(what))?;
            match u32::try_from(value) {
                Ok(id) if value <= MAX_ID => Ok(id),
                _ => hostile(format!("{what} {value} is out of range")),
            }
        };
        let header = Header {
            kind,
            mode: u32::try_from(number(&block[100..108]).ok_or_else(|| damaged("mode"))? & 0o7777).unwrap_or(0),
            uid: id(&block[108..116], extensions.uid, "user id")?,
            gid: id(&block[116..124], extensions.gid, "group id")?,
            size,
            mtime: extensions.mtime.or_else(|| signed(&block[136..148])).unwrap_or(0),
            xattrs: extensions.xattrs,
            path,
            link,
        };
        self.remaining = size;
        self.padding = padding(size);
        Ok(header)
    }

    fn skip(&mut self) -> Result<()> {
        let left = self.remaining.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.inner).take(left), &mut io::sink())
            .map_err(|error| from_io("cannot read the archive", error))?;
        // Some writers leave out the padding of the last entry.
        if skipped < self.remaining {
            return Err(damaged("end"));
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// A block that is a header, or `None` at the end.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.ended {
            return Ok(None);
        }
        let Some(block) = self.block()? else {
            self.ended = true;
            return Ok(None);
        };
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return match self.block()? {
                Some(second) if second.iter().any(|b| *b != 0) => hostile("a lone zero block in the archive"),
                _ => Ok(None),
            };
        }
        let wanted = number(&block[148..156]).ok_or_else(|| damaged("checksum"))?;
        let sum = |signed: bool| -> i64 {
            let byte = |(i, b): (usize, &u8)| -> i64 {
                let b = if (148..156).contains(&i) { b' ' } else { *b };
                if signed { i64::from(b.cast_signed()) } else { i64::from(b) }
            };
            block.iter().enumerate().map(byte).sum()
        };
        let wanted = i64::try_from(wanted).unwrap_or(-1);
        if sum(false) != wanted && sum(true) != wanted {
            return Err(Error::Invalid("archive/tar: invalid tar header".to_owned()));
        }
        Ok(Some(block))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(damaged("end")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(from_io("cannot read the archive", error)),
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return hostile("an extended header is too long");
        }
        (self.remaining, self.padding) = (size, padding(size));
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(|error| from_io("cannot read the archive", error))?;
        if self.remaining != 0 {
            return Err(damaged("end"));
        }
        Ok(data)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 && most != 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early"));
        }
        self.remaining -= count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = self.inner.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early"));
        }
        Ok(&bytes[..most.min(bytes.len())])
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.remaining = self.remaining.saturating_sub(count as u64);
    }
}

fn damaged(what: &str) -> Error {
    Error::Invalid(format!("the archive is damaged (bad {what})"))
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn text(field: &[u8]) -> Vec<u8> {
    field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())].to_vec()
}

fn short_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = text(&block[345..500]);
    // GNU's old format keeps other things where POSIX has the prefix.
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name;
    }
    [prefix, name].join(&b'/')
}

/// Octal or GNU's base 256.
fn signed(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            value = value.checked_mul(256)? | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let digits: &[u8] = field.trim_ascii_start();
    let end = digits.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|value| u64::try_from(value).ok())
}

fn parse_pax(mut data: &[u8], extensions: &mut Extensions) -> Result<()> {
    extensions.pax = true;
    let bad = || Error::Hostile("a malformed PAX header".to_owned());
    while !data.is_empty() {
        let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (std::str::from_utf8(&record[..equals]).map_err(|_| bad())?, &record[equals + 1..]);
        pax_record(key, value, extensions).ok_or_else(bad)??;
        data = &data[length..];
    }
    Ok(())
}

fn pax_record(key: &str, value: &[u8], extensions: &mut Extensions) -> Option<Result<()>> {
    // An empty value takes the record back.
    match key {
        "path" => extensions.path = (!value.is_empty()).then(|| value.to_vec()),
        "linkpath" => extensions.link = (!value.is_empty()).then(|| value.to_vec()),
        "size" => extensions.size = if value.is_empty() { None } else { Some(decimal(value)?) },
        "uid" => extensions.uid = if value.is_empty() { None } else { Some(decimal(value)?) },
        "gid" => extensions.gid = if value.is_empty() { None } else { Some(decimal(value)?) },
        "mtime" => {
            let text = std::str::from_utf8(value).ok()?;
            let whole = text.split('.').next().unwrap_or_default();
            extensions.mtime = if whole.is_empty() { None } else { Some(whole.parse().ok()?) };
        }
        _ if key.starts_with("GNU.sparse.") => {
            return Some(Err(Error::NotSupported("sparse files in archives are not supported".to_owned())));
        }
        _ => {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                extensions.xattrs.push((name.to_owned(), value.to_vec()));
            }
        }
    }
    Some(Ok(()))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(bytes: &[u8]) -> Result<Vec<(String, u64)>> {
        let mut archive = Archive::new(bytes, 1000);
        let mut found = Vec::new();
        while let Some(header) = archive.next()? {
            found.push((String::from_utf8_lossy(&header.path).into_owned(), header.size));
        }
        Ok(found)
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"9999999\0"), None);
        assert_eq!(signed(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }

    #[test]
    fn long_names_of_the_gnu_form_are_read() {
        let long = format!("{}/end", "d".repeat(180));
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
        assert_eq!(names(&builder.into_inner().unwrap()).unwrap(), [(long, 3)]);
    }

    #[test]
    fn a_lone_zero_block_and_unknown_types_are_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        builder.append_data(&mut header, "x", &b""[..]).unwrap();
        let good = builder.into_inner().unwrap();
        let mut lone = good[..512].to_vec();
        lone.extend_from_slice(&[0; 512]);
        lone.extend_from_slice(&good);
        assert!(matches!(names(&lone), Err(Error::Hostile(_))));
        assert_eq!(names(&good[..512]).unwrap().len(), 1, "an archive may end without zero blocks");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = names(&bytes);
        }

        #[test]
        fn no_flipped_byte_makes_it_panic(at in 0_usize..2048, value in any::<u8>()) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(4);
            builder.append_data(&mut header, "some/file", &b"data"[..]).unwrap();
            builder.append_pax_extensions([("path", &b"y"[..]), ("size", &b"2"[..])]).unwrap();
            builder.append_data(&mut header, "x", &b"data"[..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = names(&bytes);
        }
    }
}
