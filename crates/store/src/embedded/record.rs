//! The bytes of the log: frames, and the items in them. Pure; must never do I/O.
//!
//! ```text
//! segment = header (64 bytes) frame* zeros
//! frame   = magic u32 | payload length u32 | sequence u64 | header crc u32 | crc u32 | payload | zeros to 8 bytes
//! payload = item*        item = tag u8, body
//! entry   = crc u32 | length u32 | flags u8 | lease u64 | mod u64 | create u64 | version u64 | key length u16 | key | value
//! ```
//! One frame is what one fsync makes durable: it counts whole or not at all. The frame's checksum is seeded with the
//! store's secret identity and the segment's number, so that neither bytes of another segment nor bytes that a client
//! put into a value are ever taken for a frame. Entries carry their own checksum, because they are read alone.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::error::{Error, Result};
use crate::types::{KeyValue, LeaseId, MAX_KEY_BYTES, Revision};

/// Bytes before a frame's payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 24;
/// Bytes before a segment's first frame.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
/// Frames begin at multiples of this.
pub(crate) const FRAME_ALIGNMENT_BYTES: usize = 8;
/// The version of this layout; a store of a newer one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;

const FRAME_MAGIC: u32 = 0x4652_554e;
const SEGMENT_MAGIC: &[u8; 8] = b"NUEESEGM";
const HEADER_CHECKED_BYTES: usize = 16;
const FRAME_CHECKED_BYTES: usize = 20;
const ENTRY_FIXED_BYTES: usize = 4 + 4 + 1 + 8 * 4 + 2;
const FLAG_DELETED: u8 = 1;

const TAG_ENTRY: u8 = 1;
const TAG_LEASE_GRANT: u8 = 2;
const TAG_LEASE_END: u8 = 3;
const TAG_COMPACT: u8 = 4;
const TAG_CHECKPOINT: u8 = 5;

/// Where an entry lies. Segments are far below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// A version of a key, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) mod_revision: Revision,
    pub(crate) create_revision: Revision,
    pub(crate) version: u64,
    pub(crate) lease: LeaseId,
    pub(crate) deleted: bool,
}

/// A version of a key as it lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) stamp: Stamp,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// The small state of a store, written at the head of every segment so that older ones can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    /// Identity and time in seconds.
    pub(crate) leases: Vec<(LeaseId, u64)>,
}

/// One item of a frame. An entry comes with its offset in the payload and its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    Entry { offset: usize, bytes: &'a [u8], entry: Entry<'a> },
    LeaseGrant(LeaseId, u64),
    LeaseEnd(LeaseId),
    Compact(Revision),
    Checkpoint(Checkpoint),
}

/// Start of the checksums of one segment's frames.
pub(crate) fn seed(store: u64, segment: u32) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&store.to_le_bytes());
    hasher.update(&segment.to_le_bytes());
    hasher
}

/// A frame under construction. Offsets that it returns count from the frame's first byte.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    bytes: Vec<u8>,
}

