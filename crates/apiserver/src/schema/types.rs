//! Types of JSON values against a schema: what a typed decoder would refuse.

use serde_json::Value;

use super::SchemaRef;
use crate::kind::Kind;

/// Whether every value has the type that the schema says. Errors: the first that does not, as Go words it.
pub fn check_types(kind: &Kind, object: &Value) -> Result<(), String> {
    let schema = SchemaRef::root(kind);
    for (name, value) in object.as_object().into_iter().flatten() {
        walk(schema.property(name), value, &format!("{}.{name}", kind.kind))?;
    }
    Ok(())
}

fn walk(schema: SchemaRef<'_>, value: &Value, path: &str) -> Result<(), String> {
    let Some(node) = schema.node() else { return Ok(()) };
    if let Some(expected) = mismatch(node, value) {
        let found = match value {
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            other => type_name(other),
        };
        let expected = match expected.as_str() {
            "boolean" => "bool",
            "integer" => "int64",
            "number" => "float64",
            other => other,
        };
        return Err(format!("json: cannot unmarshal {found} into Go struct field {path} of type {expected}"));
    }
    match value {
        Value::Object(map) => map.iter().try_for_each(|(name, value)| match value {
            // Only containers and values whose schema is known can be wrong; most objects are mostly strings.
            Value::Null => Ok(()),
            value => walk(schema.property(name), value, &format!("{path}.{name}")),
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| walk(schema.items(), item, &format!("{path}[{index}]"))),
        _ => Ok(()),
    }
}

/// The type that was expected when the value has another. `null` passes: it means "not given".
pub(super) fn mismatch(node: &Value, value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let either = node.get("x-kubernetes-int-or-string").and_then(Value::as_bool).unwrap_or(false)
        || node.get("format").is_some_and(|format| format == "int-or-string");
    if either {
        return (!value.is_string() && !value.is_i64() && !value.is_u64()).then(|| "integer or string".to_owned());
    }
    let fits = |expected: &str| match expected {
        "string" => {
            value.is_string() || node.get("format").is_some_and(|format| format == "quantity") && value.is_number()
        }
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => false,
        _ => true,
    };
    match node.get("type")? {
        Value::String(expected) => (!fits(expected)).then(|| expected.clone()),
        Value::Array(any) => {
            let names: Vec<&str> = any.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect();
            (!names.iter().any(|name| fits(name))).then(|| names.join(" or "))
        }
        _ => None,
    }
}

/// The name of a value's type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
