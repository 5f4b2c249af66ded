//! Sets of slots (places of machines in the index): dense ones to compute with, and ones that are small while they have few members.

/// A set with one bit for each slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

fn place(slot: u32) -> (usize, u64) {
    (slot as usize / 64, 1 << (slot % 64))
}

impl Bits {
    pub fn insert(&mut self, slot: u32) {
        let (word, bit) = place(slot);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    pub fn remove(&mut self, slot: u32) {
        let (word, bit) = place(slot);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    pub fn set(&mut self, slot: u32, is_in: bool) {
        if is_in { self.insert(slot) } else { self.remove(slot) }
    }

    pub fn contains(&self, slot: u32) -> bool {
        let (word, bit) = place(slot);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Takes all of the other set in.
    pub fn unite(&mut self, other: &Bits) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Keeps what is in the other set too.
    pub fn keep(&mut self, other: &Bits) {
        self.words.truncate(other.words.len());
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Drops what is in the other set.
    pub fn subtract(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Keeps those that are named here.
    pub fn keep_only(&mut self, slots: impl Iterator<Item = u32>) {
        let mut kept = Bits::default();
        slots.filter(|slot| self.contains(*slot)).for_each(|slot| kept.insert(slot));
        *self = kept;
    }

    pub fn overlaps(&self, other: &Bits) -> bool {
        self.words.iter().zip(&other.words).any(|(word, other)| word & other != 0)
    }

    /// Members in runs of [`RUN`](super::RUN) slots.
    pub fn runs(&self) -> impl Iterator<Item = u64> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).map(u64::from)
    }

    /// The members of one run.
    pub fn run(&self, run: usize) -> u64 {
        self.words.get(run / 8).map_or(0, |word| word.to_le_bytes()[run % 8].into())
    }

    /// Lets a function narrow each word that is not empty, by the number of its block; words from `blocks` on are emptied.
    pub fn narrow(&mut self, blocks: usize, keep: impl Fn(usize, u64) -> u64) {
        self.words.truncate(blocks);
        let filled = self.words.iter_mut().enumerate().filter(|(_, word)| **word != 0);
        filled.for_each(|(block, word)| *word = keep(block, *word));
    }

    /// The members, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.words).flat_map(|(block, word)| bits_of(*word).map(move |bit| block * 64 + bit))
    }
}

/// Slots of one word.
pub(crate) const BLOCK: usize = 64;

/// The places of the ones in a word.
pub(crate) fn bits_of(word: u64) -> impl Iterator<Item = u32> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let bit = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// Members up to which a [`Set`] is a list.
const LIST_MAX: usize = 64;

/// A set that takes little room while it has few members: most labels are on one machine or on a large part of all.
#[derive(Clone, Debug)]
pub(crate) enum Set {
    /// In order.
    Few(Vec<u32>),
    Many(Bits),
}

impl Default for Set {
    fn default() -> Self {
        Set::Few(Vec::new())
    }
}

impl Set {
    pub fn insert(&mut self, slot: u32) {
        match self {
            Set::Many(bits) => bits.insert(slot),
            Set::Few(list) => {
                let Err(at) = list.binary_search(&slot) else { return };
                list.insert(at, slot);
                if list.len() > LIST_MAX {
                    let mut bits = Bits::default();
                    list.iter().for_each(|slot| bits.insert(*slot));
                    *self = Set::Many(bits);
                }
            }
        }
    }

    pub fn remove(&mut self, slot: u32) {
        match self {
            Set::Many(bits) => {
                bits.remove(slot);
                // Well below the limit, so that it does not change its form at every step.
                if bits.count() <= LIST_MAX / 2 {
                    *self = Set::Few(bits.iter().collect());
                }
            }
            Set::Few(list) => {
                if let Ok(at) = list.binary_search(&slot) {
                    list.remove(at);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Set::Few(list) if list.is_empty())
    }

    /// Adds all members to a dense set.
    pub fn add_to(&self, bits: &mut Bits) {
        match self {
            Set::Many(own) => bits.unite(own),
            Set::Few(list) => list.iter().for_each(|slot| bits.insert(*slot)),
        }
    }

    /// Keeps its members alone in a dense set.
    pub fn keep_in(&self, bits: &mut Bits) {
        match self {
            Set::Many(own) => bits.keep(own),
            Set::Few(list) => bits.keep_only(list.iter().copied()),
        }
    }

    /// Drops all members from a dense set.
    pub fn subtract_from(&self, bits: &mut Bits) {
        match self {
            Set::Many(own) => bits.subtract(own),
            Set::Few(list) => list.iter().for_each(|slot| bits.remove(*slot)),
        }
    }

    pub fn overlaps(&self, bits: &Bits) -> bool {
        match self {
            Set::Many(own) => own.overlaps(bits),
            Set::Few(list) => list.iter().any(|slot| bits.contains(*slot)),
        }
    }

    pub fn for_each(&self, mut visit: impl FnMut(u32)) {
        match self {
            Set::Many(bits) => bits.iter().for_each(visit),
            Set::Few(list) => list.iter().for_each(|slot| visit(*slot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    proptest::proptest! {
        #[test]
        fn both_forms_hold_what_a_plain_set_holds(steps in proptest::collection::vec((0u32..300, 0u8..5), 0..400)) {
            let (mut plain, mut set, mut bits) = (BTreeSet::new(), Set::default(), Bits::default());
            for (slot, what) in steps {
                if what > 1 {
                    plain.insert(slot);
                    set.insert(slot);
                } else {
                    plain.remove(&slot);
                    set.remove(slot);
                }
                bits.set(slot, what > 1);
            }
            let mut seen = BTreeSet::new();
            set.for_each(|slot| { seen.insert(slot); });
            proptest::prop_assert_eq!(&seen, &plain);
            proptest::prop_assert_eq!(bits.iter().collect::<BTreeSet<_>>(), plain.clone());
            proptest::prop_assert_eq!((set.is_empty(), bits.count()), (plain.is_empty(), plain.len()));
            bits.narrow(3, |block, word| if block == 1 { word & 1 } else { word });
            proptest::prop_assert!(bits.iter().eq(plain.into_iter().filter(|slot| *slot <= 64 || (128..192).contains(slot))));
        }
    }
}
