//! `exec`, `attach` and `console`: one process' streams over whichever transport the client brings.

use apiserver::Status;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use node::{AttachOptions, ExecRequest, ExitStatus, OutputStream, Session, TerminalSize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::{Protocol, node_status, spdy_session, websocket, workload};
use crate::resource::Call;

/// Pieces that wait in each direction before the other side has to wait.
pub(super) const QUEUE: usize = 16;
/// Most words of a command.
const MAX_COMMAND_WORDS: usize = 4096;

/// What a client sends.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    /// Standard input.
    Data(Bytes),
    /// End of standard input.
    End,
    /// The terminal's size changed.
    Resize(TerminalSize),
}

/// What a client receives.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended, as a `Status`; the last frame.
    End(Value),
}

/// Which streams the client asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) terminal: bool,
}

/// Both ends of a session's queues, for a transport.
pub(super) struct Queues {
    pub(super) input: mpsc::Sender<Input>,
    pub(super) output: mpsc::Receiver<Frame>,
}

pub(super) async fn serve(protocol: Protocol, call: Call, pod: &Value) -> Result<Response, Status> {
    let flag = |name: &str| call.query.flag(name);
    let wanted = Wanted {
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        stderr: flag("stderr") && !flag("tty"),
        terminal: flag("tty"),
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command = call.query.all("command");
    if protocol == Protocol::Exec && (command.is_empty() || command.len() > MAX_COMMAND_WORDS) {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let workload = workload(&call, pod)?;
    if let phase @ ("Succeeded" | "Failed") = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
        && protocol != Protocol::Console
    {
        let name = call.path.name.as_deref().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase} ({name})"
        )));
    }
    // The handshake is checked before anything runs.
    let transport = Transport::choose(&call)?;
    let node = &call.state.node;
    let session = match protocol {
        Protocol::Exec => {
            let request =
                ExecRequest { command, terminal: wanted.terminal, stdin: wanted.stdin, ..ExecRequest::default() };
            node.exec(&workload, request).await
        }
        _ => {
            let replay_logs = protocol == Protocol::Console && flag("past");
            node.attach(&workload, AttachOptions { stdin: wanted.stdin, replay_logs, ..AttachOptions::default() }).await
        }
    };
    let session = match session {
        Err(node::Error::CannotStart { code, message }) => failed_to_start(code, &message),
        other => other.map_err(node_status)?,
    };
    let queues = start(session, wanted);
    match transport {
        Transport::WebSocket => websocket::serve_session(call, queues, wanted).await,
        Transport::Spdy => spdy_session::serve(call, queues, wanted),
    }
}

enum Transport {
    WebSocket,
    Spdy,
}

impl Transport {
    fn choose(call: &Call) -> Result<Transport, Status> {
        match super::spdy::upgrade_header(&call.parts.headers).as_deref() {
            Some("websocket") => Ok(Transport::WebSocket),
            Some("spdy/3.1") => Ok(Transport::Spdy),
            _ => Err(Status::bad_request("Upgrade request required")),
        }
    }
}

/// A program that cannot be started is shown as one that ended at once, as Kubernetes does over an open stream.
fn failed_to_start(code: i32, message: &str) -> Session {
    let (resize, _) = mpsc::channel(1);
    let text = Bytes::from(format!("{message}\n"));
    Session {
        stdin: None,
        output: Box::pin(futures::stream::iter([node::Output { stream: OutputStream::Stderr, data: text }])),
        resize,
        exit: Box::pin(async move { Ok(ExitStatus { code, out_of_memory: false }) }),
        pid: 0,
    }
}

/// Moves bytes between a process and the queues of a transport until either ends.
fn start(session: Session, wanted: Wanted) -> Queues {
    let (input, inputs) = mpsc::channel(QUEUE);
    let (outputs, output) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let Session { stdin, mut output, resize, exit, .. } = session;
        let feeding = tokio::spawn(feed(inputs, stdin, resize));
        while let Some(piece) = output.next().await {
            let frame = match piece.stream {
                OutputStream::Stdout if wanted.stdout => Frame::Stdout(piece.data),
                OutputStream::Stderr if wanted.stderr => Frame::Stderr(piece.data),
                _ => continue,
            };
            if outputs.send(frame).await.is_err() {
                feeding.abort();
                return;
            }
        }
        let end = exit.await;
        let _ = outputs.send(Frame::End(end_status(end))).await;
        feeding.abort();
    });
    Queues { input, output }
}

async fn feed(
    mut inputs: mpsc::Receiver<Input>,
    mut stdin: Option<std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>>,
    resize: mpsc::Sender<TerminalSize>,
) {
    while let Some(input) = inputs.recv().await {
        match (input, stdin.as_mut()) {
            (Input::Data(data), Some(open)) => {
                if open.write_all(&data).await.is_err() || open.flush().await.is_err() {
                    stdin = None;
                }
            }
            (Input::Data(_), None) => {}
            (Input::End, open) => {
                if let Some(open) = open {
                    let _ = open.shutdown().await;
                }
                stdin = None;
            }
            (Input::Resize(size), _) => {
                let _ = resize.send(size).await;
            }
        }
    }
    if let Some(mut open) = stdin {
        let _ = open.shutdown().await;
    }
}

/// How a process ended, as kubectl reads it.
fn end_status(end: node::Result<ExitStatus>) -> Value {
    match end {
        Ok(ExitStatus { code: 0, .. }) => json!({"metadata": {}, "status": "Success"}),
        Ok(ExitStatus { code, .. }) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(error) => {
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": error.to_string()})
        }
    }
}

/// Reads a resize message, `{"Width":80,"Height":24}`.
pub(super) fn parse_resize(bytes: &[u8]) -> Option<TerminalSize> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let read = |name: &str| value.get(name).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
    Some(TerminalSize { columns: read("Width")?, rows: read("Height")? })
}
