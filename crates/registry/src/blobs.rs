//! Blobs: reading, whole or in part, and deleting.

use std::io::SeekFrom;

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::Digest;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::error::{Code, Failure};
use crate::view::Registry;

pub(crate) fn unknown() -> Failure {
    Failure::new(Code::BlobUnknown, "blob unknown to registry")
}

pub(crate) async fn read(
    registry: &Registry,
    name: &str,
    digest: &Digest,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let size = registry.blob(name, digest)?.ok_or_else(unknown)?;
    let wanted = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let part = match wanted.map_or(Ok(None), |text| range(text, size)) {
        Ok(part) => part,
        Err(()) => {
            let failure =
                Failure::with_status(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, "range not satisfiable");
            return Err(failure.header(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let (start, length) = part.unwrap_or((0, size));
    let mut response = Response::builder()
        .status(if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header("docker-content-digest", digest.to_string())
        .header(header::ETAG, format!("\"{digest}\""))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length);
    if part.is_some() {
        response = response.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", start + length - 1));
    }
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        let mut file = tokio::fs::File::from_std(registry.images.blobs().file(digest)?);
        file.seek(SeekFrom::Start(start)).await.map_err(image::Error::io("cannot read a blob"))?;
        Body::from_stream(ReaderStream::new(file.take(length)))
    };
    response.body(body).map_err(|_| Failure::new(Code::Unknown, "unknown error"))
}

/// Start and length of the range; `None` when the header is to be ignored, an error when it cannot be satisfied.
fn range(text: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')) else {
        return Ok(None);
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if last.trim().is_empty() => (start, size.saturating_sub(1)),
        (Err(_), Ok(count)) if first.trim().is_empty() && count > 0 => {
            (size.saturating_sub(count), size.saturating_sub(1))
        }
        (Err(_), Ok(0)) if first.trim().is_empty() => return Err(()),
        // Several ranges, or none that makes sense.
        _ => return Ok(None),
    };
    if start >= size { Err(()) } else { Ok(Some((start, end - start + 1))) }
}

pub(crate) fn delete(registry: &Registry, name: &str, digest: &Digest) -> Result<Response, Failure> {
    registry.blob(name, digest)?.ok_or_else(unknown)?;
    let gone = registry.repositories().change(name, |repository| {
        let needed = repository.manifests.values().any(|manifest| manifest.needs.contains(digest));
        Ok(!needed && repository.blobs.remove(digest).is_some())
    })?;
    if !gone {
        return Err(Failure::with_status(
            StatusCode::METHOD_NOT_ALLOWED,
            Code::Unsupported,
            "the blob is part of a manifest; delete that first",
        ));
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_are_read_as_http_says() {
        assert_eq!(range("bytes=0-3", 10), Ok(Some((0, 4))));
        assert_eq!(range("bytes=4-", 10), Ok(Some((4, 6))));
        assert_eq!(range("bytes=-3", 10), Ok(Some((7, 3))));
        assert_eq!(range("bytes=5-99", 10), Ok(Some((5, 5))));
        assert_eq!(range("bytes=10-", 10), Err(()));
        assert_eq!(range("bytes=0-", 0), Err(()));
        for odd in ["bytes=1-2,4-5", "lines=1-2", "bytes=3-2", "bytes=a-b"] {
            assert_eq!(range(odd, 10), Ok(None), "{odd}");
        }
    }
}
