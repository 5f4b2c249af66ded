//! Opens a log: reads every segment, builds the index, cuts a torn tail, refuses damage.
//!
//! What counts as a torn tail: bytes at the end of the last segment that are no whole frame, with no whole frame after
//! them. A frame is written only after the one before is durable, so a whole frame behind a damaged one proves that the
//! damaged one was acknowledged: that is damage, and the store is refused. Nothing is changed before all was read.

use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::index::{Index, SegmentState, Version};
use super::log::{Log, LogError, SPARE_PREFIX, Segment, Spares, segment_name, segment_number};
use super::manifest::{MANIFEST_NAME, MANIFEST_NEW_NAME, ManifestFile};
use super::record::{
    self, FRAME_ALIGNMENT_BYTES, FRAME_HEADER_BYTES, Item, Location, Parsed, SEGMENT_HEADER_BYTES, small,
};
use crate::error::{Error, Result};
use crate::types::Revision;

/// Revision of an empty store, as in etcd.
const FIRST_REVISION: Revision = 1;
/// Number of the first frame.
const FIRST_SEQUENCE: u64 = 1;

/// Opens the log on this disk, or makes a new one when the disk is empty.
pub(crate) fn open(disk: &Arc<dyn Disk>, segment_bytes: u64, now: Duration) -> Result<(Log, Index)> {
    let names = disk.list().map_err(|error| Error::Unavailable(format!("cannot list the store: {error}")))?;
    if !names.iter().any(|name| name == MANIFEST_NAME) {
        if names.iter().any(|name| segment_number(name).is_some()) {
            return Err(Error::Corrupt("the manifest is missing but segments are there".into()));
        }
        ManifestFile::create(disk.as_ref(), random())?;
    }
    let manifest = ManifestFile::open(disk.as_ref())?;
    let mut reader = Reader {
        store: manifest.content.store,
        index: Index::at_revision(FIRST_REVISION),
        next_sequence: None,
        now,
        tail: Tail::default(),
    };
    let (first, last) = (manifest.content.first, manifest.content.last);
    for id in first..=last {
        if !names.iter().any(|name| segment_number(name) == Some(id)) {
            return Err(Error::Corrupt(format!("{} is missing", segment_name(id))));
        }
        reader.segment(disk.as_ref(), id, id == last)?;
    }
    refuse_unknown_segments(disk.as_ref(), &names, &manifest)?;
    reader.index.finish_restore();
    repair(disk.as_ref(), &names, &reader, first, last)?;
    let active = reader.index.segments.get(&last).map(|state| Arc::clone(&state.segment));
    let mut log = Log {
        disk: Arc::clone(disk),
        spares: Arc::new(Spares::new(Arc::clone(disk), segment_bytes)),
        seed: record::seed(manifest.content.store, last),
        active,
        position: reader.tail.end,
        sequence: reader.next_sequence.unwrap_or(FIRST_SEQUENCE),
        dirty_until: 0,
        manifest,
    };
    if log.active.is_none() {
        log.roll(0, &reader.index.checkpoint(), false)?;
        if let Some(active) = &log.active {
            let state = SegmentState { segment: Arc::clone(active), live_bytes: 0 };
            reader.index.segments.insert(active.id, state);
        }
    }
    Ok((log, reader.index))
}

/// A segment that the manifest does not name holds no data, unless the manifest lost its newest content.
fn refuse_unknown_segments(disk: &dyn Disk, names: &[String], manifest: &ManifestFile) -> Result<()> {
    for id in names.iter().filter_map(|name| segment_number(name)).filter(|id| *id > manifest.content.last) {
        let bytes = read_whole(disk, id)?;
        let seed = record::seed(manifest.content.store, id);
        let head = record::parse_frame(bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default(), &seed);
        if let Parsed::Frame { length, .. } = head
            && record::parse_frame(&bytes[SEGMENT_HEADER_BYTES + length..], &seed) != Parsed::Nothing
        {
            return Err(Error::Corrupt(format!("{} holds data but the manifest does not name it", segment_name(id))));
        }
    }
    Ok(())
}

/// Removes left-overs, cuts the torn tail, and makes the last frame durable: it may only be in the page cache.
fn repair(disk: &dyn Disk, names: &[String], reader: &Reader, first: u32, last: u32) -> Result<()> {
    let write = || {
        if let Some(state) = reader.index.segments.get(&last) {
            let tail = &reader.tail;
            let file = &state.segment.file;
            let zeros = usize::try_from(tail.dirty_until.saturating_sub(tail.end)).unwrap_or(0);
            file.write_at(&vec![0; zeros], tail.end)?;
            file.write_at(&tail.last_frame, tail.end - tail.last_frame.len() as u64)?;
            file.sync()?;
        }
        for name in names {
            let left_over = segment_number(name).is_some_and(|id| id < first || id > last);
            if left_over || name.starts_with(SPARE_PREFIX) || name == MANIFEST_NEW_NAME {
                disk.remove(name)?;
            }
        }
        disk.sync_directory()
    };
    write().map_err(|error| LogError::from_io("repair the log", &error).into())
}

