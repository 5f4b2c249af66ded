//! Pulling: manifest, configuration, layers in parallel, each fetched once and gone on with where it broke off.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::archive::pair;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::{self, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::remote::session::{Pieces, Session, Wanted, read_all};
use crate::store::blobs::{Lease, MAX_DOCUMENT};
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, NewImage};
use crate::types::{Progress, PullOptions, Pulled};

/// Layers that are fetched at once, as Docker does.
const PARALLEL: usize = 3;
/// Layers that are fetched or unpacked at once: as many of each.
const AT_WORK: usize = 2 * PARALLEL;
/// How often a broken download is gone on with.
const ATTEMPTS: u32 = 5;
/// First pause between two attempts; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Pieces of a blob that wait to be written. Units: pieces of what the connection reads at once, 400 KiB at most.
const PIECES_WAITING: usize = 8;
/// How often somebody who watches is told how much there is, as dockerd does.
const FIGURES: Duration = Duration::from_millis(100);
/// Documents that we can read.
pub(super) const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

pub(super) async fn pull(
    store: &Arc<ImageStore>,
    reference: &Reference,
    options: &PullOptions,
    progress: &Progress,
) -> Result<Pulled> {
    // A mirror that fails in any way is passed by: what it lacks, the registry itself may have.
    for mirror in mirrors(store, reference) {
        let tried = match Session::mirror(&store.options, mirror, reference).await {
            Ok(session) => pull_from(store, &session, reference, options, progress).await,
            Err(error) => Err(error),
        };
        match tried {
            Ok(pulled) => return Ok(pulled),
            Err(error) => tracing::warn!(mirror, %error, image = %reference, "the mirror is passed by"),
        }
    }
    let session = Session::open(&store.options, reference, options.credentials.as_ref(), "pull").await?;
    pull_from(store, &session, reference, options, progress).await
}

/// The mirrors to ask for an image; only the default registry has them.
fn mirrors<'a>(store: &'a ImageStore, reference: &Reference) -> &'a [String] {
    if reference.registry == DEFAULT_REGISTRY { &store.options.mirrors } else { &[] }
}

async fn pull_from(
    store: &Arc<ImageStore>,
    session: &Session,
    reference: &Reference,
    options: &PullOptions,
    progress: &Progress,
) -> Result<Pulled> {
    let lease = store.blobs.lease();
    let wanted = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => crate::reference::DEFAULT_TAG.to_owned(),
    };
    let reference = Reference { tag: reference.tag.clone().or_else(|| tag_for(reference)), ..reference.clone() };
    progress.status(&wanted, format!("Pulling from {}", reference.repository)).await;
    let top = fetch_manifest(store, session, &reference, &wanted, &lease).await?;
    let (descriptor, image) = choose(store, session, &reference, &top, options, &lease).await?;
    if image.config.size > MAX_DOCUMENT {
        return Err(Error::Hostile("the image's configuration is too large".to_owned()));
    }
    let fetch = Fetch { store, session, reference: &reference, progress, lease: &lease };
    let unseen = Fetch { progress: &Progress::none(), ..fetch };
    if let Some(config) = unseen.blob(&image.config).await? {
        config.keep(store).await?;
    }
    let config = store.blobs.document(&image.config.digest)?;
    let layers = pair(&config, image.layers.clone())?;
    let before = store.look(|index| index.names.get(&named(&reference)).cloned());
    fetch.layers(&layers).await?;
    let by_digest = Reference { tag: None, digest: Some(top.digest.clone()), ..reference.clone() };
    let by_tag = reference.digest.is_none().then(|| reference.clone());
    let names: Vec<Reference> = by_tag.into_iter().chain([by_digest]).collect();
    let new = NewImage { config: &config, layers, manifest: Some(descriptor), parent: None, cache_key: None };
    let id = store.enter(new, &names, &lease)?;
    let up_to_date = before.as_ref() == Some(&id);
    progress.status("", format!("Digest: {}", top.digest)).await;
    let verb = if up_to_date { "Image is up to date" } else { "Downloaded newer image" };
    progress.status("", format!("Status: {verb} for {}", reference.familiar())).await;
    Ok(Pulled { id, digest: top.digest, up_to_date })
}

