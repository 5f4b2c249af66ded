//! Uploads of blobs: in one request or in chunks. All state is the upload's file, so that an upload goes on after a
//! restart; the store's garbage collection removes those that lie still.

use std::sync::Arc;

use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use image::Digest;
use image::store::Upload;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::access;
use crate::error::{Code, Failure};
use crate::path::digest_of;
use crate::view::Registry;

#[derive(Deserialize)]
struct Start {
    digest: Option<String>,
    mount: Option<String>,
    from: Option<String>,
}

fn query(request: &Request) -> Result<Start, Failure> {
    let Query(query) = Query::try_from_uri(request.uri())
        .map_err(|_| Failure::new(Code::BlobUploadInvalid, "invalid query of an upload"))?;
    Ok(query)
}

pub(crate) async fn start(registry: &Arc<Registry>, name: &str, request: Request) -> Result<Response, Failure> {
    let query = query(&request)?;
    if let (Some(mount), Some(from)) = (&query.mount, &query.from) {
        let digest = digest_of(mount)?;
        let lease = registry.images.blobs().lease();
        lease.keep(&digest);
        let headers = request.headers().clone();
        let readable = access::may_read(registry.access.as_ref(), from, &headers).await;
        if readable && registry.blob(from, &digest)?.is_some() {
            registry.repositories().link_blob(name, &digest)?;
            return Ok(created(name, &digest));
        }
    }
    // Checked before anything is written.
    let digest = query.digest.as_deref().map(digest_of).transpose()?;
    let id = registry.repositories().begin_upload(name)?;
    let Some(digest) = digest else {
        return Ok((StatusCode::ACCEPTED, headers(name, &id, 0)).into_response());
    };
    match complete(registry, name, &id, &digest, request).await {
        Ok(response) => Ok(response),
        Err(failure) => {
            // A client cannot go on with what it never learnt the address of.
            let _ = registry.repositories().cancel_upload(name, &id);
            Err(failure)
        }
    }
}

pub(crate) fn status(registry: &Registry, name: &str, id: &str) -> Result<Response, Failure> {
    let upload = find(registry, name, id)?;
    Ok((StatusCode::NO_CONTENT, headers(name, id, upload.size)).into_response())
}

