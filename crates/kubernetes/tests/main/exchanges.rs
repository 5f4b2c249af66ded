//! Plays the recorded exchanges of `tests/wire/*.json` against a server each: requests as real clients send them, with
//! the answers that the Kubernetes API reference and kube-apiserver 1.36 give. A file is a list that is played in order.

use serde_json::Value;

use crate::http::{Answer, admin, send};
use crate::server::Server;

/// Plays one file.
async fn play(file: &str, text: &str) {
    let server = Server::start().await;
    let exchanges: Vec<Value> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    for exchange in &exchanges {
        let name = format!("{file}: {}", exchange["name"].as_str().expect("every exchange has a name"));
        let answer = request(&server, exchange).await;
        check(&name, exchange, &answer);
    }
}

async fn request(server: &Server, exchange: &Value) -> Answer {
    let text = |member: &str| exchange[member].as_str();
    let method = text("method").unwrap_or("GET");
    let media = text("type").unwrap_or(match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    });
    let mut request = http::Request::builder().method(method).uri(text("path").unwrap()).header("content-type", media);
    if let Some(accept) = text("accept") {
        request = request.header("accept", accept);
    }
    let body = match (&exchange["body"], text("text")) {
        (Value::Null, None) => Vec::new(),
        // `repeat` stands for text that is too long to write down.
        (Value::Null, Some(text)) => {
            let times = exchange["repeat"].as_u64().and_then(|times| usize::try_from(times).ok()).unwrap_or(1);
            let (before, after) = (exchange["before"].as_str().unwrap_or(""), exchange["after"].as_str().unwrap_or(""));
            format!("{before}{}{after}", text.repeat(times)).into_bytes()
        }
        (body, _) => body.to_string().into_bytes(),
    };
    let user = match text("as") {
        Some(name) => apiserver::UserInfo::new(name, &[]),
        None => admin(),
    };
    send(server, user, request, body).await
}

fn check(name: &str, exchange: &Value, answer: &Answer) {
    let shown: String = answer.text.chars().take(2000).collect();
    assert_eq!(
        u64::from(answer.code),
        exchange["code"].as_u64().expect("every exchange has a code"),
        "{name}: {shown}"
    );
    if answer.code >= 400 {
        assert_eq!(
            (&answer.body["kind"], &answer.body["apiVersion"]),
            (&"Status".into(), &"v1".into()),
            "{name}: {shown}"
        );
        assert_eq!(answer.body["status"], "Failure", "{name}: {shown}");
        assert_eq!(answer.body["code"], answer.code, "{name}: {shown}");
        assert!(exchange["reason"].is_string(), "{name}: an error is recorded with its reason");
    }
    if let Some(reason) = exchange["reason"].as_str() {
        assert_eq!(answer.reason(), reason, "{name}: {shown}");
    }
    if let Some(message) = exchange["message"].as_str() {
        assert_eq!(answer.message(), message, "{name}");
    }
    for part in exchange["message_has"].as_array().into_iter().flatten() {
        assert!(answer.message().contains(part.as_str().unwrap()), "{name}: {part} is not in {shown}");
    }
    if let Some(causes) = exchange["causes"].as_array() {
        let own: Vec<Value> = answer.body["details"]["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cause| serde_json::json!([cause["reason"], cause["field"]]))
            .collect();
        assert_eq!(&own, causes, "{name}: {shown}");
    }
    for (pointer, value) in exchange["object"].as_object().into_iter().flatten() {
        assert_eq!(answer.body.pointer(pointer).unwrap_or(&Value::Null), value, "{name}: {pointer}: {shown}");
    }
    if let Some(warning) = exchange["warning"].as_str() {
        assert!(answer.warnings().iter().any(|own| own.contains(warning)), "{name}: {:?}", answer.warnings());
    } else if exchange["warning"] == false {
        assert!(answer.warnings().is_empty(), "{name}: {:?}", answer.warnings());
    }
}

macro_rules! files {
    ($($name:ident),*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let file = concat!(stringify!($name), ".json");
            play(file, include_str!(concat!("../wire/", stringify!($name), ".json"))).await;
        }
    )* };
}

files!(writes, patches, apply, lists, deletes, subresources, custom_kinds, bad_input, access, events);

/// Negative control: the player does notice a wrong code, reason, cause and object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_is_noticed() {
    for wrong in [
        r#"[{"name": "x", "path": "/api/v1/namespaces/none", "code": 200}]"#,
        r#"[{"name": "x", "path": "/api/v1/namespaces/none", "code": 404, "reason": "Gone"}]"#,
        r#"[{"name": "x", "path": "/api/v1/namespaces/default", "code": 200, "object": {"/metadata/name": "other"}}]"#,
    ] {
        assert!(tokio::spawn(play("control", wrong)).await.is_err(), "{wrong}");
    }
}
