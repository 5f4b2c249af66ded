//! The WebSocket channel protocols `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first byte of every binary message
//! names its channel. `Source:` k8s.io/apimachinery `remotecommand`, KEP 4006.

use apiserver::Status;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};

use super::session::{Frame, Input, Queues, Wanted, parse_resize};
use crate::resource::Call;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel named by the second byte is closed.
const CLOSE: u8 = 255;

/// The protocols that sessions speak, the newest first.
const SESSION_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Largest message that a client may send. Units: bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// WebSocket close code: normal.
const CLOSE_NORMAL: u16 = 1000;

/// Checks the handshake and picks a protocol; the answer is `None` when the client names none of them.
pub(super) async fn upgrade(call: Call, protocols: &'static [&'static str]) -> Result<WebSocketUpgrade, Status> {
    let mut parts = call.parts;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|rejection| Status::bad_request(rejection.body_text()))?
        .max_message_size(MAX_MESSAGE_BYTES)
        .protocols(protocols.iter().copied());
    if upgrade.selected_protocol().is_none() {
        let message = format!("unable to negotiate a subprotocol; the server speaks {}", protocols.join(", "));
        return Err(Status::bad_request(message));
    }
    Ok(upgrade)
}

/// Answers the handshake and carries a session.
pub(super) async fn serve_session(call: Call, queues: Queues, wanted: Wanted) -> Result<Response, Status> {
    let upgrade = upgrade(call, &SESSION_PROTOCOLS).await?;
    Ok(upgrade.on_upgrade(move |socket| carry(socket, queues, wanted)).into_response())
}

async fn carry(socket: WebSocket, queues: Queues, wanted: Wanted) {
    let Queues { input, mut output } = queues;
    let (mut sending, mut receiving) = socket.split();
    // Clients of version 4 wait for an empty message on each output channel before they show anything.
    for channel in [(wanted.stdout, STDOUT), (wanted.stderr, STDERR), (true, ERROR)] {
        if channel.0 && sending.send(message(channel.1, &[])).await.is_err() {
            return;
        }
    }
    let reading = async {
        while let Some(Ok(message)) = receiving.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            if let Some(parsed) = parse(data)
                && input.send(parsed).await.is_err()
            {
                // The process no longer reads; go on, so that its output still gets out.
                futures::future::pending::<()>().await;
            }
        }
    };
    let writing = async {
        while let Some(frame) = output.recv().await {
            let (channel, data, last) = match frame {
                Frame::Stdout(data) => (STDOUT, data, false),
                Frame::Stderr(data) => (STDERR, data, false),
                Frame::End(status) => (ERROR, Bytes::from(status.to_string()), true),
            };
            if sending.send(message(channel, &data)).await.is_err() || last {
                break;
            }
        }
        let close = Message::Close(Some(CloseFrame { code: CLOSE_NORMAL, reason: "".into() }));
        let _ = sending.send(close).await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(data.len() + 1);
    out.extend_from_slice(&[channel]);
    out.extend_from_slice(data);
    Message::Binary(out.freeze())
}

fn parse(mut data: Bytes) -> Option<Input> {
    let channel = *data.first()?;
    let rest = data.split_off(1);
    match channel {
        STDIN if rest.is_empty() => None,
        STDIN => Some(Input::Data(rest)),
        RESIZE => parse_resize(&rest).map(Input::Resize),
        CLOSE if rest.first() == Some(&STDIN) => Some(Input::End),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::TerminalSize;

    #[test]
    fn messages_are_read_by_their_channel() {
        assert_eq!(parse(Bytes::from_static(b"\0abc")), Some(Input::Data("abc".into())));
        assert_eq!(parse(Bytes::from_static(b"\xff\0")), Some(Input::End));
        let resize = parse(Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}"));
        assert_eq!(resize, Some(Input::Resize(TerminalSize { columns: 80, rows: 24 })));
        for nothing in [&b""[..], b"\0", b"\x04{}", b"\x09x", b"\xff\x01"] {
            assert_eq!(parse(Bytes::copy_from_slice(nothing)), None);
        }
    }
}
