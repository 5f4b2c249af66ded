//! A webhook server for tests: TLS with a certificate of its own authority, behaviour by path, and a record of what it
//! was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::Uri;
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

/// A running webhook server; it ends when this is dropped.
pub struct Hook {
    task: tokio::task::JoinHandle<()>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its authority, as `caBundle` wants it.
    pub ca_bundle: String,
    /// Another authority that did not sign its certificate.
    pub foreign_bundle: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn authority() -> (rcgen::Certificate, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate, Issuer::new(params, key))
}

fn bundle(certificate: &rcgen::Certificate) -> String {
    base64::engine::general_purpose::STANDARD.encode(certificate.pem())
}

impl Hook {
    /// Starts one that answers as `127.0.0.1` and as `hook.default.svc`.
    pub async fn start() -> Hook {
        let ((ca, issuer), (foreign, _)) = (authority(), authority());
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "hook.default.svc".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let router = Router::new().fallback(answer).with_state(asked.clone());
        let task = tokio::spawn(async move {
            kubernetes::serve(listener, Arc::new(tls), router, kubernetes::ServeLimits::default()).await.unwrap();
        });
        Hook { task, address, ca_bundle: bundle(&ca), foreign_bundle: bundle(&foreign), asked }
    }

    /// The requests of all reviews so far, and forgets them.
    pub fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// A webhook that answers at `path`, for the rules given.
    pub fn webhook(&self, name: &str, path: &str, rule: &Value) -> Value {
        json!({"name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "rules": [rule],
            "clientConfig": {"url": format!("https://{}{path}", self.address), "caBundle": self.ca_bundle}})
    }
}

async fn answer(State(asked): State<Arc<Mutex<Vec<Value>>>>, uri: Uri, body: String) -> axum::response::Response {
    let review: Value = serde_json::from_str(&body).unwrap();
    let request = review["request"].clone();
    asked.lock().unwrap().push(request.clone());
    let patch = |operations: Value| base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    let labels = &request["object"]["metadata"]["labels"];
    let mut response = json!({"uid": request["uid"], "allowed": true});
    match uri.path() {
        "/label" => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] =
                json!(patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}])));
            response["warnings"] = json!(["this was labelled"]);
            response["auditAnnotations"] = json!({"seen": "by the hook"});
        }
        "/count" => {
            let count: u32 = labels["count"].as_str().and_then(|count| count.parse().ok()).unwrap_or(0);
            let operations =
                json!([{"op": "add", "path": "/metadata/labels", "value": {"count": (count + 1).to_string()}}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(patch(operations));
        }
        "/status" => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(patch(json!([{"op": "add", "path": "/status", "value": {"phase": "Running"}}])));
        }
        "/misfit" => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(patch(json!([{"op": "remove", "path": "/none/at/all"}])));
        }
        "/deny" => {
            response["allowed"] = json!(false);
            response["status"] = json!({"code": 403, "reason": "Forbidden", "message": "not today"});
        }
        "/slow" => tokio::time::sleep(std::time::Duration::from_secs(60)).await,
        "/garbage" => return axum::response::Response::new("<html>".into()),
        "/other" => response["uid"] = json!("another"),
        "/redirect" => {
            let mut redirect = axum::response::Response::new(axum::body::Body::empty());
            *redirect.status_mut() = http::StatusCode::FOUND;
            redirect.headers_mut().insert("location", http::HeaderValue::from_static("/allow"));
            return redirect;
        }
        _ => {}
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    axum::response::Response::new(review.to_string().into())
}
