//! Calls admission webhooks: one HTTPS request each, on a connection of its own, within bounds of size and time. Which
//! webhook is asked, and what its answer means, is the machinery's business.

use std::sync::Arc;
use std::time::Duration;

use apiserver::{WebhookEndpoint, WebhookTransport};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Largest answer. Units: bytes.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Most calls at once; further ones wait, within their own time.
const MAX_CALLS: usize = 128;
/// Longest text of an answer that is no success that an error repeats. Units: bytes.
const MAX_ECHOED_BYTES: usize = 256;
/// Where Debian and its kin keep the authorities of the system.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Calls webhooks over HTTPS.
#[derive(Debug)]
pub struct HttpsWebhooks {
    calls: Semaphore,
}

impl Default for HttpsWebhooks {
    fn default() -> HttpsWebhooks {
        HttpsWebhooks { calls: Semaphore::new(MAX_CALLS) }
    }
}

#[async_trait::async_trait]
impl WebhookTransport for HttpsWebhooks {
    async fn post(&self, endpoint: &WebhookEndpoint, body: Bytes, timeout: Duration) -> Result<Bytes, String> {
        let call = async {
            let _turn = self.calls.acquire().await.map_err(|error| error.to_string())?;
            post(endpoint, body).await
        };
        tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
    }
}

async fn post(endpoint: &WebhookEndpoint, body: Bytes) -> Result<Bytes, String> {
    let config = client_config(endpoint.authorities.as_deref()).await?;
    let name = ServerName::try_from(endpoint.server_name.clone()).map_err(|_| "invalid server name".to_owned())?;
    let place = (endpoint.host.as_str(), endpoint.port);
    let dialed = TcpStream::connect(place).await;
    let stream = dialed.map_err(|error| format!("dial tcp {}:{}: connect: {error}", endpoint.host, endpoint.port))?;
    let _ = stream.set_nodelay(true);
    let secured = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = secured.map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let running = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a webhook's connection ended");
        }
    });
    let answer = exchange(&mut sender, endpoint, body).await;
    // One call, one connection: nothing of it may outlive the answer.
    running.abort();
    answer
}

async fn exchange(
    sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    endpoint: &WebhookEndpoint,
    body: Bytes,
) -> Result<Bytes, String> {
    let authority = format!("{}:{}", endpoint.server_name, endpoint.port);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&endpoint.path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, */*")
        .header(USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let code = response.status();
    let collected = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            return Err(format!("the answer is larger than {MAX_ANSWER_BYTES} bytes"));
        }
        Err(error) => return Err(error.to_string()),
    };
    if code.is_success() {
        return Ok(bytes);
    }
    let shown: String = String::from_utf8_lossy(&bytes).chars().take(MAX_ECHOED_BYTES).collect();
    Err(format!("the server answered {code}: {}", shown.trim()))
}

async fn client_config(authorities: Option<&[u8]>) -> Result<ClientConfig, String> {
    let pem = match authorities {
        Some(pem) => pem.to_vec(),
        None => tokio::fs::read(SYSTEM_AUTHORITIES).await.map_err(|error| format!("{SYSTEM_AUTHORITIES}: {error}"))?,
    };
    let mut roots = RootCertStore::empty();
    let found: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let (added, _) = roots.add_parsable_certificates(found);
    if added == 0 {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}