fn tag_for(reference: &Reference) -> Option<String> {
    reference.digest.is_none().then(|| crate::reference::DEFAULT_TAG.to_owned())
}

fn named(reference: &Reference) -> String {
    Reference { digest: None, ..reference.clone() }.to_string()
}

/// Fetches a manifest or index, checks its digest, and stores it.
async fn fetch_manifest(
    store: &ImageStore,
    session: &Session,
    reference: &Reference,
    wanted: &str,
    lease: &Lease,
) -> Result<Descriptor> {
    let path = format!("/v2/{}/manifests/{wanted}", reference.repository);
    let response = session.request(Method::GET, &path, &Wanted { accept: &ACCEPT, ..Wanted::default() }).await;
    let response = response.map_err(|error| match error {
        Error::NotFound(_) => {
            Error::NotFound(format!("manifest for {} not found: manifest unknown", reference.familiar()))
        }
        other => other,
    })?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (said, media_type) = (header("docker-content-digest"), header("content-type"));
    let bytes = read_all(response.into_body(), usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX)).await?;
    // The digest that was asked for counts; otherwise what the registry itself says.
    let claimed = wanted.parse::<Digest>().ok().or_else(|| said.and_then(|text| text.parse().ok()));
    if let Some(claimed) = &claimed {
        let mut hasher = Hasher::new(claimed.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != *claimed {
            return Err(Error::Corrupt(format!("manifest verification failed for digest {claimed}")));
        }
    }
    let document = manifest::parse(&bytes, media_type.as_deref())?;
    let kind = match &document {
        Document::Manifest(found) if !found.media_type.is_empty() => found.media_type.clone(),
        Document::Index(found) if !found.media_type.is_empty() => found.media_type.clone(),
        Document::Manifest(_) => OCI_MANIFEST.to_owned(),
        Document::Index(_) => OCI_INDEX.to_owned(),
    };
    Ok(Descriptor::new(&kind, store.blobs.put(&bytes, lease)?, bytes.len() as u64))
}

async fn choose(
    store: &ImageStore,
    session: &Session,
    reference: &Reference,
    top: &Descriptor,
    options: &PullOptions,
    lease: &Lease,
) -> Result<(Descriptor, Manifest)> {
    let platform = options.platform.clone().unwrap_or_default();
    let parse = |digest: &Digest, kind: &str| manifest::parse(&store.blobs.document(digest)?, Some(kind));
    match parse(&top.digest, &top.media_type)? {
        Document::Manifest(found) => Ok((top.clone(), found)),
        Document::Index(index) => {
            let chosen = manifest::choose(&index, &platform).ok_or_else(|| {
                let (os, architecture) = (&platform.os, &platform.architecture);
                Error::NotFound(format!("no matching manifest for {os}/{architecture} in the manifest list entries"))
            })?;
            let fetched = fetch_manifest(store, session, reference, &chosen.digest.to_string(), lease).await?;
            match parse(&fetched.digest, &fetched.media_type)? {
                Document::Manifest(found) => Ok((fetched, found)),
                Document::Index(_) => Err(Error::Hostile("an index within an index".to_owned())),
            }
        }
    }
}

/// What fetching blobs takes.
#[derive(Clone, Copy)]
struct Fetch<'a> {
    store: &'a Arc<ImageStore>,
    session: &'a Session,
    reference: &'a Reference,
    progress: &'a Progress,
    lease: &'a Lease,
}

/// A blob that has come whole, with the right digest. It is in its place once it is kept.
struct Fetched {
    path: PathBuf,
    digest: Digest,
    /// At its beginning.
    file: File,
    alone: Alone,
}

