//! The image store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncRead;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::types::*;

/// Settings of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Registry hosts that are spoken to without TLS; loopback addresses always are.
    pub plain_http: Vec<String>,
    /// File of root certificates (PEM); `None` takes the system's.
    pub root_certificates: Option<PathBuf>,
    /// Bounds on layers.
    pub limits: crate::layer::Limits,
}

/// Images of one machine.
pub struct ImageStore {
    _dir: PathBuf,
}

fn later<T>() -> Result<T> {
    Err(Error::NotSupported("the image store is not ready yet".to_owned()))
}

#[allow(clippy::unused_async, missing_docs)]
impl ImageStore {
    pub fn open(dir: &Path) -> Result<Arc<ImageStore>> {
        ImageStore::open_with(dir, StoreOptions::default())
    }
    pub fn open_with(dir: &Path, _options: StoreOptions) -> Result<Arc<ImageStore>> {
        Ok(Arc::new(ImageStore { _dir: dir.to_owned() }))
    }
    pub fn get(&self, _name: &str) -> Result<ImageRecord> {
        later()
    }
    pub fn list(&self, _filter: &ListFilter) -> Result<Vec<ImageSummary>> {
        later()
    }
    pub fn tag(&self, _source: &str, _target: &str) -> Result<()> {
        later()
    }
    pub fn remove(&self, _name: &str, _options: &RemoveOptions) -> Result<Vec<Removal>> {
        later()
    }
    pub fn prune(&self, _filter: &ListFilter, _users: &[ImageUser]) -> Result<(Vec<Removal>, u64)> {
        later()
    }
    pub fn history(&self, _name: &str) -> Result<Vec<HistoryEntry>> {
        later()
    }
    pub async fn load<R: AsyncRead + Send + Unpin + 'static>(
        self: &Arc<Self>,
        _archive: R,
        _progress: &Progress,
    ) -> Result<Vec<Loaded>> {
        later()
    }
    pub async fn save(self: &Arc<Self>, _names: &[String]) -> Result<ByteStream> {
        later()
    }
    pub async fn import<R: AsyncRead + Send + Unpin + 'static>(
        self: &Arc<Self>,
        _archive: R,
        _options: ImportOptions,
    ) -> Result<Digest> {
        later()
    }
    pub async fn commit<R: AsyncRead + Send + Unpin + 'static>(
        self: &Arc<Self>,
        _layer: R,
        _options: CommitOptions,
    ) -> Result<Digest> {
        later()
    }
    pub async fn pull(
        self: &Arc<Self>,
        _reference: &Reference,
        _options: &PullOptions,
        _progress: &Progress,
    ) -> Result<Pulled> {
        later()
    }
    pub async fn push(
        self: &Arc<Self>,
        _reference: &Reference,
        _credentials: Option<&Credentials>,
        _progress: &Progress,
    ) -> Result<Pushed> {
        later()
    }
    pub async fn login(&self, _registry: &str, _credentials: &Credentials) -> Result<()> {
        later()
    }
    pub async fn prepare(self: &Arc<Self>, _container_id: &str, _image: &str, _dir: &Path) -> Result<Snapshot> {
        later()
    }
    pub fn snapshot(&self, _container_id: &str) -> Option<Snapshot> {
        None
    }
    pub async fn mount(&self, _snapshot: &Snapshot) -> Result<()> {
        later()
    }
    pub async fn unmount(&self, _snapshot: &Snapshot) -> Result<()> {
        later()
    }
    pub async fn remove_snapshot(&self, _container_id: &str) -> Result<()> {
        later()
    }
    pub async fn collect_garbage(self: &Arc<Self>) -> Result<Garbage> {
        later()
    }
}
