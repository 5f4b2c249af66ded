//! Small read-only disks in the form of a CD: ISO 9660 with the names of Rock Ridge, which Linux reads, and of Joliet, which others do.
//! Pure; the same files give the same bytes.
//!
//! `Source:` ECMA-119, 2nd edition; IEEE P1281 (SUSP) and P1282 (RRIP); Joliet Specification, 1995

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};

/// Units: bytes.
const SECTOR: usize = 2048;
/// The first descriptor; nothing is written before it. Units: sectors.
const FIRST_DESCRIPTOR: usize = 16;
/// Descriptors, then two path tables for each form of names. Units: sectors.
const TABLES: usize = FIRST_DESCRIPTOR + 3;
const DIRECTORIES: usize = TABLES + 4;
/// A disk is a multiple of this, so that small changes of its files do not change its size. Units: bytes.
const GRAIN: usize = 512 << 10;
/// The largest disk: it is made in memory. Units: bytes.
const BYTES_MAX: usize = 16 << 20;
/// Longest name, so that a record with all its names has room. Units: bytes.
const NAME_BYTES_MAX: usize = 30;
/// Longest label, in Joliet's two bytes for each character.
const LABEL_CHARACTERS_MAX: usize = 16;
/// 1 January 1970, since no time is part of a drive: years since 1900, month, day.
const DATE: [u8; 7] = [70, 1, 1, 0, 0, 0, 0];
/// The guest's root alone reads it: user data may hold secrets.
const DIRECTORY_MODE: u32 = 0o040_500;
const FILE_MODE: u32 = 0o100_400;
const IS_DIRECTORY: u8 = 2;

/// The two forms of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Capital letters for old systems; Rock Ridge beside them has the names as they are.
    Plain,
    /// Sixteen bits for each character.
    Joliet,
}

/// Where something is: first sector, bytes.
type Extent = (usize, usize);

/// The directories and files of a disk, by their paths; the root's is empty.
struct Tree<'a> {
    directories: BTreeSet<String>,
    files: BTreeMap<String, &'a [u8]>,
}

/// Makes a disk with this label that has these files, by their paths.
///
/// Errors: a label, name or file is too long; a name is empty or there twice.
pub fn make(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    if label.chars().count() > LABEL_CHARACTERS_MAX || !label.is_ascii() {
        return Err(Error::Invalid(format!("{label:?} cannot be a disk's label")));
    }
    let tree = Tree::of(files)?;
    let count = tree.directories.len();
    let data_start = DIRECTORIES + 2 * count;
    let mut next = data_start;
    let mut places: BTreeMap<&str, Extent> = BTreeMap::new();
    for (path, content) in &tree.files {
        places.insert(path, (next, content.len()));
        next += content.len().div_ceil(SECTOR);
    }
    if next * SECTOR > BYTES_MAX {
        return Err(Error::Invalid(format!("the files of disk {label} are too large")));
    }
    let mut disk = vec![0; (next * SECTOR).next_multiple_of(GRAIN)];
    for (index, form) in [Form::Plain, Form::Joliet].into_iter().enumerate() {
        let first = DIRECTORIES + index * count;
        let extents: BTreeMap<&str, Extent> =
            tree.ordered(form).into_iter().enumerate().map(|(at, path)| (path, (first + at, SECTOR))).collect();
        let tables = TABLES + 2 * index;
        let little = tree.path_table(form, &extents, u32::to_le_bytes, u16::to_le_bytes);
        let big = tree.path_table(form, &extents, u32::to_be_bytes, u16::to_be_bytes);
        let size = little.len();
        put_sector(&mut disk, tables, &little)?;
        put_sector(&mut disk, tables + 1, &big)?;
        for (path, (sector, _)) in &extents {
            put_sector(&mut disk, *sector, &tree.records(path, form, &extents, &places))?;
        }
        let root = extents.get("").copied().unwrap_or((first, SECTOR));
        put_sector(&mut disk, FIRST_DESCRIPTOR + index, &descriptor(form, label, next, (tables, size), root))?;
    }
    put_sector(&mut disk, FIRST_DESCRIPTOR + 2, b"\xffCD001\x01")?;
    for (path, content) in &tree.files {
        let at = places[path.as_str()].0 * SECTOR;
        disk[at..at + content.len()].copy_from_slice(content);
    }
    Ok(disk)
}

