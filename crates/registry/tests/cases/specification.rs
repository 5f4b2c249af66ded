//! The specification, request by request.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use image::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use image::{Digest, ImageStore};
use registry::RegistryOptions;
use tower::ServiceExt;

use crate::helpers::{config, layers};

pub struct Client(Router);

impl Client {
    pub fn new(dir: &std::path::Path) -> (Client, Arc<ImageStore>) {
        let store = ImageStore::open(dir).unwrap();
        let names = vec!["registry.test:5000".to_owned()];
        (Client(registry::router(store.clone(), RegistryOptions { names, access: None })), store)
    }

    /// One over a store that others use too.
    pub fn over(store: Arc<ImageStore>) -> Client {
        Client(registry::router(store, RegistryOptions::default()))
    }

    /// One whose requests are judged.
    pub fn judged(dir: &std::path::Path, access: Arc<dyn registry::Access>) -> Client {
        let store = ImageStore::open(dir).unwrap();
        Client(registry::router(store, RegistryOptions { names: Vec::new(), access: Some(access) }))
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path).header("host", "registry.test:5000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.clone().oneshot(request.body(Body::from(body.to_vec())).unwrap()).await.unwrap()
    }

    pub async fn send_from(&self, source: registry::Source, method: &str, path: &str) -> Response<Body> {
        let request = Request::builder().method(method).uri(path).extension(source);
        self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    pub async fn upload(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let response = self.send("POST", &path, &[], bytes).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        digest
    }
}

pub fn header<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

pub async fn body(response: Response<Body>) -> Vec<u8> {
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

pub async fn code(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let value: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
    (status, value["errors"][0]["code"].as_str().unwrap().to_owned())
}

pub fn manifest(config: &[u8], layer: &[u8], subject: Option<&Digest>) -> Vec<u8> {
    let mut value = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(config), "size": config.len()},
        "layers": [{"mediaType": OCI_LAYER, "digest": Digest::of(layer), "size": layer.len()}]});
    if let Some(subject) = subject {
        value["subject"] = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 3});
        value["artifactType"] = "application/example".into();
    }
    value.to_string().into_bytes()
}

