//! The QEMU driver.
//!
//! | module | owns |
//! |---|---|
//! | [`driver`] | starts guests and finds them again |
//! | `guest` | what can be asked of one, over QMP |
//! | `blocks` | disks of a running guest |
//! | `copies` | copies of its disks at one instant, whole or since a mark |
//! | `memory` | memory that it is given and that is taken from it |
//! | `still` | a guest holds its file systems still for an instant |
//! | `migrate` | a guest moves to another machine |
//! | `arguments` | from a guest's configuration to a launch plan, pure |
//! | [`launch`] | the small program that becomes QEMU: descriptors, namespaces, an empty root, no rights |
//! | [`faults`] | who may wait for memory that is still on another machine |
//! | [`vsock`] | the device by which programs on this machine reach guests without a network |
//! | `process` | finding a guest's process, and ending it |
//! | `qmp` | the protocol's client |
//! | [`probe`] | whether hardware assistance really runs guests |

mod arguments;
mod blocks;
mod copies;
pub mod driver;
pub mod faults;
mod guest;
mod interfaces;
pub mod launch;
mod memory;
mod migrate;
pub mod probe;
mod process;
mod qmp;
pub(crate) mod still;
pub mod vsock;

pub use driver::{Options, Qemu};

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";
