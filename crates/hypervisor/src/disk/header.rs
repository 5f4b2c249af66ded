//! Headers of disk images. What an uploaded file is, is decided here and nowhere else: every later call names the format.
//! An image that names other files (backing file, data file, extents) is refused, since whoever opens it would read them.
//!
//! `Source:` QEMU, docs/interop/qcow2.txt; the magic numbers are those of each format's own specification.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::error::{Error, Result};

/// The largest disk that is taken. Units: bytes. Far above what one machine holds, far below where arithmetic ends.
pub const VIRTUAL_SIZE_MAX: u64 = 16 << 40;
/// So much of a file is looked at. Header extensions end well before.
pub const HEADER_BYTES: usize = 64 << 10;
/// Where a qcow2 header of version 2 ends, and the shortest one of version 3. Units: bytes.
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// Incompatible features that change nothing about where data lies: dirty, corrupt, zstd clusters, subclusters.
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURES_KNOWN: u64 = 0b1_1111;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Entries of the L1 table that QEMU itself takes. Units: bytes.
const L1_BYTES_MAX: u64 = 32 << 20;

/// A format that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// The name by which QEMU's tools know it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format.
    pub format: Format,
    /// Size of the disk as a guest sees it. Units: bytes.
    pub virtual_bytes: u64,
}

/// Formats that are known and not taken, by their first bytes.
const REFUSED: &[(&[u8], &str)] = &[
    (b"KDMV", "VMDK"),
    (b"COWD", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK descriptor"),
    (b"QED\0", "QED"),
    (b"conectix", "VHD"),
    (b"vhdxfile", "VHDX"),
    (b"<<< ", "VDI"),
    (b"WithoutFreeSpace", "Parallels"),
    (b"WithouFreSpacExt", "Parallels"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"Bochs Virtual HD Image", "Bochs"),
    (b"json:", "QEMU description"),
    // As plain bytes these would be taken, and no guest could boot from them.
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "ZIP"),
    (b"<!DOCTYPE", "HTML"),
    (b"<!doctype", "HTML"),
    (b"<html", "HTML"),
];

/// Reads the header of an open file.
///
/// Errors: [`Error::Invalid`] with what is wrong with it.
pub fn inspect(file: &mut File) -> Result<Header> {
    let failed = |source| Error::Io { action: "read the header of", path: "the image".into(), source };
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    file.take(HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes, length)
}

/// Decides on the first bytes of a file, and its length. Pure.
pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Header> {
    if bytes.starts_with(b"QFI\xfb") {
        return qcow2(bytes, file_bytes);
    }
    let later_vdi = bytes.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    let name = REFUSED.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| *name);
    if let Some(name) = name.or(later_vdi.then_some("VDI")) {
        return Err(Error::Invalid(format!("{name} images are not taken: convert it to qcow2 or raw")));
    }
    let sized = Header { format: Format::Raw, virtual_bytes: file_bytes };
    check_size(file_bytes)?;
    Ok(sized)
}

fn check_size(bytes: u64) -> Result<()> {
    if bytes == 0 || bytes > VIRTUAL_SIZE_MAX {
        return Err(Error::Invalid(format!("a disk of {bytes} bytes is not taken: at most {VIRTUAL_SIZE_MAX}")));
    }
    Ok(())
}

fn be32(bytes: &[u8], at: usize) -> Result<u32> {
    let field = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|slice| slice.try_into().ok());
    field.map(u32::from_be_bytes).ok_or_else(|| invalid("the header is cut off"))
}

fn be64(bytes: &[u8], at: usize) -> Result<u64> {
    Ok((u64::from(be32(bytes, at)?) << 32) | u64::from(be32(bytes, at + 4)?))
}

fn invalid(text: &str) -> Error {
    Error::Invalid(format!("qcow2: {text}"))
}

fn qcow2(bytes: &[u8], file_bytes: u64) -> Result<Header> {
    let version = be32(bytes, 4)?;
    if !matches!(version, 2 | 3) {
        return Err(invalid("only versions 2 and 3 are taken"));
    }
    if be64(bytes, 8)? != 0 || be32(bytes, 16)? != 0 {
        return Err(invalid("an image with a backing file is not taken: it would read another file"));
    }
    let cluster_bits = be32(bytes, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(invalid("the cluster size is out of bounds"));
    }
    let virtual_bytes = be64(bytes, 24)?;
    check_size(virtual_bytes)?;
    if be32(bytes, 32)? != 0 {
        return Err(invalid("an encrypted image is not taken"));
    }
    check_tables(bytes, cluster_bits, virtual_bytes, file_bytes)?;
    let end = if version == 2 { V2_LENGTH } else { version_3(bytes)? };
    check_extensions(bytes, end, 1usize << cluster_bits)?;
    Ok(Header { format: Format::Qcow2, virtual_bytes })
}

