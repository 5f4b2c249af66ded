//! Connections that do what no decent client does: TLS by hand, HTTP/1.1 in drops, HTTP/2 frame by frame.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::server::Server;

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A connection without a client certificate.
pub struct Raw {
    pub stream: TlsStream<tokio::net::TcpStream>,
}

impl Raw {
    /// Connects from a loopback address of our choice.
    pub async fn connect(server: &Server, from: Ipv4Addr, alpn: &str) -> std::io::Result<Raw> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&server.authority()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = socket.connect(server.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(server.address.ip().into());
        Ok(Raw { stream: TlsConnector::from(Arc::new(tls)).connect(name, stream).await? })
    }

    /// Connects for HTTP/2, and says so.
    pub async fn http2(server: &Server, from: Ipv4Addr) -> std::io::Result<Raw> {
        let mut raw = Raw::connect(server, from, "h2").await?;
        raw.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        raw.send(&frame(4, 0, 0, &[])).await?;
        Ok(raw)
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next frame: type, flags, payload. `None` when the server closed the connection.
    pub async fn frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }

    /// Whether the server ends the connection, or says that it will, within this time.
    pub async fn is_ended_within(&mut self, limit: Duration) -> bool {
        let ends = async {
            let mut bytes = [0; 4096];
            while self.stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        };
        tokio::time::timeout(limit, ends).await.is_ok()
    }
}

/// One GET by HTTP/1.1 on a connection of its own; the status, or why there is none.
pub async fn get(server: &Server, from: Ipv4Addr, path: &str, limit: Duration) -> Result<u16, String> {
    let request = async {
        let mut raw = Raw::connect(server, from, "http/1.1").await.map_err(|error| error.to_string())?;
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        raw.send(text.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut head = [0; 12];
        raw.stream.read_exact(&mut head).await.map_err(|error| error.to_string())?;
        std::str::from_utf8(&head[9..]).ok().and_then(|code| code.parse().ok()).ok_or_else(|| "no status".to_owned())
    };
    tokio::time::timeout(limit, request).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// An HTTP/2 frame. `Source:` RFC 9113, section 4.1.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a GET, without compression. `Source:` RFC 7541, section 6.2.2 and appendix A.
pub fn get_head(path: &str, token: &str) -> Vec<u8> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
        bytes.extend_from_slice(text.as_bytes());
    };
    // `:method: GET`, `:scheme: https`, then `:path`, `:authority` and `authorization` as literals.
    let mut block = vec![0x82, 0x87, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, "x");
    if !token.is_empty() {
        block.extend_from_slice(&[0x0f, 0x08]);
        text(&mut block, &format!("Bearer {token}"));
    }
    block
}
