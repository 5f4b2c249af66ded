//! JSON of request bodies: bounded depth, duplicate keys refused (two readers of one body must never come to different
//! verdicts), and Docker's words for what is malformed.

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Deepest nesting of a body; Docker's own structures nest six deep. Below serde_json's own bound of 128.
const DEPTH_MAX: usize = 64;

/// Refuses a content type that is not JSON, as Docker does.
pub(crate) fn check_content_type(content_type: &str) -> Result<()> {
    let kind = content_type.split(';').next().unwrap_or("").trim();
    if kind.is_empty() {
        return Err(Error::Invalid("malformed Content-Type header (): mime: no media type".into()));
    }
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Error::Invalid(format!("unsupported Content-Type header ({content_type}): must be 'application/json'")))
}

/// Reads a body.
///
/// Errors: [`Error::Invalid`] with the text that Docker's own JSON reader gives where we know it.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = match (Strict { depth: 0 }).deserialize(&mut reader) {
        Ok(value) => value,
        Err(error) => return Err(Error::Invalid(format!("invalid JSON: {}", describe(bytes, &error)))),
    };
    if reader.end().is_err() {
        return Err(Error::Invalid("unexpected content after JSON".into()));
    }
    serde_json::from_value(drop_nulls(value, false)).map_err(|e| Error::Invalid(format!("invalid JSON: {e}")))
}

/// Fields whose members' names are data (`{"80/tcp": null}` is a set): there a null keeps its key.
const SETS: [&str; 5] = ["ExposedPorts", "Volumes", "PortBindings", "EndpointsConfig", "Tmpfs"];

/// Go reads `null` as "leave the default"; so null members are dropped before they reach typed fields.
fn drop_nulls(value: Value, keep: bool) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, member)| keep || !member.is_null())
                .map(|(key, member)| {
                    let set = SETS.contains(&key.as_str());
                    (key, drop_nulls(member, set))
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| drop_nulls(item, false)).collect()),
        other => other,
    }
}

/// Go's words for what is wrong.
fn describe(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return if bytes.iter().all(u8::is_ascii_whitespace) {
            "got EOF while reading request body".into()
        } else {
            "unexpected EOF".into()
        };
    }
    if error.is_syntax() {
        let line_start =
            bytes.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
        if let Some(byte) = bytes.get(line_start + error.column().saturating_sub(1)) {
            let place = if line_start + error.column() <= 1 { "looking for beginning of value" } else { "in the body" };
            return format!("invalid character '{}' {place} ({error})", char::from(*byte).escape_default());
        }
    }
    error.to_string()
}

/// Builds a [`Value`] and refuses what would let two readers disagree.
struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(D::Error::custom("exceeded max depth"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict { depth: self.depth + 1 })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        // Go matches field names without regard to case, so `Privileged` and `privileged` are duplicates there.
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = members.next_key::<String>()? {
            let structural = key.chars().all(|c| c.is_ascii_alphanumeric());
            if map.contains_key(&key) || (structural && !seen.insert(key.to_ascii_lowercase()) && self.depth < 3) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
            let value = members.next_value_seed(Strict { depth: self.depth + 1 })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse::<Value>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn malformed_bodies_get_dockers_words() {
        assert_eq!(message("{\"a\": 1"), "invalid JSON: unexpected EOF");
        assert_eq!(message("  "), "invalid JSON: got EOF while reading request body");
        assert!(message("nope").starts_with("invalid JSON: "));
        assert_eq!(message("{} {}"), "unexpected content after JSON");
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_depth_and_in_any_case() {
        assert!(message(r#"{"HostConfig":{"Privileged":true,"Privileged":false}}"#).contains("duplicate key"));
        assert!(message(r#"{"HostConfig":{"Privileged":true,"privileged":false}}"#).contains("duplicate key"));
        assert!(message(r#"{"HostConfig":{},"hostconfig":{}}"#).contains("duplicate key"));
    }

    #[test]
    fn depth_is_bounded() {
        let bomb = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(message(&bomb).starts_with("invalid JSON: "));
        let fine = format!("{}{}", "[".repeat(60), "]".repeat(60));
        assert!(parse::<Value>(fine.as_bytes()).is_ok());
    }

    #[test]
    fn nulls_mean_the_default_but_sets_keep_their_keys() {
        let value: Value =
            parse(br#"{"Cmd":null,"HostConfig":{"Binds":null,"Memory":1},"ExposedPorts":{"80/tcp":null}}"#).unwrap();
        assert_eq!(value, serde_json::json!({"HostConfig":{"Memory":1},"ExposedPorts":{"80/tcp":null}}));
    }

    #[test]
    fn content_types_are_checked() {
        assert!(check_content_type("application/json; charset=utf-8").is_ok());
        assert!(check_content_type("text/plain").unwrap_err().to_string().contains("must be 'application/json'"));
        assert!(check_content_type("").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse::<Value>(&bytes);
        }
    }
}
