//! Label selectors: `a=b,c!=d,e in (f,g),h notin (i),j,!k`, and the structured form of `metav1.LabelSelector`.

use serde_json::Value;

/// Longest selector text. Units: bytes.
const MAX_SELECTOR_BYTES: usize = 64 * 1024;
/// Most requirements of one selector.
const MAX_REQUIREMENTS: usize = 1024;

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The label is there and has one of these values.
    In(String, Vec<String>),
    /// The label is missing or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is missing.
    DoesNotExist(String),
    /// The label is a number above this one.
    GreaterThan(String, i64),
    /// The label is a number below this one.
    LessThan(String, i64),
}

/// All requirements must hold; no requirements select everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The requirements.
    pub requirements: Vec<Requirement>,
}

impl Requirement {
    fn matches<'a>(&self, get: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| get(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Requirement::In(key, values) => get(key).is_some_and(|own| values.iter().any(|value| value == own)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|own| values.iter().all(|value| value != own)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::DoesNotExist(key) => get(key).is_none(),
            Requirement::GreaterThan(key, bound) => number(key).is_some_and(|own| own > *bound),
            Requirement::LessThan(key, bound) => number(key).is_some_and(|own| own < *bound),
        }
    }
}

impl LabelSelector {
    /// Reads the text form. Errors: what is wrong, for people.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(format!("selector is longer than {MAX_SELECTOR_BYTES} bytes"));
        }
        let mut parser = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(format!("selector has more than {MAX_REQUIREMENTS} requirements"));
            }
            requirements.push(parser.requirement()?);
            if parser.rest.is_empty() {
                break;
            }
            parser.expect(',')?;
            if parser.rest.is_empty() {
                return Err("found '', expected: identifier after ','".to_owned());
            }
        }
        Ok(LabelSelector { requirements })
    }

    /// Reads `{matchLabels, matchExpressions}`. An absent selector selects nothing, so callers must look at that first.
    pub fn from_structured(selector: &Value) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_owned()]));
            }
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = crate::json::text(expression, "/key").to_owned();
            let values = crate::json::strings(expression, "/values");
            requirements.push(match crate::json::text(expression, "/operator") {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            });
        }
        Ok(LabelSelector { requirements })
    }

    /// Whether the labels satisfy it.
    pub fn matches(&self, labels: &[(Box<str>, Box<str>)]) -> bool {
        let get = |key: &str| {
            let at = labels.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
            labels.get(at).map(|(_, value)| &**value)
        };
        self.requirements.iter().all(|requirement| requirement.matches(&get))
    }

    /// Whether a label map in an object satisfies it.
    pub fn matches_value(&self, labels: Option<&Value>) -> bool {
        let get = |key: &str| labels?.get(key)?.as_str();
        self.requirements.iter().all(|requirement| requirement.matches(&get))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        self.skip();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest.trim_start();
                Ok(())
            }
            None => Err(format!("found '{}', expected: '{wanted}'", head(self.rest))),
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip();
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '!' | '(' | ')' | '<' | '>'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        self.skip();
        if let Some(rest) = self.rest.strip_prefix('!') {
            self.rest = rest;
            return Ok(Requirement::DoesNotExist(self.key()?));
        }
        let key = self.key()?;
        for (operator, equal) in [("==", true), ("!=", false), ("=", true)] {
            if let Some(rest) = self.rest.strip_prefix(operator) {
                self.rest = rest;
                let value = self.value()?;
                return Ok(if equal {
                    Requirement::In(key, vec![value])
                } else {
                    Requirement::NotIn(key, vec![value])
                });
            }
        }
        for (operator, greater) in [('>', true), ('<', false)] {
            if let Some(rest) = self.rest.strip_prefix(operator) {
                self.rest = rest;
                let value = self.value()?;
                let bound = value
                    .parse()
                    .map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer, got {value:?}"))?;
                return Ok(if greater {
                    Requirement::GreaterThan(key, bound)
                } else {
                    Requirement::LessThan(key, bound)
                });
            }
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement::Exists(key));
        }
        match self.word() {
            "in" => Ok(Requirement::In(key, self.values()?)),
            "notin" => Ok(Requirement::NotIn(key, self.values()?)),
            other => Err(format!(
                "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                if other.is_empty() { head(self.rest) } else { head(other) }
            )),
        }
    }

    fn key(&mut self) -> Result<String, String> {
        let word = self.word();
        match crate::validation::names::qualified_name(word) {
            None => Ok(word.to_owned()),
            Some(problem) => Err(format!("key: Invalid value: {word:?}: {problem}")),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        let word = self.word();
        match crate::validation::names::label_value(word) {
            None => Ok(word.to_owned()),
            Some(problem) => Err(format!("values[0]: Invalid value: {word:?}: {problem}")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        self.expect('(')?;
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            if self.rest.starts_with(')') {
                self.expect(')')?;
                return Ok(values);
            }
            self.expect(',')?;
        }
    }
}

fn head(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(selector: &str, labels: &[(&str, &str)]) -> bool {
        let mut labels: Vec<(Box<str>, Box<str>)> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        labels.sort();
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn every_operator_selects_as_documented() {
        let labels = &[("app", "web"), ("tier", "front"), ("n", "5")];
        for selector in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "x!=1",
            "app in (db, web)",
            "app notin (db)",
            "x notin (a)",
            "app",
            "!x",
            "app = web , tier=front",
            "n>4",
            "n<6",
            "app in (web),!y",
        ] {
            assert!(check(selector, labels), "{selector}");
        }
        for selector in ["app=db", "x=1", "app in (db)", "app notin (web)", "x", "!app", "n>5", "app>1", "x="] {
            assert!(!check(selector, labels), "{selector}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for selector in ["a=b,", ",", "a in b", "a in (b", "a b", "=x", "a=b=c", "a=*", "a/b/c=d", "a>x"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
        assert!(LabelSelector::parse(&"a=b,".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,64}") {
            let _ = LabelSelector::parse(&text);
        }

        #[test]
        fn equality_and_inequality_are_opposites(key in "[a-c]", value in "[a-c]", labels in proptest::collection::btree_map("[a-c]", "[a-c]", 0..3)) {
            let labels: Vec<(Box<str>, Box<str>)> = labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
            let equal = LabelSelector::parse(&format!("{key}={value}")).unwrap().matches(&labels);
            let unequal = LabelSelector::parse(&format!("{key}!={value}")).unwrap().matches(&labels);
            prop_assert_ne!(equal, unequal);
        }
    }
}
