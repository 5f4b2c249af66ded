//! Fields that the schema does not know are dropped, and named.

use serde_json::{Map, Value};

use super::SchemaRef;
use crate::kind::Kind;

/// Members of `metadata`. `Source:` `metav1.ObjectMeta`.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Drops unknown fields and answers their paths.
pub fn prune(kind: &Kind, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let schema = SchemaRef::root(kind);
    let closed = kind.structural || !schema.is_open();
    let Some(map) = object.as_object_mut() else { return unknown };
    if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
        drop_unknown(metadata, "metadata", &mut unknown, |name| METADATA.contains(&name));
    }
    if closed {
        let open = schema.is_open();
        drop_unknown(map, "", &mut unknown, |name| {
            open || matches!(name, "apiVersion" | "kind" | "metadata") || schema.has_property(name)
        });
        for (name, value) in map.iter_mut().filter(|(name, _)| *name != "metadata") {
            walk(schema.property(name), value, name, &mut unknown);
        }
    }
    unknown
}

fn drop_unknown(map: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>, known: impl Fn(&str) -> bool) {
    map.retain(|name, _| {
        let keep = known(name);
        if !keep {
            unknown.push(if path.is_empty() { name.clone() } else { format!("{path}.{name}") });
        }
        keep
    });
}

fn walk(schema: SchemaRef<'_>, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if !schema.is_open() {
                drop_unknown(map, path, unknown, |name| schema.has_property(name));
            }
            if schema.node().is_some() {
                for (name, value) in map {
                    walk(schema.property(name), value, &format!("{path}.{name}"), unknown);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| item.is_object() || item.is_array()) {
                walk(schema.items(), item, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"$ref": "#/definitions/Spec"}, "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            "definitions": {"Spec": {"type": "object", "properties": {"list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "string"}}}}}});
        let kind = Kind { schema: schema.into(), ..Kind::new("g", "v1", "K", "ks") };
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "nam": 1}, "spec": {"list": [{"a": "1", "b": 2}], "map": {"x": "y"}, "c": 1}, "open": {"x": 1}, "bad": 1});
        let mut unknown = prune(&kind, &mut object);
        unknown.sort();
        assert_eq!(unknown, ["bad", "metadata.nam", "spec.c", "spec.list[0].b"]);
        assert_eq!(object["spec"], json!({"list": [{"a": "1"}], "map": {"x": "y"}}));
        assert_eq!(object["open"], json!({"x": 1}));
    }
}
