//! Whether every watcher saw every acknowledged change once and in order. Knows nothing of how the server works: writers hand in
//! what was acknowledged, watchers what they saw, and at the end the two must be the same sequence.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It was changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// Events after which a watcher notes where it stands, so that a difference can be found.
const NOTE_EVERY: u64 = 1024;

/// What one watcher saw, as a running hash with notes on the way.
#[derive(Clone, Debug)]
pub struct Sequence {
    hash: u64,
    count: u64,
    last: u64,
    notes: Vec<(u64, u64)>,
    /// Name and version of each deletion, in order.
    deletions: Vec<(String, u64)>,
}

impl Sequence {
    /// Begins after this version.
    pub fn after(version: u64) -> Sequence {
        Sequence { hash: 0xcbf2_9ce4_8422_2325, count: 0, last: version, notes: Vec::new(), deletions: Vec::new() }
    }

    /// The newest version seen.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Number of changes seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds a change. `Err` when it does not come after the one before: a repeat, or out of order.
    pub fn see(&mut self, version: u64, name: &str, change: Change) -> Result<(), String> {
        if version <= self.last {
            return Err(format!("{change:?} {name} at {version} came after {}: repeated or out of order", self.last));
        }
        for byte in version.to_le_bytes().into_iter().chain(name.bytes()).chain([change as u8]) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.last = version;
        self.count += 1;
        if change == Change::Deleted {
            self.deletions.push((name.to_owned(), version));
        }
        if self.count.is_multiple_of(NOTE_EVERY) {
            self.notes.push((version, self.hash));
        }
        Ok(())
    }
}

/// All acknowledged changes.
#[derive(Debug, Default)]
pub struct Journal {
    changes: BTreeMap<u64, (String, Change)>,
    /// By name, the version that each acknowledged deletion deleted, in order. The answer to a deletion does not say at which
    /// version it happened.
    deletions: HashMap<String, VecDeque<u64>>,
}

impl Journal {
    /// Adds an acknowledged change. `Err` when two changes have one version.
    pub fn acknowledge(&mut self, version: u64, name: &str, change: Change) -> Result<(), String> {
        match self.changes.insert(version, (name.to_owned(), change)) {
            None => Ok(()),
            Some((other, _)) => Err(format!("version {version} was given to {name} and to {other}")),
        }
    }

    /// Adds an acknowledged deletion of the object that was last changed at `last`.
    pub fn acknowledge_deletion(&mut self, last: u64, name: &str) {
        self.deletions.entry(name.to_owned()).or_default().push_back(last);
    }

    /// Takes the versions of the deletions from one watcher, who must have seen exactly those that were acknowledged.
    pub fn learn_deletions(&mut self, witness: &Sequence) -> Result<(), String> {
        for (name, version) in &witness.deletions {
            let Some(last) = self.deletions.get_mut(name).and_then(VecDeque::pop_front) else {
                return Err(format!("the deletion of {name} at {version} was seen and not acknowledged"));
            };
            if *version <= last {
                return Err(format!("{name} was deleted at {version}, before its last change at {last}"));
            }
            self.acknowledge(*version, name, Change::Deleted)?;
        }
        match self.deletions.iter().find(|(_, left)| !left.is_empty()) {
            None => Ok(()),
            Some((name, _)) => Err(format!("a deletion of {name} was acknowledged and not seen")),
        }
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The version of the last change.
    pub fn last(&self) -> u64 {
        self.changes.last_key_value().map_or(0, |(version, _)| *version)
    }

    /// Compares what a watcher saw after `start` with what was acknowledged.
    pub fn check(&self, start: u64, seen: &Sequence) -> Result<(), String> {
        let mut expected = Sequence::after(start);
        for (version, (name, change)) in self.changes.range(start + 1..) {
            expected.see(*version, name, *change)?;
        }
        if (expected.hash, expected.count) == (seen.hash, seen.count) {
            return Ok(());
        }
        let differs = expected.notes.iter().zip(&seen.notes).find(|(own, other)| own != other);
        let near = differs.map_or_else(
            || "after the last note".to_owned(),
            |(own, _)| format!("in the {NOTE_EVERY} changes up to version {}", own.0),
        );
        Err(format!(
            "{} changes were acknowledged, {} seen; the first difference is {near}",
            expected.count, seen.count
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        let mut journal = Journal::default();
        for version in 10..5_000 {
            journal.acknowledge(version, "a", Change::Modified).unwrap();
        }
        journal
    }

    fn seen(skip: u64) -> Sequence {
        let mut seen = Sequence::after(9);
        for version in (10..5_000).filter(|version| *version != skip) {
            seen.see(version, "a", Change::Modified).unwrap();
        }
        seen
    }

    #[test]
    fn a_watcher_that_saw_everything_passes() {
        assert_eq!(journal().check(9, &seen(0)), Ok(()));
    }

    #[test]
    fn a_missed_a_repeated_and_a_wrong_event_are_found() {
        let missed = journal().check(9, &seen(2_500)).unwrap_err();
        assert!(missed.contains("4990 changes were acknowledged, 4989 seen"), "{missed}");
        assert!(seen(0).see(4_999, "a", Change::Modified).unwrap_err().contains("repeated"));
        let mut wrong = Sequence::after(9);
        for version in 10..5_000 {
            wrong.see(version, if version == 77 { "b" } else { "a" }, Change::Modified).unwrap();
        }
        assert!(journal().check(9, &wrong).is_err());
        assert!(journal().acknowledge(10, "b", Change::Added).is_err());
    }

    #[test]
    fn deletions_are_those_that_were_acknowledged() {
        let witness = |version| {
            let mut seen = Sequence::after(9);
            seen.see(version, "a", Change::Deleted).unwrap();
            seen
        };
        let with_deletion = || {
            let mut journal = Journal::default();
            journal.acknowledge_deletion(12, "a");
            journal
        };
        let mut fine = with_deletion();
        fine.learn_deletions(&witness(13)).unwrap();
        assert_eq!(fine.check(9, &witness(13)), Ok(()));
        assert!(with_deletion().learn_deletions(&witness(11)).is_err());
        assert!(with_deletion().learn_deletions(&Sequence::after(9)).unwrap_err().contains("not seen"));
        assert!(Journal::default().learn_deletions(&witness(13)).unwrap_err().contains("not acknowledged"));
    }
}