#[derive(Default)]
struct Tail {
    /// Where the last whole frame ends.
    end: u64,
    /// Where the last byte that is not zero ends.
    dirty_until: u64,
    last_frame: Vec<u8>,
}

struct Reader {
    store: u64,
    index: Index,
    next_sequence: Option<u64>,
    now: Duration,
    tail: Tail,
}

impl Reader {
    fn segment(&mut self, disk: &dyn Disk, id: u32, is_last: bool) -> Result<()> {
        let bytes = read_whole(disk, id)?;
        if bytes.get(..SEGMENT_HEADER_BYTES) != Some(&record::segment_header(self.store, id)[..]) {
            return Err(Error::Corrupt(format!("the header of {} is damaged", segment_name(id))));
        }
        let file = disk.open(&segment_name(id)).map_err(|error| unreadable(id, &error))?;
        let segment = Arc::new(Segment { id, file, capacity: bytes.len() as u64 });
        self.index.segments.insert(id, SegmentState { segment, live_bytes: 0 });
        let seed = record::seed(self.store, id);
        let mut at = SEGMENT_HEADER_BYTES;
        let mut last_frame = at..at;
        loop {
            match record::parse_frame(&bytes[at..], &seed) {
                Parsed::Frame { sequence, payload, length } => {
                    if self.next_sequence.is_some_and(|next| next != sequence) {
                        return Err(Error::Corrupt(format!("records before {}:{at} are missing", segment_name(id))));
                    }
                    self.next_sequence = Some(sequence + 1);
                    self.frame(payload, id, at + FRAME_HEADER_BYTES)
                        .map_err(|error| Error::Corrupt(format!("{}:{at}: {error}", segment_name(id))))?;
                    last_frame = at..(at + length).min(bytes.len());
                    at = last_frame.end;
                }
                Parsed::Nothing if !is_last => break,
                Parsed::Damaged if !is_last => return Err(damaged(id, at)),
                Parsed::Nothing | Parsed::Damaged => {
                    self.refuse_frames_after(&bytes, at, id)?;
                    break;
                }
            }
        }
        if last_frame.is_empty() {
            return Err(damaged(id, at));
        }
        if is_last {
            let dirty = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |position| position + 1);
            let last_frame = bytes[last_frame].to_vec();
            self.tail = Tail { end: at as u64, dirty_until: dirty as u64, last_frame };
        }
        Ok(())
    }

    fn refuse_frames_after(&self, bytes: &[u8], from: usize, id: u32) -> Result<()> {
        let seed = record::seed(self.store, id);
        let expected = self.next_sequence.unwrap_or(0);
        let bytes = &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |position| position + 1)];
        let mut at = from + FRAME_ALIGNMENT_BYTES;
        while at + FRAME_HEADER_BYTES <= bytes.len() {
            if let Parsed::Frame { sequence, .. } = record::parse_frame(&bytes[at..], &seed)
                && sequence > expected
            {
                return Err(damaged(id, from));
            }
            at += FRAME_ALIGNMENT_BYTES;
        }
        Ok(())
    }

    fn frame(&mut self, payload: &[u8], segment: u32, payload_at: usize) -> Result<()> {
        for item in record::parse_items(payload)? {
            match item {
                Item::Entry { offset, bytes, entry } => {
                    let at = Location { segment, offset: small(payload_at + offset), length: small(bytes.len()) };
                    self.index.restore(entry.key, Version { stamp: entry.stamp, at });
                }
                Item::LeaseGrant(lease, ttl_seconds) => self.index.grant(lease, ttl_seconds, self.now),
                Item::LeaseEnd(lease) => {
                    self.index.leases.remove(&lease);
                }
                Item::Compact(revision) => self.index.compacted = self.index.compacted.max(revision),
                Item::Checkpoint(checkpoint) => {
                    self.index.revision = self.index.revision.max(checkpoint.revision);
                    self.index.compacted = self.index.compacted.max(checkpoint.compacted);
                    self.index.leases.clear();
                    for (lease, ttl_seconds) in checkpoint.leases {
                        self.index.grant(lease, ttl_seconds, self.now);
                    }
                }
            }
        }
        Ok(())
    }
}

fn read_whole(disk: &dyn Disk, id: u32) -> Result<Vec<u8>> {
    let read = || {
        let file = disk.open(&segment_name(id))?;
        let mut bytes = vec![0; usize::try_from(file.length_bytes()?).unwrap_or(usize::MAX)];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(|error| unreadable(id, &error))
}

fn unreadable(id: u32, error: &std::io::Error) -> Error {
    Error::Unavailable(format!("cannot read {}: {error}", segment_name(id)))
}

fn damaged(id: u32, at: usize) -> Error {
    Error::Corrupt(format!("the record at {}:{at} does not match its checksum", segment_name(id)))
}

/// A number that nobody can guess: the standard library seeds its hashers from the operating system.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
