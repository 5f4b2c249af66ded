//! The `filters` parameter: `{"label":["a=b"]}` or the old `{"label":{"a=b":true}}`, with Docker's checks.

use std::collections::BTreeMap;

use api::log_tag::{PATTERN_BYTES_MAX, PATTERN_TEXT_BYTES_MAX};
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

    /// What is asked of names, ready to be put to many of them.
    ///
    /// Errors: [`Error::Invalid`] for more patterns than are compiled for one request.
    pub(crate) fn names(&self) -> Result<Names> {
        let texts = self.values("name");
        if texts.iter().filter(|text| plain(text).is_none()).count() > PATTERNS_MAX {
            return Err(Error::Invalid(format!("invalid filter 'name': more than {PATTERNS_MAX} patterns")));
        }
        Ok(Names(texts.iter().map(|text| Pattern::of(text)).collect()))
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

/// Patterns that are compiled for one request.
const PATTERNS_MAX: usize = 64;

/// What a request asks of names.
#[derive(Debug)]
pub(crate) struct Names(Vec<Pattern>);

impl Names {
    /// True when nothing was asked, or any of the names matches any pattern.
    pub(crate) fn accept(&self, names: &[&str]) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| names.iter().any(|name| pattern.matches(name)))
    }
}

/// Docker matches names as regular expressions, anywhere in the name; a pattern that is none matches itself alone.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: String,
    /// `None` for what is plain, and for what is no pattern.
    compiled: Option<regex::Regex>,
}

impl Pattern {
    /// Reads a pattern. One that is too large is none.
    pub(crate) fn of(text: &str) -> Self {
        let compile = plain(text).is_none() && text.len() <= PATTERN_TEXT_BYTES_MAX;
        let build = || regex::RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build().ok();
        Self { text: text.to_owned(), compiled: compile.then(build).flatten() }
    }

    /// Whether a name matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        if self.text == name {
            return true;
        }
        match plain(&self.text) {
            Some((true, body, true)) => name == body,
            Some((true, body, false)) => name.starts_with(body),
            Some((false, body, true)) => name.ends_with(body),
            Some((false, body, false)) => name.contains(body),
            None => self.compiled.as_ref().is_some_and(|compiled| compiled.is_match(name)),
        }
    }
}

/// Most patterns are plain, and nothing is compiled for them: whether it is tied to the start, the text, and whether it is tied
/// to the end.
fn plain(pattern: &str) -> Option<(bool, &str, bool)> {
    let (start, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (end, body) = rest.strip_suffix('$').map_or((false, rest), |body| (true, body));
    let is_plain = body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/'));
    is_plain.then_some((start, body, end))
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

    fn name_matches(pattern: &str, name: &str) -> bool {
        Pattern::of(pattern).matches(name)
    }

    #[test]
    fn names_are_asked_for_by_any_of_a_bounded_number_of_patterns() {
        let names = |patterns: Vec<String>| Filters(BTreeMap::from([("name".to_owned(), patterns)])).names();
        let some = names(vec!["^/web$".into(), "d.$".into()]).unwrap();
        assert!(some.accept(&["web", "/web"]) && some.accept(&["db", "/db"]) && !some.accept(&["web1", "/web1"]));
        assert!(Filters::default().names().unwrap().accept(&["any"]));
        assert!(names(vec!["web".into(); PATTERNS_MAX + 1]).is_ok(), "nothing is compiled for them");
        assert!(names(vec!["w.b".into(); PATTERNS_MAX]).is_ok());
        assert!(names(vec!["w.b".into(); PATTERNS_MAX + 1]).is_err());
    }

    #[test]
    fn names_match_by_part_and_with_anchors() {
        assert!(name_matches("eb", "web"));
        assert!(name_matches("^web$", "web") && !name_matches("^web$", "web1"));
        assert!(name_matches("^w.*b$", "web"));
        assert!(name_matches("web-[0-9]+$", "web-12") && !name_matches("web-[0-9]+$", "web-x"));
        assert!(name_matches("^(db|web)$", "db") && !name_matches("^(db|web)$", "dbs"));
        assert!(!name_matches("web[", "web") && name_matches("web[", "web["), "no pattern at all");
        assert!(name_matches("a{1,20}b?", "a"));
        assert!(regex::Regex::new("a{1,20000}b?").is_ok_and(|compiled| compiled.is_match("a")));
        assert!(!name_matches("a{1,20000}b?", "a"), "one that is too large");
        let long = format!("a|{}", "b".repeat(PATTERN_TEXT_BYTES_MAX));
        assert!(!name_matches(&long, "a") && name_matches(&long, &long), "one that is too long");
    }
}
