//! The images, as this dialect needs them: one trait between the wire and the store of images. Knows no HTTP.

use std::collections::BTreeMap;

use async_trait::async_trait;
use node::ByteStream;
use serde_json::Value;
use tokio::sync::mpsc;

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No such image, or no such repository in the registry.
    #[error("{0}")]
    NotFound(String),
    /// It is in use, or a name means several.
    #[error("{0}")]
    Conflict(String),
    /// A reference, an archive or a Dockerfile is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The registry wants other credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// A step of a build ended with a code other than 0.
    #[error("{message}")]
    BuildStep {
        /// Its exit code.
        code: i32,
        /// What Docker's client shows.
        message: String,
    },
    /// The registry cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// Result of work on images.
pub type ImageResult<T> = std::result::Result<T, ImageError>;

/// One image.
#[derive(Clone, Debug, Default)]
pub struct ImageRecord {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Names with tags that point to it, in Docker's short form (`busybox:latest`).
    pub references: Vec<String>,
    /// Names with digests (`busybox@sha256:…`).
    pub digests: Vec<String>,
    /// The whole image configuration, as stored.
    pub config: Value,
    /// Size of its unpacked layers. Units: bytes.
    pub size_bytes: u64,
}

/// One thing that a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A name went.
    Untagged(String),
    /// An image or layer went.
    Deleted(String),
}

/// How far a transfer is; one line of Docker's progress stream.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Short id of the layer; empty for lines about the whole.
    pub id: String,
    /// `Downloading`, `Pull complete`…
    pub status: String,
    /// Bytes done and in all, when known.
    pub bytes: Option<(u64, u64)>,
}

/// Credentials for a registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Bearer token in place of both.
    pub token: String,
}

/// A build, as Docker's classic builder takes it.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    /// Path of the Dockerfile in the context; empty means `Dockerfile`.
    pub dockerfile: String,
    /// Names for the result.
    pub tags: Vec<String>,
    /// `ARG` values; `None` takes the value of the builder's environment (there is none).
    pub build_args: BTreeMap<String, Option<String>>,
    /// Labels for the result.
    pub labels: BTreeMap<String, String>,
    /// Stage to build; empty means the last.
    pub target: String,
    /// Do not use the layer cache.
    pub no_cache: bool,
    /// Pull base images even when they are there.
    pub pull: bool,
    /// Network of the steps.
    pub network_mode: String,
}

/// A commit of a container's changes.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Image that the container was made from.
    pub base: String,
    /// The configuration's `config` member of the new image.
    pub config: Value,
    /// Name for the result; empty means none.
    pub reference: String,
    /// Who made it.
    pub author: String,
    /// Why.
    pub comment: String,
}

/// A store of images that can also pull, push and build.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Finds one by name, digest, id or the beginning of an id.
    async fn find(&self, reference: &str) -> ImageResult<ImageRecord>;
    /// All images.
    async fn list(&self) -> ImageResult<Vec<ImageRecord>>;
    /// Gives an image another name.
    async fn tag(&self, reference: &str, new_reference: &str) -> ImageResult<()>;
    /// Takes a name away, and the image with the last one; `force` takes an id's names all at once.
    async fn remove(&self, reference: &str, force: bool) -> ImageResult<Vec<Removal>>;
    /// Reads a docker-archive or oci-archive; names or ids of what came.
    async fn load(&self, archive: ByteStream) -> ImageResult<Vec<String>>;
    /// Writes a docker-archive.
    async fn save(&self, references: &[String]) -> ImageResult<ByteStream>;
    /// Makes an image of a root file system; its id.
    async fn import(&self, archive: ByteStream, request: CommitRequest) -> ImageResult<String>;
    /// Makes an image of a container's changes; its id.
    async fn commit(&self, layer: ByteStream, request: CommitRequest) -> ImageResult<String>;
    /// Fetches from a registry.
    async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: mpsc::Sender<Progress>,
    ) -> ImageResult<ImageRecord>;
    /// Sends to a registry; digest and size of the manifest.
    async fn push(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: mpsc::Sender<Progress>,
    ) -> ImageResult<(String, u64)>;
    /// Builds an image; its id. Text goes to `output` as the steps run.
    async fn build(
        &self,
        context: ByteStream,
        request: BuildRequest,
        output: mpsc::Sender<String>,
    ) -> ImageResult<String>;
}
