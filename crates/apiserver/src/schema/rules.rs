//! `x-kubernetes-validations`: rules in CEL on the values of custom objects, with transition rules that compare to the
//! old value. `Source:` Kubernetes' documentation of CustomResourceDefinitions, "Validation rules".

use serde_json::Value;

use super::ListKind;
use crate::expression::{Problem, Scope, Typing};
use crate::kind::Kind;
use crate::status::Cause;

/// Most causes of one answer.
const MAX_CAUSES: usize = 50;
/// The member that holds the rules.
const RULES: &str = "x-kubernetes-validations";

/// What the rules of a kind's schema say of an object. A value that did not change is not judged again by rules that
/// look at it alone, so that a rule added later does not hold up old objects.
pub fn validate_rules(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut walk = Walk { causes: Vec::new(), left: Scope::new().left(), spent: false };
    if kind.schema.has_rules() {
        walk.value(&kind.schema, object, old, &Place::Root);
    }
    walk.causes
}

/// Whether there is any rule at all in a schema.
pub(crate) fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key(RULES) || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Field(Place::Root, name) => f.write_str(name),
            Place::Field(parent, name) => write!(f, "{parent}.{name}"),
            Place::Key(parent, name) => write!(f, "{parent}[{name}]"),
            Place::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Walk {
    causes: Vec<Cause>,
    left: u64,
    spent: bool,
}

impl Walk {
    fn value(&mut self, schema: &Value, value: &Value, old: Option<&Value>, place: &Place<'_>) {
        if self.spent || self.causes.len() >= MAX_CAUSES || value.is_null() {
            return;
        }
        if let Some(rules) = schema.get(RULES).and_then(Value::as_array) {
            self.rules(rules, schema, value, old, place);
        }
        match value {
            Value::Object(map) => {
                let properties = schema.get("properties");
                let additional = schema.get("additionalProperties").filter(|inner| inner.is_object());
                for (name, value) in map {
                    let before = old.and_then(|old| old.get(name)).filter(|old| !old.is_null());
                    if let Some(inner) = properties.and_then(|known| known.get(name)) {
                        self.value(inner, value, before, &Place::Field(place, name));
                    } else if let Some(inner) = additional {
                        self.value(inner, value, before, &Place::Key(place, name));
                    }
                }
            }
            Value::Array(items) => {
                let Some(inner) = schema.get("items") else { return };
                for (index, item) in items.iter().enumerate() {
                    let before = old.and_then(|old| counterpart(schema, item, old));
                    self.value(inner, item, before, &Place::Index(place, index));
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, rules: &[Value], schema: &Value, value: &Value, old: Option<&Value>, place: &Place<'_>) {
        let same = old == Some(value);
        let mut scope = Scope::with_budget(self.left);
        let with_metadata = matches!(place, Place::Root) || schema["x-kubernetes-embedded-resource"] == true;
        let shown = |value: &Value| if with_metadata { whole(value) } else { value.clone() };
        scope.set_typed("self", &shown(value), Typing(Some(schema)));
        if let Some(old) = old {
            scope.set_typed("oldSelf", &shown(old), Typing(Some(schema)));
        }
        for rule in rules {
            let source = crate::json::text(rule, "/rule");
            let compares = crate::expression::mentions(source, "oldSelf");
            if compares && rule["optionalOldSelf"] == true {
                let mut optional = Scope::with_budget(scope.left());
                optional.set_typed("self", &shown(value), Typing(Some(schema)));
                let before = old.map(&shown);
                optional.set_optional("oldSelf", before.as_ref().map(|old| (old, Typing(Some(schema)))));
                self.rule(&mut optional, rule, source, schema, place);
            } else if !(compares && old.is_none() || !compares && same) {
                self.rule(&mut scope, rule, source, schema, place);
            }
            if self.spent || self.causes.len() >= MAX_CAUSES {
                break;
            }
        }
        self.left = self.left.min(scope.left());
    }

    fn rule(&mut self, scope: &mut Scope, rule: &Value, source: &str, schema: &Value, place: &Place<'_>) {
        let field = format!("{place}{}", crate::json::text(rule, "/fieldPath"));
        let field = if matches!(place, Place::Root) { field.trim_start_matches('.').to_owned() } else { field };
        let field = if field.is_empty() { "<nil>".to_owned() } else { field };
        let class = Value::from(schema["type"].as_str().unwrap_or("object"));
        let told = rule["message"].as_str().map(str::trim).filter(|message| !message.is_empty());
        let called = told.map_or_else(|| source.trim().to_owned(), str::to_owned);
        match scope.holds(source) {
            Ok(true) => {}
            Ok(false) => {
                let computed = rule["messageExpression"].as_str().and_then(|message| scope.text(message));
                let message = computed.unwrap_or_else(|| match told {
                    Some(told) => told.to_owned(),
                    None => format!("failed rule: {}", source.trim()),
                });
                self.causes.push(match rule["reason"].as_str() {
                    Some("FieldValueForbidden") => Cause::forbidden(&field, &message),
                    Some("FieldValueRequired") => Cause::required(&field, &message),
                    Some("FieldValueDuplicate") => Cause::duplicate(&field, &class),
                    _ => Cause::invalid(&field, &class, &message),
                });
            }
            Err(Problem::CallLimit) => {
                let detail = format!(
                    "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {called}",
                    Problem::CallLimit
                );
                self.causes.push(Cause::invalid(&field, &class, &detail));
                self.spent = true;
            }
            Err(problem @ Problem::Budget) => {
                self.spent = true;
                self.causes.push(Cause::invalid(&field, &class, &problem.to_string()));
            }
            Err(problem) => {
                let detail = format!("{problem} evaluating rule: {called}");
                self.causes.push(Cause::invalid(&field, &class, &detail));
            }
        }
        self.left = self.left.min(scope.left());
    }
}

/// At the root and in embedded objects, rules see of the metadata only the names.
fn whole(object: &Value) -> Value {
    let mut shown = object.clone();
    if let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| name == "name" || name == "generateName");
    }
    shown
}

/// The old element that is this element's past; only elements of maps by keys have one.
fn counterpart<'a>(schema: &Value, item: &Value, old: &'a Value) -> Option<&'a Value> {
    let ListKind::Map(keys) = list_kind(schema) else { return None };
    let same = |other: &&Value| keys.iter().all(|key| other.get(key) == item.get(key));
    old.as_array()?.iter().find(same)
}

