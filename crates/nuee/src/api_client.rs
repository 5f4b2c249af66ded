//! How the command line reaches the API: with the administrator's credentials of a data directory.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

/// The name that the certificate of a server at `host:port` must have.
pub fn server_name(address: &str) -> Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).context("the server's name is unusable")
}

/// A client with the credentials of this file.
pub fn open(kubeconfig: &Path) -> Result<kube::Client> {
    let say = || format!("cannot use {}; is Nuée up, and are you root?", kubeconfig.display());
    let text = std::fs::read_to_string(kubeconfig).with_context(say)?;
    let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| anyhow!("{error}")).with_context(say)?;
    let cluster = &config.clusters.first().context("no cluster").with_context(say)?.cluster;
    let user = &config.users.first().context("no user").with_context(say)?.user;
    let address = cluster.server.strip_prefix("https://").context("the server is not reached by https")?.to_owned();
    let server = server_name(&address)?;
    let connector = TlsConnector::from(Arc::new(tls(cluster, user).with_context(say)?));
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (address, server, connector) = (address.clone(), server.clone(), connector.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            let stream = connector.connect(server, stream).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let (mut parts, body) = request.into_parts();
            parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
            parts.headers.insert(http::header::HOST, address.parse()?);
            Ok::<_, tower::BoxError>(sender.send_request(http::Request::from_parts(parts, body)).await?)
        }
    });
    Ok(kube::Client::new(tower::util::BoxCloneService::new(service), "default"))
}

fn tls(cluster: &Cluster, user: &User) -> Result<rustls::ClientConfig> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text.trim());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&decode(&cluster.certificate_authority_data)?) {
        roots.add(certificate.map_err(|error| anyhow!("{error}"))?)?;
    }
    let chain = CertificateDer::pem_slice_iter(&decode(&user.client_certificate_data)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| anyhow!("{error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&decode(&user.client_key_data)?).map_err(|error| anyhow!("{error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}
