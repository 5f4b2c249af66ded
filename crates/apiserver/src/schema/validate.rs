//! Validation of objects against structural schemas, with the causes that Kubernetes reports.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use regex::Regex;
use serde_json::{Value, json};

use super::types::{mismatch, type_name};
use super::{ListKind, SchemaRef};
use crate::kind::Kind;
use crate::status::Cause;

/// Compiled patterns kept; beyond that all are forgotten and compiled anew.
const MAX_PATTERNS: usize = 512;
/// Largest compiled pattern. Units: bytes.
const MAX_PATTERN_BYTES: usize = 256 * 1024;
/// Most causes of one answer.
const MAX_CAUSES: usize = 50;

/// Compiled patterns of schemas.
#[derive(Default)]
pub struct Patterns {
    compiled: Mutex<HashMap<String, Option<Regex>>>,
}

impl Patterns {
    /// Whether the text matches; a pattern that cannot be compiled matches everything (the CRD was refused or is old).
    fn matches(&self, pattern: &str, text: &str) -> bool {
        let mut compiled = self.compiled.lock();
        if compiled.len() >= MAX_PATTERNS {
            compiled.clear();
        }
        let regex = compiled.entry(pattern.to_owned()).or_insert_with(|| compile(pattern).ok());
        regex.as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

/// Compiles a pattern within bounds.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build().map_err(|error| error.to_string())
}

/// What is wrong with an object by its kind's schema; `metadata` is not looked at.
pub fn validate(kind: &Kind, object: &Value, patterns: &Patterns) -> Vec<Cause> {
    let mut causes = Vec::new();
    let schema = SchemaRef::root(kind);
    let mut context = Context { patterns, causes: &mut causes };
    if let Some(node) = schema.node() {
        context.required(node, object, "");
        context.combined(schema, node, object, "");
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            context.value(schema.property(name), value, name);
        }
    }
    causes.truncate(MAX_CAUSES);
    causes
}

struct Context<'a> {
    patterns: &'a Patterns,
    causes: &'a mut Vec<Cause>,
}

