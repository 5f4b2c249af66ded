//! Where every version of every key lies, in memory, with the leases and the segments' live bytes.
//! Knows locations; must never read or write a file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::log::Segment;
use super::record::{Checkpoint, Location, Stamp};
use crate::types::{KeyRange, LeaseId, Revision};

/// One version of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) stamp: Stamp,
    pub(crate) at: Location,
}

/// All versions of one key. The newest is inline: most keys have no other.
struct History {
    newest: Version,
    /// Oldest first.
    older: Vec<Version>,
}

/// A lease and the keys that hang on it.
pub(crate) struct Lease {
    pub(crate) ttl_seconds: u64,
    pub(crate) ends: Duration,
    pub(crate) keys: BTreeSet<Bytes>,
    /// Its end is on the way to the disk.
    pub(crate) ending: bool,
}

/// A segment and how much of it is still needed.
pub(crate) struct SegmentState {
    pub(crate) segment: Arc<Segment>,
    pub(crate) live_bytes: u64,
}

/// The index. Its revision is the newest that readers may see.
#[derive(Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, History>,
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    /// Every write that made something older superfluous, by revision; what compaction has to look at.
    superseded: VecDeque<(Revision, Bytes)>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    pub(crate) segments: BTreeMap<u32, SegmentState>,
}

impl History {
    fn at(&self, revision: Revision) -> Option<&Version> {
        if self.newest.stamp.mod_revision <= revision {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|version| version.stamp.mod_revision <= revision)
    }

    fn versions(&self) -> impl DoubleEndedIterator<Item = &Version> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }

    fn find_mut(&mut self, revision: Revision) -> Option<&mut Version> {
        if self.newest.stamp.mod_revision == revision {
            return Some(&mut self.newest);
        }
        self.older.iter_mut().find(|version| version.stamp.mod_revision == revision)
    }
}

impl Index {
    /// An empty index at this revision.
    pub(crate) fn at_revision(revision: Revision) -> Self {
        Self { revision, ..Self::default() }
    }

