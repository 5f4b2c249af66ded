//! A small HTTP/1.1 client over TLS: one connection, one request at a time, or one watch. It does as little as a client can, so
//! that it is the server that is measured.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest head of an answer. Units: bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// What one read takes at most. Units: bytes.
const READ_BYTES: usize = 32 * 1024;

/// Where the server is, and who we are to it.
#[derive(Clone)]
pub struct Access {
    address: SocketAddr,
    host: String,
    tls: Arc<rustls::ClientConfig>,
    token: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    #[serde(alias = "cluster", alias = "user")]
    content: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

impl Access {
    /// The server and the identity that a kubeconfig names first.
    pub fn from_kubeconfig(path: &Path) -> Result<Access> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).context("not a kubeconfig")?;
        let cluster = &config.clusters.first().context("no cluster in the kubeconfig")?.content;
        let user = &config.users.first().context("no user in the kubeconfig")?.content;
        let host = cluster.server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let address = host.to_socket_addrs()?.next().context("the server has no address")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&decode(&cluster.certificate_authority_data)?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&decode(&user.client_certificate_data)?)?];
        let key = PrivateKeyDer::from_pem_slice(&decode(&user.client_key_data)?)?;
        let tls = builder()?.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        Ok(Access { address, host, tls: Arc::new(tls), token: None })
    }

    /// The same server as somebody else: by bearer token, without a certificate.
    pub fn with_token(&self, kubeconfig: &Path, token: Option<&str>) -> Result<Access> {
        let text = std::fs::read_to_string(kubeconfig)?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).context("not a kubeconfig")?;
        let cluster = &config.clusters.first().context("no cluster in the kubeconfig")?.content;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&decode(&cluster.certificate_authority_data)?)?)?;
        let tls = builder()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Access { tls: Arc::new(tls), token: token.map(Into::into), ..self.clone() })
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Connection> {
        let socket = TcpStream::connect(self.address).await.context("cannot connect")?;
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(self.tls.clone()).connect(name, socket).await.context("TLS failed")?;
        let mut head = format!("Host: {}\r\nUser-Agent: bench\r\n", self.host);
        if let Some(token) = &self.token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        Ok(Connection { stream, head, buffer: BytesMut::new(), out: Vec::new() })
    }
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn decode(text: &str) -> Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text.trim()).context("not base64")
}

/// One connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    head: String,
    buffer: BytesMut,
    out: Vec<u8>,
}

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The answer, if its status is one of success.
    pub fn success(self) -> Result<Answer> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        bail!("HTTP {}: {}", self.status, String::from_utf8_lossy(&self.body[..self.body.len().min(400)]))
    }

    /// The `metadata` that tells objects and their states apart.
    pub fn metadata(&self) -> Result<Metadata> {
        let object: Object = serde_json::from_slice(&self.body).context("the answer is no object")?;
        Ok(object.metadata)
    }
}

/// What the bench reads of an object.
#[derive(Deserialize)]
pub struct Object {
    /// Its metadata.
    pub metadata: Metadata,
}

/// What the bench reads of the metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// The version, as text.
    pub resource_version: String,
}

impl Metadata {
    /// The version as a number.
    pub fn version(&self) -> Result<u64> {
        self.resource_version.parse().with_context(|| format!("resourceVersion {:?}", self.resource_version))
    }
}

struct Head {
    status: u16,
    length: Option<usize>,
}

impl Connection {
    /// Sends a request and reads the whole answer.
    pub async fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        self.send(method, path, body).await?;
        let head = self.read_head().await?;
        let body = match head.length {
            Some(length) => {
                while self.buffer.len() < length {
                    self.fill().await?;
                }
                self.buffer.split_to(length).freeze()
            }
            None => {
                let mut whole = BytesMut::new();
                while let Some(chunk) = self.chunk().await? {
                    whole.extend_from_slice(&chunk);
                }
                whole.freeze()
            }
        };
        Ok(Answer { status: head.status, body })
    }

    /// Sends a request without waiting for the answer.
    pub async fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        self.out.clear();
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.head,
            body.len()
        );
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(body.as_bytes());
        self.stream.write_all(&self.out).await?;
        Ok(self.stream.flush().await?)
    }

    /// Turns the connection into a watch.
    pub async fn watch(mut self, path: &str) -> Result<Watch> {
        self.send("GET", path, "").await?;
        let head = self.read_head().await?;
        if head.status != 200 || head.length.is_some() {
            bail!("the watch was refused: HTTP {}", head.status);
        }
        Ok(Watch { connection: self, text: BytesMut::new() })
    }

    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }

    async fn read_head(&mut self) -> Result<Head> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                bail!("the head of the answer is too long");
            }
            self.fill().await?;
        };
        let text = std::str::from_utf8(&self.buffer[..end])?;
        let status = text.get(9..12).and_then(|code| code.parse().ok()).context("no HTTP status")?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        self.buffer.advance(end + 4);
        Ok(Head { status, length })
    }

    /// The next chunk of a chunked body; `None` at its end.
    async fn chunk(&mut self) -> Result<Option<BytesMut>> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            self.fill().await?;
        };
        let length = usize::from_str_radix(std::str::from_utf8(&self.buffer[..end])?.trim(), 16)?;
        while self.buffer.len() < end + 2 + length + 2 {
            self.fill().await?;
        }
        self.buffer.advance(end + 2);
        let chunk = self.buffer.split_to(length);
        self.buffer.advance(2);
        Ok((length > 0).then_some(chunk))
    }
}

/// A running watch.
pub struct Watch {
    connection: Connection,
    text: BytesMut,
}

/// One event of a watch.
#[derive(Deserialize)]
pub struct Event {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    #[serde(rename = "type")]
    pub kind: String,
    /// The object.
    pub object: EventObject,
}

/// The object of an event; an error has no metadata worth reading.
#[derive(Deserialize)]
pub struct EventObject {
    /// Its metadata.
    #[serde(default)]
    pub metadata: Metadata,
    /// The code of a Status.
    #[serde(default)]
    pub code: u16,
}

impl Watch {
    /// The next event as text; `None` when the server ended the watch.
    pub async fn line(&mut self) -> Result<Option<Bytes>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.text[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.text.split_to(searched + at + 1);
                line.truncate(searched + at);
                return Ok(Some(line.freeze()));
            }
            searched = self.text.len();
            match self.connection.chunk().await? {
                Some(chunk) if self.text.is_empty() => self.text = chunk,
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// The next event.
    pub async fn event(&mut self) -> Result<Option<Event>> {
        let Some(line) = self.line().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).context("an event is no JSON")
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
