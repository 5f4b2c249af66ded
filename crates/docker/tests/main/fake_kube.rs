//! A small object store that speaks as much of the Kubernetes API as the dialect uses: list, watch, get, create, merge
//! patch, delete with finalizers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(String, String), Value>,
}

/// The store; cheap to clone.
#[derive(Clone)]
pub struct FakeKube {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
}

fn answer(status: StatusCode, value: &Value) -> Response<axum::body::Body> {
    let mut response = Response::new(axum::body::Body::from(value.to_string()));
    *response.status_mut() = status;
    response
}

fn failure(status: StatusCode, reason: &str) -> Response<axum::body::Body> {
    let message = format!("the object: {reason}");
    let value = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": status.as_u16() });
    answer(status, &value)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(target.as_object_mut().unwrap().entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl FakeKube {
    pub fn new() -> Self {
        Self { state: Arc::default(), events: broadcast::Sender::new(4096) }
    }

    pub fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub fn subscribe(&self) -> broadcast::Receiver<(String, Value)> {
        self.events.subscribe()
    }

    fn write(&self, plural: &str, name: &str, event: &str, object: Option<Value>) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision.to_string();
        let key = (plural.to_owned(), name.to_owned());
        let object = match object {
            Some(mut object) => {
                object["metadata"]["resourceVersion"] = json!(revision);
                state.objects.insert(key, object.clone());
                object
            }
            None => {
                let mut last = state.objects.remove(&key).unwrap_or_default();
                last["metadata"]["resourceVersion"] = json!(revision);
                last
            }
        };
        let _ = self.events.send((plural.to_owned(), json!({ "type": event, "object": object })));
        object
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    /// Merges a change into an object, as a controller would.
    pub fn patch(&self, plural: &str, name: &str, change: &Value) -> Option<Value> {
        let mut object = self.get(plural, name)?;
        merge(&mut object, change);
        let held = object.pointer("/metadata/finalizers").is_some_and(|f| f.as_array().is_some_and(|f| !f.is_empty()));
        if object.pointer("/metadata/deletionTimestamp").is_some() && !held {
            self.write(plural, name, "MODIFIED", Some(object));
            return Some(self.write(plural, name, "DELETED", None));
        }
        Some(self.write(plural, name, "MODIFIED", Some(object)))
    }

    pub fn delete(&self, plural: &str, name: &str) -> Option<Value> {
        let mut object = self.get(plural, name)?;
        let held = object.pointer("/metadata/finalizers").is_some_and(|f| f.as_array().is_some_and(|f| !f.is_empty()));
        if held {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return Some(self.write(plural, name, "MODIFIED", Some(object)));
        }
        Some(self.write(plural, name, "DELETED", None))
    }

    fn create(&self, plural: &str, mut object: Value) -> Response<axum::body::Body> {
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let taken = {
            let state = self.state.lock().unwrap();
            state
                .objects
                .iter()
                .any(|((p, n), o)| p == plural && (*n == name || o["spec"]["name"] == object["spec"]["name"]))
        };
        if taken {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        object["metadata"]["uid"] = json!(format!("uid-{name}"));
        object["metadata"]["namespace"] = json!("default");
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        answer(StatusCode::CREATED, &self.write(plural, &name, "ADDED", Some(object)))
    }

    async fn serve(&self, request: Request<Body>) -> Response<axum::body::Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let segments: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        // apis / nuee.dev / v1 / namespaces / default / plural [/ name]; api / v1 / … for the kinds of Kubernetes' core
        let at = if segments[0] == "api" { 4 } else { 5 };
        let (plural, name) = (segments[at], segments.get(at + 1).copied());
        let query = parts.uri.query().unwrap_or("");
        match (parts.method, name) {
            (Method::GET, None) if query.contains("watch=") => self.watch(plural, query),
            (Method::GET, None) => {
                let state = self.state.lock().unwrap();
                let items: Vec<&Value> =
                    state.objects.iter().filter(|((p, _), _)| p == plural).map(|(_, o)| o).collect();
                answer(
                    StatusCode::OK,
                    &json!({ "kind": "List", "apiVersion": "nuee.dev/v1", "metadata": { "resourceVersion": state.revision.to_string() }, "items": items }),
                )
            }
            (Method::GET, Some(name)) => match self.get(plural, name) {
                Some(object) => answer(StatusCode::OK, &object),
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            },
            (Method::POST, None) => self.create(plural, serde_json::from_slice(&body).unwrap()),
            (Method::PATCH, Some(name)) => {
                let change: Value = serde_json::from_slice(&body).unwrap();
                let renamed = change.pointer("/spec/name").cloned();
                let taken = renamed.is_some_and(|wanted| {
                    let state = self.state.lock().unwrap();
                    state.objects.iter().any(|((p, n), o)| p == plural && n != name && o["spec"]["name"] == wanted)
                });
                if taken {
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                match self.patch(plural, name, &change) {
                    Some(object) => answer(StatusCode::OK, &object),
                    None => failure(StatusCode::NOT_FOUND, "NotFound"),
                }
            }
            (Method::DELETE, Some(name)) => match self.delete(plural, name) {
                Some(object) => answer(StatusCode::OK, &object),
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            },
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn watch(&self, plural: &str, query: &str) -> Response<axum::body::Body> {
        let from: u64 =
            query.split('&').find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok()).unwrap_or(0);
        let plural = plural.to_owned();
        let state = self.state.lock().unwrap();
        let receiver = self.events.subscribe();
        // What was written between the list and this watch.
        let missed: Vec<Value> = state
            .objects
            .iter()
            .filter(|((p, _), _)| *p == plural)
            .map(|(_, o)| o.clone())
            .filter(|o| {
                o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) > from
            })
            .map(|object| json!({ "type": "MODIFIED", "object": object }))
            .collect();
        drop(state);
        let later = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (event, receiver))
        })
        .filter_map(move |(kind, event)| std::future::ready((kind == plural).then_some(event)));
        let lines = futures::stream::iter(missed).chain(later).map(|event| Ok::<_, Infallible>(format!("{event}\n")));
        Response::new(axum::body::Body::from_stream(lines))
    }
}