    /// The key's newest version, unless it is deleted.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key).map(|history| &history.newest).filter(|version| !version.stamp.deleted)
    }

    /// The key's version as of a revision, unless it was deleted then.
    fn live_at(history: &History, revision: Revision) -> Option<&Version> {
        history.at(revision).filter(|version| !version.stamp.deleted)
    }

    /// Every key of the range with its version as of a revision, in order.
    pub(crate) fn range(&self, range: &KeyRange, revision: Revision) -> impl Iterator<Item = (&Bytes, &Version)> {
        let bounds = range.bounds().into_iter();
        bounds
            .flat_map(|bounds| self.keys.range(bounds))
            .filter_map(move |(key, history)| Some((key, Self::live_at(history, revision)?)))
    }

    /// Every version of the range written at or after `from`, each with the one before, by revision and key.
    pub(crate) fn changes(&self, range: &KeyRange, from: Revision) -> Vec<(Bytes, Version, Option<Version>)> {
        let mut changes = Vec::new();
        if let Some(bounds) = range.bounds() {
            for (key, history) in self.keys.range(bounds) {
                if history.newest.stamp.mod_revision < from {
                    continue;
                }
                let mut before = None;
                for version in history.versions() {
                    if version.stamp.mod_revision >= from {
                        let previous = before.filter(|version: &Version| !version.stamp.deleted);
                        changes.push((key.clone(), *version, previous));
                    }
                    before = Some(*version);
                }
            }
        }
        changes.sort_by_key(|(_, version, _)| version.stamp.mod_revision);
        changes
    }

    /// Number of keys that are there.
    pub(crate) fn key_count(&self) -> usize {
        self.keys.values().filter(|history| !history.newest.stamp.deleted).count()
    }

    /// The segment of a location.
    pub(crate) fn segment(&self, at: Location) -> Option<Arc<Segment>> {
        self.segments.get(&at.segment).map(|state| Arc::clone(&state.segment))
    }

    /// Adds a version that is newer than all others of its key.
    pub(crate) fn apply(&mut self, key: &[u8], version: Version) {
        self.count_live(version.at, true);
        let revision = version.stamp.mod_revision;
        self.revision = self.revision.max(revision);
        let (key, before) = match self.keys.get_mut(key) {
            Some(history) => {
                let before = std::mem::replace(&mut history.newest, version);
                history.older.reserve_exact(1);
                history.older.push(before);
                (self.keys.get_key_value(key).map_or_else(Bytes::new, |(key, _)| key.clone()), Some(before))
            }
            None => {
                let key = Bytes::copy_from_slice(key);
                self.keys.insert(key.clone(), History { newest: version, older: Vec::new() });
                (key, None)
            }
        };
        if before.is_some() || version.stamp.deleted {
            self.superseded.push_back((revision, key.clone()));
        }
        if let Some(before) = before.filter(|before| before.stamp.lease != version.stamp.lease)
            && let Some(lease) = self.leases.get_mut(&before.stamp.lease)
        {
            lease.keys.remove(&key);
        }
        if let Some(lease) = self.leases.get_mut(&version.stamp.lease).filter(|_| !version.stamp.deleted) {
            lease.keys.insert(key);
        }
    }

    /// Adds a version read back from the log, in any order; one that is there moves to the new place.
    pub(crate) fn restore(&mut self, key: &[u8], version: Version) {
        let revision = version.stamp.mod_revision;
        self.revision = self.revision.max(revision);
        self.count_live(version.at, true);
        let Some(history) = self.keys.get_mut(key) else {
            self.keys.insert(Bytes::copy_from_slice(key), History { newest: version, older: Vec::new() });
            return;
        };
        if let Some(same) = history.find_mut(revision) {
            let before = std::mem::replace(&mut same.at, version.at);
            self.count_live(before, false);
            return;
        }
        if revision > history.newest.stamp.mod_revision {
            let before = std::mem::replace(&mut history.newest, version);
            history.older.push(before);
        } else {
            let place = history.older.partition_point(|older| older.stamp.mod_revision < revision);
            history.older.insert(place, version);
        }
    }

    /// Finishes reading back: what the log has but compaction forgot goes, and leases find their keys.
    pub(crate) fn finish_restore(&mut self) {
        let mut superseded = Vec::new();
        for (key, history) in &self.keys {
            for (position, version) in history.versions().enumerate() {
                if position > 0 || version.stamp.deleted {
                    superseded.push((version.stamp.mod_revision, key.clone()));
                }
            }
            let newest = history.newest.stamp;
            if let Some(lease) = self.leases.get_mut(&newest.lease).filter(|_| !newest.deleted) {
                lease.keys.insert(key.clone());
            }
        }
        superseded.sort_unstable_by_key(|(revision, _)| *revision);
        self.superseded = superseded.into();
        while self.prune(usize::MAX) {}
        self.superseded.shrink_to_fit();
    }

    /// Lets go of up to `most` superseded versions before the compacted revision; says whether there may be more.
    pub(crate) fn prune(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some((revision, key)) = self.superseded.front().cloned() else { return false };
            if revision > self.compacted {
                return false;
            }
            self.superseded.pop_front();
            let keep_deletion = revision == self.compacted;
            if self.prune_key(&key) && keep_deletion {
                // The deletion itself is still watchable until the next compaction; look again then.
                self.superseded.push_front((revision, key));
                return self.prune_same_revision(revision);
            }
        }
        true
    }

    /// Prunes the keys of the compacted revision itself and leaves their deletions for the next compaction.
    fn prune_same_revision(&mut self, revision: Revision) -> bool {
        let same: Vec<Bytes> =
            self.superseded.iter().take_while(|(at, _)| *at == revision).map(|(_, key)| key.clone()).collect();
        for key in same {
            self.prune_key(&key);
        }
        false
    }

    /// Drops what the key does not need any more; says whether a deletion at the compacted revision stays.
    fn prune_key(&mut self, key: &Bytes) -> bool {
        let compacted = self.compacted;
        let Some(history) = self.keys.get_mut(key) else { return false };
        let mut gone: Vec<Location> = Vec::new();
        let mut remove = false;
        let mut stays = false;
        let newest = history.newest.stamp;
        if newest.mod_revision <= compacted {
            gone.extend(history.older.drain(..).map(|version| version.at));
            remove = newest.deleted && newest.mod_revision < compacted;
            stays = newest.deleted && !remove;
        } else {
            let kept = history.older.iter().rposition(|version| version.stamp.mod_revision <= compacted);
            if let Some(kept) = kept {
                let version = history.older[kept].stamp;
                let drop_kept = version.deleted && version.mod_revision < compacted;
                stays = version.deleted && !drop_kept;
                gone.extend(history.older.drain(..kept + usize::from(drop_kept)).map(|version| version.at));
            }
        }
        history.older.shrink_to_fit();
        if remove {
            gone.push(history.newest.at);
            self.keys.remove(key);
        }
        for at in gone {
            self.count_live(at, false);
        }
        stays
    }

    /// Whether this version is needed and lies here; if so, the deletion that must stay behind it, if there is one.
    pub(crate) fn needed(&self, key: &[u8], revision: Revision, at: Location) -> Option<Option<Version>> {
        let history = self.keys.get(key)?;
        let mut versions = history.versions().skip_while(|version| version.stamp.mod_revision < revision);
        versions.next().filter(|version| version.stamp.mod_revision == revision && version.at == at)?;
        Some(versions.find(|version| version.stamp.deleted).copied())
    }

    /// A version was copied to another place.
    pub(crate) fn relocate(&mut self, key: &[u8], revision: Revision, at: Location) {
        let Some(version) = self.keys.get_mut(key).and_then(|history| history.find_mut(revision)) else { return };
        let before = std::mem::replace(&mut version.at, at);
        self.count_live(before, false);
        self.count_live(at, true);
    }

    fn count_live(&mut self, at: Location, add: bool) {
        if let Some(state) = self.segments.get_mut(&at.segment) {
            let length = u64::from(at.length);
            state.live_bytes = if add { state.live_bytes + length } else { state.live_bytes.saturating_sub(length) };
        }
    }

    /// Adds a lease that ends after its time from now.
    pub(crate) fn grant(&mut self, lease: LeaseId, ttl_seconds: u64, now: Duration) {
        let ends = now + Duration::from_secs(ttl_seconds);
        self.leases.insert(lease, Lease { ttl_seconds, ends, keys: BTreeSet::new(), ending: false });
    }

    /// The small state, for the head of a segment.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let leases = self.leases.iter().map(|(id, lease)| (*id, lease.ttl_seconds)).collect();
        Checkpoint { revision: self.revision, compacted: self.compacted, leases }
    }

    /// Bytes of all segments that are needed, and the room that all segments take.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        self.segments
            .values()
            .fold((0, 0), |(live, total), state| (live + state.live_bytes, total + state.segment.capacity))
    }
}
