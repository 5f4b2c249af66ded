//! Every verb, patch and common error on every registered kind, generated from the registrations: a new kind is held to
//! the same contract the day it is registered. What a kind needs beyond a name stands in `tests/wire/samples.json`.

use apiserver::{Kind, UserInfo};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::http::{Answer, admin, send};
use crate::server::Server;

/// Kinds tried at the same time.
const AT_ONCE: usize = 4;

/// A kind, where it is served, and a valid object of it.
struct Subject<'a> {
    server: &'a Server,
    kind: Kind,
    collection: String,
    name: String,
    sample: Value,
}

impl Subject<'_> {
    async fn ask(&self, method: &str, tail: &str, media: &str, body: &Value) -> Answer {
        self.ask_as(admin(), method, tail, media, body).await
    }

    async fn ask_as(&self, user: UserInfo, method: &str, tail: &str, media: &str, body: &Value) -> Answer {
        let request = http::Request::builder().method(method).uri(format!("{}{tail}", self.collection));
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        send(self.server, user, request.header("content-type", media), body).await
    }

    fn expect(&self, what: &str, answer: &Answer, code: u16, reason: &str) {
        let who = self.kind.qualified();
        let shown: String = answer.text.chars().take(800).collect();
        assert_eq!(answer.code, code, "{who}: {what}: {shown}");
        if code >= 400 {
            assert_eq!((&answer.body["kind"], answer.reason()), (&json!("Status"), reason), "{who}: {what}: {shown}");
        }
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

async fn reads(s: &Subject<'_>) {
    let one = format!("/{}", s.name);
    let got = s.ask("GET", &one, JSON, &Value::Null).await;
    s.expect("get", &got, 200, "");
    assert_eq!((&got.body["kind"], &got.body["apiVersion"]), (&json!(s.kind.kind), &json!(s.kind.api_version())));
    let missing = s.ask("GET", "/is-not-there", JSON, &Value::Null).await;
    s.expect("get what is not there", &missing, 404, "NotFound");
    assert_eq!(missing.message(), format!("{} \"is-not-there\" not found", s.kind.qualified()));
    let list = s.ask("GET", "?limit=500", JSON, &Value::Null).await;
    s.expect("list", &list, 200, "");
    assert_eq!(list.body["kind"], format!("{}List", s.kind.kind));
    let named =
        |list: &Value| list["items"].as_array().unwrap().iter().any(|one| one["metadata"]["name"] == s.name.as_str());
    assert!(named(&list.body), "{}", s.kind.qualified());
    let none = s.ask("GET", "?labelSelector=none%3Dat-all", JSON, &Value::Null).await;
    assert_eq!(none.body["items"], json!([]), "{}", s.kind.qualified());
    let watched = s
        .ask("GET", &format!("?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3D{}", s.name), JSON, &Value::Null)
        .await;
    let event: Value = serde_json::from_str(watched.text.lines().next().unwrap_or_default()).unwrap_or_default();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!(s.name)),
        "{}",
        s.kind.qualified()
    );
    for (form, kind) in [("Table", "Table"), ("PartialObjectMetadata", "PartialObjectMetadata")] {
        let request = http::Request::builder().uri(format!("{}{one}", s.collection));
        let request = request.header("accept", format!("application/json;as={form};v=v1;g=meta.k8s.io"));
        let answer = send(s.server, admin(), request, Vec::new()).await;
        assert_eq!((answer.code, &answer.body["kind"]), (200, &json!(kind)), "{}", s.kind.qualified());
    }
}

