//! `/version`, the health endpoints, and the token issuer's description.

use apiserver::Status;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::endpoints::EndpointCall;
use crate::router::{json_response, typed_response};

/// API level that is served.
const API_MAJOR: &str = "1";
/// See [`API_MAJOR`].
const API_MINOR: &str = "36";

/// `GET /version`.
pub(crate) async fn version(_: EndpointCall) -> Result<Response, Status> {
    let version = format!("v{API_MAJOR}.{API_MINOR}.0+nuee-{}", env!("CARGO_PKG_VERSION"));
    let platform = format!("{}/{}", std::env::consts::OS, go_architecture());
    let value = json!({"major": API_MAJOR, "minor": API_MINOR, "gitVersion": version, "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": platform});
    Ok(json_response(StatusCode::OK, &value))
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /healthz`, `/livez`, `/readyz`, and single checks below them. The check is a read of the store's revision.
pub(crate) async fn check(call: EndpointCall) -> Result<Response, Status> {
    const CHECKS: &[&str] = &["ping", "store"];
    if !call.tail.is_empty() && !CHECKS.contains(&call.tail.as_str()) {
        return Err(Status::no_such_resource());
    }
    let live = call.state.api.is_live();
    let mark = |ok: bool| if ok { "[+]" } else { "[-]" };
    let text = if call.query.flag("verbose") || !live {
        let outcome = if live { "check passed" } else { "check failed" };
        format!("[+]ping ok\n{}store {}\n{outcome}\n", mark(live), if live { "ok" } else { "failed" })
    } else {
        "ok".to_owned()
    };
    let code = if live { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Ok(typed_response(code, "text/plain; charset=utf-8", text))
}

/// `GET /.well-known/openid-configuration`.
pub(crate) async fn openid_configuration(call: EndpointCall) -> Result<Response, Status> {
    let issuer = "https://kubernetes.default.svc";
    let value = json!({"issuer": issuer, "jwks_uri": format!("https://{}/openid/v1/jwks", call.state.server_address),
        "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"]});
    Ok(json_response(StatusCode::OK, &value))
}

/// `GET /openid/v1/jwks`.
pub(crate) async fn token_keys(call: EndpointCall) -> Result<Response, Status> {
    Ok(json_response(StatusCode::OK, &call.state.api.token_keys()))
}
