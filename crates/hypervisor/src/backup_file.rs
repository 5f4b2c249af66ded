//! One file with copies of a machine's disks, to be kept elsewhere.
//!
//! ```text
//! file = magic [8] | length of the header u32, little endian | header (JSON) | parts, back to back | SHA-256 of all before [32]
//! ```
//! The header names each part with its length and SHA-256. A file may hold only what was written since an earlier one, which it then
//! names by that one's mark and its last 32 bytes. A file comes from anywhere: all of it is checked before anything is made of it, and
//! the disks in it are opened only by [`crate::disk::tool`], which is told what each lies on.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::disk::header::{self, HEADER_BYTES, VIRTUAL_SIZE_MAX};
use crate::disk::tool::TOOL_USER;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"NUEEDISK";
/// The format that is written, and the newest that is read.
const FORMAT: u32 = 1;
/// Longest header; the machine's user data is the longest part of it. Units: bytes.
pub const HEADER_BYTES_MAX: u32 = 1 << 20;
/// Where the header begins. Units: bytes.
const HEADER_AT: usize = 12;
/// Length of SHA-256. Units: bytes.
const DIGEST_BYTES: usize = 32;
/// More parts than a machine has disks and files.
const PARTS_MAX: usize = 64;
/// Largest kernel or RAM disk. Units: bytes.
const BOOT_FILE_BYTES_MAX: u64 = 1 << 30;
/// How much is copied at once. Units: bytes.
const COPY_BYTES: usize = 256 << 10;
/// Longest name of a part's disk, as of any object.
const NAME_BYTES_MAX: usize = 253;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Version of this form.
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// When the disks were as they are in it, RFC 3339.
    pub taken_at: String,
    /// The machine's name.
    pub machine: String,
    /// What whoever wrote it says of the machine, for whoever reads it.
    pub description: Value,
    /// What a later file may go on from; empty when none can.
    pub mark: String,
    /// What this one goes on from; `None` when it stands alone.
    pub since: Option<Since>,
    /// Its parts, in the order in which they follow.
    pub parts: Vec<Part>,
}

/// An earlier file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Its mark.
    pub mark: String,
    /// Its last 32 bytes, hexadecimal.
    pub sha256: String,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// A disk, as a layer.
    Disk,
    /// The kernel that the machine boots.
    Kernel,
    /// Its RAM disk.
    Initrd,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// What it is.
    pub role: Role,
    /// Which disk: `root`, or a volume's name.
    #[serde(default)]
    pub name: String,
    /// Size of the disk as a guest sees it. Units: bytes.
    #[serde(default)]
    pub virtual_bytes: u64,
    /// Only what was written since the earlier file is in it.
    #[serde(default)]
    pub incremental: bool,
    /// Its length in the file. Units: bytes.
    pub bytes: u64,
    /// Digest of these bytes, hexadecimal.
    pub sha256: String,
}

fn invalid(why: impl Into<String>) -> Error {
    Error::Invalid(why.into())
}

