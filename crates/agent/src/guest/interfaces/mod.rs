//! Network interfaces of machines: which there are, where they are, and what answers there.
//!
//! | module | owns |
//! |---|---|
//! | `record` | which interfaces a machine has: the pure plan, and the record of it |
//! | `join` | one interface gets its place on a network |
//! | [`attach`] | all interfaces of a machine, before its guest starts or when it is found again; what guards them |
//! | [`serve`] | DHCP, names, metadata and published ports, and the end of all of them |
//!
//! Each interface is an owner of its own towards the network, so that its address, its security groups and its end are its own.

pub mod attach;
mod join;
mod record;
pub mod serve;

pub use join::{Joining, Place, join};
pub use record::{Nic, SLOTS, Step, in_order, live, machine_of, owner, owners, pair, plan, save};