impl Fetched {
    /// Puts the blob onto the disk and into its place; what is left is its content.
    async fn keep(self, store: &Arc<ImageStore>) -> Result<()> {
        let (kept, worker) = (store.blobs.lease(), store.clone());
        tokio::task::spawn_blocking(move || {
            let _alone = self.alone;
            worker.blobs.adopt(&self.path, &self.digest, &kept)
        })
        .await?
    }
}

impl Fetch<'_> {
    /// Fetches and unpacks layers, some at once: while one waits for the registry, another is unpacked.
    async fn layers(&self, layers: &[EntryLayer]) -> Result<()> {
        let mut wanted: Vec<&EntryLayer> = Vec::new();
        for layer in layers {
            // A layer may stand there twice (empty ones do).
            if wanted.iter().any(|other| other.blob.digest == layer.blob.digest && other.diff_id == layer.diff_id) {
                continue;
            }
            wanted.push(layer);
            self.lease.keep(&layer.blob.digest);
            let text = if self.store.blobs.has(&layer.blob.digest) { "Already exists" } else { "Pulling fs layer" };
            self.progress.status(layer.blob.digest.short(), text).await;
        }
        let turns = [(); 2].map(|()| Semaphore::new(PARALLEL));
        let mut work: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for layer in wanted {
            work.push(Box::pin(self.layer(layer, &turns)));
        }
        let mut running = futures::stream::iter(work).buffer_unordered(AT_WORK);
        while let Some(result) = running.next().await {
            result?;
        }
        Ok(())
    }

    async fn layer(&self, layer: &EntryLayer, [fetching, unpacking]: &[Semaphore; 2]) -> Result<()> {
        let turn = fetching.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
        let fetched = self.blob(&layer.blob).await?;
        drop(turn);
        let open = |fetched: &Fetched| fetched.file.try_clone();
        let file = fetched.as_ref().map(open).transpose().map_err(Error::io("cannot open a layer"))?;
        let keep = async {
            match fetched {
                Some(fetched) => fetched.keep(self.store).await,
                None => Ok(()),
            }
        };
        let id = layer.blob.digest.short();
        let unpack = async {
            if self.store.unpacked(&layer.diff_id).is_some() {
                return Ok(false);
            }
            let _turn = unpacking.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
            self.progress.status(id, "Extracting").await;
            self.store.ensure_unpacked_from(&layer.diff_id, &layer.blob, file).await?;
            Ok(true)
        };
        // While it is unpacked it comes to the disk. If that ends early, a layer without a blob is none of an image's.
        let ((), unpacked) = tokio::try_join!(keep, unpack)?;
        if unpacked {
            self.progress.status(id, "Pull complete").await;
        }
        Ok(())
    }

    /// Fetches a blob unless it is here; one at a time for each blob, whoever asks.
    async fn blob(&self, wanted: &Descriptor) -> Result<Option<Fetched>> {
        let store = self.store;
        self.lease.keep(&wanted.digest);
        let alone = Arc::new(store.busy(&wanted.digest).lock_owned().await);
        if store.blobs.has(&wanted.digest) {
            return Ok(None);
        }
        if wanted.size > store.options.limits.total_bytes {
            return Err(Error::Hostile(format!("layer {} claims {} bytes", wanted.digest, wanted.size)));
        }
        let (mut attempt, mut pause) = (1, PAUSE);
        loop {
            match self.download(wanted, &alone).await {
                Err(Error::Unavailable(why)) if attempt < ATTEMPTS => {
                    tracing::debug!(digest = %wanted.digest, attempt, why, "a download broke off");
                    self.progress.status(wanted.digest.short(), "Retrying").await;
                    tokio::time::sleep(pause).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
                other => return other.map(Some),
            }
        }
    }

    async fn download(&self, wanted: &Descriptor, alone: &Alone) -> Result<Fetched> {
        let path = self.store.blobs.partial(&wanted.digest);
        let short = wanted.digest.short();
        let (begun, claimed) = (path.clone(), wanted.clone());
        let mut partial = tokio::task::spawn_blocking(move || Partial::open(begun, &claimed)).await??;
        if partial.size < wanted.size || wanted.size == 0 {
            let blob = format!("/v2/{}/blobs/{}", self.reference.repository, wanted.digest);
            let from = Wanted { from: partial.size, ..Wanted::default() };
            let response = self.session.request(Method::GET, &blob, &from).await?;
            if partial.size > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                // It starts from the beginning, so do we.
                partial.start_over(wanted)?;
            }
            partial = receive(response.into_body(), partial, wanted, self.progress, alone.clone()).await?;
            if partial.size < wanted.size {
                let came = partial.size;
                return Err(Error::Unavailable(format!("blob {} broke off after {came} bytes", wanted.digest)));
            }
        }
        self.progress.status(short, "Verifying Checksum").await;
        let mut file = partial.file;
        if partial.hasher.finish() != wanted.digest {
            drop(std::fs::remove_file(&path));
            return Err(Error::Corrupt(format!("filesystem layer verification failed for digest {}", wanted.digest)));
        }
        file.rewind().map_err(Error::io(format!("cannot read {}", path.display())))?;
        self.progress.status(short, "Download complete").await;
        Ok(Fetched { path, digest: wanted.digest.clone(), file, alone: alone.clone() })
    }
}

