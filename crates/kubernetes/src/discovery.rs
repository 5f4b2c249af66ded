//! What is served: `/api`, `/apis` and the lists of resources, plain and aggregated (`apidiscovery.k8s.io/v2`).

use std::sync::Arc;

use apiserver::{Kind, KindTable, Status};
use arc_swap::ArcSwapOption;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::endpoints::EndpointCall;
use crate::negotiate::wants_aggregated;
use crate::router::{State, json_response, typed_response};

/// The aggregated documents of one generation of the table of kinds.
#[derive(Default)]
pub(crate) struct Cache(ArcSwapOption<Aggregated>);

struct Aggregated {
    generation: u64,
    core: Document,
    groups: Document,
}

struct Document {
    bytes: Bytes,
    etag: String,
}

/// `as` parameters of the aggregated document's media type.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const SUBRESOURCE_VERBS: &[&str] = &["get", "patch", "update"];

/// Lower-case hexadecimal SHA-256, upper case for ETags as Kubernetes has them.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// `GET /`. Boxed by itself, since it reads the table that it is a row of.
pub(crate) fn root(call: EndpointCall) -> futures::future::BoxFuture<'static, Result<Response, Status>> {
    Box::pin(futures::future::ready(Ok(index(&call))))
}

fn index(call: &EndpointCall) -> Response {
    let table = call.state.api.kinds();
    let mut paths: Vec<String> =
        crate::ENDPOINTS.iter().map(|row| row.path.to_owned()).filter(|path| path != "/").collect();
    for (group, versions) in table.groups() {
        let base = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        paths.extend(versions.iter().map(|version| format!("{base}/{version}")));
        paths.push(base);
    }
    paths.sort();
    paths.dedup();
    json_response(StatusCode::OK, &json!({"paths": paths}))
}

/// `GET /api`.
pub(crate) async fn core_versions(call: EndpointCall) -> Result<Response, Status> {
    if wants_aggregated(&call.headers) {
        return aggregated(&call, |documents| &documents.core);
    }
    let value = json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs":
        [{"clientCIDR": "0.0.0.0/0", "serverAddress": &*call.state.server_address}]});
    Ok(json_response(StatusCode::OK, &value))
}

/// `GET /apis`.
pub(crate) async fn groups(call: EndpointCall) -> Result<Response, Status> {
    if wants_aggregated(&call.headers) {
        return aggregated(&call, |documents| &documents.groups);
    }
    let table = call.state.api.kinds();
    let groups: Vec<Value> = table
        .groups()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| describe(group, versions))
        .collect();
    Ok(json_response(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
}

/// `GET /apis/{group}`.
pub(crate) async fn group(call: EndpointCall) -> Result<Response, Status> {
    let table = call.state.api.kinds();
    let found = table.groups().find(|(group, _)| *group == call.tail && !group.is_empty());
    let (group, versions) = found.ok_or_else(Status::no_such_resource)?;
    let mut value = describe(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(json_response(StatusCode::OK, &value))
}

fn describe(group: &str, versions: &[String]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "preferredVersion": all.first(), "versions": all})
}

