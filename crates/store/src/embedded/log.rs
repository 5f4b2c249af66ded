//! The log's writing end: appends frames to the active segment, begins new segments, drops old ones.
//! Knows frames and segments; must never know keys.
//!
//! Segments are filled with zeros before they are used. An append then changes no metadata of the file system, so that
//! `fdatasync` is one write to the device, and a full disk is met while a segment is prepared, not while one is written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crc32fast::Hasher;
use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};
use super::manifest::ManifestFile;
use super::record::{self, Checkpoint, FrameBuilder, SEGMENT_HEADER_BYTES};
use crate::error::Error;

const SEGMENT_PREFIX: &str = "segment-";
/// Prefix of segments that are prepared but not in use; removed when a store is opened.
pub(crate) const SPARE_PREFIX: &str = "spare-";
const ZERO_CHUNK_BYTES: usize = 1024 * 1024;
/// What a frame may take beyond its items: header and padding.
const FRAME_OVERHEAD_BYTES: u64 = 64;

/// Why the log did not take something.
#[derive(Debug)]
pub(crate) enum LogError {
    /// The disk is full; nothing was changed.
    NoSpace,
    /// The disk failed; what is on it is not known any more, so nothing may be acknowledged again.
    Fatal(String),
}

impl LogError {
    pub(crate) fn from_io(doing: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::NoSpace,
            _ => Self::Fatal(format!("cannot {doing}: {error}")),
        }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        match error {
            LogError::NoSpace => Self::NoSpace,
            LogError::Fatal(text) => Self::Unavailable(text),
        }
    }
}

/// One file of the log.
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) capacity: u64,
}

/// Name of a segment's file.
pub(crate) fn segment_name(id: u32) -> String {
    format!("{SEGMENT_PREFIX}{id:08}")
}

/// The number in a segment's name.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    name.strip_prefix(SEGMENT_PREFIX)?.parse().ok()
}

/// Segments prepared ahead: one for anybody, and a reserve that only deletions and cleaning may use, because a full
/// disk is freed through them.
pub(crate) struct Spares {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    slots: Mutex<Slots>,
    next: AtomicU32,
}

#[derive(Default)]
struct Slots {
    spare: Option<Spare>,
    reserve: Option<Spare>,
}

struct Spare {
    name: String,
    file: Arc<dyn DiskFile>,
    capacity: u64,
}

impl Spares {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_bytes: u64) -> Self {
        Self { disk, segment_bytes, slots: Mutex::default(), next: AtomicU32::new(0) }
    }

    /// Prepares what is missing, the reserve first.
    pub(crate) fn refill(&self) -> Result<(), LogError> {
        if self.slots.lock().reserve.is_none() {
            let spare = self.prepare(self.segment_bytes)?;
            self.slots.lock().reserve = Some(spare);
        }
        if self.slots.lock().spare.is_none() {
            let spare = self.prepare(self.segment_bytes)?;
            self.slots.lock().spare = Some(spare);
        }
        Ok(())
    }

    /// Whether the disk had no room for the next segment.
    pub(crate) fn is_low(&self) -> bool {
        let slots = self.slots.lock();
        slots.spare.is_none() || slots.reserve.is_none()
    }

    /// Bytes that prepared segments take on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        let slots = self.slots.lock();
        slots.spare.iter().chain(&slots.reserve).map(|spare| spare.capacity).sum()
    }

    fn take(&self, least: u64, urgent: bool) -> Result<Spare, LogError> {
        if least > self.segment_bytes {
            return self.prepare(least);
        }
        if let Some(spare) = self.slots.lock().spare.take() {
            return Ok(spare);
        }
        match self.prepare(self.segment_bytes) {
            Err(LogError::NoSpace) if urgent => self.slots.lock().reserve.take().ok_or(LogError::NoSpace),
            prepared => prepared,
        }
    }

    fn prepare(&self, capacity: u64) -> Result<Spare, LogError> {
        let name = format!("{SPARE_PREFIX}{}", self.next.fetch_add(1, Ordering::Relaxed));
        let fill = || {
            let file = self.disk.create(&name)?;
            let zeros = vec![0; ZERO_CHUNK_BYTES];
            let mut at = 0;
            while at < capacity {
                let length = usize::try_from(capacity - at).unwrap_or(ZERO_CHUNK_BYTES).min(ZERO_CHUNK_BYTES);
                file.write_at(&zeros[..length], at)?;
                at += length as u64;
            }
            file.sync()?;
            Ok(file)
        };
        match fill() {
            Ok(file) => Ok(Spare { name, file, capacity }),
            Err(error) => {
                // Nothing refers to the file; if removing fails too, the next open does it.
                let _ = self.disk.remove(&name);
                Err(LogError::from_io("prepare a segment", &error))
            }
        }
    }
}

