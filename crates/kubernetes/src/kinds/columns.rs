//! Builders of printer columns, and those that several kinds share. Pure.

use apiserver::{Column, ColumnValue};
use jiff::Timestamp;
use serde_json::Value;

use crate::time::age as human_age;

/// A column computed by a function.
pub(super) fn column(name: &str, kind: &str, value: fn(&Value, Timestamp) -> Value) -> Column {
    Column {
        name: name.into(),
        kind: kind.into(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        value: ColumnValue::Function(value),
    }
}

/// A text column at a JSONPath.
pub(super) fn path(name: &str, kind: &str, path: &str) -> Column {
    Column { value: ColumnValue::JsonPath(path.into()), ..column(name, kind, |_, _| Value::Null) }
}

/// The same column, shown only with `-o wide`.
pub(super) fn wide(column: Column) -> Column {
    Column { priority: 1, ..column }
}

/// The AGE column.
pub(super) fn age() -> Column {
    column("Age", "string", |object, now| human_age(object.pointer("/metadata/creationTimestamp"), now).into())
}

/// The CREATED AT column.
pub(super) fn created_at() -> Column {
    column("Created At", "date", |object, _| object.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default())
}

/// A list as Kubernetes prints it when it is empty.
pub(super) fn or_none(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// A `LabelSelector` in its text form; a plain map of labels works too.
pub(super) fn selector_text(selector: Option<&Value>) -> Value {
    let Some(selector) = selector.filter(|selector| !selector.is_null()) else { return "<none>".into() };
    let structured = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let labels = if structured { selector.get("matchLabels") } else { Some(selector) };
    let mut parts: Vec<String> = labels
        .and_then(Value::as_object)
        .map(|labels| {
            labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect()
        })
        .unwrap_or_default();
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(parts.join(","))
}

/// Names of a template's containers.
pub(super) fn container_names(object: &Value, _: Timestamp) -> Value {
    template_list(object, "name")
}

/// Images of a template's containers.
pub(super) fn container_images(object: &Value, _: Timestamp) -> Value {
    template_list(object, "image")
}

fn template_list(object: &Value, field: &str) -> Value {
    let containers = object.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let list: Vec<&str> = containers.into_iter().flatten().filter_map(|one| one[field].as_str()).collect();
    list.join(",").into()
}

/// The number at a pointer, 0 when absent.
pub(super) fn count_at(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).cloned().unwrap_or_else(|| 0.into())
}

/// How many entries a list or map has.
pub(super) fn length(value: Option<&Value>) -> usize {
    value.map_or(0, |value| {
        value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or(0)
    })
}
