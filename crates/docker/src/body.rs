//! Bodies in and out: bounded reads of requests, and the shapes of answers (JSON, empty, streams).

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures::{Stream, TryStreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use std::pin::Pin;

use crate::error::{Error, Result};

/// Largest JSON body. A container's configuration with a few thousand labels stays far below.
pub(crate) const JSON_BODY_BYTES_MAX: usize = 4 << 20;
/// How long a client may take to send a JSON body (against clients that send one byte a minute).
const JSON_BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Pieces that wait between a producer and a client that reads slowly.
pub(crate) const STREAM_QUEUE: usize = 64;

/// Reads a whole body.
///
/// Errors: [`Error::TooLarge`] beyond the bound, [`Error::Invalid`] when the client breaks off or dawdles.
pub(crate) async fn read_bounded(body: Body, limit_bytes: usize) -> Result<Bytes> {
    let whole = tokio::time::timeout(JSON_BODY_TIMEOUT, Limited::new(body, limit_bytes).collect());
    let whole = whole.await.map_err(|_| Error::Invalid("the request body did not come in time".into()))?;
    match whole {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Error::TooLarge(format!("request body is larger than {limit_bytes} bytes")))
        }
        Err(error) => Err(Error::Invalid(format!("cannot read the request body: {error}"))),
    }
}

/// A request body as a stream of bytes.
pub(crate) fn byte_stream(body: Body) -> node::ByteStream {
    Box::pin(TryStreamExt::map_err(body.into_data_stream(), std::io::Error::other))
}

/// 200 with JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<Response> {
    json_with(StatusCode::OK, value)
}

/// A status with JSON.
pub(crate) fn json_with<T: Serialize>(status: StatusCode, value: &T) -> Result<Response> {
    let mut bytes = serde_json::to_vec(value).map_err(|e| Error::Internal(format!("cannot write the answer: {e}")))?;
    bytes.push(b'\n');
    Ok(typed(status, "application/json", Body::from(bytes)))
}

/// A status without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A status with a body of a content type.
pub(crate) fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 200 with a stream.
pub(crate) fn stream<S, E>(content_type: &'static str, pieces: S) -> Response
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    typed(StatusCode::OK, content_type, Body::from_stream(pieces))
}

/// Pieces of an answer's body as they come.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A channel whose receiving end is the body of an answer.
pub(crate) fn channel() -> (tokio::sync::mpsc::Sender<Bytes>, Pieces) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(STREAM_QUEUE);
    let pieces = futures::stream::poll_fn(move |context| receiver.poll_recv(context).map(|piece| piece.map(Ok)));
    (sender, Box::pin(pieces))
}
