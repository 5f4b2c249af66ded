//! The WebSocket channel protocols `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first byte of every binary message
//! names its channel. `Source:` k8s.io/apimachinery `remotecommand`, KEP 4006.

use std::time::Duration;

use apiserver::Status;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

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
/// How long a client may take to answer a ping before it is sent output all the same: some answer only when they look.
const PONG_TIMEOUT: Duration = Duration::from_millis(250);
/// How long a client that reads is given until it knows its channels. kubectl up to 1.32 reads in one goroutine while another makes them, and
/// loses what comes before that: output, or the end, of what is done sooner than its other goroutine has the processor.
const SETTLING: Duration = Duration::from_millis(20);
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

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Silent,
    /// It reads what it is sent.
    Reads,
    /// It has sent something over a channel, so it has made them.
    Speaks,
}

/// Until the client can be trusted to lose nothing of what it is sent.
async fn until_it_listens(mut client: watch::Receiver<Client>) {
    // One whose connection has ended loses nothing any more.
    let _ = timeout(PONG_TIMEOUT, client.wait_for(|client| *client != Client::Silent)).await;
    let _ = timeout(SETTLING, client.wait_for(|client| *client == Client::Speaks)).await;
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
    if sending.send(Message::Ping(Bytes::new())).await.is_err() {
        return;
    }
    let (seen, client) = watch::channel(Client::Silent);
    let see = |now: Client| seen.send_if_modified(|known| std::mem::replace(known, now.max(*known)) < now);
    let reading = async {
        while let Some(Ok(message)) = receiving.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                Message::Pong(_) => {
                    see(Client::Reads);
                    continue;
                }
                _ => continue,
            };
            see(Client::Speaks);
            if let Some(parsed) = parse(data)
                && input.send(parsed).await.is_err()
            {
                // The process no longer reads; go on, so that its output still gets out.
                futures::future::pending::<()>().await;
            }
        }
    };
    let writing = async {
        until_it_listens(client).await;
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

    #[tokio::test(start_paused = true)]
    async fn a_client_is_waited_for_until_it_listens_and_no_longer() {
        let waited = |reads_after: Option<u64>, speaks_after: Option<u64>| async move {
            let (seen, client) = watch::channel(Client::Silent);
            let told = async {
                for (after, what) in [(reads_after, Client::Reads), (speaks_after, Client::Speaks)] {
                    if let Some(after) = after {
                        tokio::time::sleep(Duration::from_millis(after)).await;
                        seen.send_replace(what);
                    }
                }
                std::future::pending::<()>().await;
            };
            let begin = tokio::time::Instant::now();
            tokio::select! {
                () = told => {}
                () = until_it_listens(client) => {}
            }
            begin.elapsed().as_millis()
        };
        assert_eq!(waited(None, None).await, (PONG_TIMEOUT + SETTLING).as_millis());
        assert_eq!(waited(Some(3), None).await, 3 + SETTLING.as_millis());
        assert_eq!(waited(Some(3), Some(4)).await, 7);
        assert_eq!(waited(None, Some(5)).await, 5);
    }

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
