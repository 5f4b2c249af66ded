//! `/openapi/v3`: one document per group and version, built when it is asked for and not kept; only its hash is.

use std::collections::BTreeMap;

use apiserver::{Kind, KindTable, Status};
use arc_swap::ArcSwapOption;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::discovery::{conditional, digest};
use crate::endpoints::EndpointCall;
use crate::kinds::{self, schema};
use crate::router::{json_response, typed_response};

/// Hashes of the documents, by path, of one generation of the table of kinds.
#[derive(Default)]
pub(crate) struct Cache(ArcSwapOption<(u64, BTreeMap<String, String>)>);

/// `GET /openapi/v3` and the documents below it.
pub(crate) async fn document(call: EndpointCall) -> Result<Response, Status> {
    let table = call.state.api.kinds();
    if call.tail.is_empty() {
        let hashes = hashes(&call.state.openapi, &table).await?;
        let paths: Map<String, Value> = hashes
            .iter()
            .map(|(path, hash)| (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})))
            .collect();
        return Ok(json_response(StatusCode::OK, &json!({"paths": paths})));
    }
    let (group, version) = match call.tail.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return Err(Status::no_such_resource()),
    };
    if table.in_version(&group, &version).next().is_none() {
        return Err(Status::no_such_resource());
    }
    let text = render(table, group, version).await?;
    let etag = digest(text.as_bytes());
    Ok(conditional(&call.headers, &etag, || typed_response(StatusCode::OK, "application/json", text)))
}

async fn render(table: std::sync::Arc<KindTable>, group: String, version: String) -> Result<String, Status> {
    let build = move || build(&table, &group, &version).to_string();
    tokio::task::spawn_blocking(build).await.map_err(Status::internal)
}

async fn hashes(cache: &Cache, table: &std::sync::Arc<KindTable>) -> Result<BTreeMap<String, String>, Status> {
    if let Some(known) = cache.0.load_full().filter(|known| known.0 == table.generation()) {
        return Ok(known.1.clone());
    }
    let owned = table.clone();
    let build = move || {
        let mut hashes = BTreeMap::new();
        for (group, versions) in owned.groups() {
            for version in versions {
                // The hash names the content: the registrations of this build and the schemas of custom kinds.
                let mut seed = format!("{}/{}", env!("CARGO_PKG_VERSION"), owned.in_version(group, version).count());
                for kind in owned.in_version(group, version) {
                    seed.push_str(&kind.kind);
                    if kind.custom {
                        seed.push_str(&kind.schema.to_string());
                    }
                }
                hashes.insert(document_path(group, version), digest(seed.as_bytes()));
            }
        }
        hashes
    };
    let built = tokio::task::spawn_blocking(build).await.map_err(Status::internal)?;
    cache.0.store(Some(std::sync::Arc::new((table.generation(), built.clone()))));
    Ok(built)
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A kind and the name of its definition.
type NamedKind = (std::sync::Arc<Kind>, String);

/// Definitions and the definition name of each kind of some groups and versions.
pub(crate) fn definitions(table: &KindTable, wanted: impl Fn(&Kind) -> bool) -> (Map<String, Value>, Vec<NamedKind>) {
    let registrations = kinds::registrations();
    let chosen: Vec<&kinds::Registration> = registrations.iter().filter(|one| wanted(&one.kind)).collect();
    let (mut definitions, names) = schema::definitions(chosen.iter().map(|one| one.source()));
    definitions.retain(|name, _| !name.is_empty());
    let mut named = Vec::new();
    for kind in table.iter().filter(|kind| wanted(kind)) {
        let place = chosen.iter().position(|one| {
            one.kind.kind == kind.kind && one.kind.version == kind.version && one.kind.group == kind.group
        });
        let name = match place {
            Some(place) => names[place].clone(),
            None => {
                let reversed: Vec<&str> = kind.group.rsplit('.').collect();
                let name = format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind);
                definitions.insert(name.clone(), custom_schema(kind));
                name
            }
        };
        if let Some(definition) = definitions.get_mut(&name) {
            definition["x-kubernetes-group-version-kind"] =
                json!([{"group": kind.group, "kind": kind.kind, "version": kind.version}]);
        }
        named.push((kind.clone(), name));
    }
    definitions.values_mut().for_each(wrap_references);
    (definitions, named)
}

fn custom_schema(kind: &Kind) -> Value {
    let mut schema = (*kind.schema).clone();
    if let Some(map) = schema.as_object_mut() {
        map.remove("components");
    }
    let text = |description: &str| json!({"type": "string", "description": description});
    if schema.get("properties").is_none_or(|properties| !properties.is_object()) {
        schema["properties"] = json!({});
    }
    schema["properties"]["apiVersion"] =
        text("APIVersion defines the versioned schema of this representation of an object.");
    schema["properties"]["kind"] =
        text("Kind is a string value representing the REST resource this object represents.");
    schema["properties"]["metadata"] = json!({"$ref": format!("#/components/schemas/{}", schema::OBJECT_META),
        "description": "Standard object's metadata."});
    schema
}

