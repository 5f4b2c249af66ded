//! Targets for fuzzing: what reads text that strangers send. A target panics when a claim does not hold.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::apply;
use crate::kind::Kind;
use crate::object::Meta;
use crate::options::{PatchKind, WriteOptions};
use crate::patch;
use crate::selector::{FieldSelector, LabelSelector};
use crate::user::RequestContext;

/// A kind with a list of each sort, so that merges by key, as a set and as a whole are all reached.
static KIND: LazyLock<Kind> = LazyLock::new(|| {
    let item = json!({"type": "object", "properties": {"name": {"type": "string"}, "containerPort": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "image": {"type": "string"}}});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "containers": {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"},
        "ports": {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["containerPort", "protocol"], "x-kubernetes-patch-merge-key": "containerPort", "x-kubernetes-patch-strategy": "merge"},
        "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"},
        "args": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"},
        "selector": {"type": "object", "additionalProperties": {"type": "string"}}}}}});
    Kind {
        schema: schema.into(),
        selectable_fields: vec![("spec.nodeName".into(), "/spec/nodeName".into())],
        ..Kind::new("", "v1", "Pod", "pods")
    }
});

/// Two JSON documents with a line break between them.
fn two(data: &[u8]) -> Option<(Value, Value)> {
    let at = data.iter().position(|byte| *byte == b'\n')?;
    let read = |bytes: &[u8]| crate::json::decode(bytes).ok().map(|(value, _)| value);
    Some((read(&data[..at])?, read(&data[at + 1..])?))
}

/// The JSON reader: it agrees with serde's on what is JSON, and its result is stable.
pub fn json(data: &[u8]) {
    let ours = crate::json::decode(data);
    let theirs: Result<Value, _> = serde_json::from_slice(data);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}");
    if let (Ok((ours, duplicates)), Ok(theirs)) = (ours, theirs) {
        assert_eq!(ours, theirs);
        let (again, none) = crate::json::decode(ours.to_string().as_bytes()).expect("own text");
        assert!(none.is_empty() && duplicates.len() <= 10);
        // serde's reader may be off by the last digit of a fraction, so that its text does not come back exactly.
        assert!(has_fraction(&ours) || again == ours);
    }
}

/// JSON patch: a document, a line break, a patch. An error leaves nothing half done by its type; a success is a document.
pub fn json_patch(data: &[u8]) {
    let Some((document, patch)) = two(data) else { return };
    if let Ok(result) = patch::apply(&KIND, PatchKind::Json, &document, &patch) {
        let none = patch::apply(&KIND, PatchKind::Json, &result, &json!([])).expect("no operations");
        assert_eq!(none, result);
    }
}

/// Merge patch: applying it again changes nothing. `Source:` RFC 7386.
pub fn merge_patch(data: &[u8]) {
    let Some((document, patch)) = two(data) else { return };
    if let Ok(once) = patch::apply(&KIND, PatchKind::Merge, &document, &patch) {
        let twice = patch::apply(&KIND, PatchKind::Merge, &once, &patch).expect("the same patch");
        assert_eq!(once, twice);
    }
}

/// Strategic merge patch.
pub fn strategic_patch(data: &[u8]) {
    let Some((document, patch)) = two(data) else { return };
    if let Ok(result) = patch::apply(&KIND, PatchKind::Strategic, &document, &patch) {
        let none = patch::apply(&KIND, PatchKind::Strategic, &result, &json!({})).expect("an empty patch");
        assert_eq!(none, result);
    }
}

/// Server-side apply: what is merged stays an object, and what was recorded about its fields is read back.
pub fn apply(data: &[u8]) {
    let Some((live, config)) = two(data) else { return };
    if !live.is_object() || !config.is_object() {
        return;
    }
    let context = RequestContext::internal("fuzz");
    for force in [false, true] {
        let options = WriteOptions { field_manager: Some("m".into()), force, ..WriteOptions::default() };
        let Ok(mut merged) = apply::merge(&KIND, &live, &config, &options, None) else { continue };
        let now = jiff::Timestamp::UNIX_EPOCH;
        let recorded =
            apply::record_write(&KIND, &mut merged, Some(&live), Some(&config), &context, &options, now, None);
        assert!(merged.is_object());
        if recorded.is_ok() {
            let _ = apply::merge(&KIND, &merged, &config, &options, None);
        }
    }
}

/// Label selectors: what is read can be matched, and an empty one selects everything.
pub fn label_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = LabelSelector::parse(text) {
        let labels = [("a".into(), "b".into()), ("example.com/c".into(), "7".into())];
        let by_list = selector.matches(&labels);
        let by_value = selector.matches_value(Some(&json!({"a": "b", "example.com/c": "7"})));
        assert_eq!(by_list, by_value);
        assert_eq!(selector.is_everything(), text.trim().is_empty());
    }
    if let Ok(value) = serde_json::from_slice::<Value>(data)
        && let Ok(selector) = LabelSelector::from_structured(&value)
    {
        selector.matches(&[]);
    }
}

