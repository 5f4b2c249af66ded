//! Reads the rest of a body that an answer did not need. A client writes head and body one after the other; when it is refused by its
//! head alone, and the connection closed, its second write breaks, and it tells of a broken pipe instead of why. Go's server, and so
//! dockerd, reads as much on.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// How much is read on, as Go's server has it. Units: bytes.
const BYTES_MAX: usize = 256 << 10;
/// How long that may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Where a body is put that was let go before its end.
type Left = Arc<Mutex<Option<Body>>>;

/// A body that is not lost when it is dropped.
struct Kept {
    body: Option<Body>,
    left: Left,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.get_mut().body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !body.is_end_stream());
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }
}

/// Answers a request, and reads what is left of its body before the answer goes out.
pub(crate) async fn read(request: Request, next: Next) -> Response {
    let left = Left::default();
    let kept = |body| Body::new(Kept { body: Some(body), left: left.clone() });
    let response = next.run(request.map(kept)).await;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // One that is still read by whoever answers is not here.
        let rest = left.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(rest) = rest {
            let _ = tokio::time::timeout(TIMEOUT, discard(rest)).await;
        }
    }
    response
}

async fn discard(mut body: Body) {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, Bytes::len);
        if count > BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use axum::Router;
    use tokio::net::UnixListener;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_refused_by_the_head_alone_may_send_the_body_and_hears_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let refusing = Router::new().fallback(|| async { http::StatusCode::NOT_FOUND });
        let router = refusing.layer(axum::middleware::from_fn(super::read));
        let server = tokio::spawn(crate::server::serve(listener, router));
        let client = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
            stream.write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
            stream.write_all(b"hello").unwrap();
            // The connection serves the next request, too.
            stream.write_all(b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            answers
        });
        assert_eq!(client.await.unwrap().matches("HTTP/1.1 404").count(), 2);
        server.abort();
    }
}
