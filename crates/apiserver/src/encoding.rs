//! The stored text of objects. `apiVersion`, `kind` and `metadata` come first, so that a resourceVersion or another
//! version of the API can be spliced in without parsing; the store's text holds no resourceVersion.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::kind::Kind;
use crate::object::{Meta, Object};

const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// The stored text of an object; its resourceVersion is left out.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"apiVersion\":");
    write(&mut out, &object["apiVersion"]);
    out.extend_from_slice(b",\"kind\":");
    write(&mut out, &object["kind"]);
    out.push(b',');
    out.extend_from_slice(METADATA);
    let mut first = true;
    for (name, value) in object["metadata"].as_object().into_iter().flatten() {
        if name != "resourceVersion" && !value.is_null() {
            member(&mut out, &mut first, name, value);
        }
    }
    out.push(b'}');
    first = false;
    for (name, value) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") && !value.is_null() {
            member(&mut out, &mut first, name, value);
        }
    }
    out.push(b'}');
    out
}

fn member(out: &mut Vec<u8>, first: &mut bool, name: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write(out, &Value::from(name));
    out.push(b':');
    write(out, value);
}

fn write(out: &mut Vec<u8>, value: &Value) {
    // Writing a tree to memory cannot fail: every key is a string and every number is finite.
    let _ = serde_json::to_writer(out, value);
}

/// The text with this resourceVersion, in place of the one it has.
pub fn with_revision(text: &[u8], revision: u64) -> Bytes {
    let Some(start) = find(text, METADATA).map(|at| at + METADATA.len()) else {
        return Bytes::copy_from_slice(text);
    };
    let mut rest = &text[start..];
    if rest.starts_with(VERSION) {
        let skip = rest[VERSION.len()..].iter().position(|byte| *byte == b'"').map_or(0, |end| VERSION.len() + end + 1);
        rest = &rest[skip..];
        rest = rest.strip_prefix(b",").unwrap_or(rest);
    }
    let mut out = Vec::with_capacity(text.len() + 48);
    out.extend_from_slice(&text[..start]);
    out.extend_from_slice(VERSION);
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
    if !rest.starts_with(b"}") {
        out.push(b',');
    }
    out.extend_from_slice(rest);
    out.shrink_to_fit();
    Bytes::from(out)
}

/// The text as an object of another version of the same kind.
pub fn with_api_version(text: &Bytes, api_version: &str) -> Bytes {
    const HEAD: &[u8] = b"{\"apiVersion\":\"";
    let Some(rest) = text.strip_prefix(HEAD) else { return text.clone() };
    let Some(end) = rest.iter().position(|byte| *byte == b'"') else { return text.clone() };
    if &rest[..end] == api_version.as_bytes() {
        return text.clone();
    }
    let mut out = Vec::with_capacity(text.len() + 16);
    out.extend_from_slice(HEAD);
    out.extend_from_slice(api_version.as_bytes());
    out.extend_from_slice(&rest[end..]);
    Bytes::from(out)
}

/// The stored text as the kind shows it.
pub fn shown(kind: &Kind, text: &Bytes) -> Bytes {
    if kind.view.is_none() {
        return with_api_version(text, &kind.api_version());
    }
    let Ok(stored) = serde_json::from_slice::<Value>(text) else { return text.clone() };
    let revision = crate::json::text(&stored, "/metadata/resourceVersion").parse().unwrap_or(0);
    with_revision(&encode(&kind.to_shown(stored)), revision)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
}

#[derive(Default, Deserialize)]
struct HeadMeta<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

/// Makes an object of a stored value.
pub fn object(key: &str, stored: &[u8], revision: u64, selectable: &[(String, String)]) -> Object {
    let bytes = with_revision(stored, revision);
    let (labels, fields) = if selectable.is_empty() {
        (labels_of_text(&bytes), Box::default())
    } else {
        let tree: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let fields = selectable.iter().map(|(_, pointer)| field(&tree, pointer)).collect();
        (labels_of_text(&bytes), fields)
    };
    Object { bytes, meta: std::sync::Arc::new(Meta { key: key.into(), revision, labels, fields }) }
}

fn labels_of_text(text: &[u8]) -> Box<[(Box<str>, Box<str>)]> {
    let Ok(head) = serde_json::from_slice::<Head<'_>>(text) else { return Box::default() };
    let labels = head.metadata.labels.unwrap_or_default();
    labels.into_iter().map(|(key, value)| (key.as_ref().into(), value.as_ref().into())).collect()
}

fn field(tree: &Value, pointer: &str) -> Box<str> {
    match tree.pointer(pointer) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Bool(value)) => value.to_string().into(),
        Some(Value::Number(value)) => value.to_string().into(),
        _ => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_version_is_spliced_in_and_replaced() {
        let value = json!({"kind": "K", "apiVersion": "g/v1", "data": {"metadata": "x"}, "metadata": {"name": "a", "resourceVersion": "3"}});
        let text = encode(&value);
        let first = with_revision(&text, 7);
        let second = with_revision(&first, 8);
        let read: Value = serde_json::from_slice(&second).unwrap();
        assert_eq!(read["metadata"], json!({"name": "a", "resourceVersion": "8"}));
        assert_eq!(read["data"], value["data"]);
        let other: Value = serde_json::from_slice(&with_api_version(&second, "g/v2beta1")).unwrap();
        assert_eq!(other["apiVersion"], "g/v2beta1");
        let empty = with_revision(&encode(&json!({"apiVersion": "v1", "kind": "K", "metadata": {}})), 1);
        assert!(serde_json::from_slice::<Value>(&empty).is_ok());
    }

    #[test]
    fn labels_and_fields_are_read_from_the_text() {
        let value = json!({"kind": "K", "apiVersion": "v1", "metadata": {"name": "a", "labels": {"b": "1", "a": "\u{e9}\n"}}, "spec": {"x": true}});
        let object = object("ns/a", &encode(&value), 5, &[("spec.x".into(), "/spec/x".into())]);
        assert_eq!(&*object.meta.labels[0].0, "a");
        assert_eq!(&*object.meta.labels[0].1, "\u{e9}\n");
        assert_eq!(&*object.meta.fields[0], "true");
        assert_eq!((object.namespace(), object.name(), object.revision()), ("ns", "a", 5));
    }
}