async fn refusals(s: &Subject<'_>) {
    let (one, nobody) = (format!("/{}", s.name), || UserInfo::new("mallory", &[]));
    for (method, tail, media, body) in [
        ("GET", "", JSON, Value::Null),
        ("GET", one.as_str(), JSON, Value::Null),
        ("GET", "?watch=1", JSON, Value::Null),
        ("POST", "", JSON, s.sample.clone()),
        ("PUT", one.as_str(), JSON, s.sample.clone()),
        ("PATCH", one.as_str(), MERGE, json!({})),
        ("DELETE", one.as_str(), JSON, Value::Null),
        ("DELETE", "", JSON, Value::Null),
    ] {
        let answer = s.ask_as(nobody(), method, tail, media, &body).await;
        s.expect(&format!("{method} {tail} without rights"), &answer, 403, "Forbidden");
        assert!(answer.message().contains("User \"mallory\" cannot"), "{}", answer.text);
    }
    s.expect("post to an object", &s.ask("POST", &one, JSON, &json!({})).await, 405, "MethodNotAllowed");
    s.expect("put to a collection", &s.ask("PUT", "", JSON, &json!({})).await, 405, "MethodNotAllowed");
    s.expect("no such subresource", &s.ask("GET", &format!("{one}/none"), JSON, &Value::Null).await, 404, "NotFound");
    s.expect("create again", &s.ask("POST", "", JSON, &s.sample).await, 409, "AlreadyExists");
    s.expect(
        "create of no name",
        &s.ask("POST", "", JSON, &json!({"metadata": {"name": "a/b"}})).await,
        422,
        "Invalid",
    );
    s.expect("create of garbage", &s.ask("POST", "", JSON, &json!("text")).await, 400, "BadRequest");
    s.expect("create in html", &s.ask("POST", "", "text/html", &json!({})).await, 415, "UnsupportedMediaType");
    let mut future = s.sample.clone();
    future["metadata"]["resourceVersion"] = json!("99999999");
    s.expect("put of a stale version", &s.ask("PUT", &one, JSON, &future).await, 409, "Conflict");
    let mut other = s.sample.clone();
    other["metadata"]["name"] = json!("other");
    s.expect("put of another name", &s.ask("PUT", &one, JSON, &other).await, 400, "BadRequest");
    let stranger = json!({"thisFieldIsUnknown": 1});
    let strict = s.ask("PATCH", &format!("{one}?fieldValidation=Strict"), MERGE, &stranger).await;
    s.expect("an unknown field", &strict, 400, "BadRequest");
    assert!(
        strict.message().contains("strict decoding error: unknown field \"thisFieldIsUnknown\""),
        "{}",
        strict.text
    );
    let test = json!([{"op": "test", "path": "/metadata/name", "value": "x"}]);
    s.expect("json patch whose test fails", &s.ask("PATCH", &one, JSON_PATCH, &test).await, 422, "Invalid");
    s.expect("json patch that is none", &s.ask("PATCH", &one, JSON_PATCH, &json!({})).await, 400, "BadRequest");
    s.expect("merge patch that is none", &s.ask("PATCH", &one, MERGE, &json!([])).await, 400, "BadRequest");
    s.expect("a patch of no type", &s.ask("PATCH", &one, JSON, &json!({})).await, 415, "UnsupportedMediaType");
    s.expect("a patch of nothing", &s.ask("PATCH", "/is-not-there", MERGE, &json!({})).await, 404, "NotFound");
}

async fn changes(s: &Subject<'_>) {
    let one = format!("/{}", s.name);
    let got = s.ask("GET", &one, JSON, &Value::Null).await.body;
    let same = s.ask("PUT", &one, JSON, &got).await;
    s.expect("put of what is there", &same, 200, "");
    assert_eq!(
        same.body["metadata"]["resourceVersion"],
        got["metadata"]["resourceVersion"],
        "{}: a write of nothing",
        s.kind.qualified()
    );
    let mut labelled = got;
    labelled["metadata"]["labels"]["put"] = json!("1");
    s.expect("put", &s.ask("PUT", &format!("{one}?fieldManager=put"), JSON, &labelled).await, 200, "");
    let label = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
    s.expect("merge patch", &s.ask("PATCH", &one, MERGE, &label("merge", "1")).await, 200, "");
    s.expect("strategic merge patch", &s.ask("PATCH", &one, STRATEGIC, &label("strategic", "1")).await, 200, "");
    let add = json!([{"op": "add", "path": "/metadata/labels/json", "value": "1"}]);
    s.expect("json patch", &s.ask("PATCH", &one, JSON_PATCH, &add).await, 200, "");
    let applied = |value: &str| json!({"apiVersion": s.kind.api_version(), "kind": s.kind.kind, "metadata": {"name": s.name, "labels": {"apply": value}}});
    let apply = async |manager: &str, value: &str| {
        s.ask("PATCH", &format!("{one}?fieldManager={manager}"), APPLY, &applied(value)).await
    };
    s.expect("apply", &apply("one", "1").await, 200, "");
    let conflict = apply("two", "2").await;
    s.expect("apply against another", &conflict, 409, "Conflict");
    assert_eq!(
        conflict.body["details"]["causes"][0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".metadata.labels.apply"})
    );
    let forced = apply("two&force=true", "2").await;
    s.expect("apply by force", &forced, 200, "");
    let labels = &forced.body["metadata"]["labels"];
    for (key, value) in [("put", "1"), ("merge", "1"), ("strategic", "1"), ("json", "1"), ("apply", "2")] {
        assert_eq!(labels[key], value, "{}: {key}", s.kind.qualified());
    }
    let status = s.ask("PATCH", &format!("{one}/status"), MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await;
    let expected = if s.kind.status_subresource { (200, "") } else { (404, "NotFound") };
    s.expect("patch of status", &status, expected.0, expected.1);
}

