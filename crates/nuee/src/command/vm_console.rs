//! `nuee vm console`: the serial console over the API, by the protocol of `kubectl attach`.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{SinkExt, StreamExt};
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use super::image::Place;
use crate::api_client::Endpoint;

/// Ends a console: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// First byte of messages: what is typed, what is said, how it ended. Source: KEP 4006.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
/// The protocol's name.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// A console that is fed by a pipe is left when it has been quiet for so long.
const QUIET: Duration = Duration::from_secs(2);
/// Pieces of input that wait.
const WAITING_MAX: usize = 16;

/// Flags of `nuee vm console`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The machine
    name: String,
    /// Only print what it said so far
    #[arg(long)]
    log: bool,
    #[command(flatten)]
    place: Place,
}

/// Does what the command says.
pub async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { name, log, place } = arguments;
    let path = format!("/apis/nuee.dev/v1/namespaces/{}/virtualmachines/{name}", place.namespace);
    if log {
        let request = http::Request::get(format!("{path}/log")).body(Vec::new()).context("the name is no name")?;
        let said =
            place.client()?.request_text(request).await.with_context(|| format!("cannot read the log of {name}"))?;
        std::io::stdout().write_all(said.as_bytes())?;
        return Ok(());
    }
    let endpoint = Endpoint::read(&place.credentials()?)?;
    let url = format!("wss://{}{path}/console?stdin=true&stdout=true&past=true", endpoint.address);
    let mut request = url.into_client_request().context("the name is no name")?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, PROTOCOL.parse()?);
    if let Some(bearer) = endpoint.authorization.clone() {
        request.headers_mut().insert(AUTHORIZATION, bearer);
    }
    let stream = endpoint.connect().await.context("cannot reach the API")?;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => talk(socket).await,
        Err(tungstenite::Error::Http(answer)) => {
            let status: Value =
                serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap_or_default();
            let why = status["message"].as_str().map_or_else(|| answer.status().to_string(), str::to_owned);
            bail!("cannot connect to the console of {name}: {why}")
        }
        Err(error) => Err(error).context("cannot connect to the console"),
    }
}

/// Carries the terminal to the console and back until either ends.
async fn talk<S>(socket: tokio_tungstenite::WebSocketStream<S>) -> Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let terminal = Raw::enter()?;
    let (mut sending, mut receiving) = socket.split();
    let mut typed = type_from_stdin(terminal.is_some());
    let mut is_open = true;
    loop {
        let message = tokio::select! {
            piece = typed.recv(), if is_open => {
                match piece {
                    Some(piece) => {
                        let message = [&[STDIN], piece.as_slice()].concat();
                        sending.send(Message::Binary(message.into())).await.context("the console is gone")?;
                    }
                    None if terminal.is_some() => return Ok(()),
                    None => is_open = false,
                }
                continue;
            }
            message = receiving.next() => message,
            // Fed by a pipe: what the guest answers is shown until it is quiet.
            () = tokio::time::sleep(QUIET), if !is_open => return Ok(()),
        };
        let data = match message {
            Some(Ok(Message::Binary(data))) => data,
            Some(Ok(Message::Close(_))) | None => return Ok(()),
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(error).context("the console is gone"),
        };
        match data.split_first() {
            Some((&STDOUT, said)) => {
                let mut stdout = std::io::stdout();
                stdout.write_all(said)?;
                stdout.flush()?;
            }
            Some((&ERROR, told)) if !told.is_empty() => {
                let status: Value = serde_json::from_slice(told).unwrap_or_default();
                if status["status"] == "Failure" {
                    bail!("{}", status["message"].as_str().unwrap_or("the console ended"));
                }
            }
            _ => {}
        }
    }
}

/// What is typed, to its end or the key that ends it. A thread of its own: a read from a terminal cannot be called off.
fn type_from_stdin(is_terminal: bool) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0u8; 1024];
        while let Ok(count) = std::io::stdin().read(&mut buffer) {
            let typed = &buffer[..count];
            let end = typed.iter().position(|byte| *byte == ESCAPE && is_terminal);
            let piece = typed[..end.unwrap_or(count)].to_vec();
            if count == 0 || (!piece.is_empty() && sender.blocking_send(piece).is_err()) || end.is_some() {
                return;
            }
        }
    });
    receiver
}

/// A terminal that passes every key on, and is itself again when this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
