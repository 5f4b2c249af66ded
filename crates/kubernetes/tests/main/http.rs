//! Plain requests as any user, without a socket: what is on the wire, and nothing that a client library adds.

use apiserver::UserInfo;
use http::HeaderMap;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::server::Server;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub code: u16,
    /// The body when it is JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
    /// The headers.
    pub headers: HeaderMap,
}

impl Answer {
    /// The reason of a `Status`.
    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    /// The message of a `Status`.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// All warnings.
    pub fn warnings(&self) -> Vec<String> {
        let all = self.headers.get_all("warning").iter();
        all.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    }
}

/// A user with all rights.
pub fn admin() -> UserInfo {
    UserInfo::master("admin")
}

/// Sends one request as `user`.
pub async fn send(server: &Server, user: UserInfo, request: http::request::Builder, body: Vec<u8>) -> Answer {
    let client = kubernetes::client(&server.router, user);
    let response = client.send(request.body(kube::client::Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
    Answer {
        code: parts.status.as_u16(),
        body: serde_json::from_str(&text).unwrap_or_default(),
        text,
        headers: parts.headers,
    }
}

/// A JSON request as the administrator.
pub async fn ask(server: &Server, method: &str, path: &str, body: &Value) -> Answer {
    ask_as(server, admin(), method, path, body).await
}

/// The same as somebody else. A patch is a merge patch.
pub async fn ask_as(server: &Server, user: UserInfo, method: &str, path: &str, body: &Value) -> Answer {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder().method(method).uri(path).header("content-type", media);
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    send(server, user, request, body).await
}
