//! The image store, as the agent uses it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Error, ImageConfig, ImageStore, ListFilter, PullOptions, Reference, Result, Snapshot};
use tokio_util::sync::CancellationToken;

/// In the names of snapshots of further images: what stands between the container and the number.
const BESIDE: &str = "-image-";

/// An image on this machine.
#[derive(Clone, Debug)]
pub struct FoundImage {
    /// `sha256:…`.
    pub id: String,
    /// What it says about its containers.
    pub config: ImageConfig,
    /// It came from a registry, and may be fresher there.
    pub from_registry: bool,
}

/// A mounted snapshot.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The root file system.
    pub rootfs: PathBuf,
}

/// An image on its way, as `docker save` writes it.
pub type ImageArchive = std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>;

/// Where images are that were never in a registry: the pool's first machine. It gives a machine what the machine's workloads name.
#[async_trait::async_trait]
pub trait ImageOrigin: Send + Sync + 'static {
    /// The id (`sha256:…`) of what the name means there.
    async fn look(&self, name: &str) -> std::result::Result<Option<String>, String>;
    /// The image of that name or id.
    async fn fetch(&self, name: &str) -> std::result::Result<Option<ImageArchive>, String>;
}

/// Images and snapshots.
pub struct Images {
    store: Arc<ImageStore>,
    origin: Option<Arc<dyn ImageOrigin>>,
    /// One fetch at a time: workloads that start together often have the same image.
    turn: tokio::sync::Mutex<()>,
    containers_dir: PathBuf,
}

impl Images {
    /// Over the machine's store; snapshots live in the containers' directories.
    pub fn new(store: Arc<ImageStore>, containers_dir: PathBuf, origin: Option<Arc<dyn ImageOrigin>>) -> Self {
        Self { store, origin, turn: tokio::sync::Mutex::default(), containers_dir }
    }

    /// What is trusted where something is fetched.
    pub fn web_options(&self) -> &image::StoreOptions {
        self.store.options()
    }

    /// Brings what the name means on the pool's first machine, unless it is here. What cannot be brought, a registry may have.
    pub async fn bring(&self, name: &str) {
        let Some(origin) = &self.origin else { return };
        let _turn = self.turn.lock().await;
        let brought = async {
            let Some(id) = origin.look(name).await? else { return Ok(()) };
            let present = self.find(name).is_some_and(|image| image.id == id);
            if present {
                return Ok(());
            }
            let Some(archive) = origin.fetch(name).await? else { return Ok(()) };
            let loaded = self.store.load(archive, &image::Progress::none()).await;
            loaded.map(drop).map_err(|error| error.chain())
        };
        if let Err(error) = brought.await {
            tracing::warn!(image = name, error, "the pool did not give the image");
        }
    }

    /// The image of a name or id, if it is here.
    pub fn find(&self, reference: &str) -> Option<FoundImage> {
        self.store.get(reference).ok().map(|record| FoundImage {
            id: record.id.to_string(),
            from_registry: !record.digests.is_empty(),
            config: record.config,
        })
    }

    /// Fetches an image.
    pub async fn pull(&self, reference: &str, options: &PullOptions) -> Result<FoundImage> {
        let parsed: Reference = Reference::parse_tagged(reference)?;
        self.store.pull(&parsed, options, &image::Progress::none()).await?;
        self.find(reference).ok_or_else(|| Error::NotFound(format!("{reference} is not here after its pull")))
    }

    /// Makes (when it is new) and mounts the root file system of a container.
    pub async fn mount(&self, container_id: &str, image: &str) -> Result<Prepared> {
        let snapshot = self.prepare(container_id, image).await?;
        self.store.mount(&snapshot).await?;
        Ok(Prepared { rootfs: snapshot.rootfs })
    }

    /// The same for a container that goes with the end of its process, and so with a crash of the machine.
    pub async fn mount_scratch(&self, container_id: &str, image: &str) -> Result<Prepared> {
        let snapshot = self.prepare(container_id, image).await?;
        self.store.mount_scratch(&snapshot).await?;
        Ok(Prepared { rootfs: snapshot.rootfs })
    }

    /// Makes the root file system of a container of Docker's, with what it sees over its image; that of one that has one stays.
    /// An image that comes slowly is waited for until the work is given up.
    pub async fn prepare_marked(&self, container_id: &str, image: &str, given_up: &CancellationToken) -> Result<()> {
        if self.store.snapshot(container_id).is_some() {
            return Ok(());
        }
        // Nothing is made yet that would have to be cleared, and others wait for their turn.
        let brought = given_up.run_until_cancelled(self.bring_missing(image)).await;
        brought.ok_or_else(|| Error::Unavailable(format!("image {image} did not come in time")))?;
        self.store.prepare_marked(container_id, image, &self.containers_dir.join(container_id)).await.map(drop)
    }

    async fn prepare(&self, container_id: &str, image: &str) -> Result<Snapshot> {
        if let Some(snapshot) = self.store.snapshot(container_id) {
            return Ok(snapshot);
        }
        self.prepare_in(container_id, image, &self.containers_dir.join(container_id)).await
    }

