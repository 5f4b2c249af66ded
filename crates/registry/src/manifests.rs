//! Manifests: by tag or digest. One that is an image of a container becomes an image of the store at once.

use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::digest::{Algorithm, Hasher};
use image::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, OCI_INDEX, OCI_MANIFEST, choose, parse};
use image::store::StoredManifest;
use image::store::blobs::{Lease, MAX_DOCUMENT};
use image::{Digest, Platform};

use crate::error::{Code, Failure};
use crate::path::Reference;
use crate::view::Registry;

fn unknown() -> Failure {
    Failure::new(Code::ManifestUnknown, "manifest unknown")
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(Code::ManifestInvalid, text)
}

pub(crate) fn read(
    registry: &Registry,
    name: &str,
    reference: &Reference,
    request: &Request,
) -> Result<Response, Failure> {
    let digest = match reference {
        Reference::Digest(digest) => digest.clone(),
        Reference::Tag(tag) => registry.tags(name)?.remove(tag).ok_or_else(unknown)?,
    };
    let manifest = registry.manifest(name, &digest)?.ok_or_else(unknown)?;
    let bytes = registry.images.blobs().document(&digest)?;
    let length = bytes.len();
    let body = if request.method() == Method::HEAD { Body::empty() } else { Body::from(bytes) };
    Response::builder()
        .header(header::CONTENT_TYPE, manifest.media_type)
        .header(header::CONTENT_LENGTH, length)
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string())
        .body(body)
        .map_err(|_| Failure::new(Code::Unknown, "unknown error"))
}

pub(crate) async fn write(
    registry: Arc<Registry>,
    name: String,
    reference: Reference,
    request: Request,
) -> Result<Response, Failure> {
    let names = match &reference {
        Reference::Tag(tag) => registry.references(&name, tag, &request),
        Reference::Digest(_) => Vec::new(),
    };
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|text| text.to_str().ok());
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
    let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(request.into_body(), limit).await.map_err(|_| {
        let text = format!("the manifest is larger than {MAX_DOCUMENT} bytes, or ended early");
        Failure::with_status(StatusCode::PAYLOAD_TOO_LARGE, Code::ManifestInvalid, text)
    })?;
    tokio::task::spawn_blocking(move || store(&registry, &name, &reference, &names, &bytes, content_type.as_deref()))
        .await?
}

fn store(
    registry: &Registry,
    name: &str,
    reference: &Reference,
    names: &[image::Reference],
    bytes: &[u8],
    content_type: Option<&str>,
) -> Result<Response, Failure> {
    let algorithm = match reference {
        Reference::Digest(digest) => digest.algorithm(),
        Reference::Tag(_) => Algorithm::Sha256,
    };
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    let digest = hasher.finish();
    if matches!(reference, Reference::Digest(given) if *given != digest) {
        return Err(Failure::new(Code::DigestInvalid, "provided digest did not match uploaded content"));
    }
    let (document, media_type) = understand(bytes, content_type)?;
    let mut stored = describe(&document, Descriptor::new(&media_type, digest.clone(), bytes.len() as u64));
    let lease = registry.images.blobs().lease();
    lease.keep(&digest);
    check_blobs(registry, name, &document, &lease)?;
    let mut ingest = registry.images.blobs().begin(algorithm)?;
    ingest.write_all(bytes).map_err(image::Error::io("cannot write a blob"))?;
    ingest.commit(Some(&digest), &lease)?;
    let subject = stored.subject.clone();
    // An index shows what it is made of by its children, which are manifests of this repository: those that only an
    // image of the store had are taken over.
    let adopted = adopted_children(registry, name, &document)?;
    registry.repositories().change(name, |repository| {
        for (child, manifest) in adopted {
            repository.manifests.entry(child).or_insert(manifest);
        }
        stored.needs.dedup();
        repository.manifests.insert(digest.clone(), stored);
        if let Reference::Tag(tag) = reference {
            repository.tags.insert(tag.clone(), digest.clone());
        }
        Ok(())
    })?;
    if let Reference::Tag(tag) = reference {
        let own = Descriptor::new(&media_type, digest.clone(), bytes.len() as u64);
        enter_image(registry, name, tag, &document, own, names, &lease)?;
    }
    let mut response = StatusCode::CREATED.into_response();
    let mut set = |key: &'static str, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(key, value);
        }
    };
    set("location", format!("/v2/{name}/manifests/{digest}"));
    set("docker-content-digest", digest.to_string());
    if let Some(subject) = subject {
        set("oci-subject", subject.to_string());
    }
    Ok(response)
}

/// The document with its media type, which header and document must agree on.
fn understand(bytes: &[u8], content_type: Option<&str>) -> Result<(Document, String), Failure> {
    let document = parse(bytes, content_type)?;
    let (own, plain, types) = match &document {
        Document::Manifest(manifest) => (&manifest.media_type, OCI_MANIFEST, [OCI_MANIFEST, DOCKER_MANIFEST]),
        Document::Index(index) => (&index.media_type, OCI_INDEX, [OCI_INDEX, DOCKER_LIST]),
    };
    let own = (!own.is_empty()).then_some(own.as_str());
    if let (Some(own), Some(given)) = (own, content_type)
        && own != given
    {
        return Err(invalid(format!("the manifest is a {own}, its Content-Type says {given}")));
    }
    let media_type = own.or(content_type).unwrap_or(plain).to_owned();
    if !types.contains(&media_type.as_str()) {
        return Err(invalid(format!("manifests of the type {media_type} are not supported")));
    }
    Ok((document, media_type))
}