fn list_kind(schema: &Value) -> ListKind {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => ListKind::Map(crate::json::strings(schema, "/x-kubernetes-list-map-keys")),
        Some("set") => ListKind::Set,
        _ => ListKind::Atomic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value, new: Value, old: Option<Value>) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        let kind = Kind { schema: schema.into(), structural: true, ..Kind::new("g", "v1", "K", "ks") };
        let wrap = |spec: Value| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "spec": spec});
        let causes = validate_rules(&kind, &wrap(new), old.map(wrap).as_ref());
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn rules_are_worded_as_kubernetes_words_them() {
        let schema = json!({"type": "object", "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.min <= self.max", "messageExpression": "'min is ' + string(self.min)"}]});
        assert!(check(schema.clone(), json!({"min": 1, "max": 2}), None).is_empty());
        assert_eq!(check(schema, json!({"min": 3, "max": 2}), None), ["spec: Invalid value: \"object\": min is 3"]);
        let schema = json!({"type": "object", "properties": {"a-b": {"type": "string"}, "namespace": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": "self.a__dash__b != self.__namespace__", "fieldPath": ".namespace", "reason": "FieldValueForbidden"}]});
        assert_eq!(
            check(schema, json!({"a-b": "x", "namespace": "x"}), None),
            ["spec.namespace: Forbidden: failed rule: self.a__dash__b != self.__namespace__"]
        );
    }

    #[test]
    fn transition_rules_compare_to_the_old_value_and_only_on_updates() {
        let schema = json!({"type": "object", "properties": {"class": {"type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "class is immutable"}]}}});
        assert!(check(schema.clone(), json!({"class": "a"}), None).is_empty());
        assert!(check(schema.clone(), json!({"class": "a"}), Some(json!({"class": "a"}))).is_empty());
        assert!(check(schema.clone(), json!({"class": "a"}), Some(json!({}))).is_empty());
        assert_eq!(
            check(schema, json!({"class": "b"}), Some(json!({"class": "a"}))),
            ["spec.class: Invalid value: \"string\": class is immutable"]
        );
        let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size"}]}});
        let (small, large) =
            (json!([{"name": "a", "size": 1}, {"name": "b", "size": 1}]), json!([{"name": "b", "size": 2}]));
        assert!(check(keyed.clone(), large.clone(), Some(small.clone())).is_empty());
        assert_eq!(
            check(keyed, small, Some(large)),
            ["spec[1]: Invalid value: \"object\": failed rule: self.size >= oldSelf.size"]
        );
    }

    #[test]
    fn what_did_not_change_is_not_judged_again() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]},
            "b": {"type": "integer"}}});
        assert_eq!(check(schema.clone(), json!({"a": 1, "b": 1}), None).len(), 1);
        assert!(check(schema.clone(), json!({"a": 1, "b": 2}), Some(json!({"a": 1, "b": 1}))).is_empty());
        assert_eq!(check(schema, json!({"a": 2, "b": 1}), Some(json!({"a": 1, "b": 1}))).len(), 1);
    }

    #[test]
    fn optional_old_values_are_rules_of_creation_too() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [
            {"rule": "oldSelf.hasValue() || self.a == 0", "optionalOldSelf": true, "message": "starts at nothing"}]});
        assert!(check(schema.clone(), json!({"a": 0}), None).is_empty());
        assert_eq!(
            check(schema.clone(), json!({"a": 1}), None),
            ["spec: Invalid value: \"object\": starts at nothing"]
        );
        assert!(check(schema, json!({"a": 1}), Some(json!({"a": 0}))).is_empty());
    }

    #[test]
    fn hostile_rules_cost_no_time() {
        let list: Vec<u32> = (0..3000).collect();
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": [{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c >= 0)))", "message": "x"}]});
        assert_eq!(
            check(schema, json!({"l": list}), None),
            [
                "spec: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: x"
            ]
        );
    }
}
