//! One file that holds a whole store at one revision, with checksums; and the way back from it.
//!
//! ```text
//! file   = magic [8] | format u32 | crc u32 of the 12 bytes | frame*
//! ```
//! Frames are the log's own (identity 0, segment 0, numbered from 1): first a checkpoint, then entries, last a frame
//! with a checkpoint whose revision is the number of entries. A file without that last frame is not whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, OsDisk};
use super::read::Reading;
use super::record::{self, Checkpoint, FORMAT_VERSION, FRAME_HEADER_BYTES, FrameBuilder, Item, Parsed, read_u32};
use super::recover;
use crate::error::{Error, Result};
use crate::types::Revision;

/// How far a restore moves the revision on at least. Revisions given out after the backup was taken must never come again
/// with other content; etcd's documentation recommends the same distance. At 10,000 writes a second it covers a day.
pub const RESTORE_REVISION_BUMP: Revision = 1_000_000_000;

/// Revisions that a restore allows for each second of the calendar, more than this engine writes. One backup may be restored
/// twice, and what was written between the two restores must not be reused either: the later restore begins higher, because
/// the calendar went on. Such revisions stay below 2^53 until the year 4800, which is what JavaScript counts exactly.
const RESTORE_REVISIONS_PER_SECOND: Revision = 100_000;

/// Where a store begins that is restored at this time from a backup of that revision.
fn restored_revision(backup: Revision, unix_seconds: u64) -> Revision {
    (backup + RESTORE_REVISION_BUMP).max(unix_seconds.saturating_mul(RESTORE_REVISIONS_PER_SECOND))
}

const MAGIC: &[u8; 8] = b"NUEEBKUP";
const HEADER_BYTES: usize = 16;
const FRAME_BYTES: usize = 1024 * 1024;
/// Longest frame that a reader takes: one entry of the largest size more than [`FRAME_BYTES`].
const MAX_FRAME_BYTES: usize = FRAME_BYTES + crate::MAX_VALUE_BYTES + crate::MAX_KEY_BYTES + 1024;
const FILE_MODE: u32 = 0o600;

/// Writes the entries to the file, whole or not at all.
pub(crate) fn write(file: &Path, checkpoint: &Checkpoint, entries: Vec<Reading>) -> Result<()> {
    let partial = with_suffix(file, ".partial");
    let outcome = write_partial(&partial, checkpoint, entries).and_then(|()| {
        std::fs::rename(&partial, file).map_err(|error| io_error("name the backup", &error))?;
        sync_parent(file)
    });
    if outcome.is_err() {
        // Best effort: what is left over is not a backup, and its name says so.
        let _ = std::fs::remove_file(&partial);
    }
    outcome
}

fn write_partial(partial: &Path, checkpoint: &Checkpoint, entries: Vec<Reading>) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let mut out = options.open(partial).map_err(|error| io_error("create the backup", &error))?;
    let mut header = [0; HEADER_BYTES];
    header[0..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    let seed = record::seed(0, 0);
    let mut sequence = 0;
    let mut put = |out: &mut File, frame: FrameBuilder| {
        sequence += 1;
        out.write_all(&frame.finish(&seed, sequence)).map_err(|error| io_error("write the backup", &error))
    };
    out.write_all(&header).map_err(|error| io_error("write the backup", &error))?;
    let mut frame = FrameBuilder::new();
    frame.checkpoint(checkpoint);
    let mut count = 0;
    for entry in entries {
        // Checked before it is copied: a backup must not hand damage on.
        entry.read()?;
        frame.raw_entry(&entry.raw()?);
        count += 1;
        if frame.len() >= FRAME_BYTES {
            put(&mut out, std::mem::replace(&mut frame, FrameBuilder::new()))?;
        }
    }
    put(&mut out, frame)?;
    let mut end = FrameBuilder::new();
    end.checkpoint(&Checkpoint { revision: count, ..Checkpoint::default() });
    put(&mut out, end)?;
    out.sync_all().map_err(|error| io_error("sync the backup", &error))
}

/// Reads the whole backup and checks it; returns the revision that it holds.
pub(crate) fn verify(file: &Path) -> Result<Revision> {
    read(file, |_, _| Ok(())).map(|checkpoint| checkpoint.revision)
}