/// Reads the header out of the first bytes of a file of this length; where its parts begin. Pure.
///
/// Errors: [`Error::Invalid`] for whatever does not fit.
pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<(Header, u64)> {
    if !bytes.starts_with(MAGIC) {
        return Err(invalid("it is no backup of a virtual machine"));
    }
    let length = bytes.get(MAGIC.len()..MAGIC.len() + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
    let length = u32::from_le_bytes(length.ok_or_else(|| invalid("it is not whole"))?);
    if length > HEADER_BYTES_MAX {
        return Err(invalid("its header is too long"));
    }
    let parts_at = HEADER_AT as u64 + u64::from(length);
    let end = usize::try_from(parts_at).map_err(|_| invalid("its header is too long"))?;
    let text = bytes.get(HEADER_AT..end).ok_or_else(|| invalid("it is not whole"))?;
    let unreadable = |error: serde_json::Error| invalid(format!("its header cannot be read: {error}"));
    let form: Form = serde_json::from_slice(text).map_err(unreadable)?;
    if form.format > FORMAT {
        return Err(invalid(format!(
            "it was made by a newer program (format {}, this one reads {FORMAT})",
            form.format
        )));
    }
    let header: Header = serde_json::from_slice(text).map_err(unreadable)?;
    check(&header)?;
    let all = header.parts.iter().map(|part| part.bytes).chain([DIGEST_BYTES as u64]);
    if all.into_iter().try_fold(parts_at, u64::checked_add) != Some(file_bytes) {
        return Err(invalid("its header does not fit its length"));
    }
    Ok((header, parts_at))
}

#[derive(Deserialize)]
struct Form {
    format: u32,
}

fn check(header: &Header) -> Result<()> {
    if header.parts.len() > PARTS_MAX {
        return Err(invalid("it has too many parts"));
    }
    if !is_name(&header.machine) {
        return Err(invalid("its machine has no name that an object can have"));
    }
    let mut seen = HashSet::new();
    for part in &header.parts {
        let fits = match part.role {
            Role::Disk => {
                is_name(&part.name)
                    && (1..=VIRTUAL_SIZE_MAX).contains(&part.virtual_bytes)
                    && (!part.incremental || header.since.is_some())
            }
            Role::Kernel | Role::Initrd => {
                part.name.is_empty() && !part.incremental && part.bytes <= BOOT_FILE_BYTES_MAX
            }
        };
        if !fits || part.sha256.len() != 64 || !seen.insert((part.role as u8, part.name.as_str())) {
            return Err(invalid("one of its parts makes no sense"));
        }
    }
    if header.parts.iter().any(|part| part.role == Role::Disk && part.name == "root") {
        Ok(())
    } else {
        Err(invalid("it has no root disk"))
    }
}

/// Whether an object can have this name, so that it is no path either.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    name.len() <= NAME_BYTES_MAX
        && ends.into_iter().all(|byte| byte.is_some_and(plain))
        && name.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'.')
}

/// Counts and digests what passes through, and tells how much it was.
struct Digesting<'a, W> {
    inner: W,
    digest: Sha256,
    tell: &'a mut dyn FnMut(u64),
}

