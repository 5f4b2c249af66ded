//! Reads JSON that strangers send: bounded in size and depth, and duplicate keys are found instead of swallowed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::status::Status;

/// Largest request body; Kubernetes' own bound. Units: bytes.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// Most duplicate keys that one answer names.
const MAX_DUPLICATES: usize = 10;

/// Decodes one JSON document and names its duplicate keys (the last value wins, as everywhere).
///
/// Errors: bad request when it is no JSON or nested deeper than 128 levels; too large above [`MAX_BODY_BYTES`].
pub fn decode(bytes: &[u8]) -> Result<(Value, Vec<String>), Status> {
    if bytes.len() > MAX_BODY_BYTES {
        return Err(Status::request_entity_too_large(format!("limit is {MAX_BODY_BYTES}")));
    }
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Checked { path: &Path::Root, duplicates: &mut duplicates };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) => Ok((value, duplicates)),
        Err(error) => Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
    }
}

enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Checked<'a> {
    path: &'a Path<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path::Index(self.path, items.len());
            match access.next_element_seed(Checked { path: &path, duplicates: &mut *self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path::Field(self.path, &key);
            if map.contains_key(&key) && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(path.to_string());
            }
            let value = access
                .next_value_seed(Checked { path: &path, duplicates: &mut *self.duplicates })
                .map_err(A::Error::custom)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The string at a pointer, or empty.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a member of `metadata`, making `metadata` when it is not there.
pub fn set_metadata(object: &mut Value, name: &str, value: Value) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(name.to_owned(), value);
    }
}

/// `metadata` as a map, made when it is not there; `None` when the object is no map.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

/// The strings of an array at a pointer.
pub fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let items = value.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A value that is absent, null, or an empty string, map or list.
pub fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_named_by_path() {
        let (value, duplicates) = decode(br#"{"a":1,"a":2,"b":[{"c":1,"c":2}]}"#).unwrap();
        assert_eq!(value["a"], 2);
        assert_eq!(duplicates, ["a", "b[0].c"]);
    }

    #[test]
    fn ten_thousand_levels_are_a_bad_request() {
        let text = "[".repeat(10_000);
        assert_eq!(decode(text.as_bytes()).unwrap_err().code, 400);
        assert_eq!(decode(b"{\"a\":1}garbage").unwrap_err().code, 400);
        assert_eq!(decode(&vec![b' '; MAX_BODY_BYTES + 1]).unwrap_err().code, 413);
    }
}
