//! Defaults that structural schemas carry.

use serde_json::{Map, Value};

use super::SchemaRef;
use crate::kind::Kind;

/// Fills in the schema's defaults, also in members that are there.
pub fn fill_defaults(kind: &Kind, object: &mut Value) {
    let schema = SchemaRef::root(kind);
    let Some(map) = object.as_object_mut() else { return };
    fill_map(schema, map, true);
}

fn fill_map(schema: SchemaRef<'_>, map: &mut Map<String, Value>, top: bool) {
    let Some(node) = schema.node() else { return };
    for (name, property) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let Some(default) = property.get("default") else { continue };
        let nullable = property.get("nullable").and_then(Value::as_bool).unwrap_or(false);
        match map.get(name) {
            None => drop(map.insert(name.clone(), default.clone())),
            Some(Value::Null) if !nullable => drop(map.insert(name.clone(), default.clone())),
            Some(_) => {}
        }
    }
    for (name, value) in map {
        if !(top && name == "metadata") {
            fill(schema.property(name), value);
        }
    }
}

fn fill(schema: SchemaRef<'_>, value: &mut Value) {
    match value {
        Value::Object(map) => fill_map(schema, map, false),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(schema.items(), item)),
        _ => {}
    }
}