fn describe(document: &Document, mut descriptor: Descriptor) -> StoredManifest {
    let (subject, needs) = match document {
        Document::Manifest(manifest) => {
            descriptor.artifact_type =
                manifest.artifact_type.clone().or_else(|| Some(manifest.config.media_type.clone()));
            descriptor.annotations.clone_from(&manifest.annotations);
            let blobs = manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest.clone()).collect();
            (&manifest.subject, blobs)
        }
        Document::Index(index) => {
            descriptor.artifact_type.clone_from(&index.artifact_type);
            descriptor.annotations.clone_from(&index.annotations);
            (&index.subject, index.manifests.iter().map(|child| child.digest.clone()).collect::<Vec<_>>())
        }
    };
    StoredManifest { descriptor, subject: subject.as_ref().map(|subject| subject.digest.clone()), needs }
}

/// All that a manifest names must be in the repository; layers that lie elsewhere are never fetched, and need not be.
fn check_blobs(registry: &Registry, name: &str, document: &Document, lease: &Lease) -> Result<(), Failure> {
    let missing = |digest: &Digest| Failure::new(Code::ManifestBlobUnknown, format!("{digest} unknown to registry"));
    match document {
        Document::Manifest(manifest) => {
            let foreign = |blob: &&Descriptor| blob.urls.as_ref().is_none_or(Vec::is_empty);
            for blob in manifest.layers.iter().filter(foreign).chain([&manifest.config]) {
                lease.keep(&blob.digest);
                let size = registry.blob(name, &blob.digest)?.ok_or_else(|| missing(&blob.digest))?;
                if size != blob.size {
                    return Err(Failure::new(
                        Code::SizeInvalid,
                        format!("{} has {size} bytes, not {}", blob.digest, blob.size),
                    ));
                }
            }
        }
        Document::Index(index) => {
            for child in &index.manifests {
                lease.keep(&child.digest);
                registry.manifest(name, &child.digest)?.ok_or_else(|| missing(&child.digest))?;
            }
        }
    }
    Ok(())
}

fn adopted_children(
    registry: &Registry,
    name: &str,
    document: &Document,
) -> Result<Vec<(Digest, StoredManifest)>, Failure> {
    let Document::Index(index) = document else { return Ok(Vec::new()) };
    let mut adopted = Vec::new();
    for child in &index.manifests {
        let Some(found) = registry.manifest(name, &child.digest)? else { continue };
        let bytes = registry.images.blobs().document(&child.digest)?;
        let described = describe(&parse(&bytes, Some(&found.media_type))?, found);
        adopted.push((child.digest.clone(), described));
    }
    Ok(adopted)
}

/// Gives the store the image, under the names of this registry; what is no image takes those names away.
fn enter_image(
    registry: &Registry,
    name: &str,
    tag: &str,
    document: &Document,
    own: Descriptor,
    names: &[image::Reference],
    lease: &Lease,
) -> Result<(), Failure> {
    let manifest = match document {
        Document::Manifest(_) => Some(own),
        Document::Index(index) => choose(index, &Platform::default()).cloned(),
    };
    let entered = manifest.map(|manifest| {
        // The children of an index have leases of their own only as manifests.
        if let Ok(bytes) = registry.images.blobs().document(&manifest.digest)
            && let Ok(Document::Manifest(child)) = parse(&bytes, Some(&manifest.media_type))
        {
            child.layers.iter().chain([&child.config]).for_each(|blob| lease.keep(&blob.digest));
        }
        registry.images.register(&manifest, names, lease)
    });
    match entered {
        Some(Ok(_)) => Ok(()),
        Some(Err(error @ (image::Error::Io { .. } | image::Error::Internal(_) | image::Error::Corrupt(_)))) => {
            Err(error.into())
        }
        Some(Err(_)) | None => registry.untag(name, tag).map(drop),
    }
}

pub(crate) fn delete(registry: &Registry, name: &str, reference: &Reference) -> Result<Response, Failure> {
    let (gone, tags) = match reference {
        Reference::Tag(tag) => {
            let gone = registry.repositories().change(name, |repository| Ok(repository.tags.remove(tag).is_some()))?;
            (gone, vec![tag.clone()])
        }
        Reference::Digest(digest) => {
            let mut tags = registry.local_tags_of(name, digest)?;
            let gone = registry.repositories().change(name, |repository| {
                tags.extend(repository.tags.iter().filter(|(_, held)| *held == digest).map(|(tag, _)| tag.clone()));
                repository.tags.retain(|_, held| held != digest);
                Ok(repository.manifests.remove(digest).is_some())
            })?;
            (gone, tags)
        }
    };
    let mut any = gone;
    for tag in tags {
        any |= registry.untag(name, &tag)?;
    }
    if any { Ok(StatusCode::ACCEPTED.into_response()) } else { Err(unknown()) }
}
