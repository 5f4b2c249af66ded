//! The store's integration tests, one binary: the contract on every engine, and what each engine must survive.

mod conformance;
mod crash;
mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
mod model;
mod power;
mod simdisk;
mod support;
