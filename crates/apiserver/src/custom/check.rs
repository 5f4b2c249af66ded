//! What a CustomResourceDefinition must be: well named, and structural within bounds.

use serde_json::Value;

use crate::status::Cause;
use crate::validation::names;

/// Deepest schema.
const MAX_DEPTH: usize = 48;
/// Most nodes of one schema.
const MAX_NODES: usize = 20_000;

/// What is wrong with a definition.
pub fn check(definition: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &definition["spec"];
    let group = crate::json::text(spec, "/group");
    let plural = crate::json::text(spec, "/names/plural");
    let name = crate::json::text(definition, "/metadata/name");
    if name != format!("{plural}.{group}") {
        causes.push(Cause::invalid(
            "metadata.name",
            &definition["metadata"]["name"],
            &format!("must be spec.names.plural+\".\"+spec.group: {plural}.{group}"),
        ));
    }
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if !group.contains('.') || names::dns_subdomain(group).is_some() {
        causes.push(Cause::invalid("spec.group", &spec["group"], "should be a domain with at least one dot"));
    }
    for member in ["plural", "singular", "kind", "listKind"] {
        let value = crate::json::text(spec, &format!("/names/{member}"));
        let field = format!("spec.names.{member}");
        if value.is_empty() {
            causes.push(Cause::required(&field, ""));
        } else if let Some(problem) = names::dns1035_label(&value.to_lowercase()) {
            causes.push(Cause::invalid(&field, &spec["names"][member], &problem));
        }
    }
    if !matches!(spec["scope"].as_str(), Some("Namespaced" | "Cluster")) {
        causes.push(Cause::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if spec["conversion"]["strategy"] == "Webhook" {
        causes.push(Cause::not_supported("spec.conversion.strategy", &spec["conversion"]["strategy"], &["None"]));
    }
    versions(spec, &mut causes);
    causes
}

fn versions(spec: &Value, causes: &mut Vec<Cause>) {
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &Value::from(versions.len()),
            "must have exactly one version marked as storage version",
        ));
    }
    // One schema for all versions is shown where the definition's old form had it, as Kubernetes shows it.
    let shared = versions.iter().all(|version| version["schema"] == versions[0]["schema"]);
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}]");
        let name = crate::json::text(version, "/name");
        if let Some(problem) = names::dns1035_label(name) {
            causes.push(Cause::invalid(&format!("{field}.name"), &version["name"], &problem));
        }
        if versions[..index].iter().any(|other| other["name"] == version["name"]) {
            causes.push(Cause::duplicate(&format!("{field}.name"), &version["name"]));
        }
        match version.pointer("/schema/openAPIV3Schema") {
            Some(_) if shared && index > 0 => {}
            Some(schema) => {
                let mut nodes = 0;
                let at =
                    if shared { "spec.validation.openAPIV3Schema" } else { &format!("{field}.schema.openAPIV3Schema") };
                if schema["type"] != "object" {
                    causes.push(Cause::invalid(&format!("{at}.type"), &schema["type"], "must be object at the root"));
                }
                structural(schema, at, 0, &mut nodes, causes);
                super::rules::check(schema, at, causes);
            }
            None => causes.push(Cause::required(&format!("{field}.schema.openAPIV3Schema"), "schemas are required")),
        }
    }
}

fn structural(schema: &Value, path: &str, depth: usize, nodes: &mut usize, causes: &mut Vec<Cause>) {
    *nodes += 1;
    if depth > MAX_DEPTH || *nodes > MAX_NODES {
        if *nodes != usize::MAX / 2 {
            causes.push(Cause::forbidden(path, "the schema is too deep or too large"));
            *nodes = usize::MAX / 2;
        }
        return;
    }
    let flag = |name: &str| schema[name] == true;
    if !schema["$ref"].is_null() {
        causes.push(Cause::forbidden(&format!("{path}.$ref"), "$ref is not supported"));
    }
    if crate::json::is_empty(schema.get("type"))
        && !flag("x-kubernetes-int-or-string")
        && !flag("x-kubernetes-preserve-unknown-fields")
    {
        causes.push(Cause::required(&format!("{path}.type"), "must not be empty for specified object fields"));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(problem) = crate::schema::compile_pattern(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {problem}");
        causes.push(Cause::invalid(&format!("{path}.pattern"), &schema["pattern"], &detail));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        structural(property, &format!("{path}.properties[{name}]"), depth + 1, nodes, causes);
    }
    for (member, inner) in
        [("items", schema.get("items")), ("additionalProperties", schema.get("additionalProperties"))]
    {
        if let Some(inner) = inner.filter(|inner| inner.is_object()) {
            structural(inner, &format!("{path}.{member}"), depth + 1, nodes, causes);
        }
    }
    if schema["x-kubernetes-list-type"] == "map" {
        for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if schema["items"]["properties"].get(key).is_none() {
                causes.push(Cause::invalid(
                    &format!("{path}.x-kubernetes-list-map-keys"),
                    &Value::from(key),
                    "entries must all be names of item properties",
                ));
            }
        }
    }
}