impl<W: Write> Write for Digesting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        (self.tell)(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn digest(read: &mut impl Read, tell: &mut dyn FnMut(u64)) -> std::io::Result<String> {
    let mut to = Digesting { inner: std::io::sink(), digest: Sha256::new(), tell };
    let mut read = BufReader::with_capacity(COPY_BYTES, read);
    std::io::copy(&mut read, &mut to)?;
    Ok(hex(&to.digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file of these parts, whole or not at all; lengths and digests in their descriptions are filled in. `tell` is told of each
/// piece of work, which is twice the parts' length. Blocking.
pub fn write(
    target: &Path,
    mut header: Header,
    sources: &[(Part, PathBuf)],
    tell: &mut dyn FnMut(u64),
) -> Result<Header> {
    header.format = FORMAT;
    header.parts.clear();
    for (part, path) in sources {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        let sha256 = digest(&mut file, tell).map_err(Error::io("read", path))?;
        header.parts.push(Part { bytes, sha256, ..part.clone() });
    }
    check(&header)?;
    let partial = PathBuf::from(format!("{}.partial", target.display()));
    let written = assemble(&partial, &header, sources, tell).and_then(|()| {
        std::fs::rename(&partial, target).map_err(Error::io("name", target))?;
        crate::disk::create::sync_directory(&std::path::absolute(target).unwrap_or_else(|_| target.to_owned()))
    });
    if written.is_err() {
        // Best effort; its name says that it is no backup.
        let _ = std::fs::remove_file(&partial);
    }
    written.map(|()| header)
}

fn assemble(partial: &Path, header: &Header, sources: &[(Part, PathBuf)], tell: &mut dyn FnMut(u64)) -> Result<()> {
    let failed = || Error::io("write", partial);
    let text = serde_json::to_vec(header).map_err(std::io::Error::from).map_err(failed())?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= HEADER_BYTES_MAX);
    let length = length.ok_or_else(|| invalid("the machine's description is too long"))?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(partial).map_err(failed())?;
    let mut out = Digesting { inner: BufWriter::new(&file), digest: Sha256::new(), tell };
    let head = [MAGIC.as_slice(), &length.to_le_bytes(), &text].concat();
    out.inner.write_all(&head).map_err(failed())?;
    out.digest.update(&head);
    for (_, path) in sources {
        let mut read = BufReader::with_capacity(COPY_BYTES, File::open(path).map_err(Error::io("open", path))?);
        std::io::copy(&mut read, &mut out).map_err(failed())?;
    }
    let Digesting { mut inner, digest, .. } = out;
    inner.write_all(&digest.finalize()).and_then(|()| inner.flush()).map_err(failed())?;
    drop(inner);
    file.sync_all().map_err(failed())
}

/// An open file whose header fits.
#[derive(Debug)]
pub struct Backup {
    path: PathBuf,
    file: File,
    parts_at: u64,
    /// What it holds.
    pub header: Header,
    /// Its last 32 bytes, hexadecimal: what a later file names it by.
    pub sha256: String,
}

impl Backup {
    /// Opens a file and reads its header. Nothing else is checked: [`Backup::verify`] does that.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("look at", path))?.len();
        let failed = || Error::io("read", path);
        let mut bytes = Vec::new();
        let most = HEADER_AT as u64 + u64::from(HEADER_BYTES_MAX);
        Read::take(&mut file, most).read_to_end(&mut bytes).map_err(failed())?;
        let (header, parts_at) = parse(&bytes, length)?;
        let mut end = [0; DIGEST_BYTES];
        file.seek(SeekFrom::Start(length - DIGEST_BYTES as u64))
            .and_then(|_| file.read_exact(&mut end))
            .map_err(failed())?;
        Ok(Self { path: path.to_owned(), file, parts_at, header, sha256: hex(&end) })
    }

    /// Checks every byte, and that its disks are disks. `tell` is told of each piece of work, which is twice the file's length.
    pub fn verify(&self, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let failed = || Error::io("read", &self.path);
        let parts: u64 = self.header.parts.iter().map(|part| part.bytes).sum();
        let found = digest(&mut self.piece(0, self.parts_at + parts).map_err(failed())?, tell).map_err(failed())?;
        if found != self.sha256 {
            return Err(invalid("it is damaged or not whole: its digest does not match"));
        }
        for index in 0..self.header.parts.len() {
            let part = &self.header.parts[index];
            let found = digest(&mut self.part(index).map_err(failed())?, tell).map_err(failed())?;
            if found != part.sha256 {
                return Err(invalid("the digest of one of its parts does not match"));
            }
            if part.role == Role::Disk {
                self.check_disk(index)?;
            }
        }
        Ok(())
    }

    fn check_disk(&self, index: usize) -> Result<()> {
        let part = &self.header.parts[index];
        let mut head = Vec::new();
        let mut read = self.part(index).map_err(Error::io("read", &self.path))?;
        Read::take(&mut read, HEADER_BYTES as u64).read_to_end(&mut head).map_err(Error::io("read", &self.path))?;
        let found = header::parse(&head, part.bytes)?;
        if found.format != header::Format::Qcow2 || found.virtual_bytes != part.virtual_bytes {
            return Err(invalid(format!("its disk {} is not what its header says", part.name)));
        }
        Ok(())
    }

    fn piece(&self, at: u64, bytes: u64) -> std::io::Result<impl Read + use<>> {
        // An open file of its own, with a place of its own.
        let mut file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file)))?;
        file.seek(SeekFrom::Start(at))?;
        Ok(file.take(bytes))
    }

    fn part(&self, index: usize) -> std::io::Result<impl Read + use<>> {
        let before: u64 = self.header.parts[..index].iter().map(|part| part.bytes).sum();
        self.piece(self.parts_at + before, self.header.parts[index].bytes)
    }

    /// The part of a disk, or of a kernel or RAM disk (whose name is empty).
    pub fn find(&self, role: Role, name: &str) -> Option<&Part> {
        self.header.parts.iter().find(|part| part.role == role && part.name == name)
    }

    /// Copies a part into a new file, which the tool that copies disks may read. Its digest is checked on the way: a file that was changed
    /// after it was verified is not taken either. Blocking.
    pub fn extract(&self, role: Role, name: &str, target: &Path, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let wanted = |part: &Part| part.role == role && part.name == name;
        let index = self.header.parts.iter().position(wanted);
        let index = index.ok_or_else(|| Error::NotFound(format!("{name} in {}", self.path.display())))?;
        let failed = || Error::io("write", target);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(target).map_err(failed())?;
        let mut out = Digesting { inner: BufWriter::new(&file), digest: Sha256::new(), tell };
        let mut read = BufReader::with_capacity(COPY_BYTES, self.part(index).map_err(Error::io("read", &self.path))?);
        std::io::copy(&mut read, &mut out).and_then(|_| out.flush()).map_err(failed())?;
        if hex(&out.digest.finalize()) != self.header.parts[index].sha256 {
            return Err(invalid(format!("{} was changed meanwhile", self.path.display())));
        }
        drop(out.inner);
        fchown(&file, Some(TOOL_USER), Some(TOOL_USER)).map_err(Error::io("hand over", target))?;
        file.sync_all().map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::create::empty_layer;

    const SIZE: u64 = 1 << 20;

    fn sample(directory: &Path) -> PathBuf {
        let disk = directory.join("disk");
        std::fs::write(&disk, empty_layer(SIZE)).unwrap();
        std::fs::write(directory.join("kernel"), b"a kernel").unwrap();
        let part = |role, name: &str, virtual_bytes| Part {
            role,
            name: name.into(),
            virtual_bytes,
            incremental: false,
            bytes: 0,
            sha256: String::new(),
        };
        let header = Header { machine: "web".into(), mark: "m1".into(), ..Header::default() };
        let target = directory.join("backup");
        let sources = [(part(Role::Disk, "root", SIZE), disk), (part(Role::Kernel, "", 0), directory.join("kernel"))];
        let mut told = 0;
        write(&target, header, &sources, &mut |bytes| told += bytes).unwrap();
        assert!(told > 0);
        target
    }

    fn read(path: &Path) -> Result<Backup> {
        let backup = Backup::open(path)?;
        backup.verify(&mut |_| ())?;
        Ok(backup)
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let backup = read(&sample(directory.path())).unwrap();
        assert_eq!((backup.header.machine.as_str(), backup.header.mark.as_str()), ("web", "m1"));
        assert_eq!(backup.find(Role::Disk, "root").unwrap().virtual_bytes, SIZE);
        assert!(backup.find(Role::Initrd, "").is_none());
        assert!(!directory.path().join("backup.partial").exists());
    }

    #[test]
    fn a_changed_byte_anywhere_or_a_missing_end_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = sample(directory.path());
        let whole = std::fs::read(&path).unwrap();
        // All of the header and the end, and a few bytes of the long middle.
        let places = (0..2000).chain((2000..whole.len() - 100).step_by(9973)).chain(whole.len() - 100..whole.len());
        for at in places.filter(|at| *at < whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert!(read(&path).is_err(), "byte {at}");
        }
        for length in [0, 7, 11, 12, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "length {length}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(read(&path).is_err());
    }

    /// With right digests over hostile content, the disk's own header is what refuses it.
    #[test]
    fn a_disk_that_names_other_files_is_refused_though_its_digests_are_right() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("evil");
        let mut layer = empty_layer(SIZE);
        layer[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 11]);
        std::fs::write(&disk, layer).unwrap();
        let part = Part {
            role: Role::Disk,
            name: "root".into(),
            virtual_bytes: SIZE,
            incremental: false,
            bytes: 0,
            sha256: String::new(),
        };
        let target = directory.path().join("backup");
        let header = Header { machine: "web".into(), ..Header::default() };
        write(&target, header, &[(part, disk)], &mut |_| ()).unwrap();
        let said = read(&target).unwrap_err().to_string();
        assert!(said.contains("backing file"), "{said}");
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        let part = |name: &str| serde_json::json!({"role": "disk", "name": name, "virtualBytes": 512, "bytes": 0, "sha256": "0".repeat(64)});
        let header = |parts: Value, machine: &str| {
            let text = serde_json::json!({"format": 1, "program": "", "takenAt": "", "machine": machine,
                "description": {}, "mark": "", "since": null, "parts": parts})
            .to_string();
            let length = u32::try_from(text.len()).unwrap();
            let bytes = [MAGIC.as_slice(), &length.to_le_bytes(), text.as_bytes()].concat();
            let file_bytes = (bytes.len() + DIGEST_BYTES) as u64;
            parse(&bytes, file_bytes).map(drop)
        };
        header(serde_json::json!([part("root")]), "web").unwrap();
        for (parts, machine) in [
            (serde_json::json!([]), "web"),
            (serde_json::json!([part("root"), part("root")]), "web"),
            (serde_json::json!([part("root"), part("../etc")]), "web"),
            (serde_json::json!([part("root")]), "../web"),
            (
                serde_json::json!([part("root"), {"role": "disk", "name": "a", "virtualBytes": u64::MAX, "bytes": u64::MAX, "sha256": "0".repeat(64)}]),
                "web",
            ),
            (
                serde_json::json!([part("root"), {"role": "disk", "name": "a", "virtualBytes": 1, "incremental": true, "bytes": 0, "sha256": "0".repeat(64)}]),
                "web",
            ),
        ] {
            assert!(header(parts.clone(), machine).is_err(), "{parts} {machine}");
        }
    }
}
