//! The shapes other than the object itself: `Table` (what `kubectl get` prints) and `PartialObjectMetadata`. Pure.

use apiserver::{Column, ColumnValue, Kind, ObjectList, Status};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::jsonpath;
use crate::time::age;

/// How much of each object a table row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    /// Its metadata.
    #[default]
    Metadata,
    /// Nothing.
    Nothing,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the `includeObject` parameter.
    pub(crate) fn parse(text: Option<&str>) -> Result<Include, Status> {
        match text.unwrap_or_default() {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::Nothing),
            "Object" => Ok(Include::Object),
            other => Err(Status::bad_request(format!("unrecognized includeObject value: {}", Value::from(other)))),
        }
    }
}

fn definition(name: &str, kind: &str, format: &str, description: &str, priority: i32) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
}

const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically.";
const AGE_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";

/// Whether the kind brings a name column of its own, at a place of its choice; else it is put first.
fn names_itself(kind: &Kind) -> bool {
    kind.columns.iter().any(|column| column.name == "Name")
}

/// The heads of a kind's columns.
pub(crate) fn column_definitions(kind: &Kind) -> Value {
    let mut heads = Vec::new();
    if !names_itself(kind) {
        heads.push(definition("Name", "string", "name", NAME_DESCRIPTION, 0));
    }
    if kind.columns.is_empty() {
        heads.push(definition("Age", "string", "", AGE_DESCRIPTION, 0));
    }
    for column in &kind.columns {
        heads.push(definition(&column.name, &column.kind, &column.format, &column.description, column.priority));
    }
    Value::Array(heads)
}

/// One row for an object.
pub(crate) fn row(kind: &Kind, object: Value, include: Include, now: Timestamp) -> Value {
    let mut cells = Vec::new();
    if !names_itself(kind) {
        cells.push(object.pointer("/metadata/name").cloned().unwrap_or_default());
    }
    if kind.columns.is_empty() {
        cells.push(age(object.pointer("/metadata/creationTimestamp"), now).into());
    }
    cells.extend(kind.columns.iter().map(|column| cell(column, &object, now)));
    let carried = match include {
        Include::Metadata => partial_metadata(object),
        Include::Nothing => Value::Null,
        Include::Object => object,
    };
    json!({"cells": cells, "object": carried})
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let path = match &column.value {
        ColumnValue::Function(function) => return function(object, now),
        ColumnValue::JsonPath(path) => path,
    };
    let found = jsonpath::find(object, path);
    let Some(first) = found.first() else { return Value::Null };
    match column.kind.as_str() {
        "date" => age(Some(first), now).into(),
        "integer" | "number" | "boolean" => (*first).clone(),
        _ => {
            let texts: Vec<String> =
                found.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
            texts.join(",").into()
        }
    }
}

/// A table of rows. `metadata` is that of the list or object.
pub(crate) fn table(definitions: Option<Value>, rows: Vec<Value>, metadata: Value) -> Value {
    let mut table = Map::new();
    table.insert("kind".into(), "Table".into());
    table.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    table.insert("metadata".into(), metadata);
    table.insert("columnDefinitions".into(), definitions.unwrap_or_else(|| json!([])));
    table.insert("rows".into(), rows.into());
    Value::Object(table)
}

/// The object's metadata as `PartialObjectMetadata`.
pub(crate) fn partial_metadata(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// The metadata of a list.
pub(crate) fn list_metadata(list: &ObjectList) -> Value {
    let mut metadata = json!({"resourceVersion": list.resource_version.to_string()});
    if let Some(token) = &list.continue_token {
        metadata["continue"] = token.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// The metadata that a table of a single object shows.
pub(crate) fn single_metadata(object: &Value) -> Value {
    json!({"resourceVersion": object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_without_columns_show_name_and_age() {
        let kind = Kind::new("g", "v1", "Thing", "things");
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        let row = row(&kind, object, Include::Metadata, now);
        assert_eq!(row["cells"], json!(["x", "60s"]));
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(column_definitions(&kind).as_array().unwrap().len(), 2);
    }

    #[test]
    fn columns_of_custom_kinds_follow_their_type() {
        let column = |kind: &str, path: &str| Column {
            name: "X".into(),
            kind: kind.into(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            value: ColumnValue::JsonPath(path.into()),
        };
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let object = json!({"n": 3, "list": ["a", "b"], "at": "2026-01-01T00:00:00Z"});
        assert_eq!(cell(&column("integer", ".n"), &object, now), json!(3));
        assert_eq!(cell(&column("string", ".n"), &object, now), json!("3"));
        assert_eq!(cell(&column("string", ".list[*]"), &object, now), json!("a,b"));
        assert_eq!(cell(&column("date", ".at"), &object, now), json!("10m"));
        assert_eq!(cell(&column("string", ".none"), &object, now), Value::Null);
    }
}
