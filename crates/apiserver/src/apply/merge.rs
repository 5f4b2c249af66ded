//! The merge of an applied configuration into the live object.

use serde_json::{Map, Value};

use super::fields::{FieldSet, Leaves, Path, display, key_step, leaves};
use super::managers::{Entry, in_scope, read};
use crate::kind::Kind;
use crate::options::WriteOptions;
use crate::schema::{ListKind, SchemaRef};
use crate::status::{Cause, Reason, Status};

/// Most conflicts that one answer lists.
const MAX_CONFLICTS: usize = 100;

/// The live object after the apply. Fields that this manager applied before and now leaves out go, unless someone else
/// manages them too. Errors: conflict, when another manager has set a field to another value and `force` is off.
pub fn merge(
    kind: &Kind,
    live: &Value,
    config: &Value,
    o: &WriteOptions,
    subresource: Option<&str>,
) -> Result<Value, Status> {
    let schema = SchemaRef::root(kind);
    let manager = o.field_manager.as_deref().unwrap_or_default();
    let is_own = |entry: &Entry| {
        entry.manager == manager && entry.operation == "Apply" && entry.subresource == subresource.unwrap_or_default()
    };
    let (own, others): (Vec<Entry>, Vec<Entry>) = read(live).into_iter().partition(is_own);
    let mut wanted = leaves(schema, config);
    wanted.retain(|path, _| in_scope(kind, subresource, path));
    if !o.force {
        refuse_conflicts(live, &wanted, &leaves(schema, live), &others)?;
    }
    let mut result = live.clone();
    merge_value(schema, &mut result, config);
    let before: FieldSet = own.into_iter().flat_map(|entry| entry.fields).collect();
    // A container that becomes empty stays when someone manages it as a whole.
    let stays = |path: &[String]| wanted.contains_key(path) || others.iter().any(|entry| entry.fields.contains(path));
    // Elements come before what is in them, so that an element goes whole while its keys still name it.
    for path in before.iter().filter(|path| !wanted.contains_key(*path)) {
        // Who manages something below an element keeps the element.
        let kept = others.iter().any(|entry| entry.fields.contains(path) || has_below(&entry.fields, path))
            || wanted.keys().any(|own| own.len() > path.len() && own.starts_with(path));
        if !kept {
            remove(schema, &mut result, path, 0, &stays);
        }
    }
    Ok(result)
}

fn has_below(set: &FieldSet, path: &Path) -> bool {
    set.range(path.clone()..).take_while(|other| other.starts_with(path)).any(|other| other.len() > path.len())
}

fn refuse_conflicts(live: &Value, wanted: &Leaves<'_>, present: &Leaves<'_>, others: &[Entry]) -> Result<(), Status> {
    let mut causes = Vec::new();
    for entry in others {
        for path in &entry.fields {
            let (Some(new), Some(old)) = (wanted.get(path), present.get(path)) else { continue };
            if new != old && causes.len() < MAX_CONFLICTS {
                // Appliers are named alone; of others it is said how and when, as they may not be known as managers.
                let mut how = String::new();
                if !entry.subresource.is_empty() {
                    how = format!(" with subresource \"{}\"", entry.subresource);
                }
                if entry.operation == "Update" {
                    how = format!("{how} using {}", entry.api_version);
                    if !entry.time.is_empty() {
                        how = format!("{how} at {}", entry.time);
                    }
                }
                causes.push(Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with \"{}\"{how}", entry.manager),
                    field: display(path),
                });
            }
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.message, cause.field)).collect();
    let plural = if lines.len() == 1 { "conflict" } else { "conflicts" };
    let mut status =
        Status::new(409, Reason::Conflict, format!("Apply failed with {} {plural}: {}", lines.len(), lines.join(", ")));
    status.details.causes = causes;
    status.details.name = crate::json::text(live, "/metadata/name").to_owned();
    Err(status)
}

fn merge_value(schema: SchemaRef<'_>, live: &mut Value, config: &Value) {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !schema.is_atomic_map() => {
            for (name, value) in config {
                match live.get_mut(name) {
                    Some(present) => merge_value(schema.property(name), present, value),
                    None => drop(live.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(live), Value::Array(config)) => match schema.list_kind() {
            ListKind::Atomic => live.clone_from(config),
            ListKind::Set => {
                for item in config {
                    if !live.contains(item) {
                        live.push(item.clone());
                    }
                }
            }
            ListKind::Map(keys) => merge_list(schema.items(), &keys, live, config),
        },
        (live, config) => live.clone_from(config),
    }
}

/// Elements keep the order of the configuration; those that only the live list has stay behind their predecessor.
fn merge_list(items: SchemaRef<'_>, keys: &[String], live: &mut Vec<Value>, config: &[Value]) {
    let step = |item: &Value| key_step(items, keys, item);
    let order: Vec<String> = config.iter().map(step).collect();
    let mut result: Vec<Value> = Vec::with_capacity(live.len() + config.len());
    let mut rest: Vec<(String, Value)> = live.drain(..).map(|item| (step(&item), item)).collect();
    for (name, value) in order.iter().zip(config) {
        if let Some(at) = rest.iter().position(|(own, _)| own == name) {
            // What stands before it in the live list and in no configuration goes first.
            let tail = rest.split_off(at);
            let (waiting, ahead): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(own, _)| order.contains(own));
            result.extend(ahead.into_iter().map(|(_, item)| item));
            rest = waiting.into_iter().chain(tail).collect();
            if let Some(at) = rest.iter().position(|(own, _)| own == name) {
                let (_, mut item) = rest.remove(at);
                merge_value(items, &mut item, value);
                result.push(item);
            }
        } else {
            result.push(value.clone());
        }
    }
    result.extend(rest.into_iter().filter(|(name, _)| !order.contains(name)).map(|(_, item)| item));
    *live = result;
}

