//! Schemas of the built-in kinds: generated from their Rust types, marked with Kubernetes' merge keys, and cut down to
//! what each reader needs. Nothing is kept here.

use std::collections::BTreeSet;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Document, schema_marks};

/// Where references point.
const PREFIX: &str = "#/components/schemas/";
/// Schema that stands for "metadata" in kinds that leave it to Kubernetes.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::openapi3();
    settings.transforms.clear();
    settings.meta_schema = None;
    settings.definitions_path = "/components/schemas".into();
    settings.into_generator()
}

/// The full definitions of some kinds and all they refer to, and the name of each kind's own definition.
pub(crate) fn definitions(sources: impl IntoIterator<Item = (Document, String)>) -> (Map<String, Value>, Vec<String>) {
    let mut generator = generator();
    generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
    let mut roots = Vec::new();
    let mut inline: Vec<(String, Value)> = Vec::new();
    for (document, own_name) in sources {
        let schema = document(&mut generator).to_value();
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(PREFIX)) {
            roots.push(name.to_owned());
        } else {
            inline.push((own_name.clone(), schema));
            roots.push(own_name);
        }
    }
    let mut definitions = generator.take_definitions(false);
    definitions.extend(inline);
    schema_marks::apply(&mut definitions);
    (definitions, roots)
}

/// A kind's schema as the machinery takes it: own properties at the root, references inside.
pub(super) fn without_prose(source: (Document, String)) -> Value {
    let (mut definitions, roots) = definitions([source]);
    definitions.values_mut().for_each(strip);
    let root = roots.first().and_then(|root| definitions.get(root)).cloned();
    let mut schema = root.unwrap_or_else(|| json!({"type": "object"}));
    let wanted = reachable(&definitions, &schema);
    definitions.retain(|name, _| wanted.contains(name));
    schema["components"] = json!({"schemas": definitions});
    schema
}

/// Names of all definitions that a schema refers to, directly or not.
pub(crate) fn reachable(definitions: &Map<String, Value>, schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = Vec::new();
    collect(schema, &mut open);
    while let Some(name) = open.pop() {
        if let (true, Some(definition)) = (!found.contains(&name), definitions.get(&name)) {
            collect(definition, &mut open);
            found.insert(name);
        }
    }
    found
}

fn collect(schema: &Value, into: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|text| text.rsplit('/').next()) {
                into.push(name.to_owned());
            }
            map.values().for_each(|value| collect(value, into));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

/// Removes prose and examples; a property that happens to be called `description` (an object) stays.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
