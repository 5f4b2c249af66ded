//! Connections to registries: TLS, and which addresses may be spoken to. A public registry must not send us to the machine
//! itself or into its private networks, whatever names resolve to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result};
use crate::store::StoreOptions;

/// Time to connect to one address, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Where systems keep their root certificates.
const ROOT_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How near an address is. A peer may send us to its own class or a farther one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The machine itself, and link-local addresses (metadata services).
    Local,
    /// Private networks.
    Private,
    /// Everything else.
    Public,
}

/// The class of an address.
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            if v4.is_loopback() || v4.is_link_local() || a == 0 || v4.is_broadcast() || v4.is_multicast() {
                Class::Local
            } else if v4.is_private()
                || (a == 100 && (64..128).contains(&b))
                // Networks for measurements, and for protocols.
                || (a == 198 && b & 0xfe == 18)
                || [a, b, c] == [192, 0, 0]
                || a >= 240
            {
                Class::Private
            } else {
                Class::Public
            }
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = inside(v6) {
                return classify(IpAddr::V4(v4));
            }
            if v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() {
                Class::Local
            } else if v6.is_unique_local() || is_site_local(v6) || v6.segments()[..3] == [0x64, 0xff9b, 1] {
                Class::Private
            } else {
                Class::Public
            }
        }
    }
}

/// The IPv4 address that an IPv6 address stands for. `Source:` RFC 4291, section 2.5.5; RFC 6052; RFC 3056
fn inside(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let (octets, segments) = (v6.octets(), v6.segments());
    let [.., a, b, c, d] = octets;
    match segments {
        // Mapped; compatible, with `::` and `::1` among them, which are as near as 0.0.0.0 and 0.0.0.1; NAT64.
        [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(Ipv4Addr::new(a, b, c, d)),
        // 6to4: after the prefix.
        [0x2002, ..] => Some(Ipv4Addr::new(octets[2], octets[3], octets[4], octets[5])),
        _ => None,
    }
}

/// Deprecated, and used all the same. `Source:` RFC 3879
fn is_site_local(v6: Ipv6Addr) -> bool {
    v6.segments()[0] & 0xffc0 == 0xfec0
}

/// Which addresses may be spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Addresses of this class and farther ones.
    pub nearest: Class,
    /// And these parts of all addresses, however near: an address and the length of its prefix in bits.
    pub also: Vec<(IpAddr, u8)>,
}

impl From<Class> for Reach {
    fn from(nearest: Class) -> Self {
        Self { nearest, also: Vec::new() }
    }
}

impl Reach {
    /// Whether an address is one of them.
    pub fn includes(&self, address: IpAddr) -> bool {
        classify(address) >= self.nearest
            || self.also.iter().any(|(network, length)| lies_in(address, *network, *length))
    }
}

fn lies_in(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let (differ, bits) = match (address.to_canonical(), network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a) ^ u32::from(b)), 32_u8),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b), 128),
        _ => return false,
    };
    differ.checked_shr(bits.saturating_sub(length).into()).unwrap_or(0) == 0
}

/// Resolves a host.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    match found {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(Error::Unavailable(format!("dial tcp: lookup {host}: {error}"))),
        Err(_) => Err(Error::Unavailable(format!("dial tcp: lookup {host}: no answer in time"))),
    }
}

/// Makes connections to the addresses that may be spoken to.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<rustls::ClientConfig>,
    reach: Reach,
}

