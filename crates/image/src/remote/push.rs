//! Pushing: layers in parallel, those that the registry has left out, then configuration and manifest.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use http::header::LOCATION;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::reference::Reference;
use crate::remote::session::{RequestBody, Session, Wanted, empty, failure, full};
use crate::store::blobs::Lease;
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, no_such_image, set_name};
use crate::types::{Credentials, Progress, Pushed};

/// Layers that are sent at once, as Docker does.
const PARALLEL: usize = 5;
/// Bytes that are read from a blob at once.
const PIECE: usize = 128 << 10;

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
    let manifest = manifest_for(store, &id, &layers, &lease).await?;
    let mut sends: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
    for (layer, blob) in layers.iter().zip(&manifest.document.layers) {
        sends.push(Box::pin(send_layer(store, &session, &reference, layer, blob, progress)));
    }
    futures::stream::iter(sends).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    let config = &manifest.document.config;
    if !exists(&session, &reference, &config.digest).await? {
        upload(store, &session, &reference, config, &|_| ()).await?;
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

/// The manifest as it came, when its layers are compressed as it says; otherwise one of compressed layers.
async fn manifest_for(store: &Arc<ImageStore>, id: &Digest, layers: &[EntryLayer], lease: &Lease) -> Result<Prepared> {
    let held = store.look(|index| index.images.get(id).map(|entry| entry.manifest.clone()));
    let held = held.ok_or_else(|| no_such_image(id.hex()))?;
    lease.keep(&held.digest);
    let plain = |layer: &EntryLayer| layer.blob.media_type == OCI_LAYER;
    if !layers.iter().any(plain) {
        let bytes = store.blobs.document(&held.digest)?;
        let document = serde_json::from_slice(&bytes).map_err(|error| Error::Invalid(format!("manifest: {error}")))?;
        return Ok(Prepared { bytes: bytes.into(), media_type: held.media_type, document });
    }
    let mut blobs = Vec::new();
    for layer in layers {
        blobs.push(if plain(layer) { compressed(store, &layer.diff_id, lease).await? } else { layer.blob.clone() });
    }
    let size = store.blobs.size(id).ok_or_else(|| no_such_image(id.hex()))?;
    let document = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, id.clone(), size),
        layers: blobs,
        subject: None,
        annotations: None,
    };
    let bytes = serde_json::to_vec(&document).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Prepared { bytes: bytes.into(), media_type: OCI_MANIFEST.to_owned(), document })
}

/// The layer packed with gzip, which is remembered: pushing again gives the same digest.
async fn compressed(store: &Arc<ImageStore>, diff_id: &Digest, lease: &Lease) -> Result<Descriptor> {
    let busy = store.busy(diff_id);
    let _alone = busy.lock().await;
    if let Some(held) = store.look(|index| index.compressed.get(diff_id).cloned()) {
        lease.keep(&held.digest);
        if store.blobs.has(&held.digest) {
            return Ok(held);
        }
    }
    let (worker, source) = (store.clone(), diff_id.clone());
    let kept = store.blobs.lease();
    let descriptor = tokio::task::spawn_blocking(move || {
        let mut file = worker.blobs.file(&source)?;
        let ingest = worker.blobs.begin(Algorithm::Sha256)?;
        let mut out = flate2::write::GzEncoder::new(ingest, flate2::Compression::fast());
        std::io::copy(&mut file, &mut out).map_err(Error::io("cannot compress a layer"))?;
        let mut ingest = out.finish().map_err(Error::io("cannot compress a layer"))?;
        ingest.flush().map_err(Error::io("cannot compress a layer"))?;
        let (digest, size) = ingest.commit(None, &kept)?;
        let descriptor = Descriptor::new(OCI_LAYER_GZIP, digest, size);
        worker.change(|index| {
            index.compressed.insert(source, descriptor.clone());
            Ok(())
        })?;
        Ok::<_, Error>(descriptor)
    })
    .await??;
    lease.keep(&descriptor.digest);
    Ok(descriptor)
}

async fn send_layer(
    store: &Arc<ImageStore>,
    session: &Session,
    reference: &Reference,
    layer: &EntryLayer,
    blob: &Descriptor,
    progress: &Progress,
) -> Result<()> {
    let short = layer.diff_id.short();
    // The same blob may stand there twice: it is sent once.
    let busy = store.busy(&blob.digest);
    let _alone = busy.lock().await;
    if exists(session, reference, &blob.digest).await? {
        progress.status(short, "Layer already exists").await;
        return Ok(());
    }
    let (shown, total, id) = (progress.clone(), blob.size, short.to_owned());
    upload(store, session, reference, blob, &move |sent| shown.figure(&id, "Pushing", sent, total)).await?;
    progress.status(short, "Pushed").await;
    Ok(())
}

async fn exists(session: &Session, reference: &Reference, digest: &Digest) -> Result<bool> {
    let path = format!("/v2/{}/blobs/{digest}", reference.repository);
    let response = session.try_request(&Method::HEAD, &path, &Wanted::default()).await?;
    match response.status() {
        status if status.is_success() => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(failure(response).await),
    }
}

async fn upload(
    store: &ImageStore,
    session: &Session,
    reference: &Reference,
    blob: &Descriptor,
    sent: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let start = format!("/v2/{}/blobs/uploads/", reference.repository);
    let begin = Wanted { length: Some(0), ..Wanted::default() };
    let response = session.send(&Method::POST, &start, &begin, &empty).await?;
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location =
        location.ok_or_else(|| Error::Unavailable("the registry gives no place for an upload".to_owned()))?;
    let location = session.absolute(location, None)?.to_string();
    let separator = if location.contains('?') { '&' } else { '?' };
    let place = format!("{location}{separator}digest={}", blob.digest);
    let path = store.blobs.path(&blob.digest);
    // Opened once, so that the body can be made without failing.
    let file = std::fs::File::open(&path).map_err(Error::io(format!("cannot read blob {}", blob.digest)))?;
    let wanted = Wanted { content_type: "application/octet-stream", length: Some(blob.size), ..Wanted::default() };
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
    session.send(&Method::PUT, &place, &wanted, &body).await?;
    sent(blob.size);
    Ok(())
}
