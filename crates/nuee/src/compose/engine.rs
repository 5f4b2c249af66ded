//! A small client of the Docker API on a unix socket.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// The version whose words are spoken.
const VERSION: &str = "v1.43";
/// Longest answer that is read whole.
const MAX_ANSWER: usize = 64 << 20;

/// A Docker API.
#[derive(Clone, Debug)]
pub struct Engine {
    socket: PathBuf,
}

impl Engine {
    /// The API at `DOCKER_HOST`, or at a socket.
    pub fn find(default: PathBuf) -> Result<Engine> {
        match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => match host.strip_prefix("unix://") {
                Some(path) => Ok(Engine { socket: path.into() }),
                None => bail!("DOCKER_HOST is {host}; only unix:// is supported"),
            },
            _ => Ok(Engine { socket: default }),
        }
    }

    /// Sends a request; the answer's head is there, whatever it says.
    async fn send(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("cannot reach the Docker API at {}", self.socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Its end is seen by whoever reads the answer.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(format!("/{VERSION}{path}"))
            .header("Host", "docker")
            .header("Content-Type", kind)
            .body(Full::new(body))?;
        Ok(sender.send_request(request).await?)
    }

    /// Sends a request and fails with what the engine says when it refuses.
    async fn ask(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Response<Incoming>> {
        let response = self.send(method, path, kind, body).await?;
        if response.status().is_success() || response.status().as_u16() == 304 {
            return Ok(response);
        }
        let bytes = whole(response).await?;
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match said.get("message").and_then(Value::as_str) {
            Some(message) => bail!("{message}"),
            None => bail!("{path}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// A request with a JSON body and a JSON answer; no answer is `null`.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map_or_else(String::new, Value::to_string);
        let bytes = whole(self.ask(method, path, "application/json", body.into()).await?).await?;
        if bytes.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&bytes)?) }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    /// `GET`; `None` when there is no such thing.
    pub async fn find_one(&self, path: &str) -> Result<Option<Value>> {
        let response = self.send(Method::GET, path, "application/json", Bytes::new()).await?;
        match response.status().as_u16() {
            404 => Ok(None),
            200 => Ok(Some(serde_json::from_slice(&whole(response).await?)?)),
            status => bail!("{path}: {status} {}", String::from_utf8_lossy(&whole(response).await?)),
        }
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.json(Method::DELETE, path, None).await.map(drop)
    }

    /// A request whose answer comes in pieces, each of which is shown to `take`.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut response = self.ask(method, path, "application/x-tar", body.into()).await?;
        while let Some(frame) = response.body_mut().frame().await {
            if let Some(data) = frame?.data_ref() {
                take(data)?;
            }
        }
        Ok(())
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
    let body = limited.collect().await.map_err(|error| anyhow::anyhow!("cannot read the answer: {error}"))?;
    Ok(body.to_bytes())
}

/// A value for a query.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
