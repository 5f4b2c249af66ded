//! Server-side apply: who manages which field, conflicts, and the merge. `Source:` structured-merge-diff and
//! apimachinery's `managedfields`.

mod fields;
mod managers;
mod merge;

pub use managers::record_write;
pub use merge::merge;
