//! The part of Kubernetes' JSONPath that printer columns use: fields, indices, wildcards, equality filters. Pure.

use serde_json::Value;

/// Longest path that is evaluated. Units: bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Most values that one path may yield.
const MAX_VALUES: usize = 1000;

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter { path: Vec<String>, equal: bool, literal: Value },
}

/// All values at `path` (`.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`); none when it is malformed.
pub(crate) fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let Some(steps) = parse(path) else { return Vec::new() };
    let mut found = vec![object];
    for step in &steps {
        let mut next: Vec<&Value> = Vec::new();
        for value in found {
            apply(step, value, &mut next);
        }
        next.truncate(MAX_VALUES);
        found = next;
    }
    found
}

fn apply<'a>(step: &Step, value: &'a Value, next: &mut Vec<&'a Value>) {
    match step {
        Step::Field(name) => next.extend(value.get(name)),
        Step::Index(index) => {
            let Some(list) = value.as_array() else { return };
            let place = usize::try_from(*index)
                .ok()
                .or_else(|| usize::try_from(index.unsigned_abs()).ok().and_then(|back| list.len().checked_sub(back)));
            next.extend(place.and_then(|place| list.get(place)));
        }
        Step::All => match value {
            Value::Array(list) => next.extend(list),
            Value::Object(map) => next.extend(map.values()),
            _ => {}
        },
        Step::Filter { path, equal, literal } => {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            next.extend(list.iter().filter(|item| {
                let found = path.iter().try_fold(*item, |at, name| at.get(name));
                found.is_some_and(|found| (found == literal) == *equal)
            }));
        }
    }
}

fn parse(path: &str) -> Option<Vec<Step>> {
    if path.len() > MAX_PATH_BYTES {
        return None;
    }
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (inside, tail) = bracket(after)?;
            steps.push(bracket_step(inside)?);
            rest = tail;
        } else {
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (name, tail) = field(after);
            if name == "*" {
                steps.push(Step::All);
            } else if !name.is_empty() {
                steps.push(Step::Field(name));
            }
            if tail.len() == rest.len() {
                return None;
            }
            rest = tail;
        }
    }
    Some(steps)
}

/// A field name up to the next unescaped `.` or `[`.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            other => name.push(other),
        }
    }
    (name, "")
}

/// The text up to the closing bracket, quotes respected.
fn bracket(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, ']') => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

fn bracket_step(inside: &str) -> Option<Step> {
    let inside = inside.trim();
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(inside) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        let (left, right, equal) = match filter.split_once("==") {
            Some((left, right)) => (left, right, true),
            None => filter.split_once("!=").map(|(left, right)| (left, right, false))?,
        };
        let path =
            left.trim().strip_prefix('@')?.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let right = right.trim();
        let literal = match unquoted(right) {
            Some(text) => Value::from(text),
            None => serde_json::from_str(right).ok()?,
        };
        return Some(Step::Filter { path, equal, literal });
    }
    inside.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(path: &str, expected: &[Value]) {
        let object = json!({"a": {"b.c": 1, "d": [{"t": "x", "v": 7}, {"t": "y", "v": 8}]}});
        let found: Vec<Value> = find(&object, path).into_iter().cloned().collect();
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths_of_printer_columns_are_evaluated() {
        check(".a.d[0].v", &[json!(7)]);
        check("{.a.d[-1].v}", &[json!(8)]);
        check(".a.d[*].v", &[json!(7), json!(8)]);
        check(".a.d[?(@.t==\"y\")].v", &[json!(8)]);
        check(".a.d[?(@.t != 'y')].v", &[json!(7)]);
        check(".a.b\\.c", &[json!(1)]);
        check(".a['b.c']", &[json!(1)]);
        check(".a.none", &[]);
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(path in ".{0,40}") {
            find(&json!({"a": [1, {"b": 2}]}), &path);
        }
    }
}