impl Context<'_> {
    fn value(&mut self, schema: SchemaRef<'_>, value: &Value, path: &str) {
        let Some(node) = schema.node() else { return };
        if self.causes.len() >= MAX_CAUSES {
            return;
        }
        let nullable = node.get("nullable").and_then(Value::as_bool).unwrap_or(false);
        if value.is_null() {
            if !nullable && node.get("type").is_some() {
                self.causes.push(Cause::type_invalid(
                    path,
                    &Value::from("null"),
                    &format!("{path} in body must be of type {}: \"null\"", node["type"].as_str().unwrap_or("object")),
                ));
            }
            return;
        }
        if let Some(expected) = mismatch(node, value) {
            let found = type_name(value);
            let detail = format!("{path} in body must be of type {expected}: \"{found}\"");
            self.causes.push(Cause::type_invalid(path, &Value::from(found), &detail));
            return;
        }
        if let Some(allowed) = node.get("enum").and_then(Value::as_array)
            && !allowed.contains(value)
        {
            let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            self.causes.push(Cause::not_supported(path, value, &names));
        }
        self.combined(schema, node, value, path);
        match value {
            Value::String(text) => self.text(node, value, text, path),
            Value::Number(number) => self.number(node, value, number.as_f64().unwrap_or(0.0), path),
            Value::Array(items) => self.list(schema, node, value, items, path),
            Value::Object(map) => {
                self.required(node, value, path);
                self.bound(
                    node,
                    "maxProperties",
                    map.len(),
                    path,
                    value,
                    "must have at most",
                    "items",
                    |len, bound| len > bound,
                );
                self.bound(
                    node,
                    "minProperties",
                    map.len(),
                    path,
                    value,
                    "must have at least",
                    "items",
                    |len, bound| len < bound,
                );
                for (name, value) in map {
                    self.value(schema.property(name), value, &format!("{path}.{name}"));
                }
            }
            _ => {}
        }
    }

    fn required(&mut self, node: &Value, value: &Value, path: &str) {
        for name in node.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if value.get(name).is_none() {
                let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                self.causes.push(Cause::required(&field, ""));
            }
        }
    }

    fn text(&mut self, node: &Value, value: &Value, text: &str, path: &str) {
        let length = text.chars().count();
        self.bound(node, "maxLength", length, path, value, "should be at most", "chars long", |len, bound| len > bound);
        self.bound(node, "minLength", length, path, value, "should be at least", "chars long", |len, bound| {
            len < bound
        });
        if let Some(pattern) = node.get("pattern").and_then(Value::as_str)
            && !self.patterns.matches(pattern, text)
        {
            self.causes.push(Cause::invalid(path, value, &format!("{path} in body should match '{pattern}'")));
        }
        let fits = match node.get("format").and_then(Value::as_str) {
            Some("date-time") => text.parse::<jiff::Timestamp>().is_ok(),
            Some("date") => text.parse::<jiff::civil::Date>().is_ok(),
            Some("ipv4") => text.parse::<std::net::Ipv4Addr>().is_ok(),
            Some("ipv6") => text.parse::<std::net::Ipv6Addr>().is_ok(),
            Some("uuid") => uuid::Uuid::parse_str(text).is_ok(),
            _ => true,
        };
        if !fits {
            let format = node["format"].as_str().unwrap_or_default();
            self.causes.push(Cause::invalid(path, value, &format!("{path} in body must be of type {format}: {value}")));
        }
    }

    fn number(&mut self, node: &Value, value: &Value, number: f64, path: &str) {
        let flag = |name: &str| node.get(name).and_then(Value::as_bool).unwrap_or(false);
        if let Some(max) = node.get("maximum").and_then(Value::as_f64)
            && (number > max || flag("exclusiveMaximum") && number >= max)
        {
            self.causes.push(Cause::invalid(
                path,
                value,
                &format!("{path} in body should be less than or equal to {max}"),
            ));
        }
        if let Some(min) = node.get("minimum").and_then(Value::as_f64)
            && (number < min || flag("exclusiveMinimum") && number <= min)
        {
            self.causes.push(Cause::invalid(
                path,
                value,
                &format!("{path} in body should be greater than or equal to {min}"),
            ));
        }
        if let Some(step) = node.get("multipleOf").and_then(Value::as_f64)
            && step > 0.0
            && (number / step).fract().abs() > 1e-9
        {
            self.causes.push(Cause::invalid(path, value, &format!("{path} in body should be a multiple of {step}")));
        }
    }

    fn list(&mut self, schema: SchemaRef<'_>, node: &Value, value: &Value, items: &[Value], path: &str) {
        self.bound(node, "maxItems", items.len(), path, value, "must have at most", "items", |len, bound| len > bound);
        self.bound(node, "minItems", items.len(), path, value, "must have at least", "items", |len, bound| len < bound);
        let identity = |item: &Value| match schema.list_kind() {
            ListKind::Atomic => None,
            ListKind::Set => Some(item.clone()),
            ListKind::Map(keys) => Some(keys.iter().map(|key| item.get(key).cloned().unwrap_or(Value::Null)).collect()),
        };
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if identity(item).is_some_and(|identity| !seen.insert(identity.to_string())) {
                self.causes.push(Cause::duplicate(&path, item));
            }
            self.value(schema.items(), item, &path);
        }
    }

    #[allow(clippy::too_many_arguments)] // One row per bound above is easier to read than a struct for each.
    fn bound(
        &mut self,
        node: &Value,
        name: &str,
        length: usize,
        path: &str,
        value: &Value,
        text: &str,
        unit: &str,
        breaks: fn(usize, usize) -> bool,
    ) {
        let Some(bound) = node.get(name).and_then(Value::as_u64).and_then(|bound| usize::try_from(bound).ok()) else {
            return;
        };
        if breaks(length, bound) {
            let shown = if value.is_string() { value.clone() } else { json!(length) };
            self.causes.push(Cause::invalid(path, &shown, &format!("{path} in body {text} {bound} {unit}")));
        }
    }

    /// `allOf`, `anyOf`, `oneOf`, `not`: value validations only, as structural schemas demand.
    fn combined(&mut self, schema: SchemaRef<'_>, node: &Value, value: &Value, path: &str) {
        if node.get("x-kubernetes-int-or-string").is_some() {
            return;
        }
        let mut failures = |part: &Value| {
            let mut causes = Vec::new();
            let inner = SchemaRef { node: super::resolve(schema.root, part), ..schema };
            Context { patterns: self.patterns, causes: &mut causes }.value(inner, value, path);
            causes
        };
        let parts = |name: &str| node.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let all: Vec<Cause> = parts("allOf").iter().flat_map(&mut failures).collect();
        let any = parts("anyOf").is_empty() || parts("anyOf").iter().any(|part| failures(part).is_empty());
        let one =
            parts("oneOf").is_empty() || parts("oneOf").iter().filter(|part| failures(part).is_empty()).count() == 1;
        let not = node.get("not").is_none_or(|part| !failures(part).is_empty());
        self.causes.extend(all);
        for (fits, name) in [
            (any, "at least one schema (anyOf)"),
            (one, "one and only one schema (oneOf)"),
            (not, "not the schema (not)"),
        ] {
            if !fits {
                self.causes.push(Cause::invalid(path, value, &format!("{path} in body must validate {name}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schema: Value, spec: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let kind = Kind { schema: schema.into(), structural: true, ..Kind::new("g", "v1", "K", "ks") };
        validate(&kind, &json!({"spec": spec}), &Patterns::default()).into_iter().map(|cause| cause.reason).collect()
    }

    #[test]
    fn each_rule_reports_its_reason() {
        assert!(check(json!({"type": "integer", "minimum": 1, "maximum": 3}), json!(2)).is_empty());
        assert_eq!(check(json!({"type": "integer", "minimum": 1}), json!(0)), ["FieldValueInvalid"]);
        assert_eq!(check(json!({"type": "integer"}), json!("x")), ["FieldValueTypeInvalid"]);
        assert_eq!(check(json!({"type": "string", "enum": ["a"]}), json!("b")), ["FieldValueNotSupported"]);
        assert_eq!(check(json!({"type": "string", "pattern": "^a+$"}), json!("b")), ["FieldValueInvalid"]);
        assert_eq!(check(json!({"type": "object", "required": ["a"]}), json!({})), ["FieldValueRequired"]);
        assert_eq!(
            check(
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
                json!(["a", "a"])
            ),
            ["FieldValueDuplicate"]
        );
        assert_eq!(check(json!({"type": "string", "maxLength": 2}), json!("abc")), ["FieldValueInvalid"]);
        assert_eq!(
            check(json!({"type": "integer", "oneOf": [{"minimum": 1}, {"minimum": 2}]}), json!(3)),
            ["FieldValueInvalid"]
        );
        assert!(check(json!({"x-kubernetes-int-or-string": true}), json!("50%")).is_empty());
    }
}
