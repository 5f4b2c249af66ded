//! What a machine asks of its pool beside the API: to join, its next certificate, images, and to be let go.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kubernetes::keep_alive;
use kubernetes::pki::machine::{Machine, fingerprint};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::join::{CERTIFICATE_PATH, IMAGE_HEADER, IMAGE_ID_HEADER, IMAGE_PATH, JOIN_PATH, LEAVE_PATH, Welcome, Wish};

/// Time for a connection and the head of an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the next piece of an image: a machine that is stopped keeps its connections.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is no image. Units: bytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Trusts the authority of this fingerprint, and what it signed for the host.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|one| fingerprint(one).as_ref() == Some(&self.fingerprint));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.ok_or_else(unknown)?.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        verifier.map_err(|_| unknown())?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS to a pool of which only the authority's fingerprint is known.
fn pinned(fingerprint: &str) -> Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { fingerprint: fingerprint.to_owned(), provider: provider.clone() };
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn send(
    tls: Arc<rustls::ClientConfig>,
    server: &str,
    request: Request<Full<Bytes>>,
) -> Result<http::Response<Incoming>> {
    let name = crate::api_client::server_name(server)?;
    let work = async {
        let stream = TcpStream::connect(server).await.with_context(|| format!("cannot connect to {server}"))?;
        keep_alive(&stream)?;
        let tls = TlsConnector::from(tls).connect(name, stream).await;
        let tls = tls.with_context(|| format!("{server} does not show a certificate that this machine trusts"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok::<_, anyhow::Error>(sender.send_request(request).await?)
    };
    let answered = tokio::time::timeout(TIMEOUT, work).await;
    answered.unwrap_or_else(|_| bail!("{server} does not answer within {} s", TIMEOUT.as_secs()))
}

fn post(server: &str, path: &str, body: &impl serde::Serialize) -> Result<Request<Full<Bytes>>> {
    let request = Request::post(path).header(header::HOST, server).header(header::CONTENT_TYPE, "application/json");
    Ok(request.body(Full::from(serde_json::to_vec(body)?))?)
}

async fn read<T: DeserializeOwned>(response: http::Response<Incoming>) -> Result<T> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).context("the answer is not understood");
    }
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = said["message"].as_str().unwrap_or_default();
    if status == StatusCode::UNAUTHORIZED {
        bail!("the credential is not accepted: it is wrong, has expired, or was taken back");
    }
    bail!("{}", if said.is_empty() { status.to_string() } else { said.to_owned() })
}

/// Asks to join.
pub async fn join(server: &str, token: &str, authority: &str, wish: &Wish) -> Result<Welcome> {
    let mut request = post(server, JOIN_PATH, wish)?;
    let bearer = format!("Bearer {token}").parse().context("the token is unusable")?;
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    read(send(pinned(authority)?, server, request).await?).await
}

/// The pool, as one of its machines reaches it.
#[derive(Clone)]
pub struct PoolClient {
    /// Who asks.
    pub identity: Machine,
    /// Host and port of the API.
    pub server: String,
}

impl PoolClient {
    /// Asks for the next certificate, and shows it from then on.
    pub async fn renew(&self) -> Result<()> {
        let wish = Wish { name: String::new(), request: self.identity.request()? };
        let request = post(&self.server, CERTIFICATE_PATH, &wish)?;
        let answer: serde_json::Value =
            read(send(self.identity.client_config(false)?, &self.server, request).await?).await?;
        let certificate = answer["certificate"].as_str().context("there is no certificate in the answer")?;
        Ok(self.identity.renew(certificate)?)
    }

    /// Takes this machine out of the pool.
    pub async fn leave(&self) -> Result<()> {
        let request = post(&self.server, LEAVE_PATH, &serde_json::json!({}))?;
        let answer: serde_json::Value =
            read(send(self.identity.client_config(false)?, &self.server, request).await?).await?;
        drop(answer);
        Ok(())
    }

    async fn image(&self, method: Method, name: &str) -> Result<Option<http::Response<Incoming>>> {
        let request = Request::builder().method(method).uri(IMAGE_PATH).header(header::HOST, &self.server);
        let request = request.header(IMAGE_HEADER, name).body(Full::default())?;
        let response = send(self.identity.client_config(false)?, &self.server, request).await?;
        match response.status() {
            StatusCode::OK => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            status => bail!("{status}"),
        }
    }
}

#[async_trait]
impl agent::ImageOrigin for PoolClient {
    async fn look(&self, name: &str) -> Result<Option<String>, String> {
        let found = self.image(Method::HEAD, name).await.map_err(|error| format!("{error:#}"))?;
        let id = |response: http::Response<Incoming>| {
            response.headers().get(IMAGE_ID_HEADER).and_then(|id| id.to_str().ok()).map(str::to_owned)
        };
        Ok(found.and_then(id))
    }

    async fn fetch(&self, name: &str) -> Result<Option<agent::ImageArchive>, String> {
        let found = self.image(Method::GET, name).await.map_err(|error| format!("{error:#}"))?;
        Ok(found.map(|response| -> agent::ImageArchive {
            let pieces = response.into_body().into_data_stream().map_err(std::io::Error::other);
            Box::pin(tokio_util::io::StreamReader::new(in_time(pieces.boxed())))
        }))
    }
}

type Pieces = BoxStream<'static, std::io::Result<Bytes>>;

/// The same pieces, which end with an error when the next one does not come in time after somebody wanted it.
fn in_time(pieces: Pieces) -> Pieces {
    let next = |pieces: Option<Pieces>| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(PIECE_TIMEOUT, pieces.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(pieces))),
            Err(_) => {
                let text = format!("nothing more came within {} s", PIECE_TIMEOUT.as_secs());
                Some((Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text)), None))
            }
        }
    };
    futures::stream::unfold(Some(pieces), next).boxed()
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_image_of_which_nothing_more_comes_ends_with_an_error() {
        let piece = || Ok(Bytes::from_static(b"piece"));
        let stuck = in_time(stream::iter([piece()]).chain(stream::pending()).boxed());
        let all: Vec<_> = stuck.collect().await;
        assert_eq!(all[0].as_ref().unwrap(), "piece");
        assert_eq!(all[1].as_ref().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(all.len(), 2);
        // One that is slow, but not that slow, comes whole.
        let slow = stream::iter([piece(), piece(), piece()]).then(|piece| async move {
            tokio::time::sleep(PIECE_TIMEOUT / 2).await;
            piece
        });
        assert!(in_time(slow.boxed()).all(|piece| async move { piece.is_ok() }).await);
    }
}
