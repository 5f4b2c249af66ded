//! `POST /session` and `POST /grpc`: connections that are handed to BuildKit's protocol, which another dialect speaks.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;

use crate::body;
use crate::call::Call;
use crate::error::Error;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("Session", Method::POST, "/session", "create", "images", run!(session)),
    Operation::new("Grpc", Method::POST, "/grpc", "create", "images", run!(grpc)),
];

/// A connection that was handed over.
pub type Connection = Upgraded;

/// Who speaks BuildKit's protocol for an endpoint.
pub trait BuildKitHost: Send + Sync + 'static {
    /// Answers a client's gRPC calls.
    fn serve(&self, connection: Connection);
    /// Holds a session, over which the client answers ours. `methods` are what it answers.
    fn hold_session(&self, id: String, methods: Vec<String>, connection: Connection);
    /// From now on tells of every name that a build gives: id and name.
    fn on_tag(&self, told: Box<dyn Fn(&str, &str) + Send + Sync>);
}

async fn session(docker: Arc<Docker>, call: Call) -> Reply {
    let id = call.header("x-docker-expose-session-uuid").unwrap_or_default().to_owned();
    if id.is_empty() {
        return Err(Error::Invalid("a session needs X-Docker-Expose-Session-Uuid".into()));
    }
    let methods = values(&call.headers, "x-docker-expose-session-grpc-method");
    hand_over(docker, call, move |host, connection| host.hold_session(id, methods, connection))
}

async fn grpc(docker: Arc<Docker>, call: Call) -> Reply {
    hand_over(docker, call, |host, connection| host.serve(connection))
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
}

fn hand_over(
    docker: Arc<Docker>,
    mut call: Call,
    take: impl FnOnce(&dyn BuildKitHost, Connection) + Send + 'static,
) -> Reply {
    let Some(host) = docker.state.buildkit.clone() else {
        return Err(Error::NotImplemented("BuildKit is not available here".into()));
    };
    if call.header("upgrade") != Some("h2c") {
        return Err(Error::Invalid("protocol upgrade to h2c is required".into()));
    }
    let upgrade = call.upgrade.take();
    let upgrade = upgrade.ok_or_else(|| Error::Invalid("this connection cannot be upgraded".into()))?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => take(host.as_ref(), upgraded),
            Err(error) => tracing::debug!(%error, "client left before the upgrade"),
        }
    });
    let mut response = body::typed(StatusCode::SWITCHING_PROTOCOLS, "application/octet-stream", Body::empty());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    Ok(response)
}