/// That nobody else fetches the same blob. It goes along with what writes: that may outlive whoever asked for the blob.
type Alone = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// Writes and hashes what comes on a thread of its own, so that several layers do not wait for each other's.
async fn receive(
    body: Incoming,
    partial: Partial,
    wanted: &Descriptor,
    progress: &Progress,
    alone: Alone,
) -> Result<Partial> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(PIECES_WAITING);
    let mut size = partial.size;
    let writer = tokio::task::spawn_blocking(move || {
        let (_alone, mut partial) = (alone, partial);
        while let Some(piece) = receiver.blocking_recv() {
            partial.add(&piece)?;
        }
        Ok::<_, Error>(partial)
    });
    let mut pieces = Pieces::new(body);
    let mut told: Option<Instant> = None;
    let received = async {
        while let Some(piece) = pieces.next().await? {
            size += piece.len() as u64;
            if size > wanted.size {
                return Err(Error::Corrupt(format!("blob {} is longer than its manifest says", wanted.digest)));
            }
            if sender.send(piece).await.is_err() {
                break; // The writer says why.
            }
            if size == wanted.size || told.is_none_or(|told| told.elapsed() >= FIGURES) {
                progress.figure(wanted.digest.short(), "Downloading", size, wanted.size);
                told = Some(Instant::now());
            }
        }
        Ok(())
    }
    .await;
    drop(sender);
    let written = writer.await?;
    if let Err(error @ Error::Corrupt(_)) = received {
        drop(written.map(|partial| std::fs::remove_file(partial.path)));
        return Err(error);
    }
    received.and(written)
}

/// A blob of which there is a beginning.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Partial {
    /// What an earlier attempt left counts, up to the size that is wanted.
    fn open(path: PathBuf, wanted: &Descriptor) -> Result<Partial> {
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(Error::io(format!("cannot write {}", path.display())))?;
        let hasher = Hasher::new(wanted.digest.algorithm());
        let mut partial = Partial { path, file, hasher, size: 0 };
        let mut buffer = vec![0; 64 << 10];
        loop {
            match partial.file.read(&mut buffer).map_err(Error::io("cannot read a partial download"))? {
                0 => break,
                count => {
                    partial.hasher.update(&buffer[..count]);
                    partial.size += count as u64;
                }
            }
        }
        if partial.size > wanted.size {
            partial.start_over(wanted)?;
        }
        Ok(partial)
    }

    fn start_over(&mut self, wanted: &Descriptor) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(Error::io(format!("cannot write {}", self.path.display())))?;
        (self.hasher, self.size) = (Hasher::new(wanted.digest.algorithm()), 0);
        Ok(())
    }

    fn add(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(Error::io(format!("cannot write {}", self.path.display())))?;
        self.hasher.update(piece);
        self.size += piece.len() as u64;
        Ok(())
    }
}