/// Makes a store in `dir`, which must be missing or empty, from a backup; returns its revision.
pub(crate) fn restore(file: &Path, dir: &Path, segment_bytes: u64, unix_seconds: u64) -> Result<Revision> {
    let occupied = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        return Err(Error::Invalid(format!("{} is not empty", dir.display())));
    }
    // The whole file is checked before anything is made of it.
    let checkpoint = read(file, |_, _| Ok(()))?;
    let working = with_suffix(dir, ".restoring");
    if working.exists() {
        std::fs::remove_dir_all(&working).map_err(|error| io_error("remove an unfinished restore", &error))?;
    }
    let revision = restored_revision(checkpoint.revision, unix_seconds);
    let fill = || -> Result<()> {
        let disk: Arc<dyn Disk> =
            Arc::new(OsDisk::new(&working).map_err(|error| io_error("create the store", &error))?);
        let (mut log, index) = recover::open(&disk, segment_bytes, Duration::ZERO)?;
        let mut append = |frame: FrameBuilder| -> Result<()> {
            if !log.fits(frame.len()) {
                log.roll(frame.len(), &index.checkpoint(), false)?;
            }
            log.append(frame)?;
            Ok(log.sync()?)
        };
        read(file, |entries, _| {
            let mut frame = FrameBuilder::new();
            for entry in entries {
                frame.raw_entry(entry);
            }
            append(frame)
        })?;
        let mut end = FrameBuilder::new();
        end.checkpoint(&Checkpoint { revision, compacted: revision, leases: checkpoint.leases.clone() });
        append(end)?;
        append(FrameBuilder::new())
    };
    fill()?;
    std::fs::rename(&working, dir).map_err(|error| io_error("name the restored store", &error))?;
    sync_parent(dir)?;
    Ok(revision)
}

/// Reads a backup frame by frame and checks all of it; hands on the raw entries of each frame.
fn read(file: &Path, mut each: impl FnMut(&[&[u8]], u64) -> Result<()>) -> Result<Checkpoint> {
    let damaged = || Error::Corrupt(format!("{} is damaged or not whole", file.display()));
    let mut input =
        File::open(file).map_err(|error| Error::Invalid(format!("cannot open {}: {error}", file.display())))?;
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).map_err(|_| damaged())?;
    if &header[0..8] != MAGIC {
        return Err(Error::Invalid(format!("{} is not a backup", file.display())));
    }
    if crc32fast::hash(&header[..12]) != read_u32(&header, 12) {
        return Err(damaged());
    }
    if read_u32(&header, 8) > FORMAT_VERSION {
        return Err(Error::Invalid(format!("{} was made by a newer program", file.display())));
    }
    let seed = record::seed(0, 0);
    let mut first = None;
    let mut count = 0;
    let mut expected = 1;
    loop {
        let mut bytes = vec![0; FRAME_HEADER_BYTES];
        input.read_exact(&mut bytes).map_err(|_| damaged())?;
        let length =
            (FRAME_HEADER_BYTES + read_u32(&bytes, 4) as usize).next_multiple_of(record::FRAME_ALIGNMENT_BYTES);
        if length > MAX_FRAME_BYTES {
            return Err(damaged());
        }
        bytes.resize(length, 0);
        input.read_exact(&mut bytes[FRAME_HEADER_BYTES..]).map_err(|_| damaged())?;
        let Parsed::Frame { sequence, payload, .. } = record::parse_frame(&bytes, &seed) else { return Err(damaged()) };
        // The padding is under no checksum; in a backup nothing may differ, be it needed or not.
        let padded = bytes[FRAME_HEADER_BYTES + payload.len()..].iter().all(|byte| *byte == 0);
        if sequence != expected || !padded {
            return Err(damaged());
        }
        expected += 1;
        let mut entries = Vec::new();
        for item in record::parse_items(payload)? {
            match item {
                Item::Entry { bytes, .. } => entries.push(bytes),
                Item::Checkpoint(checkpoint) if first.is_none() => first = Some(checkpoint),
                Item::Checkpoint(end) => {
                    let rest = input.read(&mut [0]).map_err(|_| damaged())?;
                    return if end.revision == count && rest == 0 { first.ok_or_else(damaged) } else { Err(damaged()) };
                }
                _ => return Err(damaged()),
            }
        }
        count += entries.len() as u64;
        each(&entries, sequence)?;
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let sync = || File::open(parent)?.sync_all();
    sync().map_err(|error| io_error("sync the directory", &error))
}

fn io_error(doing: &str, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::NoSpace,
        _ => Error::Unavailable(format!("cannot {doing}: {error}")),
    }
}
