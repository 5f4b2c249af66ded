//! `/openapi/v2`: all kinds in one Swagger document, for clients that know nothing newer. Built when asked for.

use apiserver::{KindTable, Status};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::discovery::{conditional, digest};
use crate::endpoints::EndpointCall;
use crate::openapi;
use crate::router::typed_response;

mod protobuf;

/// The form that Go's clients take.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The same as kube-apiserver names it in its answer: with an `@` it would be no media type.
const PROTOBUF_SAID: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `GET /openapi/v2`, as JSON or as protobuf.
pub(crate) async fn document(call: EndpointCall) -> Result<Response, Status> {
    let accept = call.headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let binary = accept.contains(PROTOBUF) || accept.contains(PROTOBUF_SAID);
    if !accept.is_empty() && !binary && !accept.contains("json") && !accept.contains("*/*") {
        return Err(Status::not_acceptable(format!("only application/json and {PROTOBUF} are served here")));
    }
    let table = call.state.api.kinds();
    let built = tokio::task::spawn_blocking(move || {
        let document = build(&table);
        if binary { protobuf::document(&document) } else { document.to_string().into_bytes() }
    });
    let bytes = built.await.map_err(Status::internal)?;
    let etag = digest(&bytes);
    let media_type = if binary { PROTOBUF_SAID } else { "application/json" };
    Ok(conditional(&call.headers, &etag, || typed_response(StatusCode::OK, media_type, bytes)))
}

fn build(table: &KindTable) -> Value {
    let (mut definitions, named) = openapi::definitions(table, |_| true);
    let mut paths = Map::new();
    for (kind, name) in &named {
        let list = format!("{name}List");
        definitions.insert(list.clone(), openapi::list_schema(kind, name));
        openapi::add_paths(&mut paths, kind, name, &list);
    }
    let mut document = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "definitions": definitions, "paths": paths});
    downgrade(&mut document);
    document
}

/// From OpenAPI 3 to Swagger 2: references, `allOf` wrappers, bodies and answers.
fn downgrade(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(all)) = map.get("allOf")
                && let [Value::Object(one)] = all.as_slice()
                && let Some(reference) = one.get("$ref").cloned()
            {
                map.remove("allOf");
                map.remove("default");
                map.insert("$ref".into(), reference);
            }
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
            }
            if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
                map.remove("oneOf");
                map.entry("type").or_insert_with(|| "string".into());
                map.insert("format".into(), "int-or-string".into());
            }
            for unknown in ["nullable", "oneOf", "anyOf", "not"] {
                map.remove(unknown);
            }
            if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
                // Its members are names, whatever words they are.
                properties.values_mut().for_each(downgrade);
            }
            if map.contains_key("operationId") {
                operation(map);
            }
            map.iter_mut().filter(|(name, _)| *name != "properties").for_each(|(_, value)| downgrade(value));
        }
        Value::Array(list) => list.iter_mut().for_each(downgrade),
        _ => {}
    }
}

fn operation(map: &mut Map<String, Value>) {
    let mut parameters: Vec<Value> = map
        .remove("parameters")
        .and_then(|parameters| parameters.as_array().cloned())
        .unwrap_or_default()
        .into_iter()
        .map(|parameter| json!({"name": parameter["name"], "in": "query", "type": "string", "uniqueItems": true}))
        .collect();
    if let Some(body) = map.remove("requestBody") {
        let content = body["content"].as_object().cloned().unwrap_or_default();
        let schema = content.values().next().map_or(Value::Null, |one| one["schema"].clone());
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
        map.insert("consumes".into(), content.keys().cloned().collect());
    }
    map.insert("parameters".into(), parameters.into());
    map.insert("produces".into(), json!(["application/json", "application/yaml"]));
    for answer in map.get_mut("responses").and_then(Value::as_object_mut).into_iter().flat_map(|all| all.values_mut()) {
        let schema = answer.pointer("/content/application~1json/schema").cloned().unwrap_or_default();
        *answer = json!({"description": "OK", "schema": schema});
    }
}
