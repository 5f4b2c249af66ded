//! The pool's side of joining: a machine with a bootstrap token gets a certificate, a `Node` object and a part of the pods'
//! network; a machine with a certificate gets the next one, images that its workloads need, and leaves.
//!
//! What a token may do is what RBAC says about the path: `system:nuee-joiner`, for the group that `nuee token create` names.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Where a machine joins.
pub const JOIN_PATH: &str = "/nuee/v1/join";
/// Where it asks for its next certificate.
pub const CERTIFICATE_PATH: &str = "/nuee/v1/certificate";
/// Where it takes itself out.
pub const LEAVE_PATH: &str = "/nuee/v1/leave";
/// Where it gets images that are on the pool's first machine.
pub const IMAGE_PATH: &str = "/nuee/v1/image";
/// Header with the image's name, as the workload says it.
pub const IMAGE_HEADER: &str = "nuee-image";
/// Header of the answer with the image's id.
pub const IMAGE_ID_HEADER: &str = "nuee-image-id";
/// Annotation of a `Node`: fingerprint of the key that joined under this name, so that an interrupted join can be done again.
const KEY_ANNOTATION: &str = "nuee.dev/joined-with";
/// Longest request. Units: bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// What a machine says when it joins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// The name it wants.
    pub name: String,
    /// Its request for a certificate, PEM.
    pub request: String,
}

/// What a machine that joins is given.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The certificate of the pool's authority, PEM.
    pub authority: String,
    /// Its own certificate, PEM.
    pub certificate: String,
    /// What all machines of the pool agree on.
    pub pool: Pool,
}

/// What all machines of the pool agree on, and this one's part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Network of all pods.
    pub pod_cidr: String,
    /// This machine's part of it.
    pub pod_range: String,
    /// Addresses of Services.
    pub service_cidr: String,
    /// First and last port of NodePort Services.
    pub node_ports: (u16, u16),
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
}

/// What the routes share.
pub struct Gate {
    /// Judges and audits.
    pub api: Arc<apiserver::ApiServer>,
    /// Acts for the pool.
    pub client: Client,
    /// Signs.
    pub pki: kubernetes::pki::Pki,
    /// The images of this machine.
    pub images: Arc<image::ImageStore>,
    /// What machines are told, but for their own part.
    pub pool: Pool,
    /// This machine's agent, once it is there.
    pub agent: Arc<std::sync::OnceLock<Arc<agent::Agent>>>,
    /// One machine joins at a time, so that no two get the same part.
    pub turn: tokio::sync::Mutex<()>,
}

type Answer = Result<Response, apiserver::Status>;

/// The routes, before those of the Kubernetes API.
pub fn router(gate: Gate, rest: Router) -> Router {
    let gate = Arc::new(gate);
    Router::new()
        .route(JOIN_PATH, post(answer_join))
        .route(CERTIFICATE_PATH, post(answer_certificate))
        .route(LEAVE_PATH, post(answer_leave))
        .route(IMAGE_PATH, get(answer_image))
        .route(super::peer::GUEST_PATH, post(answer_guest))
        .with_state(gate)
        .fallback_service(rest)
}

fn respond(answer: Answer) -> Response {
    answer.unwrap_or_else(|status| kubernetes::render(&status))
}

async fn answer_join(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    respond(join(&gate, request).await)
}

async fn answer_certificate(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    respond(certificate(&gate, request).await)
}

async fn answer_leave(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    respond(leave(&gate, &parts).await)
}

/// A guest that comes from another machine.
async fn answer_guest(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let found = machine(&gate, &parts).await;
    let agent = gate.agent.get().cloned().ok_or_else(|| apiserver::Status::unavailable("the machine is starting"));
    match found.and_then(|(name, _)| Ok((name, agent?))) {
        Ok((name, agent)) => super::member::upgrade(Request::from_parts(parts, body), move |connection| async move {
            agent.take_in(Some(&name), connection).await;
        }),
        Err(status) => respond(Err(status)),
    }
}

async fn answer_image(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    respond(image(&gate, &parts).await)
}