    /// A snapshot of an image in a directory; the image is brought when it is not here.
    async fn prepare_in(&self, name: &str, image: &str, directory: &Path) -> Result<Snapshot> {
        self.bring_missing(image).await;
        self.store.prepare(name, image, directory).await
    }

    async fn bring_missing(&self, image: &str) {
        if self.find(image).is_none() {
            self.bring(image).await;
        }
    }

    /// Mounts a further image for a container to read; `number` tells several apart.
    pub async fn mount_beside(&self, container_id: &str, number: usize, image: &str) -> Result<PathBuf> {
        let directory = self.beside(container_id).join(number.to_string());
        let name = format!("{container_id}{BESIDE}{number}");
        let snapshot = self.prepare_in(&name, image, &directory).await?;
        self.store.mount_read_only(&snapshot).await?;
        Ok(snapshot.rootfs)
    }

    /// Where a further image is mounted now for a container.
    pub fn mounted_beside(&self, container_id: &str, number: usize) -> Option<PathBuf> {
        self.store.snapshot(&format!("{container_id}{BESIDE}{number}")).map(|snapshot| snapshot.rootfs)
    }

    /// Takes away all that [`Images::mount_beside`] mounted for a container.
    pub async fn remove_beside(&self, container_id: &str) -> Result<()> {
        if !self.beside(container_id).exists() {
            return Ok(());
        }
        let prefix = format!("{container_id}{BESIDE}");
        for snapshot in self.store.snapshots().into_iter().filter(|one| one.container_id.starts_with(&prefix)) {
            self.store.remove_snapshot(&snapshot.container_id).await?;
        }
        let beside = self.beside(container_id);
        let removed = tokio::task::spawn_blocking(move || crate::directories::remove_with_mounts(&beside)).await?;
        removed.map_err(Error::io("cannot remove the places of mounted images"))
    }

    fn beside(&self, container_id: &str) -> PathBuf {
        self.containers_dir.join(container_id).join("images")
    }

    /// What there is of a container's file system.
    pub fn snapshot(&self, container_id: &str) -> Option<Snapshot> {
        self.store.snapshot(container_id)
    }

    /// Unmounts; the writable layer stays.
    pub async fn unmount(&self, container_id: &str) -> Result<()> {
        match self.store.snapshot(container_id) {
            Some(snapshot) => self.store.unmount(&snapshot).await,
            None => Ok(()),
        }
    }

    /// Mounts an existing snapshot.
    pub async fn mount_existing(&self, snapshot: &Snapshot) -> Result<()> {
        self.store.mount(snapshot).await
    }

    /// Takes the writable layer away.
    pub async fn remove(&self, container_id: &str) -> Result<()> {
        self.store.remove_snapshot(container_id).await
    }

    /// Takes away what no image refers to.
    pub async fn collect_garbage(&self) -> Result<()> {
        self.store.collect_garbage().await.map(drop)
    }

    /// Names and sizes of all images, for the `Node` object.
    pub fn list(&self) -> Vec<(Vec<String>, i64)> {
        let all = self.store.list(&ListFilter::default()).unwrap_or_default();
        let entry = |image: image::ImageSummary| {
            let names = image.digests.into_iter().chain(image.references).collect();
            (names, i64::try_from(image.size_bytes).unwrap_or(i64::MAX))
        };
        all.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// What fits between the two ends of a stream. Units: bytes.
    const BETWEEN: usize = 16;

    /// Has one image, whose archive comes as its other end is written.
    struct Slow(Mutex<Option<DuplexStream>>);

    #[async_trait::async_trait]
    impl ImageOrigin for Slow {
        async fn look(&self, name: &str) -> std::result::Result<Option<String>, String> {
            Ok((name == "slow").then(|| "sha256:other".to_owned()))
        }

        async fn fetch(&self, _name: &str) -> std::result::Result<Option<ImageArchive>, String> {
            Ok(self.0.lock().take().map(|archive| -> ImageArchive { Box::pin(archive) }))
        }
    }

    #[tokio::test]
    async fn who_gives_up_an_image_that_does_not_come_leaves_the_turn_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&directory.path().join("images")).unwrap();
        let (mut written, archive) = tokio::io::duplex(BETWEEN);
        let origin = Slow(Mutex::new(Some(archive)));
        let images = Images::new(store, directory.path().join("containers"), Some(Arc::new(origin)));
        let given_up = CancellationToken::new();
        // More than fits between: it is being read when all is written.
        let stuck = async {
            written.write_all(&[0; 4 * BETWEEN]).await.unwrap();
            given_up.cancel();
        };
        let prepared = images.prepare_marked("c", "slow", &given_up);
        let both = async { tokio::join!(prepared, stuck) };
        let (prepared, ()) = tokio::time::timeout(PATIENCE, both).await.expect("it waits for what does not come");
        assert!(matches!(prepared, Err(Error::Unavailable(_))), "{prepared:?}");
        tokio::time::timeout(PATIENCE, images.bring("next")).await.expect("the turn was kept");
        // What reads ends with its other end.
        drop(written);
    }
}
