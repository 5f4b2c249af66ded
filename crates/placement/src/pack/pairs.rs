//! All pairs and singles of a few hundred items, in a grid by the sum of their sizes: which of them fills a room best is found by
//! looking at a few cells, so that the last two items of a bin are never guessed.

use super::effort::Random;

/// Shares of a bin, as the search counts them; what is chosen by them is checked in whole numbers.
pub type Shares = [f32; 3];

/// No partner: an entry for one item alone.
pub const NOBODY: usize = usize::MAX;
/// Entries for each cell on average, when they spread evenly.
const ENTRIES_PER_CELL: f64 = 1.5;
/// Widest search around the room's own cell. Units: cells.
const RINGS_MAX: usize = 6;
/// Entries that one question may look at.
const LOOKS_MAX: usize = 300;

/// The grid.
#[derive(Default)]
pub struct Pairs {
    items: Vec<usize>,
    cells: [usize; 3],
    scale: Shares,
    starts: Vec<u32>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    sum: Shares,
    one: u32,
    other: u32,
}

/// What a question found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The first item.
    pub one: usize,
    /// The second, or [`NOBODY`].
    pub other: usize,
    /// What they take, weighted.
    pub worth: f32,
}

impl Pairs {
    /// Fills the grid anew. Returns the number of entries.
    pub fn build(&mut self, items: &[usize], shares: &[Shares]) -> usize {
        self.items.clear();
        self.items.extend_from_slice(items);
        let mut most = [0.0f32; 3];
        for &item in items {
            most = std::array::from_fn(|axis| most[axis].max(shares[item][axis]));
        }
        let count = items.len() * (items.len() + 1) / 2;
        let axes = most.iter().filter(|&&most| most > 0.0).count().max(1);
        let side = whole((count as f64 / ENTRIES_PER_CELL).powf(1.0 / axes as f64)).clamp(1, 512);
        self.cells = most.map(|most| if most > 0.0 { side } else { 1 });
        self.scale = most.map(|most| if most > 0.0 { side as f32 / (2.0 * most) } else { 0.0 });
        self.sort_in(shares);
        count
    }

    fn sort_in(&mut self, shares: &[Shares]) {
        let cells = self.cells.iter().product::<usize>();
        self.starts.clear();
        self.starts.resize(cells + 1, 0);
        let mut unsorted = Vec::with_capacity(self.items.len() * (self.items.len() + 1) / 2);
        for (one, &item) in self.items.iter().enumerate() {
            let share = shares[item];
            unsorted.push((self.cell(&share), Entry { sum: share, one: index(one), other: u32::MAX }));
            for (other, &partner) in self.items.iter().enumerate().take(one) {
                let sum = std::array::from_fn(|axis| share[axis] + shares[partner][axis]);
                unsorted.push((self.cell(&sum), Entry { sum, one: index(one), other: index(other) }));
            }
        }
        for (cell, _) in &unsorted {
            self.starts[cell + 1] += 1;
        }
        for cell in 0..cells {
            self.starts[cell + 1] += self.starts[cell];
        }
        self.entries.clear();
        self.entries.resize(unsorted.len(), Entry::default());
        for (cell, entry) in unsorted.into_iter().rev() {
            // Counts down from the end of each cell to its start, by way of the next cell's start.
            self.starts[cell + 1] -= 1;
            self.entries[self.starts[cell + 1] as usize] = entry;
        }
        // Every start has moved one place up: what was `starts[cell + 1]` is now where `cell` starts.
        self.starts.remove(0);
        self.starts.push(index(self.entries.len()));
    }

    fn coordinates(&self, sum: &Shares) -> [usize; 3] {
        std::array::from_fn(|axis| whole(f64::from(sum[axis] * self.scale[axis])).min(self.cells[axis] - 1))
    }

    fn cell(&self, sum: &Shares) -> usize {
        let [x, y, z] = self.coordinates(sum);
        (x * self.cells[1] + y) * self.cells[2] + z
    }

    /// The entry that is worth most of those near the room that fit and are free. Adds to `looks` what it looked at.
    pub fn best(
        &self,
        room: &Shares,
        weights: &Shares,
        is_free: impl Fn(usize) -> bool,
        looks: &mut u64,
    ) -> Option<Found> {
        let mut best: Option<(f32, Entry)> = None;
        let corner = self.coordinates(room);
        let (mut seen, mut rings_left) = (0, RINGS_MAX);
        let mut ring = 0;
        while rings_left > 0 && seen < LOOKS_MAX {
            let low: [usize; 3] = corner.map(|top| top.saturating_sub(ring));
            for x in low[0]..=corner[0] {
                for y in low[1]..=corner[1] {
                    // Inside the ring all but its last layer was seen before.
                    let is_edge = x + ring == corner[0] || y + ring == corner[1];
                    let high =
                        if is_edge { corner[2] + 1 } else { (corner[2] + 1).saturating_sub(ring).min(low[2] + 1) };
                    for z in low[2]..high {
                        if !is_edge && z + ring != corner[2] {
                            continue;
                        }
                        let cell = (x * self.cells[1] + y) * self.cells[2] + z;
                        seen += 1;
                        for entry in &self.entries[self.starts[cell] as usize..self.starts[cell + 1] as usize] {
                            seen += 1;
                            let sum = &entry.sum;
                            if sum[0] > room[0] || sum[1] > room[1] || sum[2] > room[2] {
                                continue;
                            }
                            let worth = sum[0] * weights[0] + sum[1] * weights[1] + sum[2] * weights[2];
                            if best.is_none_or(|(most, _)| worth > most)
                                && is_free(self.items[entry.one as usize])
                                && (entry.other == u32::MAX || is_free(self.items[entry.other as usize]))
                            {
                                best = Some((worth, *entry));
                            }
                        }
                    }
                }
            }
            // One ring more than the first success: what is best may lie just across a border.
            rings_left = if best.is_some() { rings_left.min(2) - 1 } else { rings_left - 1 };
            ring += 1;
        }
        *looks += seen as u64;
        best.map(|(worth, entry)| Found {
            one: self.items[entry.one as usize],
            other: if entry.other == u32::MAX { NOBODY } else { self.items[entry.other as usize] },
            worth,
        })
    }
}

/// Chooses `count` of `items` at random into `chosen`.
pub fn sample(items: &[usize], count: usize, random: &mut Random, chosen: &mut Vec<usize>) {
    chosen.clear();
    chosen.extend_from_slice(items);
    for place in 0..count.min(chosen.len()) {
        let other = place + random.below(chosen.len() - place);
        chosen.swap(place, other);
    }
    chosen.truncate(count);
}

fn index(value: usize) -> u32 {
    // Items are far fewer than 2³², see `ITEMS_MAX`, and pools far fewer than their root.
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The whole part of a number that is not negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates, which is what is wanted
pub fn whole(value: f64) -> usize {
    value as usize
}