async fn deletes(s: &Subject<'_>) {
    let one = format!("/{}", s.name);
    let foreign = json!({"preconditions": {"uid": "another"}});
    s.expect("delete of another uid", &s.ask("DELETE", &one, JSON, &foreign).await, 409, "Conflict");
    s.expect("delete for a dry run", &s.ask("DELETE", &format!("{one}?dryRun=All"), JSON, &Value::Null).await, 200, "");
    s.expect("it is still there", &s.ask("GET", &one, JSON, &Value::Null).await, 200, "");
    s.expect(
        "delete of a selection",
        &s.ask("DELETE", "?labelSelector=none%3Dat-all", JSON, &Value::Null).await,
        200,
        "",
    );
    s.expect("delete", &s.ask("DELETE", &one, JSON, &Value::Null).await, 200, "");
    if !s.kind.is("", "namespaces") {
        s.expect("gone", &s.ask("GET", &one, JSON, &Value::Null).await, 404, "NotFound");
        s.expect("delete again", &s.ask("DELETE", &one, JSON, &Value::Null).await, 404, "NotFound");
    }
}

async fn try_kind(s: &Subject<'_>) {
    let dry = s.ask("POST", "?dryRun=All", JSON, &s.sample).await;
    s.expect("create for a dry run (a kind that needs more than a name has a row in samples.json)", &dry, 201, "");
    s.expect("which left nothing", &s.ask("GET", &format!("/{}", s.name), JSON, &Value::Null).await, 404, "NotFound");
    let made = s.ask("POST", "?fieldManager=creator", JSON, &s.sample).await;
    s.expect("create", &made, 201, "");
    let metadata = &made.body["metadata"];
    for member in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(metadata[member].is_string(), "{}: no {member}", s.kind.qualified());
    }
    assert_eq!(metadata["managedFields"][0]["manager"], "creator", "{}", s.kind.qualified());
    reads(s).await;
    refusals(s).await;
    changes(s).await;
    deletes(s).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stored_kind_keeps_the_contract() {
    let server = Server::start().await;
    let samples: Value = serde_json::from_str(include_str!("../wire/samples.json")).unwrap();
    let subjects = kubernetes::builtin_kinds().into_iter().filter(|kind| kind.stored).map(|kind| {
        let mut sample = samples.get(kind.qualified()).cloned().unwrap_or_else(|| json!({}));
        if sample["metadata"]["name"].is_null() {
            sample["metadata"]["name"] = json!("sample");
        }
        sample["metadata"]["labels"] = json!({"sample": "yes"});
        let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
        let namespace = if kind.namespaced { "/namespaces/default" } else { "" };
        let collection = format!("{root}/{}{namespace}/{}", kind.version, kind.plural);
        let name = sample["metadata"]["name"].as_str().unwrap().to_owned();
        Subject { server: &server, kind, collection, name, sample }
    });
    // Two versions of one kind share their objects, so they take turns.
    let mut subjects: Vec<Subject<'_>> = subjects.collect();
    subjects.sort_by_key(|subject| (subject.kind.plural.clone(), subject.kind.group.clone()));
    let mut groups: Vec<Vec<Subject<'_>>> = Vec::new();
    for subject in subjects {
        match groups.last_mut() {
            Some(group) if group[0].kind.plural == subject.kind.plural => group.push(subject),
            _ => groups.push(vec![subject]),
        }
    }
    assert!(groups.len() > 25, "{}", groups.len());
    let tried = stream::iter(groups).map(async |group| {
        for subject in &group {
            try_kind(subject).await;
        }
    });
    tried.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
