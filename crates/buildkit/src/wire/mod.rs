//! BuildKit's messages, written by hand so that no build needs `protoc`. Only the fields that are read or said are here;
//! the rest is skipped by the decoder. Names are the field's terms where Go's are shorter.

#![allow(missing_docs)] // the fields are documented at their source

pub mod control;
pub mod gateway;
pub mod google;
pub mod ops;
pub mod session;
