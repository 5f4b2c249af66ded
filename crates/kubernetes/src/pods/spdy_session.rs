//! `exec` and `attach` over SPDY: one stream each for input, output, errors, the outcome and the terminal's size.

use std::collections::HashMap;
use std::time::Duration;

use apiserver::Status;
use axum::response::Response;
use futures::StreamExt;

use super::session::{Frame, Input, Queues, Wanted, parse_resize};
use super::spdy::{self, Incoming, Reader};
use super::spdy_headers::HeaderEncoder;
use super::spdy_pipe::{Pipe, upgrade};
use crate::resource::Call;

/// Protocols of sessions over SPDY that have a structured outcome.
const PROTOCOLS: &[&str] = &["v4.channel.k8s.io"];
/// Time for the client to open its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers the handshake and carries a session.
pub(super) fn serve(call: Call, queues: Queues, wanted: Wanted) -> Result<Response, Status> {
    upgrade(call, PROTOCOLS, move |pipe| async move {
        let _ = carry(pipe, queues, wanted).await;
    })
}

struct Streams {
    by_type: HashMap<String, u32>,
    reader: Reader,
    encoder: HeaderEncoder,
}

/// Runs until the process or the connection ends; `None` means the connection went first.
async fn carry(mut pipe: Pipe, queues: Queues, wanted: Wanted) -> Option<()> {
    let Queues { input, mut output } = queues;
    let mut streams = Streams { by_type: HashMap::new(), reader: Reader::default(), encoder: HeaderEncoder::default() };
    let needed: Vec<&str> =
        [("error", true), ("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.stderr)]
            .into_iter()
            .filter_map(|(name, wanted)| wanted.then_some(name))
            .collect();
    let deadline = tokio::time::sleep(STREAMS_TIMEOUT);
    tokio::pin!(deadline);
    loop {
        let ready = needed.iter().all(|name| streams.by_type.contains_key(*name));
        tokio::select! {
            piece = pipe.incoming.next() => {
                streams.reader.push(&piece?);
                while let Some(frame) = streams.reader.next().ok()? {
                    receive(&mut streams, &pipe.outgoing, &input, frame).await?;
                }
            }
            frame = output.recv(), if ready => {
                let (name, data, last) = match frame? {
                    Frame::Stdout(data) => ("stdout", data, false),
                    Frame::Stderr(data) => ("stderr", data, false),
                    Frame::End(status) => ("error", status.to_string().into(), true),
                };
                let stream = *streams.by_type.get(name)?;
                for part in data.chunks(spdy::MAX_DATA_BYTES) {
                    pipe.outgoing.send(spdy::data(stream, part, false)).await.ok()?;
                }
                if last {
                    for name in &needed {
                        pipe.outgoing.send(spdy::data(*streams.by_type.get(*name)?, b"", true)).await.ok()?;
                    }
                    return Some(());
                }
            }
            () = &mut deadline, if !ready => return None,
        }
    }
}

async fn receive(
    streams: &mut Streams,
    outgoing: &tokio::sync::mpsc::Sender<bytes::Bytes>,
    input: &tokio::sync::mpsc::Sender<Input>,
    frame: Incoming,
) -> Option<()> {
    let is = |streams: &Streams, name: &str, stream: u32| streams.by_type.get(name) == Some(&stream);
    match frame {
        Incoming::Open { stream, headers } => {
            streams.by_type.insert(headers.get("streamtype").cloned().unwrap_or_default(), stream);
            outgoing.send(spdy::reply(stream, &mut streams.encoder)).await.ok()?;
        }
        // A process that has ended reads no more; its output must still get out, so that is no error.
        Incoming::Data { stream, data } if is(streams, "stdin", stream) => {
            let _ = input.send(Input::Data(data)).await;
        }
        Incoming::Data { stream, data } if is(streams, "resize", stream) => {
            if let Some(size) = data.split(|byte| *byte == b'\n').filter_map(parse_resize).next_back() {
                let _ = input.send(Input::Resize(size)).await;
            }
        }
        Incoming::Finished { stream } if is(streams, "stdin", stream) => {
            let _ = input.send(Input::End).await;
        }
        Incoming::Ping(number) => outgoing.send(spdy::ping(number)).await.ok()?,
        _ => {}
    }
    Some(())
}
