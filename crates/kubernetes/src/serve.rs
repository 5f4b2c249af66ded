//! The TLS server: HTTP/1.1 and HTTP/2 on one port, client certificates optional, bounds for slow and greedy clients.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
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
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the head of an HTTP/1.1 request, and for an answer to an HTTP/2 ping.
    pub header_timeout: Duration,
    /// Largest head of a request. Units: bytes.
    pub header_bytes: usize,
    /// Most concurrent streams of one HTTP/2 connection.
    pub streams: u32,
}

impl Default for ServeLimits {
    fn default() -> ServeLimits {
        ServeLimits {
            connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            header_bytes: 64 * 1024,
            // Controllers open one watch per kind over one connection: kube-apiserver's own default.
            streams: 250,
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
/// Time between HTTP/2 pings that find dead clients.
const PING_INTERVAL: Duration = Duration::from_secs(30);

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
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tasks.spawn(async move {
            connection(stream, remote, acceptor, router, limits).await;
            drop(place);
        });
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
    let tls = match tokio::time::timeout(limits.handshake_timeout, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate_user = certificate.and_then(|certificate| certificate_user(certificate)).map(Arc::new);
    let connection = Connection { remote, certificate_user };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let mut router = router.clone();
        async move { router.call(request.map(axum::body::Body::new)).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(limits.header_timeout);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
        tracing::debug!(%remote, %error, "connection ended");
    }
}