fn check_tables(bytes: &[u8], cluster_bits: u32, virtual_bytes: u64, file_bytes: u64) -> Result<()> {
    let l1_bytes = u64::from(be32(bytes, 36)?) * 8;
    let covered_by_entry = 1u64 << (2 * cluster_bits - 3);
    if l1_bytes > L1_BYTES_MAX || (l1_bytes / 8) < virtual_bytes.div_ceil(covered_by_entry) {
        return Err(invalid("the size of the L1 table does not fit the disk"));
    }
    for at in [40, 48] {
        let offset = be64(bytes, at)?;
        if offset == 0 || offset % (1 << cluster_bits) != 0 || offset >= file_bytes {
            return Err(invalid("a table lies outside of the file"));
        }
    }
    Ok(())
}

/// Checks what version 3 adds; where the header ends.
fn version_3(bytes: &[u8]) -> Result<usize> {
    let features = be64(bytes, 72)?;
    if features & FEATURE_DATA_FILE != 0 {
        return Err(invalid("an image with a data file is not taken: it would read another file"));
    }
    if features & !FEATURES_KNOWN != 0 {
        return Err(invalid("it needs features that are not known"));
    }
    let end = usize::try_from(be32(bytes, 100)?).unwrap_or(usize::MAX);
    if end < V3_LENGTH || end % 8 != 0 || end > bytes.len() {
        return Err(invalid("the header's length is out of bounds"));
    }
    Ok(end)
}

fn check_extensions(bytes: &[u8], start: usize, cluster: usize) -> Result<()> {
    let mut at = start;
    while at + 8 <= cluster.min(bytes.len()) {
        let (kind, length) = (be32(bytes, at)?, usize::try_from(be32(bytes, at + 4)?).unwrap_or(usize::MAX));
        match kind {
            0 => return Ok(()),
            EXTENSION_DATA_FILE => return Err(invalid("an image with a data file is not taken")),
            EXTENSION_BACKING_FORMAT => return Err(invalid("an image with a backing file is not taken")),
            _ => {}
        }
        let next = length.checked_next_multiple_of(8).and_then(|length| at.checked_add(8 + length));
        at = next.filter(|next| *next <= cluster).ok_or_else(|| invalid("a header extension is out of bounds"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::create;

    const SIZE: u64 = 1 << 30;

    fn good() -> Vec<u8> {
        create::empty_layer(SIZE)
    }

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header> {
        let mut bytes = good();
        change(&mut bytes);
        let length = bytes.len() as u64;
        parse(&bytes, length)
    }

    #[test]
    fn our_own_layers_and_plain_bytes_are_taken() {
        assert_eq!(with(|_| ()).unwrap(), Header { format: Format::Qcow2, virtual_bytes: SIZE });
        assert_eq!(parse(&[0; 512], 512).unwrap(), Header { format: Format::Raw, virtual_bytes: 512 });
    }

    #[test]
    fn images_that_name_other_files_are_refused() {
        for (what, result) in [
            ("backing file", with(|b| b[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 11]))),
            ("data file", with(|b| b[79] |= 4)),
            ("data file", with(|b| b[104..112].copy_from_slice(&[0x44, 0x41, 0x54, 0x41, 0, 0, 0, 8]))),
            ("backing file", with(|b| b[104..112].copy_from_slice(&[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]))),
            ("VMDK", parse(b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0", 512)),
            ("description", parse(b"json:{\"driver\":\"raw\"}", 512)),
            ("xz", parse(b"\xfd7zXZ\0\0", 512)),
            ("HTML", parse(b"<!DOCTYPE html>", 512)),
        ] {
            let text = result.expect_err(what).to_string();
            assert!(text.contains(what), "{text}");
        }
    }

    #[test]
    fn sizes_that_no_machine_has_are_refused() {
        assert!(with(|b| b[24..32].copy_from_slice(&(8u64 << 60).to_be_bytes())).is_err());
        assert!(with(|b| b[24..32].copy_from_slice(&0u64.to_be_bytes())).is_err());
        assert!(with(|b| b[36..40].copy_from_slice(&u32::MAX.to_be_bytes())).is_err());
        assert!(with(|b| b[40..48].copy_from_slice(&u64::MAX.to_be_bytes())).is_err());
        assert!(with(|b| b[23] = 40).is_err());
        assert!(with(|b| b[100..104].copy_from_slice(&u32::MAX.to_be_bytes())).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), length in any::<u64>()) {
            let _ = parse(&bytes, length);
        }

        /// Whatever a header that is taken looks like, it names no other file.
        #[test]
        fn what_is_taken_names_no_other_file(at in 0usize..160, value in any::<[u8; 8]>()) {
            let mut bytes = good();
            bytes[at..at + 8].copy_from_slice(&value);
            if let Ok(Header { format: Format::Qcow2, virtual_bytes }) = parse(&bytes, bytes.len() as u64) {
                prop_assert_eq!(&bytes[8..20], &[0; 12]);
                prop_assert!(bytes[79] & 4 == 0 && virtual_bytes <= VIRTUAL_SIZE_MAX);
            }
        }
    }
}