impl FrameBuilder {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; FRAME_HEADER_BYTES] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER_BYTES
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an entry; returns its offset and length.
    pub(crate) fn entry(&mut self, entry: &Entry<'_>) -> (u32, u32) {
        self.bytes.push(TAG_ENTRY);
        let start = self.bytes.len();
        let length = small(ENTRY_FIXED_BYTES + entry.key.len() + entry.value.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.push(if entry.stamp.deleted { FLAG_DELETED } else { 0 });
        let Stamp { mod_revision, create_revision, version, lease, .. } = entry.stamp;
        for field in [lease, mod_revision, create_revision, version] {
            self.bytes.extend_from_slice(&field.to_le_bytes());
        }
        let key_length = u16::try_from(entry.key.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&key_length.to_le_bytes());
        self.bytes.extend_from_slice(entry.key);
        self.bytes.extend_from_slice(entry.value);
        let crc = crc32fast::hash(&self.bytes[start + 4..]);
        self.bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        (small(start), length)
    }

    /// Adds an entry as it lay elsewhere; returns its offset and length.
    pub(crate) fn raw_entry(&mut self, bytes: &[u8]) -> (u32, u32) {
        self.bytes.push(TAG_ENTRY);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        (small(start), small(bytes.len()))
    }

    pub(crate) fn lease_grant(&mut self, lease: LeaseId, ttl_seconds: u64) {
        self.tagged(TAG_LEASE_GRANT, &[lease, ttl_seconds]);
    }

    pub(crate) fn lease_end(&mut self, lease: LeaseId) {
        self.tagged(TAG_LEASE_END, &[lease]);
    }

    pub(crate) fn compact(&mut self, revision: Revision) {
        self.tagged(TAG_COMPACT, &[revision]);
    }

    pub(crate) fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let count = checkpoint.leases.len() as u64;
        self.tagged(TAG_CHECKPOINT, &[checkpoint.revision, checkpoint.compacted, count]);
        for (lease, ttl_seconds) in &checkpoint.leases {
            self.bytes.extend_from_slice(&lease.to_le_bytes());
            self.bytes.extend_from_slice(&ttl_seconds.to_le_bytes());
        }
    }

    fn tagged(&mut self, tag: u8, fields: &[u64]) {
        self.bytes.push(tag);
        for field in fields {
            self.bytes.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// The finished bytes for a segment with this seed.
    pub(crate) fn finish(mut self, seed: &Hasher, sequence: u64) -> Vec<u8> {
        let payload_length = small(self.bytes.len() - FRAME_HEADER_BYTES);
        self.bytes[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&payload_length.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        let header_crc = header_crc(&self.bytes, seed);
        self.bytes[HEADER_CHECKED_BYTES..FRAME_CHECKED_BYTES].copy_from_slice(&header_crc.to_le_bytes());
        let mut hasher = seed.clone();
        hasher.update(&self.bytes[..FRAME_CHECKED_BYTES]);
        hasher.update(&self.bytes[FRAME_HEADER_BYTES..]);
        self.bytes[FRAME_CHECKED_BYTES..FRAME_HEADER_BYTES].copy_from_slice(&hasher.finalize().to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(FRAME_ALIGNMENT_BYTES), 0);
        self.bytes
    }
}

fn header_crc(header: &[u8], seed: &Hasher) -> u32 {
    let mut hasher = seed.clone();
    hasher.update(&header[..HEADER_CHECKED_BYTES]);
    hasher.finalize()
}

/// What lies at an offset of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A whole frame; `length` is what it takes with its padding.
    Frame { sequence: u64, payload: &'a [u8], length: usize },
    /// The zeros that a segment is filled with.
    Nothing,
    /// Neither.
    Damaged,
}

/// Reads the frame that these bytes begin with.
pub(crate) fn parse_frame<'a>(bytes: &'a [u8], seed: &Hasher) -> Parsed<'a> {
    let Some(header) = bytes.get(..FRAME_HEADER_BYTES) else {
        return if bytes.iter().all(|byte| *byte == 0) { Parsed::Nothing } else { Parsed::Damaged };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Parsed::Nothing;
    }
    // The header's own checksum keeps forged headers inside values from costing a checksum of megabytes each.
    if read_u32(header, 0) != FRAME_MAGIC || header_crc(header, seed) != read_u32(header, HEADER_CHECKED_BYTES) {
        return Parsed::Damaged;
    }
    let end = FRAME_HEADER_BYTES + read_u32(header, 4) as usize;
    let Some(payload) = bytes.get(FRAME_HEADER_BYTES..end) else { return Parsed::Damaged };
    let mut hasher = seed.clone();
    hasher.update(&header[..FRAME_CHECKED_BYTES]);
    hasher.update(payload);
    if hasher.finalize() != read_u32(header, FRAME_CHECKED_BYTES) {
        return Parsed::Damaged;
    }
    Parsed::Frame { sequence: read_u64(header, 8), payload, length: end.next_multiple_of(FRAME_ALIGNMENT_BYTES) }
}

/// Reads the items of a frame whose checksum held.
pub(crate) fn parse_items(payload: &[u8]) -> Result<Vec<Item<'_>>> {
    let mut items = Vec::new();
    let mut at = 0;
    while let Some(tag) = payload.get(at) {
        at += 1;
        let rest = &payload[at..];
        let (item, length) = match *tag {
            TAG_ENTRY => {
                let (entry, bytes) = parse_entry(rest)?;
                (Item::Entry { offset: at, bytes, entry }, bytes.len())
            }
            TAG_LEASE_GRANT => (Item::LeaseGrant(field(rest, 0)?, field(rest, 1)?), 16),
            TAG_LEASE_END => (Item::LeaseEnd(field(rest, 0)?), 8),
            TAG_COMPACT => (Item::Compact(field(rest, 0)?), 8),
            TAG_CHECKPOINT => {
                let checkpoint = parse_checkpoint(rest)?;
                let length = 24 + checkpoint.leases.len() * 16;
                (Item::Checkpoint(checkpoint), length)
            }
            _ => return Err(undecodable()),
        };
        items.push(item);
        at += length;
    }
    Ok(items)
}

fn parse_checkpoint(bytes: &[u8]) -> Result<Checkpoint> {
    let count = usize::try_from(field(bytes, 2)?).map_err(|_| undecodable())?;
    if count > bytes.len() / 16 {
        return Err(undecodable());
    }
    let mut leases = Vec::with_capacity(count);
    for lease in 0..count {
        leases.push((field(bytes, 3 + lease * 2)?, field(bytes, 4 + lease * 2)?));
    }
    Ok(Checkpoint { revision: field(bytes, 0)?, compacted: field(bytes, 1)?, leases })
}

