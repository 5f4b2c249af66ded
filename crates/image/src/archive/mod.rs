//! Archives of images: docker-archive and OCI layout in, both in one out; and images from plain file systems.

mod create;
mod load;
mod save;

use std::io::Read;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use crate::config::{ContainerDefaults, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::ImageStore;
use crate::types::{ByteStream, CommitOptions, ImportOptions, Loaded, Progress};

/// Bytes that a stream keeps ready for a slow reader, in pieces.
const PIECES: usize = 8;

impl ImageStore {
    /// Reads images out of an archive (docker-archive or OCI layout; plain, gzip or zstd).
    ///
    /// Errors: `Invalid` for what is no such archive, `Hostile`, `Corrupt`; nothing is visible then.
    pub async fn load<R>(self: &Arc<Self>, archive: R, _progress: &Progress) -> Result<Vec<Loaded>>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let lease = Arc::new(self.blobs.lease());
        let (store, held) = (self.clone(), lease.clone());
        let found = in_background(archive, move |archive| load::read(&store, archive, &held)).await?;
        let mut loaded = Vec::new();
        for image in found {
            for layer in &image.layers {
                self.ensure_unpacked(&layer.diff_id, &layer.blob).await?;
            }
            loaded.push(load::enter(self, image, &lease)?);
        }
        Ok(loaded)
    }

    /// Writes images into one archive that is a docker-archive and an OCI layout at once, as docker 28 does. An id or a
    /// name without tag saves what it names; a bare name all tags of it when there is no `latest`.
    ///
    /// Errors: `NotFound` before anything is written.
    pub async fn save(self: &Arc<Self>, names: &[String]) -> Result<ByteStream> {
        let plan = save::plan(self, names)?;
        for layer in plan.layers() {
            self.ensure_unpacked(&layer.diff_id, &layer.blob).await?;
        }
        let store = self.clone();
        Ok(stream_of(move |out| save::write(&store, &plan, out)))
    }

    /// Makes an image of one layer from the tar of a whole file system.
    pub async fn import<R>(self: &Arc<Self>, archive: R, options: ImportOptions) -> Result<Digest>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let store = self.clone();
        in_background(archive, move |archive| create::import(&store, archive, &options)).await
    }

    /// Makes an image from a container's image and the layer of its changes.
    pub async fn commit<R>(self: &Arc<Self>, layer: R, options: CommitOptions) -> Result<Digest>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let store = self.clone();
        in_background(layer, move |layer| create::commit(&store, layer, &options)).await
    }

    /// Makes an image that differs from its parent in its configuration only, or by one layer (a step of a build).
    pub(crate) fn commit_step(self: &Arc<Self>, step: create::Step<'_>) -> Result<Digest> {
        create::step(self, step)
    }

    /// Makes an image like another, with one layer in place of all that lie over a base image.
    pub(crate) fn commit_squashed(
        &self,
        image: &Digest,
        base: Option<&Digest>,
        layer: &mut dyn Read,
    ) -> Result<Digest> {
        create::squashed(self, image, base, layer)
    }

    /// Makes an image that differs from its parent in its configuration only, whose history says so already.
    pub(crate) fn commit_configuration(&self, parent: Option<&Digest>, config: &ImageConfig) -> Result<Digest> {
        create::configuration(self, parent, config)
    }
}

pub(crate) use create::Step;
pub(crate) use load::pair;

/// Runs blocking work over an asynchronous reader.
pub(crate) async fn in_background<R, T>(
    reader: R,
    work: impl FnOnce(&mut dyn Read) -> Result<T> + Send + 'static,
) -> Result<T>
where
    R: AsyncRead + Send + Unpin + 'static,
    T: Send + 'static,
{
    let mut reader = SyncIoBridge::new(reader);
    tokio::task::spawn_blocking(move || work(&mut reader)).await?
}

/// A stream of what blocking work writes. When the reader goes away, the work ends with an error.
pub fn stream_of(work: impl FnOnce(&mut dyn std::io::Write) -> Result<()> + Send + 'static) -> ByteStream {
    struct Sender(tokio::sync::mpsc::Sender<std::io::Result<bytes::Bytes>>);
    impl std::io::Write for Sender {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let piece = Ok(bytes::Bytes::copy_from_slice(bytes));
            match self.0.blocking_send(piece) {
                Ok(()) => Ok(bytes.len()),
                Err(_) => Err(std::io::ErrorKind::BrokenPipe.into()),
            }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, mut receiver) = tokio::sync::mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufWriter::with_capacity(64 << 10, Sender(sender.clone()));
        let result = work(&mut out)
            .and_then(|()| std::io::Write::flush(&mut out).map_err(Error::io("the reader of a stream went away")));
        if let Err(error) = result {
            // A broken stream must not look like a whole one.
            let _ = sender.blocking_send(Err(std::io::Error::other(error.chain())));
        }
    });
    Box::pin(futures::stream::poll_fn(move |context| receiver.poll_recv(context)))
}

/// The configuration of an image without layers.
pub(crate) fn empty_config(platform: &str) -> ImageConfig {
    let platform = parse_platform(platform);
    ImageConfig {
        architecture: platform.architecture,
        os: platform.os,
        variant: Some(platform.variant).filter(|variant| !variant.is_empty()),
        config: ContainerDefaults::default(),
        ..ImageConfig::default()
    }
}

/// `os/architecture[/variant]`; what is missing is this machine's.
pub fn parse_platform(text: &str) -> crate::types::Platform {
    let mut platform = crate::types::Platform::default();
    let mut parts = text.split('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next(), parts.next()) {
        (Some(os @ ("linux" | "windows")), Some(architecture), variant) => {
            (platform.os, platform.architecture) = (os.to_owned(), architecture.to_owned());
            platform.variant = variant.unwrap_or_default().to_owned();
        }
        (Some(only), None, None) if only != "linux" => platform.architecture = only.to_owned(),
        _ => {}
    }
    platform
}