pub(crate) async fn append(
    registry: &Arc<Registry>,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Failure> {
    let _alone = registry.alone(id).ok_or_else(busy)?;
    let size = receive(registry, name, id, request).await?;
    Ok((StatusCode::ACCEPTED, headers(name, id, size)).into_response())
}

pub(crate) async fn finish(
    registry: &Arc<Registry>,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Failure> {
    let digest = query(&request)?.digest;
    let digest = digest_of(&digest.ok_or_else(|| Failure::new(Code::DigestInvalid, "the digest is missing"))?)?;
    complete(registry, name, id, &digest, request).await
}

pub(crate) fn cancel(registry: &Arc<Registry>, name: &str, id: &str) -> Result<Response, Failure> {
    let _alone = registry.alone(id).ok_or_else(busy)?;
    find(registry, name, id)?;
    registry.repositories().cancel_upload(name, id)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn complete(
    registry: &Arc<Registry>,
    name: &str,
    id: &str,
    digest: &Digest,
    request: Request,
) -> Result<Response, Failure> {
    let alone = registry.alone(id).ok_or_else(busy)?;
    receive(registry, name, id, request).await?;
    let upload = find(registry, name, id)?;
    let (registry, owner, expected) = (registry.clone(), name.to_owned(), digest.clone());
    tokio::task::spawn_blocking(move || {
        let lease = registry.images.blobs().lease();
        upload.finish(registry.images.blobs(), &expected, &lease).map_err(|error| match error {
            image::Error::Corrupt(text) => Failure::new(Code::DigestInvalid, text),
            other => other.into(),
        })?;
        registry.repositories().link_blob(&owner, &expected)?;
        // Held to the end, even when the client has gone meanwhile.
        drop(alone);
        Ok::<_, Failure>(())
    })
    .await??;
    Ok(created(name, digest))
}

/// Appends the body to the upload; returns the new size. What came before a connection broke stays.
async fn receive(registry: &Registry, name: &str, id: &str, request: Request) -> Result<u64, Failure> {
    let upload = find(registry, name, id)?;
    let before = upload.size;
    let bound = chunk(request.headers(), before).map_err(|problem| match problem {
        Problem::Order => {
            let text = "the chunk does not begin where the upload ends";
            let failure = Failure::with_status(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, text);
            headers(name, id, before).iter().fold(failure, |failure, (key, value)| failure.header(key.clone(), value))
        }
        Problem::Malformed => Failure::new(Code::BlobUploadInvalid, "invalid Content-Range"),
    })?;
    let mut file = tokio::fs::File::from_std(upload.append()?);
    let mut body = request.into_body().into_data_stream();
    let mut size = before;
    let failed = || image::Error::io("cannot write an upload");
    let result = loop {
        let bytes = match body.next().await {
            None => break Ok(()),
            Some(Ok(bytes)) => bytes,
            Some(Err(_)) => break Err(Failure::new(Code::BlobUploadInvalid, "the chunk ended early")),
        };
        let more = size + bytes.len() as u64;
        if Upload::is_too_large(more) || bound.is_some_and(|bound| more - before > bound) {
            file.flush().await.map_err(failed())?;
            file.set_len(before).await.map_err(failed())?;
            break Err(Failure::new(Code::SizeInvalid, "the upload is larger than it may be"));
        }
        file.write_all(&bytes).await.map_err(failed())?;
        size = more;
    };
    file.flush().await.map_err(failed())?;
    result?;
    if bound.is_some_and(|bound| size - before != bound) {
        return Err(Failure::new(Code::SizeInvalid, "the chunk is shorter than its Content-Range"));
    }
    Ok(size)
}

#[derive(Debug, PartialEq, Eq)]
enum Problem {
    Order,
    Malformed,
}

/// Bytes that the chunk says it has, if it says where it lies.
fn chunk(headers: &HeaderMap, size: u64) -> Result<Option<u64>, Problem> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let range = range.to_str().map_err(|_| Problem::Malformed)?;
    // The specification writes `0-9`; some clients write it as HTTP does: `bytes 0-9/*`.
    let range = range.strip_prefix("bytes ").unwrap_or(range).split('/').next().unwrap_or_default();
    let (start, end) = range.split_once('-').ok_or(Problem::Malformed)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| Problem::Malformed);
    let (start, end) = (number(start)?, number(end)?);
    if start != size {
        return Err(Problem::Order);
    }
    end.checked_sub(start).and_then(|length| length.checked_add(1)).map(Some).ok_or(Problem::Malformed)
}

fn find(registry: &Registry, name: &str, id: &str) -> Result<Upload, Failure> {
    let unknown = |_| Failure::new(Code::BlobUploadUnknown, "blob upload unknown to registry");
    registry.repositories().upload(name, id).map_err(unknown)
}

fn busy() -> Failure {
    Failure::with_status(StatusCode::CONFLICT, Code::BlobUploadInvalid, "another request is writing to this upload")
}

fn headers(name: &str, id: &str, size: u64) -> [(header::HeaderName, String); 3] {
    [
        (header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}")),
        // Of an empty upload too it is `0-0`: the form knows no other.
        (header::RANGE, format!("0-{}", size.saturating_sub(1))),
        (header::HeaderName::from_static("docker-upload-uuid"), id.to_owned()),
    ]
}

fn created(name: &str, digest: &Digest) -> Response {
    let headers = [("location", format!("/v2/{name}/blobs/{digest}")), ("docker-content-digest", digest.to_string())];
    (StatusCode::CREATED, headers).into_response()
}
