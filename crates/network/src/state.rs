//! What the fabric knows, in memory and on disk. No netlink here.
//!
//! Every fact is a small file that appears and disappears atomically: an address is taken by linking its file into place,
//! which fails when it is there. So a crash at any point leaves either the fact or nothing, and two processes can never
//! hold one address. Nothing but what is kept for ports is fsynced: what else must survive is a crash of the daemon; after a power cut no workload is left
//! that could hold an address, and half-written files are dropped when they are read.

pub(crate) mod addresses;
pub(crate) mod files;
pub(crate) mod ports;
mod ranges;
pub(crate) mod reservations;