/// TLS settings from the roots that the options name.
pub fn tls(options: &StoreOptions) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    let system = ROOT_FILES.iter().map(std::path::Path::new).find(|path| path.exists());
    if let Some(path) = options.root_certificates.as_deref().or(system) {
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::Invalid(format!("cannot read root certificates {}: {error}", path.display()))
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
            // A root that cannot be parsed trusts nobody.
            let _ = roots.add(certificate.map_err(|error| unreadable(&error))?);
        }
    }
    for text in &options.authorities {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes());
        let certificate = certificate.map_err(|error| Error::Invalid(format!("an authority is no PEM: {error}")))?;
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Internal(format!("cannot set up TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Connector {
    /// A connector.
    pub fn new(tls: Arc<rustls::ClientConfig>, reach: impl Into<Reach>) -> Connector {
        Connector { tls, reach: reach.into() }
    }

    async fn connect(self, uri: Uri) -> Result<Stream> {
        let secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        self.first(&host, port, |address| self.open(&host, address, secure)).await
    }

    /// A connection without TLS.
    pub async fn plain(&self, host: &str, port: u16) -> Result<TcpStream> {
        self.first(host, port, TcpStream::connect).await
    }

    /// Connects to the first address of a host that may be spoken to and answers.
    async fn first<T, F>(&self, host: &str, port: u16, open: impl Fn(SocketAddr) -> F) -> Result<T>
    where
        F: Future<Output = std::io::Result<T>>,
    {
        let mut last = Error::Unavailable(format!("dial tcp: {host} has no address"));
        for address in resolve(host, port).await? {
            if !self.reach.includes(address.ip()) {
                // Whoever asks learns nothing of the networks here by the names in them.
                tracing::info!(host, address = %address.ip(), "an address that is too near is not spoken to");
                last = Error::Unavailable(format!("{host} is where nobody may send us from outside"));
                continue;
            }
            match tokio::time::timeout(CONNECT_TIMEOUT, open(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Error::Unavailable(format!("dial tcp {address}: {error}")),
                Err(_) => last = Error::Unavailable(format!("dial tcp {address}: no answer in time")),
            }
        }
        Err(last)
    }

    async fn open(&self, host: &str, address: SocketAddr, secure: bool) -> std::io::Result<Stream> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        if !secure {
            return Ok(Stream::Plain(TokioIo::new(tcp)));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(std::io::Error::other)?;
        let tls = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        Ok(Stream::Tls(Box::new(TokioIo::new(tls))))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection with or without TLS.
pub enum Stream {
    /// Without.
    Plain(TokioIo<TcpStream>),
    /// With.
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_read(cx, buffer),
            Stream::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Stream::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_flush(cx),
            Stream::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Stream::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_classed_in_every_disguise() {
        for (text, class) in [
            ("127.0.0.1", Class::Local),
            ("0.0.0.0", Class::Local),
            ("169.254.169.254", Class::Local),
            ("::1", Class::Local),
            ("::ffff:127.0.0.1", Class::Local),
            ("64:ff9b::7f00:1", Class::Local),
            ("::", Class::Local),
            ("::127.0.0.1", Class::Local),
            ("2002:7f00:1::1", Class::Local),
            ("ff02::1", Class::Local),
            ("64:ff9b:1::8.8.8.8", Class::Private),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("2002:a00:1::1", Class::Private),
            ("::10.0.0.1", Class::Private),
            ("fec0::1", Class::Private),
            ("feff::1", Class::Private),
            ("198.18.0.1", Class::Private),
            ("198.19.255.255", Class::Private),
            ("192.0.0.8", Class::Private),
            ("192.0.1.8", Class::Public),
            ("198.20.0.1", Class::Public),
            ("2002:808:808::1", Class::Public),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("fe80::1", Class::Local),
            ("10.1.2.3", Class::Private),
            ("100.64.0.1", Class::Private),
            ("fd00::1", Class::Private),
            ("8.8.8.8", Class::Public),
            ("2606:4700::1", Class::Public),
        ] {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn what_is_let_beside_a_class_is_that_part_alone() {
        let reach = Reach { nearest: Class::Public, also: vec![("10.1.0.0".parse().unwrap(), 16)] };
        for (text, is) in [
            ("10.1.255.1", true),
            ("::ffff:10.1.0.1", true),
            ("10.2.0.1", false),
            ("127.0.0.1", false),
            ("8.8.8.8", true),
            ("fd00::1", false),
        ] {
            assert_eq!(reach.includes(text.parse().unwrap()), is, "{text}");
        }
        let everything = Reach { nearest: Class::Public, also: vec![("0.0.0.0".parse().unwrap(), 0)] };
        assert!(everything.includes("127.0.0.1".parse().unwrap()) && !everything.includes("::1".parse().unwrap()));
    }
}
