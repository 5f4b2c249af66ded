//! The plain types of this crate's border.

use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;

use crate::config::{ContainerDefaults, ImageConfig};
use crate::digest::Digest;

/// Bytes in pieces, such as a tar stream.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// An image with its configuration.
#[derive(Clone, Debug)]
pub struct ImageRecord {
    /// Digest of the configuration: `sha256:…`.
    pub id: Digest,
    /// Tags as Docker prints them: `busybox:latest`.
    pub references: Vec<String>,
    /// Names with digests as Docker prints them: `busybox@sha256:…`.
    pub digests: Vec<String>,
    /// The configuration.
    pub config: ImageConfig,
    /// Bytes of all layers, unpacked.
    pub size_bytes: u64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<Digest>,
    /// The image that it was built on, when that was done here.
    pub parent: Option<Digest>,
    /// When a name was last given to it, nanoseconds since the Unix epoch; 0 when never.
    pub last_tagged_ns: i64,
}

/// An image in a list.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// Digest of the configuration.
    pub id: Digest,
    /// Tags as Docker prints them.
    pub references: Vec<String>,
    /// Names with digests as Docker prints them.
    pub digests: Vec<String>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Bytes of all layers, unpacked.
    pub size_bytes: u64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// The image that it was built on, when that was done here.
    pub parent: Option<Digest>,
}

/// Which images a list holds.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// With intermediate images of builds.
    pub all: bool,
    /// Only images without tag (`true`), or only with (`false`).
    pub dangling: Option<bool>,
    /// Shell patterns for names; any may match.
    pub references: Vec<String>,
    /// `key` or `key=value`; all must match.
    pub labels: Vec<String>,
    /// `key` or `key=value`; none may match.
    pub without_labels: Vec<String>,
    /// Only images made before this one.
    pub before: Option<String>,
    /// Only images made after this one.
    pub since: Option<String>,
    /// Only images made before this instant, nanoseconds since the Unix epoch.
    pub until_ns: Option<i64>,
}

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// Its id.
    pub container_id: String,
    /// Digest of the image, as in [`ImageRecord::id`], or what it is called.
    pub image_id: String,
    /// Whether it runs.
    pub running: bool,
}

/// How to remove an image.
#[derive(Clone, Debug, Default)]
pub struct RemoveOptions {
    /// Also when it has several names or stopped containers use it.
    pub force: bool,
    /// Keep the untagged images that it was built on.
    pub no_prune: bool,
    /// Containers that use images. Snapshots that the store knows count as stopped containers beside these.
    pub users: Vec<ImageUser>,
}

/// One thing that a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A name was taken away; as Docker prints it.
    Untagged(String),
    /// An image or layer went: `sha256:…`.
    Deleted(String),
}

/// An image that came out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names that it got, as Docker prints them.
    pub references: Vec<String>,
}

/// How to make an image from the tar of a whole file system.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Its name, if any.
    pub reference: Option<String>,
    /// Dockerfile instructions that change its configuration.
    pub changes: Vec<String>,
    /// Free text.
    pub message: String,
    /// `os/architecture`; empty means this machine's.
    pub platform: String,
}

/// How to make an image from a container.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Id of the container's image.
    pub parent: String,
    /// Configuration of the new image; `None` takes the parent's.
    pub config: Option<ContainerDefaults>,
    /// Dockerfile instructions that change the configuration.
    pub changes: Vec<String>,
    /// Its name, if any.
    pub reference: Option<String>,
    /// Who makes it.
    pub author: String,
    /// Free text.
    pub comment: String,
    /// What the history shows as the maker of the layer.
    pub created_by: String,
    /// The container that it is made from, for the record.
    pub container: String,
}

/// One line of an image's history, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Id of the image at that point; `None` when it is not here (`<missing>`).
    pub id: Option<Digest>,
    /// When, nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// By what instruction.
    pub created_by: String,
    /// Names of the image at that point.
    pub references: Vec<String>,
    /// Bytes of its layer, unpacked.
    pub size_bytes: u64,
    /// Free text.
    pub comment: String,
}

