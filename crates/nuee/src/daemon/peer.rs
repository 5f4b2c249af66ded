//! Connections between machines: TLS on both sides with certificates of our own authority, and one HTTP request that turns the
//! connection into a stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use kubernetes::keep_alive;
use kubernetes::pki::machine::{Machine, server_name};
use node::Duplex;
use node::remote::Dial;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a machine takes calls.
pub const MACHINE_PATH: &str = "/nuee/v1/machine";
/// Where a machine takes guests in.
pub const GUEST_PATH: &str = "/nuee/v1/guest";
/// What the connection becomes.
pub const PROTOCOL: &str = "nuee-machine/1";
/// Time to connect, handshake and first answer included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest refusal that is read. Units: bytes.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
/// Time between two pings of a connection to the API.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// One machine, as another one reaches it.
pub struct Peer {
    identity: Machine,
    name: String,
    place: SocketAddr,
}

impl Peer {
    /// The machine of this name at this place; `identity` is who asks.
    pub fn new(identity: Machine, name: &str, place: SocketAddr) -> Self {
        Self { identity, name: name.to_owned(), place }
    }

    /// Opens a stream at one of the machine's paths.
    ///
    /// `Errors:` it is not reached, is another one, or refuses.
    pub async fn open(&self, path: &str) -> Result<Box<dyn Duplex>> {
        let opened = tokio::time::timeout(TIMEOUT, self.try_open(path)).await;
        opened.unwrap_or_else(|_| bail!("no answer within {} s", TIMEOUT.as_secs()))
    }

    async fn try_open(&self, path: &str) -> Result<Box<dyn Duplex>> {
        let stream = TcpStream::connect(self.place).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        // The name says which machine, so that one cannot answer at the address of another.
        let name = ServerName::try_from(server_name(&self.name)).context("the machine's name is unusable")?;
        let tls = TlsConnector::from(self.identity.client_config(false)?).connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::post(path)
            .header(header::HOST, self.place.to_string())
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, PROTOCOL)
            .body(Empty::<bytes::Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let text = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await;
            let text = text.map(|text| text.to_bytes()).unwrap_or_default();
            bail!("it answers {status}: {}", String::from_utf8_lossy(&text));
        }
        Ok(Box::new(TokioIo::new(hyper::upgrade::on(response).await?)))
    }
}

#[async_trait]
impl Dial for Peer {
    async fn dial(&self) -> node::Result<Box<dyn Duplex>> {
        self.open(MACHINE_PATH).await.map_err(|error| {
            node::Error::Unavailable(format!("machine {} at {} is not reached: {error:#}", self.name, self.place))
        })
    }
}

/// The machines of a pool, as one of them finds them.
pub struct Peers {
    /// Who asks.
    pub identity: Machine,
    /// Knows where they are.
    pub client: kube::Client,
}

#[async_trait]
impl agent::Peers for Peers {
    async fn open(&self, node: &str) -> std::result::Result<Box<dyn Duplex>, String> {
        let opened = async {
            let routes = kube::Api::<api::NetworkRoute>::all(self.client.clone()).list(&Default::default()).await?;
            let route = routes.items.into_iter().find(|route| route.spec.node_name == node);
            let route = route.context("it is not in the pool's network")?.spec;
            let place = SocketAddr::new(route.machine_address.parse()?, route.machine_port);
            Peer::new(self.identity.clone(), node, place).open(GUEST_PATH).await
        };
        opened.await.map_err(|error: anyhow::Error| format!("machine {node} is not reached: {error:#}"))
    }
}

/// A client of the API of a pool, for one of its machines: one connection for all requests, made anew when it breaks.
pub fn api_client(identity: &Machine, server: &str) -> Result<kube::Client> {
    use hyper_util::client::legacy::Client;
    let name = crate::api_client::server_name(server)?;
    let connector = Connector { tls: identity.client_config(true)?, server: server.to_owned(), name };
    let client: Client<_, kube::client::Body> = Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .timer(hyper_util::rt::TokioTimer::new())
        .http2_keep_alive_interval(ALIVE_INTERVAL)
        .http2_keep_alive_timeout(TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(connector);
    let authority: http::uri::Authority = server.parse().context("the server's address is unusable")?;
    let service = tower::ServiceBuilder::new()
        .map_request(move |mut request: Request<kube::client::Body>| {
            let mut parts = request.uri().clone().into_parts();
            parts.scheme = Some(http::uri::Scheme::HTTPS);
            parts.authority = Some(authority.clone());
            if let Ok(uri) = http::Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
            request
        })
        .service(client);
    Ok(kube::Client::new(service, "default"))
}

/// Connects to the API, wherever a request says it goes.
#[derive(Clone)]
struct Connector {
    tls: Arc<rustls::ClientConfig>,
    server: String,
    name: ServerName<'static>,
}

impl tower::Service<http::Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = futures::future::BoxFuture<'static, std::io::Result<Stream>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let connect = async {
                let stream = TcpStream::connect(&own.server).await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                TlsConnector::from(own.tls).connect(own.name, stream).await
            };
            let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
            let stream = tokio::time::timeout(TIMEOUT, connect).await.map_err(|_| late())??;
            Ok(Stream(TokioIo::new(stream)))
        })
    }
}

/// A connection to the API.
struct Stream(TokioIo<tokio_rustls::client::TlsStream<TcpStream>>);

impl hyper_util::client::legacy::connect::Connection for Stream {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new().negotiated_h2()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
