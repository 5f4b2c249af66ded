//! Disks: headers of images, layers that share what they have in common, and conversions.
//!
//! | module | owns |
//! |---|---|
//! | [`header`] | which format a file is in, decided by us alone; hostile headers refused |
//! | [`create`] | empty layers, written without a process |
//! | [`iso`] | small read-only disks with a few files |
//! | [`layers`] | which layer lies on which, and who needs it |
//! | [`tool`] | qemu-img, with bounds and without rights |

pub mod create;
pub mod header;
pub mod iso;
pub mod layers;
pub mod tool;

pub use header::{Format, Header, inspect};
pub use layers::{Layer, LayerStore};
