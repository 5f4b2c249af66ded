//! Pushing: layers in parallel, those that the registry has left out, then configuration and manifest. A layer that was made
//! here is compressed while it is sent, and its digest told at the end; it is remembered, so that the next push need but ask.
//! A registry that takes no request of unknown length gets it packed before.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt, TryStreamExt};
use http::header::LOCATION;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::layer::gzip::{self, Sums};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::reference::Reference;
use crate::remote::session::{RequestBody, Session, Wanted, Went, empty, failure, full};
use crate::store::blobs::{Blobs, Lease, lock};
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, no_such_image, set_name};
use crate::types::{Credentials, Progress, Pushed};

/// Layers that are sent at once, as Docker does.
const PARALLEL: usize = 5;
/// Blocks of a layer that are compressed at once or wait to be sent.
const BLOCKS_AHEAD: usize = 4;
/// Bytes that are read from a blob at once.
const PIECE: usize = 128 << 10;
/// What layers are sent as.
const OCTETS: &str = "application/octet-stream";
/// What registries say that take no request of unknown length.
const REFUSALS: [StatusCode; 6] = [
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::LENGTH_REQUIRED,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::RANGE_NOT_SATISFIABLE,
    StatusCode::NOT_IMPLEMENTED,
];
/// Blocks that all pushes together compress at once.
static COMPRESSING: LazyLock<Semaphore> = LazyLock::new(one_per_processor);
/// Layers that all pushes together pack at once. Not counted with the blocks: those are being waited for by a registry.
static PACKING: LazyLock<Semaphore> = LazyLock::new(one_per_processor);

fn one_per_processor() -> Semaphore {
    Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))
}

pub(super) async fn push(
    store: &Arc<ImageStore>,
    reference: &Reference,
    credentials: Option<&Credentials>,
    progress: &Progress,
) -> Result<Pushed> {
    let tag = reference.tag.clone().unwrap_or_else(|| crate::reference::DEFAULT_TAG.to_owned());
    let reference = reference.with_tag(&tag);
    let lease = store.blobs.lease();
    let id = store.look(|index| index.names.get(&reference.to_string()).cloned());
    let id = id.ok_or_else(|| {
        Error::NotFound(format!("An image does not exist locally with the tag: {}", reference.familiar_name()))
    })?;
    progress.status("", format!("The push refers to repository [{}]", reference.name())).await;
    let (_, layers) = store.leased_layers(&id.to_string(), &lease)?;
    for layer in &layers {
        progress.status(layer.diff_id.short(), "Preparing").await;
    }
    let session = Session::open(&store.options, &reference, credentials, "pull,push").await?;
    let push = Push { store, session: &session, reference: &reference, progress, busy: Mutex::default() };
    let mut sends: Vec<BoxFuture<'_, Result<(usize, Descriptor)>>> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let sent = push.layer(layer);
        sends.push(Box::pin(async move { Ok((number, sent.await?)) }));
    }
    let mut sent: Vec<_> = futures::stream::iter(sends).buffer_unordered(PARALLEL).try_collect().await?;
    sent.sort_unstable_by_key(|(number, _)| *number);
    let blobs = sent.into_iter().map(|(_, blob)| blob).collect();
    let manifest = manifest_for(store, &id, &layers, blobs, &lease)?;
    let config = &manifest.document.config;
    if !push.exists(&config.digest).await? {
        push.blob(config, &|_| ()).await?;
    }
    let path = format!("/v2/{}/manifests/{tag}", reference.repository);
    let wanted =
        Wanted { content_type: &manifest.media_type, length: Some(manifest.bytes.len() as u64), ..Wanted::default() };
    session.send(&Method::PUT, &path, &wanted, &|| full(manifest.bytes.clone())).await?;
    let digest = Digest::of(&manifest.bytes);
    let name = Reference { tag: None, digest: Some(digest.clone()), ..reference.clone() };
    store.change(|index| {
        set_name(index, &name, &id);
        Ok(())
    })?;
    let size_bytes = manifest.bytes.len() as u64;
    progress.status("", format!("{tag}: digest: {digest} size: {size_bytes}")).await;
    Ok(Pushed { tag, digest, size_bytes })
}

