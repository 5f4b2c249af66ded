//! The OCI distribution API over the image store. Must never know containers, pods, or another dialect.
//! Source: OCI distribution specification 1.1.
//!
//! | module | part of the specification |
//! |---|---|
//! | `access` | authentication |
//! | `blobs` | blobs |
//! | `uploads` | uploads of blobs |
//! | `manifests` | manifests |
//! | `tags` | lists of tags and repositories |
//! | `referrers` | referrers |
//! | `error` | error codes |
//! | `path` | paths |
//! | `view` | what a repository holds |

mod access;
mod blobs;
mod error;
mod manifests;
mod path;
mod referrers;
mod tags;
mod uploads;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};

pub use access::{Access, Action, Credentials, Judgement, Person, Record, Source, Verdict};
use error::{Code, Failure};
use path::Path;
use view::Registry;

/// Settings of a registry.
#[derive(Clone, Default)]
pub struct RegistryOptions {
    /// `host:port` names under which clients address it. Images of the store that are named after one of them are
    /// served, and images that are pushed get such a name.
    pub names: Vec<String>,
    /// Who judges requests; `None` lets everybody do everything.
    pub access: Option<Arc<dyn Access>>,
}

/// The registry's routes, all below `/v2/`.
pub fn router(images: Arc<image::ImageStore>, options: RegistryOptions) -> Router {
    let registry = Arc::new(Registry::new(images, options));
    Router::new()
        .route("/v2", axum::routing::any(answer))
        .route("/v2/", axum::routing::any(answer))
        .route("/v2/{*rest}", axum::routing::any(answer))
        .with_state(registry)
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let (judge, mut person) = (registry.access.clone(), None);
    let note = judge.as_ref().and_then(|_| access::note(&request));
    let mut response = dispatch(registry, request, &mut person).await.unwrap_or_else(IntoResponse::into_response);
    if let (Some(judge), Some(note)) = (judge, note) {
        judge.record(Record { person, status: response.status().as_u16(), ..note });
    }
    response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

async fn dispatch(registry: Arc<Registry>, request: Request, person: &mut Option<Person>) -> Result<Response, Failure> {
    let path = Path::parse(request.uri().path())?;
    let (path, request) = admit(&registry, path, request, person).await?;
    let method = request.method().clone();
    let read = matches!(method, Method::GET | Method::HEAD);
    match path {
        Path::Root if read => Ok((StatusCode::OK, axum::Json(serde_json::json!({}))).into_response()),
        Path::Catalog if read => tags::catalog(&registry, &request),
        Path::Tags(name) if read => tags::list(&registry, &name, &request),
        Path::Referrers(name, digest) if read => referrers::list(&registry, &name, &digest, &request),
        Path::Blob(name, digest) if read => {
            // A body cannot be shared between threads: no borrow of the request may live across an await.
            let headers = request.headers().clone();
            drop(request);
            blobs::read(&registry, &name, &digest, &method, &headers).await
        }
        Path::Blob(name, digest) if method == Method::DELETE => blobs::delete(&registry, &name, &digest),
        Path::Uploads(name) if method == Method::POST => uploads::start(&registry, &name, request).await,
        Path::Upload(name, id) if read => uploads::status(&registry, &name, &id),
        Path::Upload(name, id) if method == Method::PATCH => uploads::append(&registry, &name, &id, request).await,
        Path::Upload(name, id) if method == Method::PUT => uploads::finish(&registry, &name, &id, request).await,
        Path::Upload(name, id) if method == Method::DELETE => uploads::cancel(&registry, &name, &id),
        Path::Manifest(name, reference) if read => manifests::read(&registry, &name, &reference, &request),
        Path::Manifest(name, reference) if method == Method::PUT => {
            manifests::write(registry, name, reference, request).await
        }
        Path::Manifest(name, reference) if method == Method::DELETE => manifests::delete(&registry, &name, &reference),
        _ => Err(Failure::with_status(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, "method not allowed")),
    }
}

/// Lets a request pass that its sender may make. Takes it whole: no borrow of a body may live across an await.
async fn admit(
    registry: &Registry,
    path: Path,
    request: Request,
    person: &mut Option<Person>,
) -> Result<(Path, Request), Failure> {
    let (parts, body) = request.into_parts();
    access::check(registry.access.as_ref(), &path, &parts, person).await?;
    Ok((path, Request::from_parts(parts, body)))
}
