//! Targets for fuzzing: what reads bytes from a disk that may hold anything. A target panics when a claim does not hold.

use crate::embedded::record::{self, Checkpoint, Entry, FrameBuilder, Item, Parsed, Stamp};

/// Frames and entries as they lie in a segment; and that what was written is read back.
pub fn records(data: &[u8]) {
    let seed = record::seed(7, 3);
    if let Parsed::Frame { payload, length, .. } = record::parse_frame(data, &seed) {
        assert!(payload.len() <= data.len() && length >= payload.len());
    }
    if let Ok(items) = record::parse_items(data) {
        for item in items {
            if let Item::Entry { offset, bytes, entry } = item {
                assert_eq!(&data[offset..offset + bytes.len()], bytes);
                assert!(entry.key.len() + entry.value.len() <= bytes.len());
            }
        }
    }
    if let Ok(item) = record::key_value(data.to_vec()) {
        assert!(item.key.len() + item.value.len() < data.len());
    }
    let key = &data[..data.len().min(64)];
    let stamp =
        Stamp { deleted: data.len().is_multiple_of(2), lease: 1, mod_revision: 2, create_revision: 3, version: 4 };
    let mut frame = FrameBuilder::new();
    frame.entry(&Entry { stamp, key, value: data });
    frame.checkpoint(&Checkpoint { revision: 5, compacted: 4, leases: vec![(1, 2)] });
    let bytes = frame.finish(&seed, 9);
    let Parsed::Frame { sequence, payload, length } = record::parse_frame(&bytes, &seed) else { panic!("own frame") };
    assert_eq!((sequence, length), (9, bytes.len()));
    let items = record::parse_items(payload).expect("own items");
    let [Item::Entry { entry, .. }, Item::Checkpoint(end)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((entry.key, entry.value, entry.stamp, end.revision), (key, data, stamp, 5));
    // One changed bit anywhere, where the data says, must be seen.
    let mut changed = bytes.clone();
    let at = data.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let checked = record::FRAME_HEADER_BYTES + payload.len();
    changed[at % checked] ^= 1 << (at % 8);
    assert!(!matches!(record::parse_frame(&changed, &seed), Parsed::Frame { .. }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_content_are_read_or_refused() {
        let stamp = Stamp { deleted: false, lease: 0, mod_revision: 9, create_revision: 9, version: 1 };
        let mut frame = FrameBuilder::new();
        frame.entry(&Entry { stamp, key: b"/registry/core/pods/a/b", value: b"value" });
        frame.lease_grant(3, 60);
        frame.compact(4);
        frame.checkpoint(&Checkpoint { revision: 5, compacted: 4, leases: vec![(1, 2)] });
        let whole = frame.finish(&record::seed(7, 3), 1);
        testkit::fuzzing::smoke(&[&whole, &whole[record::FRAME_HEADER_BYTES..]], 20_000, records);
    }
}
