//! An amount for each slot, with the least and the most of each block of slots, so that most blocks pass or fail as a whole.

use super::bits::{BLOCK, Bits};

/// An amount for each slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    amounts: Vec<u64>,
    /// Least and most of each block.
    ranges: Vec<(u64, u64)>,
}

impl Column {
    pub fn push(&mut self) {
        if self.amounts.len().is_multiple_of(BLOCK) {
            self.ranges.push((0, 0));
        }
        self.amounts.push(0);
    }

    pub fn set(&mut self, slot: u32, amount: u64) {
        self.amounts[slot as usize] = amount;
        let block = slot as usize / BLOCK;
        let amounts = self.amounts.chunks(BLOCK).nth(block).unwrap_or_default();
        let range = (u64::MAX, 0);
        self.ranges[block] =
            amounts.iter().fold(range, |(least, most), amount| (least.min(*amount), most.max(*amount)));
    }

    /// Keeps those slots that have as much.
    pub fn keep_at_least(&self, left: &mut Bits, asked: u64) {
        left.narrow(self.ranges.len(), |block, word| match self.ranges[block] {
            (least, _) if least >= asked => word,
            (_, most) if most < asked => 0,
            _ => word & self.enough(block, asked),
        });
    }

    /// Those of a block that have as much.
    fn enough(&self, block: usize, asked: u64) -> u64 {
        let amounts = &self.amounts[block * BLOCK..self.amounts.len().min((block + 1) * BLOCK)];
        // Eight at a time: they do not wait for each other.
        amounts.chunks(8).enumerate().fold(0, |word, (place, chunk)| {
            let bits = chunk.iter().enumerate().fold(0, |bits, (at, amount)| bits | u64::from(*amount >= asked) << at);
            word | bits << (8 * place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn those_with_enough_stay(amounts in proptest::collection::vec(0u64..20, 0..200), asked in 0u64..22) {
            let (mut column, mut left) = (Column::default(), Bits::default());
            for (slot, amount) in (0..).zip(&amounts) {
                column.push();
                // The amount of a whole block is alike, or not.
                column.set(slot, if slot < 64 { 7 } else { *amount });
                left.insert(slot);
            }
            left.insert(1000);
            column.keep_at_least(&mut left, asked);
            let amount = |slot: u32| if slot < 64 { 7 } else { amounts[slot as usize] };
            let expected = (0..).take(amounts.len()).filter(|slot| amount(*slot) >= asked);
            proptest::prop_assert!(left.iter().eq(expected));
        }
    }
}
