//! Virtual machines: one trait that any hypervisor can stand behind, QEMU behind it today; disk layers and images; a small
//! test guest. Must not know kinds, clients, or who owns a network: plain structs in, plain structs out.
//!
//! | module | owns |
//! |---|---|
//! | [`guest`] | the border: what a guest is made of, and what can be asked of one |
//! | [`life`] | the life cycle, pure |
//! | [`sleep`] | the file with the memory of a guest that sleeps |
//! | [`qemu`] | the QEMU driver: arguments, launch, QMP, probe |
//! | [`disk`] | headers of disk images, layers, conversions |
//! | [`backup_file`] | one file with copies of a machine's disks |
//! | [`test_guest`] | the tiny guest of the tests, from Debian packages |
//! | [`error`] | what can go wrong |

pub mod backup_file;
pub mod disk;
pub mod error;
pub mod fuzzing;
pub mod guest;
pub mod life;
pub mod qemu;
pub mod sleep;
pub mod test_guest;

pub use error::{Error, Result};
pub use guest::{
    Acceleration, Boot, Chipset, Disk, DiskCopy, DiskLimits, Guest, GuestConfig, GuestEvent, Hypervisor, Incoming,
    Interface, Outgoing, Progress, RunState, Sent, Start,
};