fn json_answer(value: &impl Serialize) -> Answer {
    let value = serde_json::to_value(value).map_err(apiserver::Status::internal)?;
    Ok(kubernetes::json_response(StatusCode::OK, &value))
}

fn failed(error: kube::Error) -> apiserver::Status {
    apiserver::Status::unavailable(format!("the API refused: {error}"))
}

/// Audits as requests about machines.
fn note(gate: &Gate, context: &apiserver::RequestContext, name: &str, verb: &str, code: u16) {
    let path = apiserver::ResourcePath::collection("", "v1", "nodes", None).object(name);
    gate.api.audit(context, &path, verb, code);
}

async fn join(gate: &Gate, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let context = kubernetes::authenticate(&gate.api, &parts).await?;
    let attributes = apiserver::Attributes {
        verb: Method::POST.as_str().to_ascii_lowercase(),
        non_resource_path: Some(JOIN_PATH.into()),
        ..apiserver::Attributes::default()
    };
    if !gate.api.authorize(&context.user, &attributes).allowed {
        note(gate, &context, "", "join", 403);
        let message = format!("forbidden: User \"{}\" cannot post path \"{JOIN_PATH}\"", context.user.name);
        return Err(apiserver::Status::new(403, apiserver::Reason::Forbidden, message));
    }
    let wish: Wish = read(body).await?;
    let name = wish.name.clone();
    let admitted = admit(gate, &wish).await;
    note(gate, &context, &name, "join", admitted.as_ref().map_or_else(|status| status.code, |_| 200));
    tracing::info!(machine = name, by = context.user.name, ok = admitted.is_ok(), "a machine asks to join");
    json_answer(&admitted?)
}

async fn read<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, apiserver::Status> {
    let unreadable = |error: String| apiserver::Status::bad_request(format!("unreadable request: {error}"));
    let bytes = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
}

async fn admit(gate: &Gate, wish: &Wish) -> Result<Welcome, apiserver::Status> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let label =
        |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
    let name = wish.name.as_str();
    if name.len() > kubernetes::pki::machine::NAME_CHARACTERS_MAX
        || !name.chars().all(allowed)
        || !name.split('.').all(label)
    {
        return Err(apiserver::Status::bad_request(format!("{name:?} cannot be the name of a machine")));
    }
    let key = kubernetes::pki::machine::request_fingerprint(&wish.request)
        .ok_or_else(|| apiserver::Status::bad_request("the request for a certificate is none"))?;
    let _turn = gate.turn.lock().await;
    let node = register(gate, name, &key).await?;
    let range = node.spec.and_then(|spec| spec.pod_cidr).unwrap_or_default();
    let uid = node.metadata.uid.unwrap_or_default();
    let certificate = gate.pki.sign_machine(&wish.request, name, &uid).map_err(apiserver::Status::internal)?;
    Ok(Welcome {
        authority: gate.pki.ca_pem.clone(),
        certificate,
        pool: Pool { pod_range: range, ..gate.pool.clone() },
    })
}

/// The machine's object: a new one with a part of the network that no other has, or the one that this very key got before.
async fn register(gate: &Gate, name: &str, key: &str) -> Result<Node, apiserver::Status> {
    let nodes: Api<Node> = Api::all(gate.client.clone());
    let present = nodes.list(&ListParams::default()).await.map_err(failed)?.items;
    if let Some(found) = present.iter().find(|node| node.metadata.name.as_deref() == Some(name)) {
        let joined = found.metadata.annotations.as_ref().and_then(|all| all.get(KEY_ANNOTATION));
        if joined.is_some_and(|joined| joined == key) {
            return Ok(found.clone());
        }
        let message =
            format!("a machine {name} is in the pool; choose another name (--node-name), or delete that node");
        return Err(apiserver::Status::new(409, apiserver::Reason::AlreadyExists, message));
    }
    let ranges = present.iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok());
    let range = gate.pool.pod_cidr.parse().ok().and_then(|pods| api::share::free(pods, &ranges.collect::<Vec<_>>()));
    let range = range.ok_or_else(|| {
        apiserver::Status::new(
            409,
            apiserver::Reason::Conflict,
            "the pods' network has no part left for another machine",
        )
    })?;
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": {KEY_ANNOTATION: key}},
        "spec": {"podCIDR": range.to_string(), "podCIDRs": [range.to_string()]},
    }))
    .map_err(apiserver::Status::internal)?;
    nodes.create(&PostParams::default(), &node).await.map_err(failed)
}