/// The writing end.
pub(crate) struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) spares: Arc<Spares>,
    pub(crate) manifest: ManifestFile,
    pub(crate) active: Option<Arc<Segment>>,
    pub(crate) seed: Hasher,
    /// Where the next frame goes.
    pub(crate) position: u64,
    /// The next frame's number.
    pub(crate) sequence: u64,
    /// A failed append may have left bytes up to here.
    pub(crate) dirty_until: u64,
}

impl Log {
    /// Whether the active segment has room for a frame of this length.
    pub(crate) fn fits(&self, frame: usize) -> bool {
        let needed = frame as u64 + FRAME_OVERHEAD_BYTES;
        self.active.as_ref().is_some_and(|active| self.position + needed <= active.capacity)
    }

    /// Begins a new segment with room for a frame of this length. `urgent` may use the reserve.
    pub(crate) fn roll(&mut self, frame: usize, checkpoint: &Checkpoint, urgent: bool) -> Result<(), LogError> {
        let mut head = FrameBuilder::new();
        head.checkpoint(checkpoint);
        let least = (SEGMENT_HEADER_BYTES + head.len() + frame) as u64 + 2 * FRAME_OVERHEAD_BYTES;
        let spare = self.spares.take(least, urgent)?;
        let id = self.manifest.content.last + 1;
        let seed = record::seed(self.manifest.content.store, id);
        let mut bytes = record::segment_header(self.manifest.content.store, id).to_vec();
        bytes.extend(head.finish(&seed, self.sequence));
        // Data goes into the segment only after the manifest names it; until then the file is a left-over.
        let begin = || {
            spare.file.write_at(&bytes, 0)?;
            spare.file.sync()?;
            self.disk.rename(&spare.name, &segment_name(id))?;
            self.disk.sync_directory()
        };
        begin().map_err(|error| LogError::Fatal(format!("cannot begin a segment: {error}")))?;
        self.manifest.set(self.manifest.content.first, id)?;
        self.active = Some(Arc::new(Segment { id, file: spare.file, capacity: spare.capacity }));
        self.seed = seed;
        self.position = bytes.len() as u64;
        self.sequence += 1;
        self.dirty_until = 0;
        Ok(())
    }

    /// Writes a frame that fits; durable after [`Self::sync`]. Returns where it begins.
    pub(crate) fn append(&mut self, frame: FrameBuilder) -> Result<u64, LogError> {
        let Some(active) = &self.active else { return Err(LogError::Fatal("no active segment".into())) };
        let mut bytes = frame.finish(&self.seed, self.sequence);
        let length = bytes.len() as u64;
        let start = self.position;
        if self.dirty_until > start + length {
            let zeros = self.dirty_until - start - length;
            bytes.resize(bytes.len() + usize::try_from(zeros).unwrap_or(0), 0);
        }
        if let Err(error) = active.file.write_at(&bytes, start) {
            self.dirty_until = self.dirty_until.max(start + bytes.len() as u64);
            return Err(LogError::from_io("write to the log", &error));
        }
        self.dirty_until = 0;
        self.position += length;
        self.sequence += 1;
        Ok(start)
    }

    /// Makes every frame so far durable. Any error is fatal: after a failed fsync the kernel may have dropped the
    /// pages, and a second fsync would report success for data that is not there.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        let Some(active) = &self.active else { return Ok(()) };
        active.file.sync().map_err(|error| LogError::Fatal(format!("cannot sync the log: {error}")))
    }

    /// Forgets the oldest segment.
    pub(crate) fn drop_first(&mut self) -> Result<(), LogError> {
        let first = self.manifest.content.first;
        self.manifest.set(first + 1, self.manifest.content.last)?;
        // The manifest does not name the file any more; if this fails, the next open removes it.
        let _ = self.disk.remove(&segment_name(first));
        Ok(())
    }
}
