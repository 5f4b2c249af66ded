//! A process' streams over a websocket: input in, output out, raw in binary messages. Source: RFC 6455; Docker's attach/ws.

use axum::body::Body;
use axum::response::Response;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::call::Call;
use crate::error::{Error, Result};
use crate::hijack::{Streams, encode};

/// Largest message that is taken from a client. Units: bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The answer that turns the connection into a websocket, and what must come of it.
pub(crate) struct Handshake {
    upgrade: OnUpgrade,
    accept: HeaderValue,
}

impl Handshake {
    /// Reads the client's part of the handshake.
    ///
    /// Errors: [`Error::Invalid`] when the request is none.
    pub(crate) fn of(call: &mut Call) -> Result<Self> {
        let invalid = || Error::Invalid("not a websocket handshake".into());
        let wants = call.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
        let known = call.header("sec-websocket-version") == Some("13");
        let key = call.headers.get("sec-websocket-key").filter(|_| wants && known).ok_or_else(invalid)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| invalid())?;
        let upgrade = call.upgrade.take().ok_or_else(invalid)?;
        Ok(Self { upgrade, accept })
    }

    /// Answers, and carries the streams until the output ends or the client leaves.
    pub(crate) fn respond(self, streams: Streams) -> Response {
        tokio::spawn(carry(self.upgrade, streams));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

async fn carry(upgrade: OnUpgrade, streams: Streams) {
    let connection = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => {
            tracing::debug!(%error, "client left before the upgrade");
            return;
        }
    };
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let Streams { mut stdin, output, wanted, mut detach_keys, detached } = streams;
    // A websocket has no frames for streams: everything goes raw, as on a terminal.
    let mut output = encode(output, crate::hijack::Wanted { terminal: true, ..wanted });
    let input = async move {
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                // Answers to pings are sent with the next message out.
                _ => continue,
            };
            let (pass, left) = if wanted.detachable { detach_keys.feed(&data) } else { (data.to_vec(), false) };
            if let Some(pipe) = stdin.as_mut()
                && (pipe.write_all(&pass).await.is_err() || pipe.flush().await.is_err())
            {
                stdin = None;
            }
            if left {
                detached();
                break;
            }
        }
        if let Some(mut pipe) = stdin {
            let _ = pipe.shutdown().await;
        }
    };
    let outward = async {
        while let Some(piece) = output.next().await {
            if sink.send(Message::Binary(piece)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outward => {}
        () = input => {}
    }
    let _ = sink.close().await;
}
