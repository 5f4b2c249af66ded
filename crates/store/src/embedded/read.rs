//! Reads versions back from their segments and checks them. Damaged bytes are never served.

use std::sync::Arc;

use bytes::Bytes;

use super::index::{Index, Version};
use super::log::{Segment, segment_name};
use super::record;
use crate::error::{Error, Result};
use crate::types::{Event, KeyValue, Revision, WatchItem};

/// A version with the segment that it lies in: readable without the index, also after the segment was dropped.
pub(crate) struct Reading {
    pub(crate) key: Bytes,
    pub(crate) version: Version,
    segment: Arc<Segment>,
}

impl Reading {
    /// Takes hold of a version while the index is locked.
    pub(crate) fn new(index: &Index, key: &Bytes, version: &Version) -> Result<Self> {
        let segment = index.segment(version.at).ok_or_else(|| Error::Corrupt("a segment is missing".into()))?;
        Ok(Self { key: key.clone(), version: *version, segment })
    }

    /// The entry's bytes as they lie in the segment, unchecked.
    pub(crate) fn raw(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.version.at.length as usize];
        self.segment
            .file
            .read_at(&mut bytes, u64::from(self.version.at.offset))
            .map_err(|error| Error::Unavailable(format!("cannot read {}: {error}", segment_name(self.segment.id))))?;
        Ok(bytes)
    }

    /// The version with its value.
    pub(crate) fn read(&self) -> Result<KeyValue> {
        let bytes = self.raw()?;
        match record::key_value(bytes) {
            Ok(item) if item.key == self.key && item.mod_revision == self.version.stamp.mod_revision => {
                Ok(KeyValue { key: self.key.clone(), ..item })
            }
            Ok(_) | Err(_) => Err(Error::Corrupt(format!(
                "the value of {} at revision {} in {} does not match its checksum",
                self.key.escape_ascii(),
                self.version.stamp.mod_revision,
                segment_name(self.segment.id)
            ))),
        }
    }

    /// The version without its value.
    pub(crate) fn key_only(&self) -> KeyValue {
        let stamp = self.version.stamp;
        KeyValue {
            key: self.key.clone(),
            value: Bytes::new(),
            create_revision: stamp.create_revision,
            mod_revision: stamp.mod_revision,
            version: stamp.version,
            lease: stamp.lease,
        }
    }
}

/// A past change whose values are read when it is delivered.
pub(crate) struct PastChange {
    current: Reading,
    previous: Option<Reading>,
}

impl PastChange {
    pub(crate) fn new(index: &Index, key: &Bytes, version: &Version, previous: Option<&Version>) -> Result<Self> {
        let previous = previous.map(|previous| Reading::new(index, key, previous)).transpose()?;
        Ok(Self { current: Reading::new(index, key, version)?, previous })
    }

    fn revision(&self) -> Revision {
        self.current.version.stamp.mod_revision
    }

    fn event(&self) -> Result<Event> {
        let previous = self.previous.as_ref().map(Reading::read).transpose()?;
        if self.current.version.stamp.deleted {
            return Ok(Event::Delete { key: self.current.key.clone(), revision: self.revision(), previous });
        }
        Ok(Event::Put { current: self.current.read()?, previous })
    }
}

/// Past changes, in revision order, as watch items: one per revision.
pub(crate) fn history(changes: Vec<PastChange>) -> impl Iterator<Item = Result<WatchItem>> {
    let mut changes = changes.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = changes.next()?;
        let revision = first.revision();
        let mut events = vec![first.event()];
        while let Some(change) = changes.next_if(|change| change.revision() == revision) {
            events.push(change.event());
        }
        let events: Result<Vec<Event>> = events.into_iter().collect();
        Some(events.map(|events| WatchItem::Events { revision, events }))
    })
}