#[tokio::test]
async fn a_chunked_upload_goes_on_after_a_question_and_refuses_disorder() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _) = Client::new(dir.path());
    let response = client.send("POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    assert_eq!((response.status(), header(&response, "range")), (StatusCode::ACCEPTED, "0-0"));
    let place = header(&response, "location").to_owned();
    let response = client.send("PATCH", &place, &[("content-range", "0-4"), ("content-length", "5")], b"hello").await;
    assert_eq!((response.status(), header(&response, "range")), (StatusCode::ACCEPTED, "0-4"));
    let response = client.send("PATCH", &place, &[("content-range", "9-10")], b"xx").await;
    assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let response = client.send("GET", &place, &[], b"").await;
    assert_eq!((response.status(), header(&response, "range")), (StatusCode::NO_CONTENT, "0-4"));
    // The registry is started again in between: the upload is still there.
    drop(client);
    let (client, store) = Client::new(dir.path());
    assert_eq!(
        client.send("PATCH", &place, &[("content-range", "5-10")], b" world").await.status(),
        StatusCode::ACCEPTED
    );
    let digest = Digest::of(b"hello world!");
    let response = client.send("PUT", &format!("{place}?digest={digest}"), &[], b"!").await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let blob = format!("/v2/a/b/blobs/{digest}");
    assert_eq!(body(client.send("GET", &blob, &[], b"").await).await, b"hello world!");
    let part = client.send("GET", &blob, &[("range", "bytes=6-10")], b"").await;
    assert_eq!((part.status(), header(&part, "content-range")), (StatusCode::PARTIAL_CONTENT, "bytes 6-10/12"));
    assert_eq!(body(part).await, b"world");
    // Fresh blobs without a manifest are not garbage yet; and a wrong digest is refused.
    store.collect_garbage().await.unwrap();
    assert_eq!(client.send("HEAD", &blob, &[], b"").await.status(), StatusCode::OK);
    let response = client.send("POST", &format!("/v2/a/b/blobs/uploads/?digest={digest}"), &[], b"other").await;
    assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".to_owned()));
    // Another repository's upload is unknown here.
    let response = client.send("POST", "/v2/x/blobs/uploads/", &[], b"").await;
    let stolen = header(&response, "location").replace("/v2/x/", "/v2/y/");
    let response = client.send("PATCH", &stolen, &[], b"data").await;
    assert_eq!(code(response).await, (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn manifests_tags_referrers_mounts_and_deletion_follow_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    let (client, store) = Client::new(dir.path());
    let layer = layers(1, 1000).remove(0);
    let config = config(std::slice::from_ref(&layer)).into_bytes();
    let text = manifest(&config, &layer, None);
    let kind = [("content-type", OCI_MANIFEST)];
    let response = client.send("PUT", "/v2/app/manifests/v1", &kind, &text).await;
    assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    client.upload("app", &config).await;
    client.upload("app", &layer).await;
    for tag in ["v1", "v2", "v3"] {
        let response = client.send("PUT", &format!("/v2/app/manifests/{tag}"), &kind, &text).await;
        assert_eq!(response.status(), StatusCode::CREATED);
    }
    let digest = Digest::of(&text);
    let response = client.send("GET", "/v2/app/manifests/v1", &[], b"").await;
    assert_eq!(
        (header(&response, "content-type"), header(&response, "docker-content-digest")),
        (OCI_MANIFEST, digest.to_string().as_str())
    );
    assert_eq!(body(response).await, text);
    assert!(store.get("registry.test:5000/app:v1").is_ok(), "an image at once");
    // Pages of tags.
    let response = client.send("GET", "/v2/app/tags/list?n=2", &[], b"").await;
    assert_eq!(header(&response, "link"), "</v2/app/tags/list?n=2&last=v2>; rel=\"next\"");
    let response = client.send("GET", "/v2/app/tags/list?n=2&last=v2", &[], b"").await;
    assert_eq!(header(&response, "link"), "");
    assert_eq!(body(response).await, br#"{"name":"app","tags":["v3"]}"#);
    // Referrers.
    let referrer = manifest(&config, &layer, Some(&digest));
    let response = client.send("PUT", &format!("/v2/app/manifests/{}", Digest::of(&referrer)), &kind, &referrer).await;
    assert_eq!(header(&response, "oci-subject"), digest.to_string());
    let response =
        client.send("GET", &format!("/v2/app/referrers/{digest}?artifactType=application/example"), &[], b"").await;
    assert_eq!(header(&response, "oci-filters-applied"), "artifactType");
    let found: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
    assert_eq!(found["manifests"][0]["digest"], Digest::of(&referrer).to_string());
    // Mounting needs a source that has it.
    let mount = |from: &str| format!("/v2/other/blobs/uploads/?mount={}&from={from}", Digest::of(&layer));
    assert_eq!(client.send("POST", &mount("nothing"), &[], b"").await.status(), StatusCode::ACCEPTED);
    let blob = format!("/v2/other/blobs/{}", Digest::of(&layer));
    assert_eq!(
        code(client.send("GET", &blob, &[], b"").await).await,
        (StatusCode::NOT_FOUND, "BLOB_UNKNOWN".to_owned())
    );
    assert_eq!(client.send("POST", &mount("app"), &[], b"").await.status(), StatusCode::CREATED);
    assert_eq!(client.send("HEAD", &blob, &[], b"").await.status(), StatusCode::OK);
    assert_eq!(body(client.send("GET", "/v2/_catalog", &[], b"").await).await, br#"{"repositories":["app","other"]}"#);
    // Deletion: a tag, then the manifest with its other tags.
    assert_eq!(client.send("DELETE", "/v2/app/manifests/v2", &[], b"").await.status(), StatusCode::ACCEPTED);
    assert_eq!(
        client.send("DELETE", &format!("/v2/app/manifests/{digest}"), &[], b"").await.status(),
        StatusCode::ACCEPTED
    );
    let response = client.send("DELETE", &format!("/v2/app/manifests/{digest}"), &[], b"").await;
    assert_eq!(code(response).await, (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn bad_requests_get_the_codes_of_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _) = Client::new(dir.path());
    let huge = vec![b' '; 5 << 20];
    for (method, path, body, status, wanted) in [
        ("GET", "/v2/UPPER/tags/list", &b""[..], 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/tags/list", b"", 400, "NAME_INVALID"),
        ("GET", "/v2/a/tags/list", b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/x", b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/blobs/sha256:12", b"", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", b"{", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/.x", b"{}", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/x", &huge, 413, "MANIFEST_INVALID"),
        ("PATCH", "/v2/a/blobs/uploads/0123", b"", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "/v2/a/blobs/uploads/..%2f..%2fetc", b"", 404, "NAME_UNKNOWN"),
        ("POST", "/v2/a/manifests/x", b"", 405, "UNSUPPORTED"),
    ] {
        let (found, code) = code(client.send(method, path, &[], body).await).await;
        if path.contains("%2f") {
            assert!(found.is_client_error(), "{method} {path}: {found}");
            continue;
        }
        assert_eq!((found.as_u16(), code.as_str()), (status, wanted), "{method} {path}");
    }
}
