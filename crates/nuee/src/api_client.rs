//! How the command line reaches the API: with the administrator's credentials of a data directory, or those of a file.

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
use tokio_rustls::client::TlsStream;

/// `Source:` Kubernetes, `v1.Config` of client-go's clientcmd.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Pair,
}

/// Names of a cluster and a user.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Pair {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    #[serde(default)]
    name: String,
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    #[serde(default)]
    name: String,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate_data: String,
    client_key_data: String,
    token: String,
}

/// The server and the user that a file means: those of its current context. Where it names none, its only ones.
fn choose(config: &Kubeconfig) -> Result<(&Cluster, &User)> {
    let current = config.current_context.as_str();
    if current.is_empty() {
        return match (config.clusters.as_slice(), config.users.as_slice()) {
            ([cluster], [user]) => Ok((&cluster.cluster, &user.user)),
            _ => Err(anyhow!("it has no current-context, and not exactly one cluster and one user")),
        };
    }
    let named = config.contexts.iter().find(|one| one.name == current);
    let named = named.with_context(|| format!("its current-context {current:?} is not in it"))?;
    let Pair { cluster, user } = &named.context;
    let found = config.clusters.iter().find(|one| one.name == *cluster);
    let found = found.with_context(|| format!("the cluster {cluster:?} of its context {current:?} is not in it"))?;
    let who = config.users.iter().find(|one| one.name == *user);
    let who = who.with_context(|| format!("the user {user:?} of its context {current:?} is not in it"))?;
    Ok((&found.cluster, &who.user))
}

/// The name that the certificate of a server at `host:port` must have.
pub fn server_name(address: &str) -> Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).context("the server's name is unusable")
}

/// A server, and who is asking.
#[derive(Clone)]
pub struct Endpoint {
    /// `host:port`.
    pub address: String,
    /// What tells who is asking, where no certificate does.
    pub authorization: Option<http::HeaderValue>,
    server: ServerName<'static>,
    connector: TlsConnector,
}

impl Endpoint {
    /// Reads a kubeconfig with all in the one file: the server and the user of its current context.
    pub fn read(kubeconfig: &Path) -> Result<Self> {
        let say = || format!("cannot use {}; is Nuée up, and may you read this file?", kubeconfig.display());
        let text = std::fs::read_to_string(kubeconfig).with_context(say)?;
        let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| anyhow!("{error}")).with_context(say)?;
        let (cluster, user) = choose(&config).with_context(say)?;
        let address = cluster.server.strip_prefix("https://").context("the server is not reached by https")?;
        let address = address.trim_end_matches('/').to_owned();
        let bearer = (!user.token.is_empty()).then(|| format!("Bearer {}", user.token).parse()).transpose();
        Ok(Self {
            server: server_name(&address)?,
            address,
            authorization: bearer.context("the token is unusable")?,
            connector: TlsConnector::from(Arc::new(tls(cluster, user).with_context(say)?)),
        })
    }

    /// A new connection.
    pub async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        self.connector.connect(self.server.clone(), stream).await
    }
}

/// A client with the credentials of this file.
pub fn open(kubeconfig: &Path) -> Result<kube::Client> {
    let endpoint = Endpoint::read(kubeconfig)?;
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let endpoint = endpoint.clone();
        async move {
            let stream = endpoint.connect().await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let (mut parts, body) = request.into_parts();
            parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
            parts.headers.insert(http::header::HOST, endpoint.address.parse()?);
            if let Some(bearer) = endpoint.authorization {
                parts.headers.insert(http::header::AUTHORIZATION, bearer);
            }
            Ok::<_, tower::BoxError>(sender.send_request(http::Request::from_parts(parts, body)).await?)
        }
    });
    Ok(kube::Client::new(tower::util::BoxCloneService::new(service), "default"))
}

fn tls(cluster: &Cluster, user: &User) -> Result<rustls::ClientConfig> {
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text.trim());
    if cluster.certificate_authority_data.is_empty() {
        return Err(anyhow!("its cluster has no certificate-authority-data"));
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&decode(&cluster.certificate_authority_data)?) {
        roots.add(certificate.map_err(|error| anyhow!("{error}"))?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    if user.client_certificate_data.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = CertificateDer::pem_slice_iter(&decode(&user.client_certificate_data)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| anyhow!("{error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&decode(&user.client_key_data)?).map_err(|error| anyhow!("{error}"))?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
apiVersion: v1
kind: Config
clusters:
- {name: a, cluster: {server: 'https://a:1', certificate-authority-data: QQ==}}
- {name: b, cluster: {server: 'https://b:2', certificate-authority: /somewhere/ca.crt}}
users:
- {name: first, user: {token: one}}
- {name: second, user: {exec: {command: helper}}}
- {name: third, user: {token: three}}
contexts:
- {name: one, context: {cluster: a, user: first}}
- {name: two, context: {cluster: b, user: third, namespace: mine}}
- {name: no-cluster, context: {cluster: c, user: first}}
- {name: no-user, context: {cluster: a, user: fourth}}
";

    fn chosen(text: &str) -> Result<(String, String)> {
        let config: Kubeconfig = serde_saphyr::from_str(text).unwrap();
        choose(&config).map(|(cluster, user)| (cluster.server.clone(), user.token.clone()))
    }

    #[test]
    fn the_current_context_says_who_asks_where() {
        let with = |current: &str| chosen(&format!("{TWO}current-context: {current}\n"));
        for (current, server, token) in [("one", "https://a:1", "one"), ("two", "https://b:2", "three")] {
            assert_eq!(with(current).unwrap(), (server.to_owned(), token.to_owned()), "{current}");
        }
        for (current, word) in [
            ("three", "current-context \"three\""),
            ("no-cluster", "the cluster \"c\""),
            ("no-user", "the user \"fourth\""),
            ("''", "no current-context"),
        ] {
            let said = with(current).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
        assert!(chosen(TWO).is_err(), "there are two");
    }

    #[test]
    fn a_file_without_contexts_means_its_only_server_and_user() {
        let only = "clusters: [{cluster: {server: 'https://a:1'}}]\nusers: [{user: {token: t}}]\n";
        assert_eq!(chosen(only).unwrap(), ("https://a:1".to_owned(), "t".to_owned()));
        assert!(chosen("clusters: []\nusers: []\n").is_err());
    }
}