/// Reads one entry and checks its own checksum; returns it and exactly its bytes.
pub(crate) fn parse_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8])> {
    if bytes.len() < ENTRY_FIXED_BYTES {
        return Err(undecodable());
    }
    let bytes = bytes.get(..read_u32(bytes, 4) as usize).ok_or_else(undecodable)?;
    if bytes.len() < ENTRY_FIXED_BYTES || crc32fast::hash(&bytes[4..]) != read_u32(bytes, 0) {
        return Err(Error::Corrupt("an entry does not match its checksum".into()));
    }
    let key_length = usize::from(u16::from_le_bytes([bytes[41], bytes[42]]));
    let key_end = ENTRY_FIXED_BYTES + key_length;
    if key_length > MAX_KEY_BYTES || key_end > bytes.len() {
        return Err(undecodable());
    }
    let stamp = Stamp {
        deleted: bytes[8] & FLAG_DELETED != 0,
        lease: read_u64(bytes, 9),
        mod_revision: read_u64(bytes, 17),
        create_revision: read_u64(bytes, 25),
        version: read_u64(bytes, 33),
    };
    Ok((Entry { stamp, key: &bytes[ENTRY_FIXED_BYTES..key_end], value: &bytes[key_end..] }, bytes))
}

/// Turns the bytes of one entry into what callers see, without copying them.
pub(crate) fn key_value(bytes: Vec<u8>) -> Result<KeyValue> {
    let (stamp, key_end) = {
        let (entry, whole) = parse_entry(&bytes)?;
        if whole.len() != bytes.len() {
            return Err(undecodable());
        }
        (entry.stamp, ENTRY_FIXED_BYTES + entry.key.len())
    };
    let bytes = Bytes::from(bytes);
    Ok(KeyValue {
        key: bytes.slice(ENTRY_FIXED_BYTES..key_end),
        value: bytes.slice(key_end..),
        create_revision: stamp.create_revision,
        mod_revision: stamp.mod_revision,
        version: stamp.version,
        lease: stamp.lease,
    })
}

/// The header of a segment.
pub(crate) fn segment_header(store: u64, segment: u32) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[0..8].copy_from_slice(SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&segment.to_le_bytes());
    let mut hasher = seed(store, segment);
    hasher.update(&header[..16]);
    header[16..20].copy_from_slice(&hasher.finalize().to_le_bytes());
    header
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn field(bytes: &[u8], index: usize) -> Result<u64> {
    if bytes.len() < (index + 1) * 8 {
        return Err(undecodable());
    }
    Ok(read_u64(bytes, index * 8))
}

/// Sizes are bounded far below 4 GiB by the bounds on keys, values and transactions.
pub(crate) fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn undecodable() -> Error {
    Error::Corrupt("a record cannot be decoded".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(deleted: bool) -> Stamp {
        Stamp { mod_revision: 7, create_revision: 5, version: 2, lease: 9, deleted }
    }

    fn frame() -> Vec<u8> {
        let mut frame = FrameBuilder::new();
        frame.entry(&Entry { stamp: stamp(false), key: b"/a", value: b"one" });
        frame.entry(&Entry { stamp: stamp(true), key: b"/b", value: b"" });
        frame.lease_grant(3, 60);
        frame.lease_end(4);
        frame.compact(6);
        frame.checkpoint(&Checkpoint { revision: 7, compacted: 6, leases: vec![(3, 60), (8, 1)] });
        frame.finish(&seed(1, 1), 42)
    }

    #[test]
    fn a_frame_is_read_back_item_by_item() {
        let bytes = frame();
        let Parsed::Frame { sequence: 42, payload, length } = parse_frame(&bytes, &seed(1, 1)) else { panic!() };
        assert_eq!(length, bytes.len());
        let items = parse_items(payload).unwrap();
        assert_eq!(items.len(), 6);
        let Item::Entry { bytes, entry, .. } = &items[0] else { panic!() };
        assert_eq!((entry.key, entry.value, entry.stamp), (&b"/a"[..], &b"one"[..], stamp(false)));
        assert_eq!(key_value(bytes.to_vec()).unwrap().value, "one");
        assert_eq!(items[2], Item::LeaseGrant(3, 60));
    }

    #[test]
    fn a_frame_of_another_segment_or_store_is_refused() {
        assert_eq!(parse_frame(&frame(), &seed(1, 2)), Parsed::Damaged);
        assert_eq!(parse_frame(&frame(), &seed(2, 1)), Parsed::Damaged);
        assert_eq!(parse_frame(&[0; 64], &seed(1, 1)), Parsed::Nothing);
    }

    proptest! {
        #[test]
        fn every_flipped_bit_of_a_frame_is_seen(bit in 0usize..8 * 200) {
            let mut bytes = frame();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = frame();
            let parsed = parse_frame(&bytes, &seed(1, 1));
            let padding = FRAME_HEADER_BYTES + read_u32(&whole, 4) as usize;
            prop_assert!(parsed == Parsed::Damaged || bit / 8 >= padding);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_items(&bytes);
            let _ = parse_entry(&bytes);
            let _ = parse_frame(&bytes, &seed(1, 1));
        }
    }
}
