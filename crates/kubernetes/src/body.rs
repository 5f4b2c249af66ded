//! Request bodies within bounds: size, JSON depth, media type; YAML becomes JSON here. Pure but for reading the stream.

use apiserver::{Body, Status};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

/// Largest request body, as kube-apiserver has it. Units: bytes.
pub(crate) const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// Deepest nesting of a JSON body; the decoder's own bound is 128.
const MAX_JSON_DEPTH: usize = 100;
/// How long a client may take to send its body.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// How much of a body that is too large is read and thrown away, so that a client that is still sending hears why it is
/// refused instead of a broken connection. Units: bytes.
const MAX_DISCARDED_BYTES: usize = 64 * 1024 * 1024;
/// How long that may take.
const DISCARD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Reads a whole body within its bounds of size and time.
pub(crate) async fn read(mut body: axum::body::Body) -> Result<Bytes, Status> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(&mut body, MAX_BODY_BYTES).collect());
    match collected.await {
        Err(_) => Err(Status::timeout("request body did not arrive in time", 1)),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            discard(body).await;
            Err(Status::request_entity_too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}")))
        }
        Ok(Err(error)) => Err(Status::bad_request(format!("cannot read the request body: {error}"))),
    }
}

async fn discard(mut body: axum::body::Body) {
    let reading = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > MAX_DISCARDED_BYTES {
                break;
            }
        }
    };
    if tokio::time::timeout(DISCARD_TIMEOUT, reading).await.is_err() {
        tracing::debug!("a client goes on sending a body that is too large");
    }
}

/// The media type without parameters, in lower case; JSON when none is named.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bare = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if bare.is_empty() { "application/json".into() } else { bare }
}

/// The body of a create or update as the machinery takes it.
pub(crate) fn object(headers: &HeaderMap, bytes: Bytes) -> Result<Body, Status> {
    match media_type(headers).as_str() {
        "application/json" => {
            check_depth(&bytes)?;
            Ok(Body::Json(bytes))
        }
        crate::protobuf::MEDIA_TYPE => Ok(Body::Value(crate::protobuf::decode(&bytes)?)),
        "application/yaml" | "text/yaml" => Ok(Body::Value(yaml(&bytes)?)),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml (not {other})"
        ))),
    }
}

/// The body as a tree; for reviews and options.
pub(crate) fn value(headers: &HeaderMap, bytes: Bytes) -> Result<Value, Status> {
    match object(headers, bytes)? {
        Body::Value(value) => Ok(value),
        Body::Json(bytes) => serde_json::from_slice(&bytes).map_err(|error| malformed(&error)),
    }
}

/// The body of an apply patch as JSON; the client may have sent JSON or YAML under the same media type.
pub(crate) fn apply_patch(bytes: &Bytes) -> Result<Bytes, Status> {
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        check_depth(bytes)?;
        return Ok(bytes.clone());
    }
    Ok(Bytes::from(yaml(bytes)?.to_string()))
}

/// Refuses JSON that nests deeper than any real object, before anything recursive looks at it.
pub(crate) fn check_depth(bytes: &[u8]) -> Result<(), Status> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return Err(Status::bad_request(format!(
                        "exceeded max depth: JSON nests deeper than {MAX_JSON_DEPTH}"
                    )));
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    let text = std::str::from_utf8(bytes).map_err(|_| Status::bad_request("YAML body is not UTF-8"))?;
    serde_saphyr::from_str(text).map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))
}

/// The error of a body that is no JSON.
pub(crate) fn malformed(error: &serde_json::Error) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized: couldn't get version/kind; json parse error: {error}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_bounded_outside_strings_only() {
        assert!(check_depth("[".repeat(MAX_JSON_DEPTH).as_bytes()).is_ok());
        assert_eq!(check_depth("[".repeat(MAX_JSON_DEPTH + 1).as_bytes()).unwrap_err().code, 400);
        assert!(check_depth(format!("\"\\\"{}\"", "[".repeat(500)).as_bytes()).is_ok());
    }

    #[test]
    fn yaml_and_json_are_read_and_other_types_refused() {
        let headers = |text: &str| HeaderMap::from_iter([(CONTENT_TYPE, text.parse().unwrap())]);
        let yaml = value(&headers("application/yaml"), Bytes::from_static(b"a: {b: [1, two]}")).unwrap();
        assert_eq!(yaml, serde_json::json!({"a": {"b": [1, "two"]}}));
        assert!(value(&headers("application/json; charset=utf-8"), Bytes::from_static(b"{}")).is_ok());
        assert_eq!(value(&headers("text/html"), Bytes::new()).unwrap_err().code, 415);
        assert_eq!(apply_patch(&Bytes::from_static(b"a: 1")).unwrap(), "{\"a\":1}");
    }
}
