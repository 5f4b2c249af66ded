//! The machinery as its callers see it, over the store's model.

#![allow(missing_docs)] // Tests say what they show by their names.

mod access;
mod custom;
mod nodes;
mod patches;
mod server;
mod watches;
mod world;
mod writes;