/// The machine whose certificate a request shows: its name, and who that is for the audit log.
async fn machine(
    gate: &Gate,
    parts: &http::request::Parts,
) -> Result<(String, apiserver::RequestContext), apiserver::Status> {
    let context = kubernetes::authenticate(&gate.api, parts).await?;
    match apiserver::node_name(&context.user) {
        Some(name) if !context.user.uid.is_empty() => Ok((name.to_owned(), context)),
        _ => Err(apiserver::Status::new(403, apiserver::Reason::Forbidden, "this is for machines of the pool")),
    }
}

async fn certificate(gate: &Gate, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let (name, context) = machine(gate, &parts).await?;
    let wish: Wish = read(body).await?;
    let signed = gate.pki.sign_machine(&wish.request, &name, &context.user.uid);
    note(gate, &context, &name, "renew", if signed.is_ok() { 200 } else { 400 });
    let certificate = signed.map_err(|error| apiserver::Status::bad_request(error.to_string()))?;
    json_answer(&json!({ "certificate": certificate }))
}

async fn leave(gate: &Gate, parts: &http::request::Parts) -> Answer {
    let (name, context) = machine(gate, parts).await?;
    let nodes: Api<Node> = Api::all(gate.client.clone());
    let preconditions = Preconditions { uid: Some(context.user.uid.clone()), resource_version: None };
    let gone = nodes
        .delete(&name, &DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() })
        .await
        .map_err(failed);
    note(gate, &context, &name, "leave", if gone.is_ok() { 200 } else { 503 });
    gone?;
    json_answer(&json!({}))
}

/// An image of this machine as an archive, for a machine whose workloads name it: no machine may look through all images.
async fn image(gate: &Gate, parts: &http::request::Parts) -> Answer {
    let (node, _) = machine(gate, parts).await?;
    let name = parts.headers.get(IMAGE_HEADER).and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
    let missing = || apiserver::Status::new(404, apiserver::Reason::NotFound, format!("no image {name} here"));
    if !uses(gate, &node, &name).await? {
        return Err(missing());
    }
    let record = gate.images.get(&name).map_err(|_| missing())?;
    let id = record.id.to_string();
    let mut response = if parts.method == Method::HEAD {
        Response::new(Body::empty())
    } else {
        let archive = gate.images.save(std::slice::from_ref(&name)).await.map_err(apiserver::Status::internal)?;
        Response::new(Body::from_stream(archive))
    };
    let id = http::HeaderValue::from_str(&id).map_err(apiserver::Status::internal)?;
    response.headers_mut().insert(IMAGE_ID_HEADER, id);
    Ok(response)
}

/// Whether a workload bound to the machine names the image.
async fn uses(gate: &Gate, node: &str, name: &str) -> Result<bool, apiserver::Status> {
    let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(gate.client.clone()).list(&bound).await.map_err(failed)?;
    let in_pods = pods.items.iter().filter_map(|pod| pod.spec.as_ref()).any(|spec| {
        let first = spec.init_containers.iter().flatten().chain(&spec.containers);
        let first = first.filter_map(|one| one.image.as_deref());
        let later = spec.ephemeral_containers.iter().flatten().filter_map(|one| one.image.as_deref());
        first.chain(later).any(|image| image == name)
    });
    if in_pods {
        return Ok(true);
    }
    let containers = Api::<api::Container>::all(gate.client.clone()).list(&bound).await.map_err(failed)?;
    let names = |spec: &api::container::ContainerSpec| {
        spec.image_id == name || spec.image == name || spec.mounted_images().any(|image| image == name)
    };
    Ok(containers.items.iter().any(|one| names(&one.spec)))
}
