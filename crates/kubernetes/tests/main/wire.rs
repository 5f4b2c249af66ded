//! The wire itself: no or bad credentials on every endpoint, wrong methods, media types and bodies.

use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::server::Server;

async fn call(server: &Server, request: Request<Body>) -> (u16, Value) {
    let response: Response<Body> = server.router.clone().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path)
}

#[tokio::test]
async fn without_credentials_only_health_and_version_answer() {
    let server = Server::start().await;
    let mut paths: Vec<(String, bool)> =
        kubernetes::ENDPOINTS.iter().map(|row| (row.path.to_owned(), row.anonymous)).collect();
    for kind in kubernetes::builtin_kinds() {
        let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
        paths.push((format!("{root}/{}/{}", kind.version, kind.plural), false));
    }
    paths.extend(["/nothing".to_owned(), "/api/v1/namespaces/a/pods/b/exec".to_owned()].map(|path| (path, false)));
    for (path, open) in paths {
        let (code, _) = call(&server, request("GET", &path).body(Body::empty()).unwrap()).await;
        assert_eq!(code, if open { 200 } else { 401 }, "{path}");
        let bad = request("GET", &path).header("authorization", "Bearer wrong").body(Body::empty()).unwrap();
        assert_eq!(call(&server, bad).await.0, 401, "{path}");
    }
}

#[tokio::test]
async fn a_service_account_token_is_an_identity() {
    let server = Server::start().await;
    server.kubectl("create serviceaccount robot").await;
    let token = server.kubectl("create token robot").await;
    let bearer = format!("Bearer {}", token.trim());
    let get = |path: &str| request("GET", path).header("authorization", &bearer).body(Body::empty()).unwrap();
    assert_eq!(call(&server, get("/apis")).await.0, 200);
    let (code, status) = call(&server, get("/api/v1/namespaces/default/secrets")).await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    let deep = "[".repeat(10_000);
    for (content_type, body, expected) in [
        ("text/html", "x".to_owned(), 415),
        ("application/json", deep, 400),
        ("application/json", "x".repeat(4 * 1024 * 1024), 413),
    ] {
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let post = request("POST", path).header("authorization", &bearer).header("content-type", content_type);
        let (code, status) = call(&server, post.body(Body::from(body)).unwrap()).await;
        assert_eq!((code, status["kind"].as_str()), (expected, Some("Status")), "{content_type}");
    }
    assert_eq!(
        call(&server, request("POST", "/version").header("authorization", &bearer).body(Body::empty()).unwrap())
            .await
            .0,
        405
    );
    let protobuf = request("GET", "/api/v1/namespaces/default/secrets").header("authorization", &bearer);
    let protobuf = protobuf.header("accept", "application/vnd.kubernetes.protobuf").body(Body::empty()).unwrap();
    assert_eq!(call(&server, protobuf).await.0, 406);
}
