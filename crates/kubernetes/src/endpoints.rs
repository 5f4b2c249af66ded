//! The endpoints that are no resources, one row each; router, anonymous access and coverage all follow from the rows.

use apiserver::Status;
use axum::response::Response;
use futures::future::BoxFuture;
use http::HeaderMap;

use crate::query::Query;
use crate::router::State;
use crate::{discovery, health, metrics, openapi, openapi_v2};

/// What a row's function gets.
pub struct EndpointCall {
    pub(crate) state: State,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// What follows the row's path, when the row takes a tail.
    pub(crate) tail: String,
}

/// A row's function.
pub type EndpointFunction = fn(EndpointCall) -> BoxFuture<'static, Result<Response, Status>>;

/// One endpoint.
pub struct Endpoint {
    /// Kubernetes' operation id.
    pub operation: &'static str,
    /// Methods it answers.
    pub methods: &'static [&'static str],
    /// The literal path.
    pub path: &'static str,
    /// Whether further segments may follow.
    pub tail: bool,
    /// Whether it answers without credentials.
    pub anonymous: bool,
    /// What answers.
    pub function: EndpointFunction,
}

const READ: &[&str] = &["GET", "HEAD"];

const fn row(operation: &'static str, path: &'static str, function: EndpointFunction) -> Endpoint {
    Endpoint { operation, methods: READ, path, tail: false, anonymous: false, function }
}

const fn open(row: Endpoint) -> Endpoint {
    Endpoint { anonymous: true, ..row }
}

const fn with_tail(row: Endpoint) -> Endpoint {
    Endpoint { tail: true, ..row }
}

/// All endpoints that are no resources.
pub const ENDPOINTS: &[Endpoint] = &[
    row("getRoot", "/", discovery::root),
    row("getCoreAPIVersions", "/api", |call| Box::pin(discovery::core_versions(call))),
    row("getAPIVersions", "/apis", |call| Box::pin(discovery::groups(call))),
    open(row("getCodeVersion", "/version", |call| Box::pin(health::version(call)))),
    open(with_tail(row("readHealth", "/healthz", |call| Box::pin(health::check(call))))),
    open(with_tail(row("readLiveness", "/livez", |call| Box::pin(health::check(call))))),
    open(with_tail(row("readReadiness", "/readyz", |call| Box::pin(health::check(call))))),
    row("readMetrics", "/metrics", |call| Box::pin(metrics::read(call))),
    row("getOpenAPIV2", "/openapi/v2", |call| Box::pin(openapi_v2::document(call))),
    with_tail(row("getOpenAPIV3", "/openapi/v3", |call| Box::pin(openapi::document(call)))),
    row("getServiceAccountIssuerOpenIDConfiguration", "/.well-known/openid-configuration", |call| {
        Box::pin(health::openid_configuration(call))
    }),
    row("getServiceAccountIssuerOpenIDKeyset", "/openid/v1/jwks", |call| Box::pin(health::token_keys(call))),
];

/// The row for a path, with the rest of the path.
pub(crate) fn find(path: &str) -> Option<(&'static Endpoint, String)> {
    let bare = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    ENDPOINTS
        .iter()
        .find_map(|endpoint| {
            if bare == endpoint.path {
                return Some((endpoint, String::new()));
            }
            let tail = bare.strip_prefix(endpoint.path)?.strip_prefix('/')?;
            (endpoint.tail && endpoint.path != "/").then(|| (endpoint, tail.to_owned()))
        })
        .or_else(|| group_document(bare))
}

/// `/apis/{group}` has its group in the middle of the table's paths, so it is a row of its own.
fn group_document(path: &str) -> Option<(&'static Endpoint, String)> {
    let group = path.strip_prefix("/apis/")?;
    (!group.is_empty() && !group.contains('/')).then(|| (&GROUP, group.to_owned()))
}

/// The row of `/apis/{group}`.
pub const GROUP: Endpoint = with_tail(row("getAPIGroup", "/apis", |call| Box::pin(discovery::group(call))));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_and_paths_are_unique() {
        for endpoint in ENDPOINTS {
            assert_eq!(find(endpoint.path).unwrap().0.operation, endpoint.operation);
        }
        assert_eq!(find("/readyz/etcd").unwrap().1, "etcd");
        assert_eq!(find("/apis/apps").unwrap().0.operation, "getAPIGroup");
        assert!(find("/apis/apps/v1").is_none());
        assert!(find("/versions").is_none());
    }

    #[test]
    fn only_health_and_version_answer_without_credentials() {
        let open: Vec<&str> = ENDPOINTS.iter().filter(|row| row.anonymous).map(|row| row.path).collect();
        assert_eq!(open, ["/version", "/healthz", "/livez", "/readyz"]);
    }
}
