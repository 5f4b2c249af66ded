//! The images behind an endpoint, as one object-safe trait: the store of one machine today, of a cluster later. Its words
//! are those of the `image` crate; it knows no HTTP.

use std::sync::Arc;

use async_trait::async_trait;
use image::build::{BuildEvent, BuildOptions, StepRunner};
use image::{
    ByteStream, CommitOptions, Credentials, Found, HistoryEntry, ImageRecord, ImageStore, ImageSummary, ImageUser,
    ImportOptions, ListFilter, Loaded, Progress, PullOptions, Pulled, Pushed, Reference, RemoteImage, Removal,
    RemoveOptions, Result,
};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

/// Images that can be listed, moved and built. Errors are the `image` crate's.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Finds one by name, digest, id or the beginning of an id.
    async fn get(&self, name: &str) -> Result<ImageRecord>;
    /// Lists.
    async fn list(&self, filter: &ListFilter) -> Result<Vec<ImageSummary>>;
    /// Gives an image another name.
    async fn tag(&self, source: &str, target: &str) -> Result<()>;
    /// Takes a name away, and the image with the last one.
    async fn remove(&self, name: &str, options: &RemoveOptions) -> Result<Vec<Removal>>;
    /// Removes what nobody uses; what went and the bytes won.
    async fn prune(&self, filter: &ListFilter, users: &[ImageUser]) -> Result<(Vec<Removal>, u64)>;
    /// How an image came about, newest first.
    async fn history(&self, name: &str) -> Result<Vec<HistoryEntry>>;
    /// Reads a docker-archive or oci-archive.
    async fn load(&self, archive: ByteStream, progress: &Progress) -> Result<Vec<Loaded>>;
    /// Writes a docker-archive.
    async fn save(&self, names: &[String]) -> Result<ByteStream>;
    /// Makes an image of a root file system; its id.
    async fn import(&self, archive: ByteStream, options: ImportOptions) -> Result<String>;
    /// Makes an image of a container's changes; its id.
    async fn commit(&self, layer: ByteStream, options: CommitOptions) -> Result<String>;
    /// Fetches from a registry.
    async fn pull(&self, reference: &Reference, options: &PullOptions, progress: &Progress) -> Result<Pulled>;
    /// Sends to a registry.
    async fn push(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<Pushed>;
    /// What a name stands for at its registry.
    async fn describe_remote(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<RemoteImage>;
    /// Repositories of the registries of the settings whose name holds a term.
    async fn search(&self, term: &str, credentials: Option<&Credentials>) -> Result<Vec<Found>>;
    /// Tries credentials on a registry.
    async fn login(&self, registry: &str, credentials: &Credentials) -> Result<()>;
    /// Builds an image; its id.
    async fn build(
        &self,
        context: ByteStream,
        options: BuildOptions,
        events: mpsc::Sender<BuildEvent>,
    ) -> Result<String>;
}

/// The images of one machine.
pub struct MachineImages {
    store: Arc<ImageStore>,
    runner: Arc<dyn StepRunner>,
}

impl MachineImages {
    /// Images of a store, built with a runner for their RUN steps.
    pub fn new(store: Arc<ImageStore>, runner: Arc<dyn StepRunner>) -> Arc<Self> {
        Arc::new(Self { store, runner })
    }
}

#[async_trait]
impl Images for MachineImages {
    async fn get(&self, name: &str) -> Result<ImageRecord> {
        self.store.get(name)
    }
    async fn list(&self, filter: &ListFilter) -> Result<Vec<ImageSummary>> {
        self.store.list(filter)
    }
    async fn tag(&self, source: &str, target: &str) -> Result<()> {
        self.store.tag(source, target)
    }
    async fn remove(&self, name: &str, options: &RemoveOptions) -> Result<Vec<Removal>> {
        self.store.remove(name, options)
    }
    async fn prune(&self, filter: &ListFilter, users: &[ImageUser]) -> Result<(Vec<Removal>, u64)> {
        self.store.prune(filter, users)
    }
    async fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        self.store.history(name)
    }
    async fn load(&self, archive: ByteStream, progress: &Progress) -> Result<Vec<Loaded>> {
        self.store.load(StreamReader::new(archive), progress).await
    }
    async fn save(&self, names: &[String]) -> Result<ByteStream> {
        self.store.save(names).await
    }
    async fn import(&self, archive: ByteStream, options: ImportOptions) -> Result<String> {
        Ok(self.store.import(StreamReader::new(archive), options).await?.to_string())
    }
    async fn commit(&self, layer: ByteStream, options: CommitOptions) -> Result<String> {
        Ok(self.store.commit(StreamReader::new(layer), options).await?.to_string())
    }
    async fn pull(&self, reference: &Reference, options: &PullOptions, progress: &Progress) -> Result<Pulled> {
        self.store.pull(reference, options, progress).await
    }
    async fn push(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<Pushed> {
        self.store.push(reference, credentials, progress).await
    }
    async fn describe_remote(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<RemoteImage> {
        self.store.describe_remote(reference, credentials).await
    }
    async fn search(&self, term: &str, credentials: Option<&Credentials>) -> Result<Vec<Found>> {
        self.store.search(term, credentials).await
    }
    async fn login(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        self.store.login(registry, credentials).await
    }
    async fn build(
        &self,
        context: ByteStream,
        options: BuildOptions,
        events: mpsc::Sender<BuildEvent>,
    ) -> Result<String> {
        let reader = StreamReader::new(context);
        Ok(image::build::build(&self.store, reader, options, self.runner.clone(), events).await?.to_string())
    }
}
