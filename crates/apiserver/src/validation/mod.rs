//! What is checked of every object, whatever its kind.

pub mod metadata;
pub mod names;
