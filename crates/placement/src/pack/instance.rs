//! What is packed: one size of bin, and items. Checked when it comes in, so that nothing behind it has to doubt a number.

/// Most kinds of resource. An instance with fewer has bins of capacity 1 and items of size 0 in the others.
pub const DIMENSIONS_MAX: usize = 3;
/// Most items. More than ten times what a large pool runs.
pub const ITEMS_MAX: usize = 1 << 20;
/// Largest capacity: up to here an `f64` holds every whole number, and sums over [`ITEMS_MAX`] items fit in 128 bits. As bytes it
/// is 4 PiB. Units: any, one for each dimension.
pub const CAPACITY_MAX: u64 = 1 << 52;

/// One whole number for each dimension.
pub type Vector = [u64; DIMENSIONS_MAX];

/// Bins that are all alike, and what goes into them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    capacity: Vector,
    sizes: Vec<Vector>,
    dimensions: usize,
}

/// Why an instance is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceError {
    /// It has none, or more than [`DIMENSIONS_MAX`].
    Dimensions(usize),
    /// A bin holds nothing in this dimension.
    ZeroCapacity(usize),
    /// A bin holds more than [`CAPACITY_MAX`] in this dimension.
    CapacityTooLarge(usize),
    /// More than [`ITEMS_MAX`].
    TooManyItems(usize),
    /// An item that no bin holds.
    ItemTooLarge {
        /// Which one.
        item: usize,
        /// In which dimension.
        dimension: usize,
        /// How large it is there.
        size: u64,
        /// How much a bin holds there.
        capacity: u64,
    },
}

impl std::fmt::Display for InstanceError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dimensions(count) => write!(out, "{count} dimensions; there must be 1 to {DIMENSIONS_MAX}"),
            Self::ZeroCapacity(dimension) => write!(out, "bins hold nothing in dimension {dimension}"),
            Self::CapacityTooLarge(dimension) => {
                write!(out, "bins hold more than {CAPACITY_MAX} in dimension {dimension}; use a coarser unit")
            }
            Self::TooManyItems(count) => write!(out, "{count} items; there can be {ITEMS_MAX}"),
            Self::ItemTooLarge { item, dimension, size, capacity } => {
                write!(out, "item {item} has size {size} in dimension {dimension}, where a bin holds {capacity}")
            }
        }
    }
}

impl std::error::Error for InstanceError {}

impl Instance {
    /// An instance, when it makes sense.
    ///
    /// `Errors:` [`InstanceError`] says what is wrong; nothing is clamped.
    pub fn new<const D: usize>(capacity: [u64; D], sizes: &[[u64; D]]) -> Result<Self, InstanceError> {
        if !(1..=DIMENSIONS_MAX).contains(&D) {
            return Err(InstanceError::Dimensions(D));
        }
        if sizes.len() > ITEMS_MAX {
            return Err(InstanceError::TooManyItems(sizes.len()));
        }
        for (dimension, &held) in capacity.iter().enumerate() {
            match held {
                0 => return Err(InstanceError::ZeroCapacity(dimension)),
                1..=CAPACITY_MAX => {}
                _ => return Err(InstanceError::CapacityTooLarge(dimension)),
            }
        }
        for (item, size) in sizes.iter().enumerate() {
            for (dimension, (&size, &capacity)) in size.iter().zip(&capacity).enumerate() {
                if size > capacity {
                    return Err(InstanceError::ItemTooLarge { item, dimension, size, capacity });
                }
            }
        }
        let widen = |size: &[u64; D]| {
            let mut wide = [0; DIMENSIONS_MAX];
            wide[..D].copy_from_slice(size);
            wide
        };
        let mut wide = [1; DIMENSIONS_MAX];
        wide[..D].copy_from_slice(&capacity);
        Ok(Self { capacity: wide, sizes: sizes.iter().map(widen).collect(), dimensions: D })
    }

    /// The same bins, and some of the items.
    pub fn restricted(&self, items: &[usize]) -> Self {
        let sizes = items.iter().map(|&item| self.sizes[item]).collect();
        Self { capacity: self.capacity, sizes, dimensions: self.dimensions }
    }

    /// What a bin holds.
    pub fn capacity(&self) -> &Vector {
        &self.capacity
    }

    /// The items' sizes.
    pub fn sizes(&self) -> &[Vector] {
        &self.sizes
    }

    /// How many dimensions it was given with.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The sum of the sizes.
    pub fn total(&self) -> [u128; DIMENSIONS_MAX] {
        let mut total = [0; DIMENSIONS_MAX];
        for size in &self.sizes {
            for (sum, &part) in total.iter_mut().zip(size) {
                *sum += u128::from(part);
            }
        }
        total
    }

    /// A size as shares of a bin.
    pub fn shares(&self, size: &Vector) -> [f64; DIMENSIONS_MAX] {
        std::array::from_fn(|dimension| size[dimension] as f64 / self.capacity[dimension] as f64)
    }
}

/// Whether a size still has room.
pub fn fits(size: &Vector, room: &Vector) -> bool {
    size[0] <= room[0] && size[1] <= room[1] && size[2] <= room[2]
}

/// Takes a size out of a room that has it.
pub fn take(room: &mut Vector, size: &Vector) {
    for (room, size) in room.iter_mut().zip(size) {
        *room -= size;
    }
}

/// Gives it back.
pub fn give(room: &mut Vector, size: &Vector) {
    for (room, size) in room.iter_mut().zip(size) {
        *room += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        let said = |result: Result<Instance, InstanceError>| result.map_err(|error| error.to_string());
        assert_eq!(said(Instance::new([0, 4], &[])), Err("bins hold nothing in dimension 0".into()));
        assert_eq!(
            said(Instance::new([4, 4], &[[1, 4], [2, 5]])),
            Err("item 1 has size 5 in dimension 1, where a bin holds 4".into())
        );
        assert_eq!(
            said(Instance::new([u64::MAX], &[])),
            Err("bins hold more than 4503599627370496 in dimension 0; use a coarser unit".into())
        );
        assert_eq!(said(Instance::new([1; 4], &[])), Err("4 dimensions; there must be 1 to 3".into()));
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        let instance = Instance::new([CAPACITY_MAX], &vec![[CAPACITY_MAX]; 5000]).expect("an instance");
        assert_eq!(instance.total()[0], 5000 << 52);
    }
}
