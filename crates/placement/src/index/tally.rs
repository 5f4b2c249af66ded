//! Counts by slot, those of slots that have any, in one piece: what is walked through far more often than changed.

/// Counts by slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Vec<(u32, u32)>);

impl Tally {
    /// Counts one more.
    pub fn add(&mut self, slot: u32) {
        match self.place(slot) {
            Ok(place) => self.0[place].1 += 1,
            Err(place) => self.0.insert(place, (slot, 1)),
        }
    }

    /// Counts one less.
    pub fn take(&mut self, slot: u32) {
        let Ok(place) = self.place(slot) else { return };
        self.0[place].1 -= 1;
        if self.0[place].1 == 0 {
            self.0.remove(place);
        }
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Slots with their counts, none of which is zero, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    fn place(&self, slot: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&slot, |(slot, _)| *slot)
    }
}
