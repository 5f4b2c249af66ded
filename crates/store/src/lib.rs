//! Versioned key-value store with etcd's contract: one global revision, transactions, watches, leases, compaction.
//! Knows bytes, keys and revisions; must never know JSON, kinds or HTTP.
//!
//! - `types`: what goes in and out; `error`: what can go wrong; the [`Store`] trait: the contract
//! - `memory`: [`MemoryStore`], the model, a map with revisions; for tests
//! - [`embedded`]: [`EmbeddedStore`], our own log in one directory
//! - `etcd`: [`EtcdStore`], an etcd v3 cluster (cargo feature `etcd`)
//! - `watch`, `validate`, [`clock`]: what the engines in this process share

mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod memory;
mod types;
mod validate;
mod watch;

pub mod clock;
pub mod embedded;
#[doc(hidden)]
pub mod fuzzing;

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures::Stream;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use error::{Error, Result};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use memory::MemoryStore;
pub use types::*;

/// A running watch. Ends with an error when the watcher is too slow or its revision was compacted; dropping it cancels.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem>> + Send>>;

/// etcd's contract. Two engines implement it and pass one conformance suite.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys in order at one revision.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse>;
    /// Runs a transaction; acknowledged means fsynced.
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResponse>;
    /// Watches a range: every change with a revision `>= from`; `from == None` means from now on.
    async fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream>;
    /// The newest revision.
    async fn revision(&self) -> Result<Revision>;
    /// Forgets history before `revision`; live keys stay.
    async fn compact(&self, revision: Revision) -> Result<()>;
    /// Grants a lease that ends `ttl_seconds` after its last keep-alive.
    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId>;
    /// Starts the lease's time anew.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<()>;
    /// Ends a lease and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<()>;
    /// Writes a consistent copy of the store to one file, online; returns the revision that it holds.
    async fn backup(&self, file: &std::path::Path) -> Result<Revision>;
}

/// A shared store.
pub type SharedStore = Arc<dyn Store>;
