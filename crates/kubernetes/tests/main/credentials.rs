//! No credentials and bad credentials on every route: the routes come from the table of endpoints and the registered kinds, so that
//! a new one is in here from its first day.

use apiserver::{Kind, StaticToken, UserInfo};
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use tower::ServiceExt;

use crate::server::Server;

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Every path that the server knows, and whether it is open to all.
fn routes() -> Vec<(String, bool)> {
    let mut paths: Vec<(String, bool)> =
        kubernetes::ENDPOINTS.iter().map(|row| (row.path.to_owned(), row.anonymous)).collect();
    paths.extend(
        ["/apis/apps", "/apis/apps/v1", "/api/v1", "/nothing", "/openapi/v3/api/v1"]
            .map(|path| (path.to_owned(), false)),
    );
    for kind in kubernetes::builtin_kinds() {
        paths.extend(paths_of(&kind).into_iter().map(|path| (path, false)));
    }
    paths
}

fn paths_of(kind: &Kind) -> Vec<String> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let (root, plural) = (format!("{root}/{}", kind.version), &kind.plural);
    let inside =
        if kind.namespaced { format!("{root}/namespaces/default/{plural}") } else { format!("{root}/{plural}") };
    let mut paths = vec![
        format!("{root}/{plural}"),
        format!("{root}/{plural}?watch=1"),
        format!("{root}/watch/{plural}"),
        inside.clone(),
        format!("{inside}?watch=1"),
        format!("{inside}/some"),
        format!("{inside}/some/unknown"),
    ];
    let further = kind.subresources.iter().map(|one| one.name.as_str());
    paths.extend(["status", "scale"].into_iter().chain(further).map(|sub| format!("{inside}/some/{sub}")));
    paths
}

/// Credentials that are none. `None` sends no header.
fn credentials() -> Vec<Option<String>> {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = encode(
        r#"{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:default:default","exp":9999999999}"#,
    );
    let unsigned = format!("{}.{claims}.", encode(r#"{"alg":"none"}"#));
    let forged = format!("{}.{claims}.{}", encode(r#"{"alg":"ES256"}"#), encode(&"x".repeat(64)));
    let symmetric = format!("{}.{claims}.{}", encode(r#"{"alg":"HS256"}"#), encode(&"x".repeat(32)));
    let bad = ["Bearer wrong", "Bearer", "bearer  ", "Basic YWRtaW46YWRtaW4=", "Negotiate x"].map(str::to_owned);
    let tokens = [unsigned, forged, symmetric].map(|token| format!("Bearer {token}"));
    std::iter::once(None).chain(bad.into_iter().chain(tokens).map(Some)).collect()
}

async fn code(server: &Server, method: &str, path: &str, credential: Option<&str>) -> u16 {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(credential) = credential {
        request = request.header("authorization", credential);
    }
    let body = if matches!(method, "POST" | "PUT" | "PATCH") { Body::from("{}") } else { Body::empty() };
    server.router.clone().oneshot(request.body(body).unwrap()).await.unwrap().status().as_u16()
}

/// The requests of the whole matrix that were let in.
async fn let_in(server: &Server, credentials: &[Option<String>]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, open) in routes() {
        for method in METHODS {
            for credential in credentials {
                let code = code(server, method, &path, credential.as_deref()).await;
                // Whoever says nothing may read what is open; whoever says something wrong may read nothing.
                let fine = if open && credential.is_none() { matches!(code, 200 | 405) } else { code == 401 };
                if !fine {
                    found.push(format!("{method} {path} as {credential:?}: {code}"));
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_health_and_version_answers_without_good_credentials() {
    let server = Server::start().await;
    let found = let_in(&server, &credentials()).await;
    assert!(found.is_empty(), "{found:#?}");
}

/// The control: with a good token every route but the open ones is reported as let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_matrix_notices_a_route_that_lets_one_in() {
    let robot = StaticToken::new("good", UserInfo::new("robot", &[]));
    let options = apiserver::Options { tokens: vec![robot], ..apiserver::Options::default() };
    let server = Server::start_with(kubernetes::ServeLimits::default(), options).await;
    let found = let_in(&server, &[Some("Bearer good".to_owned())]).await;
    assert_eq!(found.len(), routes().len() * METHODS.len());
}
