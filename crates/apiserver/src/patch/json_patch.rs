//! JSON patch. `Source:` RFC 6902, RFC 6901.

use serde_json::Value;

/// Most operations of one patch; Kubernetes' own bound.
const MAX_OPERATIONS: usize = 10_000;
/// Largest result relative to the bound of bodies, against patches that copy a value into itself. Units: nodes.
const MAX_NODES_COPIED: usize = 1_000_000;

/// What is wrong with a patch.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is no JSON patch.
    Malformed(String),
    /// It has too many operations.
    TooLarge(String),
    /// It does not fit the object.
    Misfit(String),
}

/// The object after all operations; nothing is done when one fails.
pub fn apply(object: &Value, patch: &Value) -> Result<Value, Problem> {
    let Some(operations) = patch.as_array() else {
        return Err(Problem::Malformed("a JSON patch must be an array of operations".into()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Problem::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut result = object.clone();
    let mut copied = 0;
    for operation in operations {
        step(&mut result, operation, &mut copied)?;
    }
    Ok(result)
}

fn step(object: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), Problem> {
    let pointer = |member: &str| match operation.get(member).and_then(Value::as_str) {
        Some(text) if text.is_empty() || text.starts_with('/') => Ok(text),
        _ => Err(Problem::Malformed(format!("operation lacks a valid {member:?}: {operation}"))),
    };
    let value = || {
        operation
            .get("value")
            .cloned()
            .ok_or_else(|| Problem::Malformed(format!("operation lacks a \"value\": {operation}")))
    };
    let path = pointer("path")?;
    let missing = |path: &str| Problem::Misfit(format!("the path {path:?} does not exist"));
    match operation.get("op").and_then(Value::as_str).unwrap_or_default() {
        "add" => add(object, path, value()?),
        "remove" => remove(object, path).map(drop),
        "replace" => {
            let value = value()?;
            *object.pointer_mut(path).ok_or_else(|| missing(path))? = value;
            Ok(())
        }
        "move" => {
            let from = pointer("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(Problem::Misfit("a value cannot be moved into itself".into()));
            }
            let moved = remove(object, from)?;
            add(object, path, moved)
        }
        "copy" => {
            let from = pointer("from")?;
            let value = object.pointer(from).cloned().ok_or_else(|| missing(from))?;
            *copied += nodes(&value);
            if *copied > MAX_NODES_COPIED {
                return Err(Problem::Misfit("the patch copies too much".into()));
            }
            add(object, path, value)
        }
        "test" => match object.pointer(path) {
            Some(found) if *found == value()? => Ok(()),
            // What is not there is null, as Kubernetes' own library has it; operators test so before they add a list.
            None if value()?.is_null() => Ok(()),
            _ => Err(Problem::Misfit(format!("testing path {path:?} failed"))),
        },
        other => Err(Problem::Malformed(format!("unexpected operation {other:?}"))),
    }
}

fn nodes(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(nodes).sum::<usize>(),
        _ => 1,
    }
}

fn parent<'a>(object: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Problem> {
    let (above, last) = path.rsplit_once('/').ok_or_else(|| Problem::Misfit("the root has no parent".into()))?;
    let place =
        object.pointer_mut(above).ok_or_else(|| Problem::Misfit(format!("the path {path:?} does not exist")))?;
    Ok((place, last.replace("~1", "/").replace("~0", "~")))
}

fn index(text: &str, bound: usize) -> Option<usize> {
    if text.len() > 1 && text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|index| *index < bound)
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), Problem> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    match parent(object, path)? {
        (Value::Object(map), key) => drop(map.insert(key, value)),
        (Value::Array(items), key) if key == "-" => items.push(value),
        (Value::Array(items), key) => {
            let at =
                index(&key, items.len() + 1).ok_or_else(|| Problem::Misfit(format!("no index {key:?} in {path:?}")))?;
            items.insert(at, value);
        }
        _ => return Err(Problem::Misfit(format!("{path:?} is not within a container"))),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &str) -> Result<Value, Problem> {
    let missing = || Problem::Misfit(format!("the path {path:?} does not exist"));
    match parent(object, path)? {
        (Value::Object(map), key) => map.remove(&key).ok_or_else(missing),
        (Value::Array(items), key) => {
            let at = index(&key, items.len()).ok_or_else(missing)?;
            Ok(items.remove(at))
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_operations_do_what_the_rfc_says() {
        let object = json!({"a": [1, 2], "b~/c": {"d": 1}});
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "add", "path": "/a/0", "value": 0},
            {"op": "remove", "path": "/a/1"},
            {"op": "move", "from": "/b~0~1c/d", "path": "/d"},
            {"op": "copy", "from": "/d", "path": "/e"},
            {"op": "replace", "path": "/e", "value": null},
        ]);
        assert_eq!(apply(&object, &patch).unwrap(), json!({"a": [0, 2, 3], "b~/c": {}, "d": 1, "e": null}));
    }

    #[test]
    fn misfits_and_malformed_patches_are_told_apart() {
        for patch in [
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "add", "path": "/a/9", "value": 1}]),
            json!([{"op": "test", "path": "/a", "value": 1}]),
            json!([{"op": "replace", "path": "/a/01", "value": 1}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
        ] {
            assert!(matches!(apply(&json!({"a": [1]}), &patch), Err(Problem::Misfit(_))), "{patch}");
        }
        for patch in [
            json!({}),
            json!([{"op": "x", "path": ""}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "add", "path": "/a"}]),
        ] {
            assert!(matches!(apply(&json!({}), &patch), Err(Problem::Malformed(_))), "{patch}");
        }
    }

    proptest! {
        #[test]
        fn no_patch_panics(op in "add|remove|replace|move|copy|test", path in "(/[ab01~-]{0,2}){0,3}", from in "(/[ab01~-]{0,2}){0,3}") {
            let _ = apply(&json!({"a": [1, {"b": 2}], "b": {}}), &json!([{"op": op, "path": path, "from": from, "value": 1}]));
        }
    }
}
