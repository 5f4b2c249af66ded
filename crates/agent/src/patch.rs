//! JSON merge patches: the smallest patch that turns one value into another. Pure.

use serde_json::{Map, Value};

/// The merge patch from `old` to `new`; `None` when they are equal. Source: RFC 7396.
///
/// Values of `new` that are null count as absent, since a merge patch cannot write a null.
#[must_use]
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new.iter().filter(|(_, v)| !v.is_null()) {
                match old.get(key) {
                    Some(before) => patch.extend(difference(before, value).map(|d| (key.clone(), d))),
                    None => drop(patch.insert(key.clone(), value.clone())),
                }
            }
            for key in old.keys().filter(|k| new.get(*k).is_none_or(Value::is_null)) {
                patch.insert(key.clone(), Value::Null);
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if old == new => None,
        _ => Some(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The reference algorithm of RFC 7396.
    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let object = target.as_object_mut().unwrap();
        for (key, value) in patch {
            if value.is_null() {
                object.remove(key);
            } else {
                apply(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    #[test]
    fn only_what_changed_is_in_the_patch() {
        let old = json!({"state": "created", "pid": 0, "networks": {"a": {"ip": "1"}}, "error": "x"});
        let new = json!({"state": "running", "pid": 0, "networks": {}});
        assert_eq!(difference(&old, &new), Some(json!({"state": "running", "networks": {"a": null}, "error": null})));
        assert_eq!(difference(&new, &new), None);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_value(old in value(), new in value()) {
            let mut target = old.clone();
            if let Some(patch) = difference(&old, &new) {
                apply(&mut target, &patch);
            }
            prop_assert_eq!(target, new);
        }
    }
}