struct Prepared {
    bytes: Bytes,
    media_type: String,
    document: Manifest,
}

/// The manifest as it came, when its layers are compressed as it says; otherwise one of the layers as they were sent.
fn manifest_for(
    store: &ImageStore,
    id: &Digest,
    layers: &[EntryLayer],
    sent: Vec<Descriptor>,
    lease: &Lease,
) -> Result<Prepared> {
    let held = store.look(|index| index.images.get(id).map(|entry| entry.manifest.clone()));
    let held = held.ok_or_else(|| no_such_image(id.hex()))?;
    lease.keep(&held.digest);
    if !layers.iter().any(is_plain) {
        let bytes = store.blobs.document(&held.digest)?;
        let document = serde_json::from_slice(&bytes).map_err(|error| Error::Invalid(format!("manifest: {error}")))?;
        return Ok(Prepared { bytes: bytes.into(), media_type: held.media_type, document });
    }
    let size = store.blobs.size(id).ok_or_else(|| no_such_image(id.hex()))?;
    let document = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, id.clone(), size),
        layers: sent,
        subject: None,
        annotations: None,
    };
    let bytes = serde_json::to_vec(&document).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Prepared { bytes: bytes.into(), media_type: OCI_MANIFEST.to_owned(), document })
}

/// Whether the layer was made here, and is sent compressed.
fn is_plain(layer: &EntryLayer) -> bool {
    layer.blob.media_type == OCI_LAYER
}

