//! `POST /session` and `POST /grpc`: connections that are handed to BuildKit's protocol, which another dialect speaks.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use image::ByteStream;
use image::build::BuildOptions;
use serde_json::json;
use tokio::sync::mpsc;

use super::transfer::line;
use super::uploads;
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

/// A build whose files come over a session (`POST /build?version=2`).
#[derive(Default)]
pub struct SessionBuild {
    /// Its id, which the client chose.
    pub reference: String,
    /// The session.
    pub session: String,
    /// Attributes of the Dockerfile frontend.
    pub attributes: HashMap<String, String>,
    /// Where the result goes: kind and attributes.
    pub exports: Vec<(String, HashMap<String, String>)>,
    /// Make one layer of all that the build added to the last stage's base image.
    pub squash: bool,
    /// The main context, as an archive or a Dockerfile alone, in place of the session's.
    pub context: Option<ByteStream>,
}

/// What such a build says.
#[derive(Clone, Debug)]
pub enum SessionBuildEvent {
    /// Progress, as BuildKit encodes it.
    Trace(Vec<u8>),
    /// The end: the image, if there is one, or why there is none.
    Done(Result<Option<String>, String>),
}

/// Told of every name that a build gives: id and name.
pub type Tagged = Box<dyn Fn(&str, &str) + Send + Sync>;

/// Who speaks BuildKit's protocol for an endpoint.
pub trait BuildKitHost: Send + Sync + 'static {
    /// Answers a client's gRPC calls.
    fn serve(&self, connection: Connection);
    /// Holds a session, over which the client answers ours. `methods` are what it answers.
    fn hold_session(&self, id: String, methods: Vec<String>, connection: Connection);
    /// Begins a build. Dropping the receiver ends it.
    fn build(&self, build: SessionBuild) -> mpsc::Receiver<SessionBuildEvent>;
    /// From now on tells of every name that a build gives: id and name.
    fn on_tag(&self, told: Tagged);
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

/// `POST /build?version=2`: the same builder without the client's own gRPC calls.
pub(super) async fn build(docker: &Docker, call: Call, options: &BuildOptions) -> Reply {
    let host = host(docker)?;
    let mut request = request(&call, options)?;
    match call.query.text("remote") {
        Some("client-session") => {}
        Some(uploads::REMOTE) => request.context = Some(docker.uploads.take(&request.reference).await?),
        Some(url) if image::is_repository(url) || image::is_url(url) => {
            drop(request.attributes.insert("context".to_owned(), url.to_owned()))
        }
        Some(_) => {
            let why = "a BuildKit build takes its context from the client's session, an upload or a URL";
            return Err(Error::NotImplemented(why.into()));
        }
        None => request.context = Some(body::byte_stream(call.body)),
    }
    let quiet = options.quiet;
    let mut events = host.build(request);
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        loop {
            // A client that leaves, also while nothing is said, ends the build: the receiver goes with this task.
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            let text = match event {
                SessionBuildEvent::Trace(bytes) => {
                    line(&json!({ "id": "moby.buildkit.trace", "aux": STANDARD.encode(bytes) }))
                }
                SessionBuildEvent::Done(Ok(None)) => continue,
                SessionBuildEvent::Done(Ok(Some(id))) => {
                    let mut text = line(&json!({ "id": "moby.image.id", "aux": { "ID": id } })).to_vec();
                    if quiet {
                        // It is all that such a client shows.
                        text.extend_from_slice(&line(&json!({ "stream": format!("{id}\n") })));
                    }
                    text.into()
                }
                SessionBuildEvent::Done(Err(why)) => {
                    line(&json!({ "errorDetail": { "message": why.clone() }, "error": why }))
                }
            };
            if sender.send(text).await.is_err() {
                return;
            }
        }
    });
    Ok(body::stream("application/json", pieces))
}

/// `POST /build?version=2&buildid=upload-request:ID`: the context of another such request.
pub(super) async fn upload(docker: &Docker, call: Call, id: &str) -> Reply {
    host(docker)?;
    docker.uploads.offer(id, body::byte_stream(call.body)).await?;
    Ok(body::empty(StatusCode::OK))
}

fn host(docker: &Docker) -> Result<Arc<dyn BuildKitHost>, Error> {
    let absent = || Error::NotImplemented("BuildKit is not available here; build with DOCKER_BUILDKIT=0".into());
    docker.state.buildkit.clone().ok_or_else(absent)
}

fn request(call: &Call, options: &BuildOptions) -> Result<SessionBuild, Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Output {
        #[serde(default)]
        r#type: String,
        #[serde(default)]
        attrs: HashMap<String, String>,
    }
    let mut attributes = HashMap::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            attributes.insert(key.to_owned(), value.to_owned());
        }
    };
    put("filename", &options.dockerfile);
    put("target", &options.target);
    put("platform", &options.platform);
    put("image-resolve-mode", if options.pull { "pull" } else { "" });
    put("force-network-mode", &options.network);
    let hosts: Vec<String> = options.extra_hosts.iter().map(|host| host.replacen(':', "=", 1)).collect();
    put("add-hosts", &hosts.join(","));
    let limits = options.bounds.ulimits.iter().map(|(name, soft, hard)| format!("{name}={soft}:{hard}"));
    put("ulimit", &limits.collect::<Vec<_>>().join(","));
    put("cgroup-parent", &options.bounds.cgroup_parent);
    if options.bounds.shm_bytes > 0 {
        put("shm-size", &options.bounds.shm_bytes.to_string());
    }
    if options.no_cache {
        attributes.insert("no-cache".to_owned(), String::new());
    }
    for (name, value) in &options.build_args {
        attributes.insert(format!("build-arg:{name}"), value.clone().unwrap_or_default());
    }
    for (name, value) in &options.labels {
        attributes.insert(format!("label:{name}"), value.clone());
    }
    let outputs: Vec<Output> = super::build::json_value(call, "outputs")?;
    let mut exports: Vec<_> = outputs.into_iter().map(|output| (output.r#type, output.attrs)).collect();
    if exports.is_empty() {
        let names = HashMap::from([("name".to_owned(), options.tags.join(","))]);
        exports.push(("moby".to_owned(), names));
    }
    let reference = call.query.text("buildid").map_or_else(|| hex::encode(rand::random::<[u8; 16]>()), str::to_owned);
    let session = call.query.text("session").unwrap_or_default().to_owned();
    Ok(SessionBuild { reference, session, attributes, exports, squash: options.squash, context: None })
}
