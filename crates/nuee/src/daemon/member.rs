//! The daemon of a machine that has joined a pool: hands and an agent, and no API of its own. It takes calls from the pool's
//! first machine over mTLS, and from nobody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use http::{StatusCode, header};
use hyper_util::rt::TokioIo;
use kubernetes::pki::machine::Machine;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::join::Pool;
use super::peer::{GUEST_PATH, MACHINE_PATH, PROTOCOL, api_client};
use super::pool_client::PoolClient;
use super::{CONTROL_PLANE_USER, hands, ready};
use crate::config::Config;
use crate::instance::Instance;

/// Directory of what makes this machine a member, below the data directory.
const DIRECTORY: &str = "machine";
/// Time between two attempts to reach the pool at the start; workloads run on meanwhile.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two looks at the certificate's age.
const RENEWAL_LOOK: Duration = Duration::from_secs(12 * 3600);

/// What this machine knows of its pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Host and port of the API.
    pub server: String,
    /// Name of this machine.
    pub name: String,
    /// What all machines of the pool agree on.
    pub pool: Pool,
}

/// Where the key and certificates are.
pub fn directory(instance: &Instance) -> PathBuf {
    instance.path(DIRECTORY)
}

fn membership_file(directory: &Path) -> PathBuf {
    directory.join("membership.json")
}

impl Membership {
    /// What was kept; `None` when this machine has joined nothing. It is written last, so that all else is there.
    pub fn read(instance: &Instance) -> Result<Option<Self>> {
        let path = membership_file(&directory(instance));
        match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display())).map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps it.
    pub fn write(&self, instance: &Instance) -> Result<()> {
        let path = membership_file(&directory(instance));
        Ok(kubernetes::pki::write_private(&path, &serde_json::to_vec_pretty(self)?)?)
    }

    /// The settings of this machine with those of the pool.
    pub fn configure(&self, config: &Config) -> Config {
        Config {
            node_name: self.name.clone(),
            pod_cidr: self.pool.pod_cidr.clone(),
            service_cidr: self.pool.service_cidr.clone(),
            node_ports: self.pool.node_ports,
            cluster_domain: self.pool.cluster_domain.clone(),
            ..config.clone()
        }
    }

    /// The pool, as this machine reaches it.
    pub fn client(&self, instance: &Instance) -> Result<PoolClient> {
        let identity = Machine::open(&directory(instance))?.context("this machine's certificate is missing")?;
        Ok(PoolClient { identity, server: self.server.clone() })
    }
}

/// Everything that runs.
pub struct Member {
    tasks: JoinSet<Result<()>>,
    _agent: Arc<agent::Agent>,
}

impl Member {
    /// Starts it; returns when the pool sees this machine as Ready.
    pub async fn open(instance: &Instance, config: &Config, membership: &Membership) -> Result<Self> {
        let config = membership.configure(config);
        let pool = membership.client(instance)?;
        let identity = pool.identity.clone();
        let listener = TcpListener::bind(config.kubernetes_listen).await;
        let listener = listener.with_context(|| {
            format!("cannot listen on {}; set kubernetesListen in config.yaml", config.kubernetes_listen)
        })?;
        let hands = hands::Hands::open(instance, &config, &identity.authority).await?;
        let client = api_client(&identity, &membership.server)?;
        let address = reach(&client, membership).await;
        let mut options =
            hands.agent_options(instance, &config, &membership.name, client.clone(), &identity.authority)?;
        options.host_address = address;
        options.pod_range = Some(hands::cidr(&membership.pool.pod_range, "podRange")?);
        options.is_member = true;
        options.origin = Some(Arc::new(pool.clone()));
        options.peers = Some(Arc::new(super::peer::Peers { identity: identity.clone(), client: client.clone() }));
        let agent = agent::Agent::start(options).await.context("the agent did not start")?;
        let mut tasks = JoinSet::new();
        let router = Router::new()
            .route(MACHINE_PATH, post(call))
            .with_state(agent.clone() as node::SharedNode)
            .merge(Router::new().route(GUEST_PATH, post(take_in)).with_state(agent.clone()));
        let tls = identity.server_config()?;
        tasks.spawn(async move {
            let limits = kubernetes::ServeLimits::default();
            kubernetes::serve(listener, tls, router, limits).await.context("the socket for the pool's calls ended")
        });
        tasks.spawn(async move {
            renew(pool).await;
            Ok(())
        });
        ready::wait(&client, &membership.name).await?;
        Ok(Self { tasks, _agent: agent })
    }