fn put_sector(disk: &mut [u8], sector: usize, bytes: &[u8]) -> Result<()> {
    if bytes.len() > SECTOR {
        return Err(Error::Invalid("a directory of a small disk has too many entries".into()));
    }
    disk[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// A number in both orders of bytes.
fn both32(number: usize) -> [u8; 8] {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn both16(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A name as the form has it.
fn identifier(path: &str, form: Form, is_directory: bool) -> Vec<u8> {
    let text = match form {
        Form::Joliet => name(path).to_owned(),
        Form::Plain => {
            let letter = |letter: char| match letter.to_ascii_uppercase() {
                letter if letter.is_ascii_alphanumeric() || (letter == '.' && !is_directory) => letter,
                _ => '_',
            };
            name(path).chars().map(letter).collect()
        }
    };
    let text = if is_directory { text } else { format!("{text};1") };
    if form == Form::Joliet { wide(&text) } else { text.into_bytes() }
}

impl<'a> Tree<'a> {
    fn of(files: &[(&str, &'a [u8])]) -> Result<Self> {
        let mut tree = Self { directories: BTreeSet::from([String::new()]), files: BTreeMap::new() };
        for (path, content) in files {
            let sound = |name: &str| !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.is_ascii();
            if !path.split('/').all(sound) || tree.files.insert((*path).to_owned(), content).is_some() {
                return Err(Error::Invalid(format!("{path:?} cannot be a file of a small disk")));
            }
            let mut above = parent(path);
            while !above.is_empty() && tree.directories.insert(above.to_owned()) {
                above = parent(above);
            }
        }
        let mut seen = BTreeSet::new();
        let mut names = tree.files.keys().map(|path| (path, false));
        let mut names = tree.directories.iter().map(|path| (path, true)).chain(&mut names);
        if !names.all(|(path, is)| seen.insert((parent(path), path.is_empty(), identifier(path, Form::Plain, is)))) {
            return Err(Error::Invalid("two names of a small disk are too alike".into()));
        }
        Ok(tree)
    }

    /// Directories as path tables have them: by depth, then by their parents, then by name.
    fn ordered(&self, form: Form) -> Vec<&str> {
        let mut ordered = vec![""];
        let mut at = 0;
        while at < ordered.len() {
            let above = ordered[at];
            let mut below: Vec<&str> = self.directories_in(above).collect();
            below.sort_by_key(|path| identifier(path, form, true));
            ordered.extend(below);
            at += 1;
        }
        ordered
    }

    fn directories_in<'b>(&'b self, above: &'b str) -> impl Iterator<Item = &'b str> {
        let directories = self.directories.iter().map(String::as_str);
        directories.filter(move |path| !path.is_empty() && parent(path) == above)
    }

    fn path_table(
        &self,
        form: Form,
        extents: &BTreeMap<&str, Extent>,
        number: fn(u32) -> [u8; 4],
        short: fn(u16) -> [u8; 2],
    ) -> Vec<u8> {
        let ordered = self.ordered(form);
        let mut table = Vec::new();
        for path in &ordered {
            let id = if path.is_empty() { vec![0] } else { identifier(path, form, true) };
            let above = ordered.iter().position(|one| *one == parent(path)).unwrap_or(0) + 1;
            table.extend([u8::try_from(id.len()).unwrap_or(u8::MAX), 0]);
            table.extend(number(u32::try_from(extents[path].0).unwrap_or(u32::MAX)));
            table.extend(short(u16::try_from(above).unwrap_or(u16::MAX)));
            table.extend(&id);
            table.resize(table.len().next_multiple_of(2), 0);
        }
        table
    }

    /// What a directory's sector holds.
    fn records(
        &self,
        path: &str,
        form: Form,
        extents: &BTreeMap<&str, Extent>,
        places: &BTreeMap<&str, Extent>,
    ) -> Vec<u8> {
        let ridge = form == Form::Plain;
        let mut own = if ridge { mode(DIRECTORY_MODE) } else { Vec::new() };
        let above = own.clone();
        if ridge && path.is_empty() {
            // This disk has such fields, and they mean Rock Ridge.
            own = [b"SP\x07\x01\xbe\xef\x00".to_vec(), own, b"ER\x12\x01\x0a\x00\x00\x01RRIP_1991A".to_vec()].concat();
        }
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut add = |path: &str, extent: Extent, is_directory: bool| {
            let id = identifier(path, form, is_directory);
            let mode = mode(if is_directory { DIRECTORY_MODE } else { FILE_MODE });
            let system = if ridge { [mode, named(name(path))].concat() } else { Vec::new() };
            let flags = if is_directory { IS_DIRECTORY } else { 0 };
            entries.push((id.clone(), record(&id, extent, flags, &system)));
        };
        for directory in self.directories_in(path) {
            add(directory, extents[directory], true);
        }
        for file in self.files.keys().filter(|file| parent(file) == path) {
            add(file, places[file.as_str()], false);
        }
        entries.sort();
        let mut bytes = record(&[0], extents[path], IS_DIRECTORY, &own);
        bytes.extend(record(&[1], extents[parent(path)], IS_DIRECTORY, &above));
        bytes.extend(entries.into_iter().flat_map(|(_, record)| record));
        bytes
    }
}

/// Rock Ridge: permissions; root owns all.
fn mode(mode: u32) -> Vec<u8> {
    let numbers = [both32(mode as usize), both32(1), both32(0), both32(0)].concat();
    [b"PX\x24\x01".to_vec(), numbers].concat()
}

/// Rock Ridge: the name as it is.
fn named(name: &str) -> Vec<u8> {
    let length = u8::try_from(5 + name.len()).unwrap_or(u8::MAX);
    [b"NM".to_vec(), vec![length, 1, 0], name.as_bytes().to_vec()].concat()
}

/// An entry of a directory.
fn record(id: &[u8], (sector, bytes): Extent, flags: u8, system: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both32(sector));
    record.extend(both32(bytes));
    record.extend(DATE);
    record.extend([flags, 0, 0]);
    record.extend(both16(1));
    record.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
    record.extend(id);
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend(system);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = u8::try_from(record.len()).unwrap_or(u8::MAX);
    record
}

/// The descriptor of a volume: where its parts are.
fn descriptor(form: Form, label: &str, sectors: usize, (tables, size): Extent, root: Extent) -> Vec<u8> {
    let joliet = form == Form::Joliet;
    let mut bytes = vec![0; SECTOR];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let padded = |text: &str, length: usize| {
        let mut value = if joliet { wide(text) } else { text.as_bytes().to_vec() };
        while value.len() < length {
            value.extend(if joliet { &b"\0 "[..] } else { b" " });
        }
        value.truncate(length);
        value
    };
    put(0, &[if joliet { 2 } else { 1 }]);
    put(1, b"CD001\x01");
    put(8, &padded("", 32));
    put(40, &padded(label, 32));
    put(80, &both32(sectors));
    if joliet {
        put(88, b"%/E");
    }
    put(120, &both16(1));
    put(124, &both16(1));
    put(128, &both16(2048));
    put(132, &both32(size));
    put(140, &u32::try_from(tables).unwrap_or(u32::MAX).to_le_bytes());
    put(148, &u32::try_from(tables + 1).unwrap_or(u32::MAX).to_be_bytes());
    put(156, &record(&[0], root, IS_DIRECTORY, &[]));
    for at in [190, 318, 446, 574] {
        put(at, &padded("", 128));
    }
    for at in [702, 739, 776] {
        put(at, &padded("", 37));
    }
    for at in [813, 830, 847, 864] {
        // Sixteen digits of nought: no time is given.
        put(at, b"0000000000000000");
    }
    put(881, &[1]);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The name that Rock Ridge gives an entry.
    fn ridge_name(system: &[u8]) -> String {
        let mut at = 0;
        while at + 4 <= system.len() && system[at + 2] > 0 {
            if &system[at..at + 2] == b"NM" {
                return String::from_utf8(system[at + 5..at + usize::from(system[at + 2])].to_vec()).unwrap();
            }
            at += usize::from(system[at + 2]);
        }
        String::new()
    }

    /// Reads all files back, as a system would that knows this form.
    fn read(disk: &[u8], form: Form) -> BTreeMap<String, Vec<u8>> {
        let le32 = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap()) as usize;
        let start = (FIRST_DESCRIPTOR + usize::from(form == Form::Joliet)) * SECTOR;
        let mut found = BTreeMap::new();
        let mut waiting = vec![(String::new(), le32(start + 156 + 2) * SECTOR)];
        while let Some((above, start)) = waiting.pop() {
            let mut at = start;
            while disk[at] > 0 {
                let length = usize::from(disk[at]);
                let id_length = usize::from(disk[at + 32]);
                let id = &disk[at + 33..at + 33 + id_length];
                let system = (at + 33 + id_length).next_multiple_of(2);
                if id != [0] && id != [1] {
                    let name = match form {
                        Form::Plain => ridge_name(&disk[system..at + length]),
                        Form::Joliet => {
                            let units: Vec<u16> =
                                id.chunks(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect();
                            String::from_utf16(&units).unwrap().trim_end_matches(";1").to_owned()
                        }
                    };
                    let path = if above.is_empty() { name } else { format!("{above}/{name}") };
                    let (place, size) = (le32(at + 2) * SECTOR, le32(at + 10));
                    if disk[at + 25] & IS_DIRECTORY > 0 {
                        waiting.push((path, place));
                    } else {
                        found.insert(path, disk[place..place + size].to_vec());
                    }
                }
                at += length;
            }
        }
        found
    }

    const FILES: &[(&str, &[u8])] = &[
        ("openstack/latest/meta_data.json", b"{\"uuid\": \"u\"}"),
        ("openstack/latest/user_data", b"#!/bin/sh\n"),
        ("meta-data", b""),
    ];

    #[test]
    fn both_forms_have_all_files() {
        let disk = make("config-2", FILES).unwrap();
        assert_eq!(disk.len(), GRAIN);
        let wanted: BTreeMap<String, Vec<u8>> =
            FILES.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect();
        assert_eq!(read(&disk, Form::Plain), wanted);
        assert_eq!(read(&disk, Form::Joliet), wanted);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        for path in ["", "/a", "a//b", "ä", long.as_str()] {
            assert!(make("x", &[(path, b"")]).is_err(), "{path}");
        }
        assert!(make("x", &[("a", b""), ("a", b"")]).is_err());
        assert!(make("x", &[("a-b", b""), ("a_b", b"")]).is_err());
        assert!(make("a-label-of-17-let", &[]).is_err());
        assert!(make("x", &[("a", &vec![0; BYTES_MAX])]).is_err());
        let names: Vec<String> = (0..60).map(|index| format!("file-{index}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(make("x", &many).is_err());
    }

    /// The tool by which guests find their drive. That their kernel reads it is shown by a guest.
    #[test]
    fn blkid_finds_it_by_its_label() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        std::fs::write(&disk, make("config-2", FILES).unwrap()).unwrap();
        let mut command = std::process::Command::new("blkid");
        let asked =
            command.args(["-p", "-o", "export"]).arg(&disk).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output();
        let said = String::from_utf8(asked.unwrap().stdout).unwrap();
        assert!(said.contains("LABEL=config-2\n") && said.contains("TYPE=iso9660\n"), "{said}");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(
            files in prop::collection::btree_map("[a-m]{1,3}(/[n-z]{1,3}){0,3}", prop::collection::vec(any::<u8>(), 0..5000), 0..12)
        ) {
            // Letters tell files from directories above them, but for the last part.
            let files: Vec<(String, Vec<u8>)> = files.into_iter().map(|(path, bytes)| (format!("{path}.f"), bytes)).collect();
            let given: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
            let disk = make("label", &given).unwrap();
            let wanted: BTreeMap<String, Vec<u8>> = files.iter().cloned().collect();
            prop_assert_eq!(read(&disk, Form::Plain), wanted.clone());
            prop_assert_eq!(read(&disk, Form::Joliet), wanted);
        }
    }
}