/// A push to one repository.
struct Push<'a> {
    store: &'a Arc<ImageStore>,
    session: &'a Session,
    reference: &'a Reference,
    progress: &'a Progress,
    /// One lock per layer, which may stand in the image twice: it is sent once. Not the store's own, which others would wait
    /// for as long as this registry likes.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Push<'_> {
    /// Sends a layer unless the registry has it. Returns what it is there.
    async fn layer(&self, layer: &EntryLayer) -> Result<Descriptor> {
        let busy = lock(&self.busy).entry(layer.diff_id.clone()).or_default().clone();
        let _alone = busy.lock().await;
        let known = if is_plain(layer) {
            self.store.look(|index| index.compressed.get(&layer.diff_id).cloned())
        } else {
            Some(layer.blob.clone())
        };
        let short = layer.diff_id.short();
        if let Some(known) = known
            && self.exists(&known.digest).await?
        {
            self.progress.status(short, "Layer already exists").await;
            return Ok(known);
        }
        let sent = if is_plain(layer) {
            self.compressed(layer).await?
        } else {
            self.shown(short, &layer.blob).await?;
            layer.blob.clone()
        };
        self.progress.status(short, "Pushed").await;
        Ok(sent)
    }

    async fn exists(&self, digest: &Digest) -> Result<bool> {
        let path = format!("/v2/{}/blobs/{digest}", self.reference.repository);
        let response = self.session.try_request(&Method::HEAD, &path, &Wanted::default()).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(failure(response).await),
        }
    }

    /// Begins an upload; where it is to go.
    async fn begin(&self) -> Result<String> {
        let start = format!("/v2/{}/blobs/uploads/", self.reference.repository);
        let wanted = Wanted { length: Some(0), ..Wanted::default() };
        let response = self.session.send(&Method::POST, &start, &wanted, &empty).await?;
        let place = self.place(&response)?;
        place.ok_or_else(|| Error::Unavailable("the registry gives no place for an upload".to_owned()))
    }

    /// Where an answer says that an upload goes on, if it does.
    fn place(&self, response: &Response<Incoming>) -> Result<Option<String>> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(location) = location else { return Ok(None) };
        let went = response.extensions().get::<Went>().map(|went| &went.0);
        Ok(Some(self.session.absolute(location, went)?.to_string()))
    }

    /// Sends a layer compressed, and remembers what it is then.
    async fn compressed(&self, layer: &EntryLayer) -> Result<Descriptor> {
        let sent = match self.streamed(layer).await? {
            Some(sent) => sent,
            None => self.packed(layer).await?,
        };
        if self.store.look(|index| index.compressed.get(&layer.diff_id) != Some(&sent)) {
            self.store.change(|index| {
                index.compressed.insert(layer.diff_id.clone(), sent.clone());
                Ok(())
            })?;
        }
        Ok(sent)
    }

    /// Compresses a layer as it is sent, in one request whose length nobody knows before, as Docker does. `None` when the
    /// registry does not take such a request.
    async fn streamed(&self, layer: &EntryLayer) -> Result<Option<Descriptor>> {
        let begun = self.begin().await?;
        let file = Arc::new(self.store.blobs.file(&layer.blob.digest)?);
        let size = file.metadata().map_err(Error::io(format!("cannot read blob {}", layer.blob.digest)))?.len();
        // Each attempt has sums of its own: an earlier one may still be read from.
        let last = Mutex::new(None);
        let body = || -> RequestBody {
            let sums = Arc::new(Mutex::new(Sums::new(layer.diff_id.algorithm())));
            *lock(&last) = Some(sums.clone());
            let (shown, id) = (self.progress.clone(), layer.diff_id.short().to_owned());
            let pieces = compressing(file.clone(), size, sums, move |done| shown.figure(&id, "Pushing", done, size));
            StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync()
        };
        let wanted = Wanted { content_type: OCTETS, ..Wanted::default() };
        let response = self.session.try_send(&Method::PATCH, &begun, &wanted, &body).await?;
        if REFUSALS.contains(&response.status()) {
            tracing::debug!(status = %response.status(), "the registry wants the length of a layer before");
            self.give_up(&begun).await;
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(failure(response).await);
        }
        let place = self.place(&response)?.unwrap_or(begun);
        let sums = lock(&last).as_ref().and_then(|sums| lock(sums).finish());
        let Some((plain, digest, packed_bytes)) = sums else {
            return Err(Error::Unavailable("the registry answers before it has all of a layer".to_owned()));
        };
        if plain != layer.diff_id {
            // What is damaged here must not become a blob there.
            self.give_up(&place).await;
            return Err(damaged(layer));
        }
        let wanted = Wanted { content_type: OCTETS, length: Some(0), ..Wanted::default() };
        self.session.send(&Method::PUT, &finished(&place, &digest), &wanted, &empty).await?;
        Ok(Some(Descriptor::new(OCI_LAYER_GZIP, digest, packed_bytes)))
    }

    /// Ends an upload that nothing comes of. If that fails, what is left behind is the registry's own to tidy.
    async fn give_up(&self, place: &str) {
        let _ = self.session.send(&Method::DELETE, place, &Wanted::default(), &empty).await;
    }

    /// Compresses a layer into a blob here, and sends that, whose length is known. Nothing refers to the blob: the next
    /// collection of garbage takes it away.
    async fn packed(&self, layer: &EntryLayer) -> Result<Descriptor> {
        let permit = PACKING.acquire().await.map_err(|error| Error::Internal(error.to_string()))?;
        let (store, packs) = (self.store.clone(), layer.clone());
        let work = move || {
            let _permit = permit;
            let lease = store.blobs.lease();
            pack(&store.blobs, &packs, &lease).map(|packed| (packed, lease))
        };
        let (packed, lease) = tokio::task::spawn_blocking(work).await??;
        // Another machine may have sent it.
        if !self.exists(&packed.digest).await? {
            self.shown(layer.diff_id.short(), &packed).await?;
        }
        drop(lease);
        Ok(packed)
    }

    /// Sends a blob as it is, and shows that.
    async fn shown(&self, short: &str, blob: &Descriptor) -> Result<()> {
        let (shown, total, id) = (self.progress.clone(), blob.size, short.to_owned());
        self.blob(blob, &move |sent| shown.figure(&id, "Pushing", sent, total)).await
    }

    /// Sends a blob as it is.
    async fn blob(&self, blob: &Descriptor, sent: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        let place = finished(&self.begin().await?, &blob.digest);
        let path = self.store.blobs.path(&blob.digest);
        // Opened once, so that the body can be made without failing.
        let file = std::fs::File::open(&path).map_err(Error::io(format!("cannot read blob {}", blob.digest)))?;
        let wanted = Wanted { content_type: OCTETS, length: Some(blob.size), ..Wanted::default() };
        let body = || -> RequestBody {
            use std::io::Seek;
            let file = file.try_clone().and_then(|mut file| file.rewind().map(|()| file));
            match file {
                Ok(file) => {
                    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE);
                    StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync()
                }
                Err(error) => StreamBody::new(futures::stream::iter([Err(error)])).boxed_unsync(),
            }
        };
        sent(0);
        self.session.send(&Method::PUT, &place, &wanted, &body).await?;
        sent(blob.size);
        Ok(())
    }
}

