//! The front door: authenticates, finds the row of the endpoint table or the resource, and renders errors.

use std::sync::Arc;

use apiserver::{ApiServer, Attributes, RequestContext, Status};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use crate::endpoints::{self, EndpointCall};
use crate::metrics::Metrics;
use crate::negotiate::Spelling;
use crate::query::Query;
use crate::resource::{self, Target};
use crate::{discovery, identity, openapi};

/// Options of [`router`].
#[derive(Clone, Debug)]
pub struct RouterOptions {
    /// Address (`host:port`) that `/api` tells clients; may be empty.
    pub server_address: String,
    /// The clock.
    pub now: fn() -> Timestamp,
}

impl Default for RouterOptions {
    fn default() -> RouterOptions {
        RouterOptions { server_address: String::new(), now: Timestamp::now }
    }
}

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) node: node::SharedNode,
    pub(crate) server_address: Arc<str>,
    pub(crate) now: fn() -> Timestamp,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) discovery: Arc<discovery::Cache>,
    pub(crate) openapi: Arc<openapi::Cache>,
}

/// The dialect's service: every path of the Kubernetes API. Identities come from what [`crate::serve`] saw of the TLS
/// connection, from bearer tokens, or from [`crate::client`].
pub fn router(api: Arc<ApiServer>, node: node::SharedNode, options: RouterOptions) -> Router {
    let state = State {
        api,
        node,
        server_address: options.server_address.into(),
        now: options.now,
        metrics: Arc::default(),
        discovery: Arc::default(),
        openapi: Arc::default(),
    };
    Router::new().fallback(move |request: Request<Body>| handle(state.clone(), request))
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

async fn handle(state: State, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let running = state.metrics.start();
    let outcome = match identity::authenticate(&state.api, &parts).await {
        Ok(context) => {
            let audit_id = HeaderValue::from_str(&context.audit_id).ok();
            dispatch(&state, context, parts, body).await.map(|mut response| {
                if let Some(audit_id) = audit_id {
                    response.headers_mut().insert(AUDIT_ID, audit_id);
                }
                response
            })
        }
        Err(status) => Err(status),
    };
    let mut response = outcome.unwrap_or_else(|status| render(&status));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    running.finish(&method, response.status());
    response
}

async fn dispatch(
    state: &State,
    context: RequestContext,
    parts: http::request::Parts,
    body: Body,
) -> Result<Response, Status> {
    let path = parts.uri.path().to_owned();
    if let Some((endpoint, tail)) = endpoints::find(&path) {
        if !endpoint.anonymous {
            refuse_anonymous(&context)?;
            authorize_path(state, &context, &parts.method, &path)?;
        }
        if !endpoint.methods.contains(&parts.method.as_str()) {
            return Err(Status::new(
                405,
                apiserver::Reason::MethodNotAllowed,
                "the server does not allow this method on the requested resource",
            ));
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        return (endpoint.function)(EndpointCall { state: state.clone(), query, headers: parts.headers, tail }).await;
    }
    refuse_anonymous(&context)?;
    match resource::parse_path(&path) {
        Some(Target::Version(group, version)) => {
            authorize_path(state, &context, &parts.method, &path)?;
            discovery::group_version(state, &group, &version)
        }
        Some(Target::Resource(target, watching, tail)) => {
            let query = Query::parse(parts.uri.query().unwrap_or_default())?;
            resource::serve(state.clone(), context, (target, watching, tail), query, (parts, body)).await
        }
        None => {
            authorize_path(state, &context, &parts.method, &path)?;
            Err(Status::no_such_resource())
        }
    }
}

/// Nobody in particular may use only the rows that say so; everything else wants credentials.
fn refuse_anonymous(context: &RequestContext) -> Result<(), Status> {
    let anonymous = context.user.groups.iter().any(|group| group == "system:unauthenticated");
    if anonymous { Err(Status::unauthorized()) } else { Ok(()) }
}

fn authorize_path(state: &State, context: &RequestContext, method: &http::Method, path: &str) -> Result<(), Status> {
    let verb = method.as_str().to_ascii_lowercase();
    let attributes =
        Attributes { verb: verb.clone(), non_resource_path: Some(path.to_owned()), ..Attributes::default() };
    if state.api.authorize(&context.user, &attributes).allowed {
        return Ok(());
    }
    let message = format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"", context.user.name);
    Err(Status::new(403, apiserver::Reason::Forbidden, message))
}

/// The one place where errors become HTTP.
pub fn render(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(code, &status.to_value());
    if status.details.retry_after_seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(status.details.retry_after_seconds));
    }
    response
}

/// A JSON answer from a tree.
pub fn json_response(code: StatusCode, value: &Value) -> Response {
    typed_response(code, "application/json", Bytes::from(value.to_string()))
}

/// An answer of some media type.
pub(crate) fn typed_response(code: StatusCode, media_type: &'static str, bytes: impl Into<Body>) -> Response {
    let mut response = Response::new(bytes.into());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// JSON text in the spelling that was asked for.
pub(crate) fn answer(code: StatusCode, spelling: Spelling, json: Bytes) -> Result<Response, Status> {
    match spelling {
        Spelling::Json => Ok(typed_response(code, "application/json", json)),
        Spelling::Yaml => {
            let value: Value = serde_json::from_slice(&json).map_err(Status::internal)?;
            let yaml = serde_saphyr::to_string(&value).map_err(Status::internal)?;
            Ok(typed_response(code, "application/yaml", yaml))
        }
    }
}

/// Longest text of a warning header, as kube-apiserver has it. Units: bytes.
const MAX_WARNING_BYTES: usize = 256;

/// Adds `Warning: 299 - "…"` headers.
pub(crate) fn with_warnings(response: &mut Response, warnings: impl IntoIterator<Item = String>) {
    for warning in warnings {
        let mut text: String = warning
            .chars()
            .map(|one| if one.is_control() { ' ' } else { one })
            .collect::<String>()
            .replace('\\', "\\\\")
            .replace('"', "\\\"");
        while text.len() > MAX_WARNING_BYTES {
            text.pop();
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}
