//! `portforward`: per connection a pair of SPDY streams, data and error, tunnelled through WebSocket or over an
//! upgraded connection. `Source:` k8s.io/client-go `tools/portforward`.

use std::collections::HashMap;

use apiserver::Status;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use node::{SharedNode, Workload};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::spdy::{self, Incoming, Reader};
use super::spdy_headers::HeaderEncoder;
use super::spdy_pipe::{self, Pipe};
use super::{in_pod, websocket};
use crate::resource::Call;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: [&str; 1] = ["SPDY/3.1+portforward.k8s.io"];
/// Pieces that wait for a slow port.
const QUEUE: usize = 64;
/// Most connections at once through one port-forward.
const MAX_CONNECTIONS: usize = 1024;

pub(super) async fn serve(call: Call, pod: &Value) -> Result<Response, Status> {
    let containers = pod.pointer("/spec/containers/0/name").and_then(Value::as_str).unwrap_or_default();
    let (node, workload) = (call.state.node.clone(), in_pod(&call, containers.to_owned()));
    if pod.pointer("/status/phase").and_then(Value::as_str) != Some("Running") {
        let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("Unknown");
        return Err(Status::bad_request(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    }
    match spdy::upgrade_header(&call.parts.headers).as_deref() {
        Some("websocket") => {
            let upgrade = websocket::upgrade(call, &TUNNELLED).await?;
            Ok(upgrade.on_upgrade(move |socket| run(spdy_pipe::from_websocket(socket), node, workload)).into_response())
        }
        Some("spdy/3.1") => spdy_pipe::upgrade(call, &[PROTOCOL], move |pipe| run(pipe, node, workload)),
        _ => Err(Status::bad_request("Upgrade request required")),
    }
}

async fn run(pipe: Pipe, node: SharedNode, workload: Workload) {
    let _ = carry(pipe, node, workload).await;
}

/// Runs until the client's connection ends. The connections to the port end with it, since their queues close.
async fn carry(mut pipe: Pipe, node: SharedNode, workload: Workload) -> Option<()> {
    let (mut reader, mut encoder) = (Reader::default(), HeaderEncoder::default());
    // Error streams by request id; senders by data stream.
    let mut errors: HashMap<String, u32> = HashMap::new();
    let mut open: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        reader.push(&pipe.incoming.next().await?);
        while tasks.try_join_next().is_some() {}
        while let Some(frame) = reader.next().ok()? {
            match frame {
                Incoming::Open { stream, headers } => {
                    pipe.outgoing.send(spdy::reply(stream, &mut encoder)).await.ok()?;
                    let text = |name: &str| headers.get(name).cloned().unwrap_or_default();
                    let request = text("requestid");
                    if text("streamtype") == "error" {
                        errors.insert(request, stream);
                        continue;
                    }
                    if open.len() >= MAX_CONNECTIONS {
                        return None;
                    }
                    let connection = Connection {
                        data_stream: stream,
                        error_stream: errors.remove(&request)?,
                        outgoing: pipe.outgoing.clone(),
                    };
                    let (sender, receiver) = mpsc::channel(QUEUE);
                    open.insert(stream, sender);
                    tasks.spawn(connection.serve(node.clone(), workload.clone(), text("port"), receiver));
                }
                Incoming::Data { stream, data } => {
                    if let Some(sender) = open.get(&stream)
                        && sender.send(data).await.is_err()
                    {
                        open.remove(&stream);
                    }
                }
                Incoming::Finished { stream } | Incoming::Reset { stream } => {
                    open.remove(&stream);
                }
                Incoming::Ping(number) => pipe.outgoing.send(spdy::ping(number)).await.ok()?,
                Incoming::GoAway => {}
            }
        }
    }
}

/// One connection to the port.
struct Connection {
    data_stream: u32,
    error_stream: u32,
    outgoing: mpsc::Sender<Bytes>,
}

impl Connection {
    async fn serve(self, node: SharedNode, workload: Workload, port: String, input: mpsc::Receiver<Bytes>) {
        let outcome = match port.parse() {
            Ok(number) => node.port_forward(&workload, number).await.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{port} is no port")),
        };
        let text = match outcome {
            Ok(duplex) => {
                self.copy(duplex, input).await;
                String::new()
            }
            Err(error) => format!("error forwarding port {port}: {error}"),
        };
        let _ = self.outgoing.send(spdy::data(self.error_stream, text.as_bytes(), true)).await;
        let _ = self.outgoing.send(spdy::data(self.data_stream, b"", true)).await;
    }

    async fn copy(&self, duplex: Box<dyn node::Duplex>, mut input: mpsc::Receiver<Bytes>) {
        let (mut reading, mut writing) = tokio::io::split(duplex);
        let to_port = async {
            while let Some(piece) = input.recv().await {
                if writing.write_all(&piece).await.is_err() {
                    return;
                }
            }
            let _ = writing.shutdown().await;
        };
        let to_client = async {
            let mut buffer = vec![0; spdy::MAX_DATA_BYTES];
            while let Ok(count @ 1..) = reading.read(&mut buffer).await {
                if self.outgoing.send(spdy::data(self.data_stream, &buffer[..count], false)).await.is_err() {
                    return;
                }
            }
        };
        // When the port has said all, the connection is over, whatever the client still wants to send.
        tokio::pin!(to_client);
        tokio::select! {
            () = &mut to_client => {}
            () = to_port => to_client.await,
        }
    }
}
