//! The store's integration tests, one binary: the contract on every engine, and what each engine must survive.

mod conformance;
mod support;