/// OpenAPI 3.0 has no siblings of `$ref`; Kubernetes wraps the reference in `allOf`.
fn wrap_references(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A schema of schemas has a property that is called `$ref`; that is no reference.
            if map.len() > 1
                && map.get("$ref").is_some_and(Value::is_string)
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".into(), json!([{"$ref": reference}]));
                map.entry("default").or_insert_with(|| json!({}));
            }
            if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) && !map.contains_key("type") {
                map.insert("oneOf".into(), json!([{"type": "string"}, {"type": "integer"}]));
            }
            map.values_mut().for_each(wrap_references);
        }
        Value::Array(list) => list.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn build(table: &KindTable, group: &str, version: &str) -> Value {
    let (mut definitions, named) = definitions(table, |kind| kind.group == group && kind.version == version);
    let mut paths = Map::new();
    for (kind, name) in &named {
        let list = format!("{name}List");
        definitions.insert(list.clone(), list_schema(kind, name));
        add_paths(&mut paths, kind, name, &list);
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths,
        "components": {"schemas": definitions,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}}}})
}

pub(crate) fn list_schema(kind: &Kind, name: &str) -> Value {
    json!({"type": "object", "required": ["items"], "description": format!("{}List is a list of {}.", kind.kind, kind.kind),
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "items": {"type": "array", "items": {"allOf": [{"$ref": format!("#/components/schemas/{name}")}], "default": {}}}},
        "x-kubernetes-group-version-kind": [{"group": kind.group, "kind": format!("{}List", kind.kind), "version": kind.version}]})
}

fn base_path(kind: &Kind) -> String {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    }
}

/// The operations that clients look for: kubectl finds a kind's fields through its `x-kubernetes-group-version-kind`,
/// and whether `fieldValidation` works through the parameters of its patch.
pub(crate) fn add_paths(paths: &mut Map<String, Value>, kind: &Kind, name: &str, list: &str) {
    let marked = |verb: &str, action: &str, of: &str| {
        let code = if verb == "create" { "201" } else { "200" };
        json!({"operationId": format!("{verb}{}{}", kind.version.to_uppercase(), kind.kind), "tags": [format!("{}_{}", kind.group.replace('.', "_"), kind.version)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
            "responses": {code: {"description": "OK", "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{of}")}}}}}})
    };
    let parameters = |names: &[&str]| -> Value {
        names
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
            .collect()
    };
    let with = |mut operation: Value, names: &[&str]| {
        operation["parameters"] = parameters(names);
        operation
    };
    let body = |mut operation: Value, types: &[&str]| {
        let content: Map<String, Value> = types
            .iter()
            .map(|one| ((*one).to_owned(), json!({"schema": {"$ref": format!("#/components/schemas/{name}")}})))
            .collect();
        operation["requestBody"] = json!({"content": content, "required": true});
        operation
    };
    const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
    let base = base_path(kind);
    let post = body(with(marked("create", "post", name), WRITE), &["*/*"]);
    if !kind.stored {
        paths.insert(base, json!({"post": post}));
        return;
    }
    paths.insert(base.clone(), json!({"get": marked("list", "list", list), "post": post, "delete": marked("deleteCollection", "deletecollection", name)}));
    let patch_types = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ];
    let mut patch = with(marked("patch", "patch", name), &["dryRun", "fieldManager", "fieldValidation", "force"]);
    let content: Map<String, Value> =
        patch_types.iter().map(|one| ((*one).to_owned(), json!({"schema": {"type": "object"}}))).collect();
    patch["requestBody"] = json!({"content": content, "required": true});
    let put = body(with(marked("replace", "put", name), WRITE), &["*/*"]);
    paths.insert(format!("{base}/{{name}}"), json!({"get": marked("read", "get", name), "put": put, "patch": patch, "delete": marked("delete", "delete", name)}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn documents_describe_fields_for_people_and_kinds_for_machines() {
        let table = KindTable::new(kinds::builtin_kinds().into_iter().map(Arc::new), 1);
        let document = build(&table, "apps", "v1");
        let definition = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(definition["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        assert!(definition["properties"]["spec"]["allOf"][0]["$ref"].is_string());
        assert!(definition["description"].is_string());
        assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"].is_object());
        let own = build(&table, "nuee.dev", "v1");
        assert!(own["components"]["schemas"]["dev.nuee.v1.Container"]["properties"]["spec"].is_object());
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