    /// Serves until the future resolves, or a part ends that must not.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let ended = super::first_end(&mut self.tasks, stop).await;
        self.tasks.shutdown().await;
        ended
    }
}

/// Waits until the pool answers; the address from which this machine reached it, by which the others reach this machine.
async fn reach(client: &kube::Client, membership: &Membership) -> Option<std::net::Ipv4Addr> {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client.clone());
    let mut told = false;
    loop {
        match nodes.get(&membership.name).await {
            Ok(_) => break,
            Err(error) if !told => {
                told = true;
                let hint = match &error {
                    kube::Error::Api(status) if status.code == 401 => {
                        "; it was taken out of the pool, or its certificate ended"
                    }
                    _ => "",
                };
                tracing::warn!(server = membership.server, %error, "the pool does not answer this machine{hint}; trying on");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
    let probe = tokio::net::TcpStream::connect(&membership.server).await.ok()?;
    match probe.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }
}

/// Asks for the next certificate in time, until the future is dropped.
async fn renew(pool: PoolClient) {
    loop {
        if pool.identity.is_due(jiff::Timestamp::now().as_second()) {
            match pool.renew().await {
                Ok(()) => tracing::info!("this machine has a new certificate"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "no new certificate; trying again"),
            }
        }
        tokio::time::sleep(RENEWAL_LOOK).await;
    }
}

/// A call of the pool's first machine.
async fn call(State(node): State<node::SharedNode>, request: Request) -> Response {
    let may = kubernetes::certificate_user(&request).is_some_and(|user| user.name == CONTROL_PLANE_USER);
    if !may {
        return refuse(StatusCode::FORBIDDEN, "only the pool's first machine may call");
    }
    upgrade(request, move |connection| async move {
        if let Err(error) = node::remote::serve(connection, node).await {
            tracing::debug!(%error, "a call ended early");
        }
    })
}

/// A guest that comes from another machine; whether it may is for the agent to find out in the store.
async fn take_in(State(agent): State<Arc<agent::Agent>>, request: Request) -> Response {
    let from = match kubernetes::certificate_user(&request) {
        Some(user) if user.name == CONTROL_PLANE_USER => None,
        Some(user) if apiserver::node_name(&user).is_some() => apiserver::node_name(&user).map(str::to_owned),
        _ => return refuse(StatusCode::FORBIDDEN, "this is for machines of the pool"),
    };
    upgrade(request, move |connection| async move { agent.take_in(from.as_deref(), connection).await })
}

/// Turns a request into a stream.
pub fn upgrade<F: Future<Output = ()> + Send + 'static>(
    request: Request,
    work: impl FnOnce(Box<dyn node::Duplex>) -> F + Send + 'static,
) -> Response {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    if !asked {
        return refuse(StatusCode::UPGRADE_REQUIRED, "this path is for streams between machines");
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(connection) => work(Box::new(TokioIo::new(connection))).await,
            Err(error) => tracing::debug!(%error, "a stream was not taken up"),
        }
    });
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, http::HeaderValue::from_static(PROTOCOL));
    response
}

fn refuse(status: StatusCode, message: &'static str) -> Response {
    let mut response = Response::new(axum::body::Body::from(message));
    *response.status_mut() = status;
    response
}

/// Joins: asks for a certificate, and keeps what is answered.
pub async fn join(instance: &Instance, server: &str, token: &str, name: &str) -> Result<Membership> {
    let (token, authority) = split(token)?;
    let directory = directory(instance);
    let request = kubernetes::pki::machine::request(&directory)?;
    let wish = super::join::Wish { name: name.to_owned(), request };
    let welcome = super::pool_client::join(server, token, authority, &wish).await?;
    kubernetes::pki::machine::keep(&directory, &welcome.authority, &welcome.certificate)?;
    let membership = Membership { server: server.to_owned(), name: name.to_owned(), pool: welcome.pool };
    membership.write(instance)?;
    Ok(membership)
}

/// The token itself, and the fingerprint of the authority behind it.
fn split(text: &str) -> Result<(&str, &str)> {
    match text.rsplit_once('.') {
        Some((token, fingerprint))
            if fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok((token, fingerprint))
        }
        _ => bail!("this is no token; `nuee token create` on the pool's first machine prints one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_the_fingerprint_of_its_authority() -> Result<()> {
        let fingerprint = "0a".repeat(32);
        assert_eq!(
            split(&format!("abcdef.0123456789abcdef.{fingerprint}"))?,
            ("abcdef.0123456789abcdef", &*fingerprint)
        );
        assert!(split("abcdef.0123456789abcdef").is_err());
        assert!(split("").is_err());
        Ok(())
    }
}