/// Field selectors.
pub fn field_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(selector) = FieldSelector::parse(text, &KIND) {
        let meta = Meta { key: "ns/a".into(), fields: Box::new(["n1".into()]), ..Meta::default() };
        if selector.matches(&meta)
            && let Some(name) = selector.name()
        {
            assert_eq!(name, "a");
        }
    }
}

/// The text that is stored: whatever object goes in, a version is spliced in and the rest stays.
pub fn stored_text(data: &[u8]) {
    let Ok((mut object, _)) = crate::json::decode(data) else { return };
    // The machinery stores nothing whose type is no text.
    if !object["metadata"].is_object() || !object["apiVersion"].is_string() || !object["kind"].is_string() {
        return;
    }
    let text = crate::encoding::encode(&object);
    let first = crate::encoding::with_revision(&text, 7);
    let second = crate::encoding::with_revision(&first, 8);
    let read: Value = serde_json::from_slice(&second).expect("own text");
    assert_eq!(read["metadata"]["resourceVersion"], "8");
    if has_fraction(&object) {
        return;
    }
    forget_nulls(&mut object);
    object["metadata"]["resourceVersion"] = json!("8");
    assert_eq!(read["metadata"], object["metadata"]);
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

/// Empty members of the top level and of `metadata` are not stored.
fn forget_nulls(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|_, value| !value.is_null());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzzing::smoke;

    const ROUNDS: u32 = 5_000;
    const DOCUMENTS: [&[u8]; 8] = [
        br#"{"metadata":{"name":"a","labels":{"x":"1"}},"spec":{"containers":[{"name":"c","image":"i"}],"args":["1"],"selector":{"a":"b"}}}
{"spec":{"containers":[{"name":"c","image":"j"},{"name":"d"}],"finalizers":["f"]}}"#,
        br#"{"spec":{"ports":[{"containerPort":80,"protocol":"TCP"}]}}
{"spec":{"ports":[{"containerPort":80,"$patch":"delete"}],"$setElementOrder/ports":[{"containerPort":80}]}}"#,
        br#"{"spec":{"finalizers":["a","b"]}}
{"spec":{"$deleteFromPrimitiveList/finalizers":["a"],"$retainKeys":["finalizers"],"$patch":"merge"}}"#,
        br#"{"a":{"b":[1,2,3]}}
[{"op":"test","path":"/a/b/1","value":2},{"op":"move","from":"/a/b","path":"/c"},{"op":"add","path":"/c/-","value":{}}]"#,
        br#"{"a":[[]]}
[{"op":"copy","from":"/a/0","path":"/a/1"},{"op":"replace","path":"/a/~0~1","value":null},{"op":"remove","path":""}]"#,
        br#"{"metadata":{"managedFields":[{"manager":"m","operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:args":{},"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}]},"spec":{"args":["x"],"containers":[{"name":"c","image":"i"}]}}
{"spec":{"containers":[{"name":"d"}]}}"#,
        b"{\"a\":1,\"a\":2,\"b\":[1e3,-0,1.5,true,null,\"\\u00e9\\ud83e\\udd80\"]}",
        b"{\"metadata\":{\"resourceVersion\":\"3\",\"name\":null,\"labels\":{}},\"kind\":\"K\",\"apiVersion\":\"v1\",\"x\":null}",
    ];
    const SELECTORS: [&[u8]; 6] = [
        b"a=b,c!=d",
        b"a in (b,c), d notin (e), !f, example.com/g",
        b"a>1,b<2",
        b"{\"matchLabels\":{\"a\":\"b\"},\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"In\",\"values\":[\"b\"]}]}",
        b"metadata.name=a,metadata.namespace!=b",
        b"spec.nodeName==n1\\,2",
    ];

    #[test]
    fn patches_of_any_content_are_applied_or_refused() {
        for target in [json_patch, merge_patch, strategic_patch, apply] {
            smoke(&DOCUMENTS, ROUNDS, target);
        }
    }

    #[test]
    fn selectors_of_any_content_are_read_or_refused() {
        smoke(&SELECTORS, 4 * ROUNDS, label_selector);
        smoke(&SELECTORS, 4 * ROUNDS, field_selector);
    }

    #[test]
    fn text_of_any_content_is_json_or_refused() {
        smoke(&DOCUMENTS, 2 * ROUNDS, json);
        smoke(&DOCUMENTS, 2 * ROUNDS, stored_text);
    }
}
