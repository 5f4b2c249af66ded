//! Small adapters between the agent and the hands, so that a change of a hand's border is met in one place.

mod image;
mod runtime;

pub use image::{FoundImage, ImageArchive, ImageOrigin, Images};
pub use runtime::{Found, Runtime, check_working_directory, find_user, seccomp};
