//! A Swagger document as the protobuf message that Go's clients take: `kubectl` reads it before it creates a `List`, whose members the
//! server's own check of fields does not reach. Pure.
//!
//! `Source:` field numbers of `openapi.v2` in google/gnostic, openapiv2/OpenAPIv2.proto

use serde_json::{Map, Value};

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(0x80 | u8::try_from(number & 0x7f).unwrap_or_default());
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or_default());
    }

    /// A field of bytes: a text or a message.
    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, value: &Value) {
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value.as_bool() == Some(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_u64().filter(|number| *number > 0) {
            self.varint(u64::from(field) << 3);
            self.varint(number);
        }
    }

    fn double(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_f64() {
            self.varint(u64::from(field) << 3 | 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }

    /// A map as a message of named values, which are its field 1.
    fn named<'a>(members: impl Iterator<Item = (&'a String, Message)>) -> Message {
        let mut all = Message::default();
        for (name, value) in members {
            all.message(1, pair(name, value));
        }
        all
    }

    /// What begins with `x-`.
    fn extensions(&mut self, field: u32, of: &Map<String, Value>) {
        for (name, value) in of.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.message(field, pair(name, any(value)));
        }
    }
}

fn pair(name: &str, value: Message) -> Message {
    let mut pair = Message::default();
    pair.bytes(1, name.as_bytes());
    pair.message(2, value);
    pair
}

/// Any value, as YAML, which JSON is.
fn any(value: &Value) -> Message {
    let mut any = Message::default();
    any.bytes(2, value.to_string().as_bytes());
    any
}

/// The message of a whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    message.message(2, info);
    let mut paths = Message::default();
    for (path, item) in members(&document["paths"]) {
        paths.message(2, pair(path, path_item(item)));
    }
    message.message(8, paths);
    let definitions = members(&document["definitions"]).map(|(name, one)| (name, schema(one)));
    message.message(9, Message::named(definitions));
    message.0
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in (2..).zip(["get", "put", "post", "delete", "options", "head", "patch"]) {
        if let Some(Value::Object(one)) = item.get(method) {
            message.message(field, operation(one));
        }
    }
    message
}

fn operation(of: &Map<String, Value>) -> Message {
    let at = |name: &str| of.get(name).unwrap_or(&Value::Null);
    let mut message = Message::default();
    message.texts(1, at("tags"));
    message.text(3, at("description"));
    message.text(5, at("operationId"));
    message.texts(6, at("produces"));
    message.texts(7, at("consumes"));
    for one in at("parameters").as_array().into_iter().flatten() {
        let mut item = Message::default();
        item.message(1, parameter(one));
        message.message(8, item);
    }
    let mut responses = Message::default();
    for (code, one) in members(at("responses")) {
        let mut response = Message::default();
        response.text(1, &one["description"]);
        if one["schema"].is_object() {
            let mut item = Message::default();
            item.message(1, schema(&one["schema"]));
            response.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, response);
        responses.message(1, pair(code, value));
    }
    message.message(9, responses);
    message.extensions(13, of);
    message
}

/// A body or a parameter of the query; there are no others.
fn parameter(one: &Value) -> Message {
    let (mut parameter, mut inner) = (Message::default(), Message::default());
    if one["in"] == "body" {
        inner.text(2, &one["name"]);
        inner.text(3, &one["in"]);
        inner.flag(4, &one["required"]);
        inner.message(5, schema(&one["schema"]));
        parameter.message(1, inner);
    } else {
        inner.text(2, &one["in"]);
        inner.text(4, &one["name"]);
        inner.text(6, &one["type"]);
        inner.flag(20, &one["uniqueItems"]);
        let mut outer = Message::default();
        outer.message(3, inner);
        parameter.message(2, outer);
    }
    parameter
}

fn schema(of: &Value) -> Message {
    let mut message = Message::default();
    for (field, name) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description"), (13, "pattern")] {
        message.text(field, &of[name]);
    }
    if let Some(default) = of.get("default") {
        message.message(5, any(default));
    }
    for (field, name) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        message.double(field, &of[name]);
    }
    for (field, name) in [(8, "exclusiveMaximum"), (10, "exclusiveMinimum"), (16, "uniqueItems"), (27, "readOnly")] {
        message.flag(field, &of[name]);
    }
    let sizes = ["maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"];
    for (field, name) in [11, 12, 14, 15, 17, 18].into_iter().zip(sizes) {
        message.integer(field, &of[name]);
    }
    message.texts(19, &of["required"]);
    for one in of["enum"].as_array().into_iter().flatten() {
        message.message(20, any(one));
    }
    match &of["additionalProperties"] {
        Value::Bool(allowed) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(u64::from(*allowed));
            message.message(21, item);
        }
        Value::Object(_) => {
            let mut item = Message::default();
            item.message(1, schema(&of["additionalProperties"]));
            message.message(21, item);
        }
        _ => {}
    }
    if of["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &of["type"]);
        message.message(22, item);
    }
    if of["items"].is_object() {
        let mut item = Message::default();
        item.message(1, schema(&of["items"]));
        message.message(23, item);
    }
    for one in of["allOf"].as_array().into_iter().flatten() {
        message.message(24, schema(one));
    }
    if of["properties"].is_object() {
        let properties = members(&of["properties"]).map(|(name, one)| (name, schema(one)));
        message.message(25, Message::named(properties));
    }
    if let Some(map) = of.as_object() {
        message.extensions(31, map);
    }
    message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_small_document_is_the_bytes_of_its_message() {
        let text = document(&json!({"swagger": "2.0", "info": {"title": "K", "version": "v1"},
            "definitions": {"a": {"type": "object", "x-y": [1]}}, "paths": {}}));
        let definition =
            b"\x0a\x1f\x0a\x01a\x12\x1a\xb2\x01\x08\x0a\x06object\xfa\x01\x0c\x0a\x03x-y\x12\x05\x12\x03[1]";
        let mut wanted = b"\x0a\x032.0\x12\x07\x0a\x01K\x12\x02v1\x42\x00\x4a".to_vec();
        wanted.push(u8::try_from(definition.len()).unwrap());
        wanted.extend_from_slice(definition);
        assert_eq!(text, wanted);
    }
}
