//! The pool's machines by what decisions ask for: by label, taint, port, image and amount left. Each machine has a slot, a small
//! number that is its place in every column; sets of machines are sets of slots. A change of one machine or workload touches its
//! own slot alone.
//!
//! It must not know how machines are chosen.

mod bits;
mod column;
mod crowd;
mod labels;
mod slots;
mod stock;
mod tally;

pub(crate) use bits::{Bits, Set, bits_of};
pub(crate) use column::Column;
pub(crate) use crowd::{Crowd, Identity, Member};
pub(crate) use labels::{Key, Labels};
pub(crate) use slots::{Index, Taken};
pub(crate) use stock::{RUN, Stocks};

/// A slot or another small number. Nothing here is counted beyond the memory that it takes, which ends long before.
pub(crate) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