/// `GET /api/v1`, `GET /apis/{group}/{version}`.
pub(crate) fn group_version(state: &State, group: &str, version: &str) -> Result<Response, Status> {
    let table = state.api.kinds();
    let mut resources = Vec::new();
    for kind in table.in_version(group, version) {
        resources.push(plain(kind));
        resources.extend(subresources(kind).into_iter().map(|sub| {
            let mut value = json!({"name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub.kind, "verbs": sub.verbs});
            if !sub.version.is_empty() && (sub.group != kind.group || sub.version != kind.version) {
                value["group"] = sub.group.into();
                value["version"] = sub.version.into();
            }
            value
        }));
    }
    if resources.is_empty() {
        return Err(Status::no_such_resource());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let value =
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
    Ok(json_response(StatusCode::OK, &value))
}

fn verbs(kind: &Kind) -> &'static [&'static str] {
    if kind.stored { VERBS } else { &["create"] }
}

fn plain(kind: &Kind) -> Value {
    let mut value = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": verbs(kind)});
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    if kind.stored {
        let identity = format!("{}/{}/{}", kind.group, kind.plural, kind.kind);
        value["storageVersionHash"] = digest(identity.as_bytes())[..12].to_lowercase().into();
    }
    value
}

/// All subresources, status and scale included.
fn subresources(kind: &Kind) -> Vec<apiserver::Subresource> {
    let make = |name: &str, of: &str, group: &str, version: &str| apiserver::Subresource {
        name: name.into(),
        kind: of.into(),
        group: group.into(),
        version: version.into(),
        verbs: SUBRESOURCE_VERBS.iter().map(|verb| (*verb).to_owned()).collect(),
    };
    let mut all: Vec<_> = kind.subresources.clone();
    if kind.status_subresource {
        all.push(make("status", &kind.kind, &kind.group, &kind.version));
    }
    if kind.scale.is_some() && !all.iter().any(|one| one.name == "scale") {
        all.push(make("scale", "Scale", "autoscaling", "v1"));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn aggregated(call: &EndpointCall, pick: fn(&Aggregated) -> &Document) -> Result<Response, Status> {
    let table = call.state.api.kinds();
    let cache = &call.state.discovery.0;
    let documents = match cache.load_full().filter(|cached| cached.generation == table.generation()) {
        Some(documents) => documents,
        None => {
            let built = Arc::new(build(&table));
            cache.store(Some(built.clone()));
            built
        }
    };
    let document = pick(&documents);
    let mut response = conditional(&call.headers, &document.etag, || {
        typed_response(StatusCode::OK, AGGREGATED, document.bytes.clone())
    });
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// Answers 304 when the client already has this version.
pub(crate) fn conditional(headers: &HeaderMap, etag: &str, full: impl FnOnce() -> Response) -> Response {
    let quoted = format!("\"{etag}\"");
    let same = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|known| {
        known.split(',').map(str::trim).any(|one| one == quoted || one == etag || one == format!("W/{quoted}"))
    });
    let mut response = if same {
        let mut empty = Response::new(axum::body::Body::empty());
        *empty.status_mut() = StatusCode::NOT_MODIFIED;
        empty
    } else {
        full()
    };
    if let Ok(value) = HeaderValue::from_str(&quoted) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

fn build(table: &KindTable) -> Aggregated {
    let document = |core: bool| {
        let items: Vec<Value> = table
            .groups()
            .filter(|(group, _)| group.is_empty() == core)
            .map(|(group, versions)| {
                let versions: Vec<Value> =
                    versions.iter().map(|version| aggregated_version(table, group, version)).collect();
                let metadata = if core {
                    json!({"creationTimestamp": null})
                } else {
                    json!({"name": group, "creationTimestamp": null})
                };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
        let bytes = Bytes::from(list.to_string());
        Document { etag: digest(&bytes), bytes }
    };
    Aggregated { generation: table.generation(), core: document(true), groups: document(false) }
}

fn aggregated_version(table: &KindTable, group: &str, version: &str) -> Value {
    let resources: Vec<Value> = table.in_version(group, version).map(|kind| aggregated_resource(kind)).collect();
    json!({"version": version, "freshness": "Current", "resources": resources})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": kind.plural, "singularResource": kind.singular, "verbs": verbs(kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": response_kind(&kind.group, &kind.version, &kind.kind)});
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|sub| {
            let own = sub.version.is_empty();
            let (group, version) = if own { (&kind.group, &kind.version) } else { (&sub.group, &sub.version) };
            json!({"subresource": sub.name, "verbs": sub.verbs, "responseKind": response_kind(group, version, &sub.kind)})
        })
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = subresources.into();
    }
    value
}
