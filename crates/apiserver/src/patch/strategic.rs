//! Strategic merge patch: merge patch that merges lists by key, with its directives. `Source:` Kubernetes'
//! strategic-merge-patch.md and apimachinery's `util/strategicpatch`.

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::schema::SchemaRef;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// The object after the patch. Errors: what is wrong with the patch, for people.
pub fn apply(kind: &Kind, object: &Value, patch: &Value) -> Result<Value, String> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err("object and patch must be maps".into());
    };
    merge_map(object.clone(), patch, SchemaRef::root(kind)).map(Value::Object)
}

fn merge_map(
    mut map: Map<String, Value>,
    patch: &Map<String, Value>,
    schema: SchemaRef<'_>,
) -> Result<Map<String, Value>, String> {
    match patch.get(PATCH).map(Value::as_str) {
        None => {}
        Some(Some("replace")) => {
            return Ok(patch.iter().filter(|(key, _)| *key != PATCH).map(|(k, v)| (k.clone(), v.clone())).collect());
        }
        Some(Some("delete")) => return Ok(Map::new()),
        Some(Some("merge")) => {}
        Some(other) => return Err(format!("Unknown patch type found: {}", other.unwrap_or("(not a string)"))),
    }
    if let Some(retain) = patch.get(RETAIN_KEYS) {
        let keys = retain.as_array().ok_or("$retainKeys must be a list")?;
        map.retain(|key, _| keys.iter().any(|kept| kept == key.as_str()));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            let doomed = value.as_array().ok_or("$deleteFromPrimitiveList must be a list")?;
            if let Some(items) = map.get_mut(field).and_then(Value::as_array_mut) {
                items.retain(|item| !doomed.contains(item));
            }
        }
    }
    for (key, value) in patch {
        if key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_FROM_LIST) || key.starts_with(ELEMENT_ORDER) {
            continue;
        }
        let field = schema.property(key);
        match (value, map.remove(key)) {
            (Value::Null, _) => {}
            (Value::Object(patch), old) => {
                let is_deletion = patch.get(PATCH).is_some_and(|directive| directive == "delete");
                let old = match old {
                    Some(Value::Object(old)) => old,
                    _ => Map::new(),
                };
                let merged = merge_map(old, patch, field)?;
                if !is_deletion {
                    map.insert(key.clone(), Value::Object(merged));
                }
            }
            (Value::Array(patch), old) => {
                let old = match old {
                    Some(Value::Array(old)) => old,
                    _ => Vec::new(),
                };
                map.insert(key.clone(), Value::Array(merge_list(old, patch, field)?));
            }
            (value, _) => drop(map.insert(key.clone(), value.clone())),
        }
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ELEMENT_ORDER) else { continue };
        let order = order.as_array().ok_or("$setElementOrder must be a list")?;
        let merge_key = schema.property(field).merge_key();
        if let Some(Value::Array(items)) = map.get_mut(field) {
            reorder(items, order, merge_key.as_deref());
        }
    }
    Ok(map)
}

fn merge_list(old: Vec<Value>, patch: &[Value], schema: SchemaRef<'_>) -> Result<Vec<Value>, String> {
    if let Some(merge_key) = schema.merge_key() {
        return merge_by_key(old, patch, &merge_key, schema.items());
    }
    if schema.merges_primitives() {
        let mut result = old;
        for item in patch {
            if !result.contains(item) {
                result.push(item.clone());
            }
        }
        return Ok(result);
    }
    Ok(patch.to_vec())
}

fn merge_by_key(old: Vec<Value>, patch: &[Value], merge_key: &str, items: SchemaRef<'_>) -> Result<Vec<Value>, String> {
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        return Ok(patch.iter().filter(|item| directive(item).as_deref() != Some("replace")).cloned().collect());
    }
    let mut result = old;
    for item in patch {
        let Value::Object(item_map) = item else {
            return Err(format!("an element of a list merged by {merge_key:?} must be a map"));
        };
        let Some(key) = item_map.get(merge_key) else {
            return Err(format!("map: {item} does not contain declared merge key: {merge_key}"));
        };
        let at = result.iter().position(|own| own.get(merge_key) == Some(key));
        match (directive(item).as_deref(), at) {
            (Some("delete"), Some(_)) => result.retain(|own| own.get(merge_key) != Some(key)),
            (Some("delete"), None) => {}
            (None | Some("merge"), Some(at)) => {
                let own = match result[at].take() {
                    Value::Object(own) => own,
                    _ => Map::new(),
                };
                result[at] = Value::Object(merge_map(own, item_map, items)?);
            }
            (None | Some("merge"), None) => result.push(Value::Object(merge_map(Map::new(), item_map, items)?)),
            (Some(other), _) => return Err(format!("Unknown patch type found: {other}")),
        }
    }
    Ok(result)
}

/// Sorts by the order given; what the order does not name stays behind its predecessor.
fn reorder(items: &mut Vec<Value>, order: &[Value], merge_key: Option<&str>) {
    let identity =
        |item: &Value| merge_key.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or(Value::Null));
    let rank = |item: &Value| order.iter().position(|named| identity(named) == identity(item));
    let mut ranked: Vec<(usize, usize, Value)> = Vec::with_capacity(items.len());
    let mut last = 0;
    for (index, item) in std::mem::take(items).into_iter().enumerate() {
        let own = rank(&item).map(|rank| rank + 1);
        let place = own.unwrap_or(last);
        last = if own.is_some() { place } else { last };
        ranked.push((place, index, item));
    }
    ranked.sort_by_key(|(place, index, _)| (*place, *index));
    items.extend(ranked.into_iter().map(|(_, _, item)| item));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(object: Value, patch: Value, expected: Value) {
        let kind = Kind::new("", "v1", "Pod", "pods");
        assert_eq!(apply(&kind, &object, &patch).unwrap(), expected);
    }

    #[test]
    fn lists_merge_by_their_key() {
        check(
            json!({"spec": {"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 81}]}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "ports": [{"containerPort": 80}, {"containerPort": 81}]}, {"name": "b"}, {"name": "c"}]}}),
        );
    }

    #[test]
    fn the_directives_delete_replace_retain_and_order() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "x": {"p": 1, "q": 2}}});
        check(
            object.clone(),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
                "spec": {"containers": [{"name": "a", "$patch": "delete"}], "x": {"$retainKeys": ["q"], "q": 3}}}),
            json!({"metadata": {"finalizers": ["b", "c"]}, "spec": {"containers": [{"name": "b"}], "x": {"q": 3}}}),
        );
        check(
            object.clone(),
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}], "x": {"$patch": "replace", "r": 1}}}),
            json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "x": {"r": 1}}}),
        );
        check(
            object,
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}], "x": null}}),
            json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"containers": [{"name": "z"}]}}),
        );
    }

    #[test]
    fn unknown_directives_and_missing_keys_are_refused() {
        let kind = Kind::new("", "v1", "Pod", "pods");
        for patch in [
            json!({"spec": {"$patch": "x"}}),
            json!({"spec": {"containers": [{"image": "a"}]}}),
            json!({"spec": {"containers": ["a"]}}),
        ] {
            assert!(apply(&kind, &json!({"spec": {}}), &patch).is_err(), "{patch}");
        }
    }
}
