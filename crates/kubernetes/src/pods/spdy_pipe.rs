//! Bytes of a SPDY connection over whatever carries it: an upgraded HTTP connection, or WebSocket messages.

use apiserver::Status;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::session::QUEUE;
use crate::resource::Call;

/// Most bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Both directions.
pub(super) struct Pipe {
    /// Pieces as they come; ends with the connection.
    pub(super) incoming: BoxStream<'static, Bytes>,
    /// Pieces to send.
    pub(super) outgoing: mpsc::Sender<Bytes>,
}

/// Answers an `Upgrade: SPDY/3.1` and gives the pipe to `run` once the connection is ours.
pub(super) fn upgrade<F>(
    mut call: Call,
    protocols: &[&str],
    run: impl FnOnce(Pipe) -> F + Send + 'static,
) -> Result<Response, Status>
where
    F: Future<Output = ()> + Send,
{
    const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
    let offered: Vec<&str> = call
        .parts
        .headers
        .get_all(STREAM_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(',').map(str::trim))
        .collect();
    let chosen = protocols.iter().find(|one| offered.contains(one)).map(|one| (*one).to_owned());
    let Some(chosen) = chosen else {
        return Err(Status::new(
            403,
            apiserver::Reason::Forbidden,
            format!("unable to upgrade: no stream protocol of {}", protocols.join(", ")),
        ));
    };
    let on_upgrade = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let Some(on_upgrade) = on_upgrade else { return Err(Status::bad_request("this connection cannot be upgraded")) };
    tokio::spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => run(from_io(TokioIo::new(upgraded))).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    if let Ok(value) = HeaderValue::from_str(&chosen) {
        headers.insert(STREAM_PROTOCOL, value);
    }
    Ok(response)
}

fn from_io(io: TokioIo<hyper::upgrade::Upgraded>) -> Pipe {
    let (reading, mut writing) = tokio::io::split(io);
    let (outgoing, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if writing.write_all(&piece).await.is_err() || writing.flush().await.is_err() {
                return;
            }
        }
        let _ = writing.shutdown().await;
    });
    let incoming = futures::stream::unfold(reading, async |mut reading| {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        match reading.read_buf(&mut buffer).await {
            Ok(1..) => Some((buffer.freeze(), reading)),
            _ => None,
        }
    });
    Pipe { incoming: incoming.boxed(), outgoing }
}

/// SPDY inside WebSocket messages, as kubectl tunnels port-forwards.
pub(super) fn from_websocket(socket: WebSocket) -> Pipe {
    let (mut sending, receiving) = socket.split();
    let (outgoing, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if sending.send(Message::Binary(piece)).await.is_err() {
                return;
            }
        }
        let _ = sending.close().await;
    });
    let incoming = receiving
        .take_while(|message| {
            std::future::ready(matches!(message, Ok(message) if !matches!(message, Message::Close(_))))
        })
        .filter_map(|message| {
            std::future::ready(match message {
                Ok(Message::Binary(data)) => Some(data),
                _ => None,
            })
        });
    Pipe { incoming: incoming.boxed(), outgoing }
}