/// A container's root file system: layers of an image and a writable directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose it is.
    pub container_id: String,
    /// Digest of the image.
    pub image_id: Digest,
    /// Where [`crate::ImageStore::mount`] puts the file system.
    pub rootfs: PathBuf,
    /// Unpacked layers, highest first.
    pub lower: Vec<PathBuf>,
    /// A layer over them that is not the image's.
    pub marks: Option<PathBuf>,
    /// What the container writes.
    pub upper: PathBuf,
    /// Scratch space of overlayfs.
    pub work: PathBuf,
}

/// What a garbage collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Blobs removed.
    pub blobs: u64,
    /// Unpacked layers removed.
    pub layers: u64,
    /// Bytes of the blobs removed.
    pub bytes: u64,
}

/// Name and password, or a token, for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Refresh token; stands in for both when set.
    pub identity_token: String,
    /// Bearer token; sent as it is when set.
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Which of an image's platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// `v8`; empty when none.
    pub variant: String,
}

impl Default for Platform {
    fn default() -> Platform {
        Platform {
            os: "linux".to_owned(),
            architecture: crate::config::host_architecture().to_owned(),
            variant: String::new(),
        }
    }
}

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Credentials for the registry, if any.
    pub credentials: Option<Credentials>,
    /// Platform; `None` means this machine's.
    pub platform: Option<Platform>,
}

/// What a name stands for at a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteImage {
    /// The manifest or index.
    pub descriptor: crate::manifest::Descriptor,
    /// Platforms that it has images for.
    pub platforms: Vec<Platform>,
}

/// A repository that a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, as a pull takes it.
    pub name: String,
    /// Whether it is one of the Hub's own.
    pub official: bool,
}

/// What a pull brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Id of the image.
    pub id: Digest,
    /// Digest of the manifest, or of the index that led to it.
    pub digest: Digest,
    /// Whether nothing new came.
    pub up_to_date: bool,
}

/// What a push sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Tag at the registry.
    pub tag: String,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Size of the manifest.
    pub size_bytes: u64,
}

/// One message about a transfer, in Docker's vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressEvent {
    /// Layer (twelve digits) or tag; empty for a message about the whole.
    pub id: String,
    /// `Pulling fs layer`, `Downloading`, `Pull complete`, ….
    pub status: String,
    /// Bytes done, when that means something.
    pub current: Option<u64>,
    /// Bytes in all.
    pub total: Option<u64>,
}

/// Where messages about a transfer go. A slow reader loses figures, never statuses.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    sender: Option<mpsc::Sender<ProgressEvent>>,
}

/// Messages that may wait for a slow reader.
const PROGRESS_QUEUE: usize = 256;

impl Progress {
    /// Nobody listens.
    pub fn none() -> Progress {
        Progress::default()
    }

    /// A channel; the receiver ends when every clone of the sender is gone.
    pub fn channel() -> (Progress, mpsc::Receiver<ProgressEvent>) {
        let (sender, receiver) = mpsc::channel(PROGRESS_QUEUE);
        (Progress { sender: Some(sender) }, receiver)
    }

    /// Says a status.
    pub async fn status(&self, id: &str, status: impl Into<String>) {
        if let Some(sender) = &self.sender {
            let event = ProgressEvent { id: id.to_owned(), status: status.into(), ..ProgressEvent::default() };
            // Nobody listens any more: the work goes on.
            let _ = sender.send(event).await;
        }
    }

    /// Says a figure, unless the reader is slow.
    pub fn figure(&self, id: &str, status: &str, current: u64, total: u64) {
        if let Some(sender) = &self.sender {
            let event = ProgressEvent {
                id: id.to_owned(),
                status: status.to_owned(),
                current: Some(current),
                total: Some(total),
            };
            let _ = sender.try_send(event);
        }
    }
}
