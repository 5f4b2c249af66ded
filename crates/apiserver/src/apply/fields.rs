//! Sets of fields: paths whose steps are spelled as in `fieldsV1` (`f:name`, `k:{…}`, `v:…`), and the fields of objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::schema::{ListKind, SchemaRef};

/// Steps from the root of an object.
pub type Path = Vec<String>;
/// A set of fields.
pub type FieldSet = BTreeSet<Path>;
/// Fields with their values; `None` marks the presence of a list element.
pub type Leaves<'a> = BTreeMap<Path, Option<&'a Value>>;

/// Members of `metadata` that nobody manages.
const UNMANAGED: [&str; 12] = [
    "f:name",
    "f:namespace",
    "f:uid",
    "f:creationTimestamp",
    "f:resourceVersion",
    "f:generation",
    "f:managedFields",
    "f:selfLink",
    "f:generateName",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
    "f:clusterName",
];

/// All fields of an object that someone can manage.
pub fn leaves<'a>(schema: SchemaRef<'_>, object: &'a Value) -> Leaves<'a> {
    let mut found = Leaves::new();
    walk(schema, object, &mut Vec::new(), &mut found);
    found.retain(|path, _| match path.first().map(String::as_str) {
        None | Some("f:apiVersion" | "f:kind") => false,
        Some("f:metadata") => path.get(1).is_some_and(|member| !UNMANAGED.contains(&member.as_str())),
        Some(_) => true,
    });
    found
}

fn walk<'a>(schema: SchemaRef<'_>, value: &'a Value, path: &mut Path, found: &mut Leaves<'a>) {
    match value {
        Value::Object(map) if !map.is_empty() && !schema.is_atomic_map() => {
            for (name, member) in map {
                path.push(format!("f:{name}"));
                walk(schema.property(name), member, path, found);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match schema.list_kind() {
            ListKind::Atomic => drop(found.insert(path.clone(), Some(value))),
            ListKind::Set => {
                for item in items {
                    path.push(format!("v:{item}"));
                    found.insert(path.clone(), None);
                    path.pop();
                }
            }
            ListKind::Map(keys) => {
                for item in items {
                    path.push(key_step(schema.items(), &keys, item));
                    found.insert(path.clone(), None);
                    walk(schema.items(), item, path, found);
                    path.pop();
                }
            }
        },
        _ => drop(found.insert(path.clone(), Some(value))),
    }
}

/// The step that names an element of a keyed list.
pub fn key_step(items: SchemaRef<'_>, keys: &[String], item: &Value) -> String {
    let mut identity = Map::new();
    for key in keys {
        let value = item.get(key).cloned().or_else(|| items.default_of(key));
        if let Some(value) = value {
            identity.insert(key.clone(), value);
        }
    }
    format!("k:{}", Value::Object(identity))
}

/// Fields of `new` that are not the same in `old`, and fields of `old` that `new` lacks.
pub fn compare(old: &Leaves<'_>, new: &Leaves<'_>) -> (FieldSet, FieldSet) {
    let changed =
        new.iter().filter(|(path, value)| old.get(*path) != Some(*value)).map(|(path, _)| path.clone()).collect();
    let removed = old.keys().filter(|path| !new.contains_key(*path)).cloned().collect();
    (changed, removed)
}

/// The set as `fieldsV1`.
pub fn to_json(set: &FieldSet) -> Value {
    let mut root = Map::new();
    for path in set {
        let mut place = &mut root;
        for (index, step) in path.iter().enumerate() {
            let last = index + 1 == path.len();
            let known = place.contains_key(step);
            // A parent that is a member itself says so by a dot, once it has children.
            let entry = place.entry(step.clone()).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(next) = entry else { break };
            if !last && known && next.is_empty() {
                next.insert(".".into(), Value::Object(Map::new()));
            }
            if last && known && !next.is_empty() {
                next.insert(".".into(), Value::Object(Map::new()));
            }
            place = next;
        }
    }
    Value::Object(root)
}

/// Reads `fieldsV1`.
pub fn from_json(fields: &Value) -> FieldSet {
    let mut set = FieldSet::new();
    collect(fields, &mut Vec::new(), &mut set, 0);
    set
}

/// Deepest `fieldsV1` that is read.
const MAX_DEPTH: usize = 100;

fn collect(fields: &Value, path: &mut Path, set: &mut FieldSet, depth: usize) {
    let Some(map) = fields.as_object().filter(|_| depth < MAX_DEPTH) else { return };
    if !path.is_empty() && (map.is_empty() || map.contains_key(".")) {
        set.insert(path.clone());
    }
    for (step, inner) in map.iter().filter(|(step, _)| *step != ".") {
        path.push(step.clone());
        collect(inner, path, set, depth + 1);
        path.pop();
    }
}

/// The path as error messages show it: `.spec.containers[name="web"].image`.
pub fn display(path: &[String]) -> String {
    let mut text = String::new();
    for step in path {
        match step.split_once(':') {
            Some(("f", name)) => {
                text.push('.');
                text.push_str(name);
            }
            Some(("k", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                text.push_str(&format!("[{}]", pairs.join(",")));
            }
            Some(("v", value)) => text.push_str(&format!("[={value}]")),
            _ => text.push_str(&format!("[{step}]")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::json;

    #[test]
    fn fields_are_those_that_kubernetes_records() {
        let kind = Kind::new("", "v1", "Pod", "pods");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1"}, "finalizers": ["f"]},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}], "nodeSelector": {"a": "b"}}});
        let set: FieldSet = leaves(SchemaRef::root(&kind), &object).into_keys().collect();
        let json = to_json(&set);
        assert_eq!(
            json,
            json!({"f:metadata": {"f:finalizers": {"v:\"f\"": {}}, "f:labels": {"f:x": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}, "f:nodeSelector": {}}})
        );
        assert_eq!(from_json(&json), set);
        assert_eq!(
            display(&["f:spec".into(), "f:containers".into(), "k:{\"name\":\"c\"}".into(), "f:image".into()]),
            ".spec.containers[name=\"c\"].image"
        );
    }
}