/// Removes the field at `path[depth..]` below `value`, and containers that become empty by that and that nobody keeps.
fn remove(schema: SchemaRef<'_>, value: &mut Value, path: &Path, depth: usize, stays: &impl Fn(&[String]) -> bool) {
    let Some(step) = path.get(depth) else { return };
    let last = depth + 1 == path.len();
    let empties = |value: &Value| {
        let empty = value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
        empty && !stays(&path[..=depth])
    };
    match (value, step.split_once(':')) {
        (Value::Object(map), Some(("f", name))) => {
            if last {
                map.remove(name);
            } else if let Some(inner) = map.get_mut(name) {
                remove(schema.property(name), inner, path, depth + 1, stays);
                if empties(inner) {
                    map.remove(name);
                }
            }
        }
        (Value::Array(list), Some(("v", wanted))) => {
            let wanted: Value = serde_json::from_str(wanted).unwrap_or(Value::Null);
            list.retain(|item| *item != wanted);
        }
        (Value::Array(list), Some(("k", _))) => {
            let ListKind::Map(keys) = schema.list_kind() else { return };
            let at = list.iter().position(|item| key_step(schema.items(), &keys, item) == *step);
            // The keys are the element's identity; they go only with it.
            let is_key = |step: &String| step.strip_prefix("f:").is_some_and(|name| keys.iter().any(|key| key == name));
            match at {
                Some(at) if last => drop(list.remove(at)),
                Some(at) if !path.get(depth + 1).is_some_and(is_key) => {
                    remove(schema.items(), &mut list[at], path, depth + 1, stays);
                }
                _ => {}
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::record_write;
    use crate::user::RequestContext;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod() -> Kind {
        Kind::new("", "v1", "Pod", "pods")
    }

    fn apply(live: &Value, config: Value, manager: &str, force: bool) -> Result<Value, Status> {
        let o = WriteOptions { field_manager: Some(manager.into()), force, ..WriteOptions::default() };
        let mut merged = merge(&pod(), live, &config, &o, None)?;
        record_write(
            &pod(),
            &mut merged,
            Some(live),
            Some(&config),
            &RequestContext::internal("t"),
            &o,
            jiff::Timestamp::UNIX_EPOCH,
            None,
        )?;
        Ok(merged)
    }

    #[test]
    fn fields_left_out_go_and_those_of_others_stay() {
        let live = json!({"metadata": {"name": "a"}});
        let one = apply(&live, json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"containers": [{"name": "x", "image": "i"}]}}), "one", false).unwrap();
        let two = apply(&one, json!({"metadata": {"labels": {"b": "1", "c": "1"}}, "spec": {"containers": [{"name": "y", "image": "j"}]}}), "two", false).unwrap();
        assert_eq!(two["spec"]["containers"].as_array().unwrap().len(), 2);
        let three = apply(&two, json!({"spec": {"containers": []}}), "one", false).unwrap();
        assert_eq!(three["metadata"]["labels"], json!({"b": "1", "c": "1"}));
        assert_eq!(three["spec"]["containers"], json!([{"name": "y", "image": "j"}]));
    }

    #[test]
    fn another_managers_value_is_a_conflict_unless_forced() {
        let live = apply(&json!({"metadata": {"name": "a"}}), json!({"spec": {"x": 1}}), "one", false).unwrap();
        let status = apply(&live, json!({"spec": {"x": 2}}), "two", false).unwrap_err();
        assert_eq!(
            (status.code, status.message.as_str()),
            (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.x")
        );
        assert!(apply(&live, json!({"spec": {"x": 1}}), "two", false).is_ok());
        let forced = apply(&live, json!({"spec": {"x": 2}}), "two", true).unwrap();
        assert_eq!(forced["spec"]["x"], 2);
        assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    }

    fn config() -> impl Strategy<Value = Value> {
        let labels = proptest::collection::btree_map("[a-c]", "[0-1]", 0..3);
        let containers = proptest::collection::btree_map("[x-z]", "[0-1]", 0..3);
        (labels, containers).prop_map(|(labels, containers)| {
            let containers: Vec<Value> =
                containers.into_iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
            json!({"metadata": {"labels": labels}, "spec": {"containers": containers}})
        })
    }

    proptest! {
        #[test]
        fn apply_is_idempotent(first in config(), other in config(), second in config()) {
            let live = apply(&json!({"metadata": {"name": "a"}}), first, "one", true).unwrap();
            let live = apply(&live, other, "two", true).unwrap();
            let once = apply(&live, second.clone(), "one", true).unwrap();
            let twice = apply(&once, second, "one", true).unwrap();
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn a_sole_manager_gets_exactly_its_last_configuration(first in config(), second in config()) {
            let base = json!({"metadata": {"name": "a"}});
            let live = apply(&base, first, "one", false).unwrap();
            let changed = apply(&live, second.clone(), "one", false).unwrap();
            let fresh = apply(&base, second, "one", false).unwrap();
            let images = |object: &Value| {
                let mut images: Vec<String> = object["spec"]["containers"].as_array().into_iter().flatten().map(Value::to_string).collect();
                images.sort();
                images
            };
            prop_assert_eq!(images(&changed), images(&fresh));
        }
    }
}