fn damaged(layer: &EntryLayer) -> Error {
    Error::Corrupt(format!("layer {} is damaged on the disk", layer.diff_id))
}

/// Compresses a layer into a blob, the same bytes as are sent otherwise.
fn pack(blobs: &Blobs, layer: &EntryLayer, lease: &Lease) -> Result<Descriptor> {
    let reads = || format!("cannot read blob {}", layer.blob.digest);
    let writes = || format!("cannot pack layer {}", layer.diff_id);
    let file = blobs.file(&layer.blob.digest)?;
    let size = file.metadata().map_err(Error::io(reads()))?.len();
    let mut sums = Sums::new(layer.diff_id.algorithm());
    let mut ingest = blobs.begin(Algorithm::Sha256)?;
    ingest.write_all(&sums.head()).map_err(Error::io(writes()))?;
    for number in 0..gzip::blocks(size) {
        let block = gzip::block(&file, size, number).map_err(Error::io(reads()))?;
        ingest.write_all(&sums.add(block)).map_err(Error::io(writes()))?;
    }
    ingest.write_all(&sums.tail()).map_err(Error::io(writes()))?;
    match sums.finish() {
        Some((plain, digest, _)) if plain == layer.diff_id => {
            let (digest, size) = ingest.commit(Some(&digest), lease)?;
            Ok(Descriptor::new(OCI_LAYER_GZIP, digest, size))
        }
        _ => Err(damaged(layer)),
    }
}

/// Where an upload ends that makes this blob.
fn finished(place: &str, digest: &Digest) -> String {
    let separator = if place.contains('?') { '&' } else { '?' };
    format!("{place}{separator}digest={digest}")
}

/// A file as a stream of gzip, some blocks of which are compressed at once. What passes is added up in `sums`; `shown` is told
/// how many plain bytes have.
fn compressing(
    file: Arc<std::fs::File>,
    size: u64,
    sums: Arc<Mutex<Sums>>,
    shown: impl Fn(u64) + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let blocks = futures::stream::iter(0..gzip::blocks(size)).map(move |number| {
        let file = file.clone();
        // A task of its own, which goes on when nobody asks this stream: it must not keep what others wait for.
        let compressed = tokio::spawn(async move {
            let permit = COMPRESSING.acquire().await.map_err(std::io::Error::other)?;
            let work = move || {
                let _permit = permit;
                gzip::block(&file, size, number)
            };
            tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
        });
        async move { compressed.await.map_err(std::io::Error::other)? }
    });
    let (before, after) = (sums.clone(), sums.clone());
    let head = futures::stream::once(async move { Ok(lock(&before).head().into()) });
    let blocks = blocks.buffered(BLOCKS_AHEAD).map_ok(move |block| {
        let mut sums = lock(&sums);
        let bytes = sums.add(block);
        shown(sums.plain_bytes());
        bytes.into()
    });
    let tail = futures::stream::once(async move { Ok(lock(&after).tail().into()) });
    head.chain(blocks).chain(tail)
}
