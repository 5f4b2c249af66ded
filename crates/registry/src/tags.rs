//! Lists: the tags of a repository, and all repositories.

use axum::Json;
use axum::extract::{Query, Request};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::error::{Code, Failure};
use crate::view::Registry;

#[derive(Deserialize)]
struct Page {
    n: Option<usize>,
    last: Option<String>,
}

pub(crate) fn list(registry: &Registry, name: &str, request: &Request) -> Result<Response, Failure> {
    let tags = registry.tags(name)?.into_keys().collect();
    let (tags, next) = page(tags, request)?;
    Ok(linked(Json(serde_json::json!({"name": name, "tags": tags})), next))
}

pub(crate) fn catalog(registry: &Registry, request: &Request) -> Result<Response, Failure> {
    let (repositories, next) = page(registry.catalog()?, request)?;
    Ok(linked(Json(serde_json::json!({"repositories": repositories})), next))
}

/// The part of a sorted list that was asked for, and the `Link` to the next.
fn page(mut all: Vec<String>, request: &Request) -> Result<(Vec<String>, Option<String>), Failure> {
    let Query(page): Query<Page> =
        Query::try_from_uri(request.uri()).map_err(|_| Failure::new(Code::Unsupported, "invalid page"))?;
    if let Some(last) = &page.last {
        all.retain(|item| item > last);
    }
    let Some(count) = page.n.filter(|count| *count < all.len()) else { return Ok((all, None)) };
    all.truncate(count);
    let path = request.uri().path();
    // Names and tags need no escapes in a query.
    let next = all.last().map(|last| format!("<{path}?n={count}&last={last}>; rel=\"next\""));
    Ok((all, next))
}

fn linked(body: Json<serde_json::Value>, next: Option<String>) -> Response {
    let mut response = body.into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}
