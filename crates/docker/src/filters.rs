//! The `filters` parameter: `{"label":["a=b"]}` or the old `{"label":{"a=b":true}}`, with Docker's checks.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::call::Query;
use crate::error::{Error, Result};

/// Filters of a request, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the parameter and checks the names.
    ///
    /// Errors: [`Error::Invalid`] in Docker's words for malformed text or a name that is not accepted.
    pub(crate) fn of(query: &Query, accepted: &[&str]) -> Result<Self> {
        let Some(text) = query.text("filters") else { return Ok(Self::default()) };
        let malformed = || Error::Invalid("invalid filter".into());
        let Ok(Value::Object(map)) = serde_json::from_str::<Value>(text) else { return Err(malformed()) };
        let mut filters = BTreeMap::new();
        for (name, values) in map {
            if !accepted.contains(&name.as_str()) {
                return Err(Error::Invalid(format!("invalid filter '{name}'")));
            }
            let values = match values {
                Value::Array(items) => items
                    .iter()
                    .map(|v| v.as_str().map(str::to_owned))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(malformed)?,
                Value::Object(set) => {
                    set.into_iter().filter(|(_, on)| *on != Value::Bool(false)).map(|(v, _)| v).collect()
                }
                _ => return Err(malformed()),
            };
            filters.insert(name, values);
        }
        Ok(Self(filters))
    }

    /// The values of a name.
    pub(crate) fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a name was given with at least one value.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.values(name).is_empty()
    }

    /// True when a name was not given, or any of its values is accepted.
    pub(crate) fn any(&self, name: &str, accept: impl FnMut(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().map(String::as_str).any(accept)
    }

    /// True when all `label` values match, and no `label!` value does.
    pub(crate) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.values("label").iter().all(|wanted| label_matches(wanted, labels))
            && self.values("label!").iter().all(|unwanted| !label_matches(unwanted, labels))
    }

    /// A boolean filter.
    ///
    /// Errors: [`Error::Invalid`] for other values, or for both at once.
    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>> {
        let mut result = None;
        for value in self.values(name) {
            let value = match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "t" => true,
                "0" | "false" | "f" => false,
                _ => return Err(Error::Invalid(format!("invalid filter '{name}=[{value}]'"))),
            };
            if result.is_some_and(|earlier| earlier != value) {
                return Err(Error::Invalid(format!("invalid filter '{name}': both true and false")));
            }
            result = Some(value);
        }
        Ok(result)
    }
}

/// `key` or `key=value`.
pub(crate) fn label_matches(wanted: &str, labels: &BTreeMap<String, String>) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
        None => labels.contains_key(wanted),
    }
}

/// Most memory that a pattern of a client's may take once it is compiled. Units: bytes.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// Docker matches names as regular expressions, anywhere in the name; a pattern that is none matches itself alone.
pub(crate) fn name_matches(pattern: &str, name: &str) -> bool {
    if pattern == name {
        return true;
    }
    // Most patterns are plain, and nothing is compiled for them.
    let (start, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (end, body) = rest.strip_suffix('$').map_or((false, rest), |body| (true, body));
    if !body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/')) {
        let compiled = regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
        return compiled.is_ok_and(|compiled| compiled.is_match(name));
    }
    match (start, end) {
        (true, true) => name == body,
        (true, false) => name.starts_with(body),
        (false, true) => name.ends_with(body),
        (false, false) => name.contains(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Filters> {
        let request =
            http::Request::builder().uri(format!("/x?filters={text}")).body(axum::body::Body::empty()).unwrap();
        let call = crate::call::Call::new(crate::version::MAXIMUM_VERSION, Vec::new(), request).unwrap();
        Filters::of(&call.query, &["label", "label!", "name", "dangling"])
    }

    #[test]
    fn both_notations_are_read_and_unknown_names_refused() {
        let list = of("%7B%22label%22:%5B%22a=b%22%5D%7D").unwrap();
        let map = of("%7B%22label%22:%7B%22a=b%22:true%7D%7D").unwrap();
        assert_eq!(list, map);
        assert_eq!(list.values("label"), ["a=b"]);
        assert_eq!(of("%7B%22nope%22:%5B%22x%22%5D%7D").unwrap_err().to_string(), "invalid filter 'nope'");
        assert!(of("nonsense").is_err());
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(label_matches("a", &labels) && label_matches("a=b", &labels));
        assert!(!label_matches("a=c", &labels) && !label_matches("b", &labels));
    }

    #[test]
    fn names_match_by_part_and_with_anchors() {
        assert!(name_matches("eb", "web"));
        assert!(name_matches("^web$", "web") && !name_matches("^web$", "web1"));
        assert!(name_matches("^w.*b$", "web"));
        assert!(name_matches("web-[0-9]+$", "web-12") && !name_matches("web-[0-9]+$", "web-x"));
        assert!(name_matches("^(db|web)$", "db") && !name_matches("^(db|web)$", "dbs"));
        assert!(!name_matches("web[", "web") && name_matches("web[", "web["), "no pattern at all");
        assert!(!name_matches(&"(a{1,900}){1,900}".repeat(9), "a"), "one that is too large");
    }
}
