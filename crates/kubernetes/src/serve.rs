//! The TLS server: HTTP/1.1 and HTTP/2 on one port, client certificates optional, bounds for slow and greedy clients.
//!
//! The protocol is the one that ALPN settled, so that no connection waits without a limit for a first byte that would tell.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::identity::{Connection, certificate_user};

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Most connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Most connections from one address; further ones are closed at once.
    pub connections_of_one: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the head of an HTTP/1.1 request, from the end of the answer before it; and for an answer to an HTTP/2 ping.
    pub header_timeout: Duration,
    /// Largest head of a request. Units: bytes.
    pub header_bytes: usize,
    /// Most concurrent streams of one HTTP/2 connection.
    pub streams: u32,
    /// Streams of one HTTP/2 connection that a client may have reset before they were looked at; more of them break the connection
    /// off. `Source:` CVE-2023-44487.
    pub reset_streams: usize,
    /// Time between HTTP/2 pings that find dead clients.
    pub ping_interval: Duration,
}

impl Default for ServeLimits {
    fn default() -> ServeLimits {
        ServeLimits {
            connections: 4096,
            // One address, be it a gateway with many behind it, never has them all.
            connections_of_one: 3072,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            header_bytes: 64 * 1024,
            // Controllers open one watch per kind over one connection: kube-apiserver's own default.
            streams: 250,
            reset_streams: 32,
            ping_interval: Duration::from_secs(30),
        }
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket failed for good.
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
}

/// How long to wait after a failed accept (out of descriptors) before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts in a row after which the server gives up.
const MAX_ACCEPT_FAILURES: u32 = 100;
/// What HTTP/2 protocol's TLS name is. `Source:` RFC 9113, section 3.2.
const ALPN_HTTP2: &[u8] = b"h2";

/// Serves `router` over TLS until the future is dropped. Every connection is a task of its own.
///
/// Errors: the listening socket fails over and over.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    limits: ServeLimits,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(limits.connections));
    let addresses = Arc::new(Addresses::default());
    let mut tasks = tokio::task::JoinSet::new();
    let mut failures = 0;
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if failures < MAX_ACCEPT_FAILURES => {
                tracing::warn!(%error, "cannot accept a connection");
                failures += 1;
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            Err(error) => return Err(ServeError::Accept(error)),
        };
        failures = 0;
        let Some(address) = addresses.take(remote.ip(), limits.connections_of_one) else {
            tracing::debug!(%remote, "too many connections from one address");
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tasks.spawn(async move {
            connection(stream, remote, acceptor, router, limits).await;
            drop((place, address));
        });
    }
}

/// Connections by address.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place among those of its address; given back when dropped.
struct AddressPlace(Arc<Addresses>, IpAddr);

impl Addresses {
    fn take(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<AddressPlace> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(AddressPlace(self.clone(), address))
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    remote: std::net::SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    limits: ServeLimits,
) {
    // Small writes (watch events) must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    if let Err(error) = crate::keep_alive(&stream) {
        tracing::debug!(%remote, %error, "a connection that nobody will miss when its other end is gone");
    }
    let tls = match tokio::time::timeout(limits.handshake_timeout, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate_user = certificate.and_then(|certificate| certificate_user(certificate)).map(Arc::new);
    let certificate = certificate.map(|certificate| Arc::from(certificate.as_ref()));
    let connection = Connection { remote, certificate_user, certificate };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let mut router = router.clone();
        async move { router.call(request.map(axum::body::Body::new)).await }
    });
    let ended = if tls.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2) {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_pending_accept_reset_streams(limits.reset_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.header_timeout);
        builder.serve_connection(TokioIo::new(tls), service).await
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(limits.header_bytes);
        builder.serve_connection(TokioIo::new(tls), service).with_upgrades().await
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}
