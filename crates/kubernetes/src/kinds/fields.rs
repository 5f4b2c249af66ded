//! Small helpers to read, default and check fields of objects as JSON trees. Pure.

use apiserver::Cause;
use serde_json::{Map, Value};

/// Sets a field of an object when it is absent or null.
pub(super) fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value.into());
    }
}

/// The object under a field, made when it is absent; `None` when something else is there.
pub(super) fn object_mut<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let map = parent.as_object_mut()?;
    let child = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child.is_object().then_some(child)
}

/// The items of a list field; empty when there is none.
pub(super) fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The same, to change.
pub(super) fn items_mut<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Text at a JSON pointer; empty when there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Number at a JSON pointer; 0 when there is none.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
/// Longest DNS label. Units: bytes.
const MAX_LABEL_BYTES: usize = 63;

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(inner)
}

/// Checks a DNS label of RFC 1123; a missing one is a missing value.
pub(super) fn check_label(path: &str, text: &str, causes: &mut Vec<Cause>) {
    if text.is_empty() {
        causes.push(Cause::required(path, ""));
    } else if text.len() > MAX_LABEL_BYTES {
        causes.push(Cause::invalid(path, &text.into(), "must be no more than 63 bytes"));
    } else if !is_label(text) {
        causes.push(Cause::invalid(path, &text.into(), LABEL_RULE));
    }
}

/// Checks a DNS label of RFC 1035, which starts with a letter.
pub(super) fn check_label_1035(path: &str, text: &str, causes: &mut Vec<Cause>) {
    if text.len() > MAX_LABEL_BYTES {
        causes.push(Cause::invalid(path, &text.into(), "must be no more than 63 bytes"));
    } else if !is_label(text) || !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        causes.push(Cause::invalid(path, &text.into(), LABEL_1035_RULE));
    }
}

/// Checks that a number is a port.
pub(super) fn check_port(path: &str, value: &Value, causes: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
        causes.push(Cause::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

/// Checks that a value, when given, is one of some words.
pub(super) fn check_word(path: &str, value: Option<&Value>, words: &[&str], causes: &mut Vec<Cause>) {
    if let Some(value) = value.filter(|value| !value.is_null())
        && !value.as_str().is_some_and(|word| words.contains(&word))
    {
        causes.push(Cause::not_supported(path, value, words));
    }
}

/// Checks that a number, when given, is not negative.
pub(super) fn check_not_negative(path: &str, value: Option<&Value>, causes: &mut Vec<Cause>) {
    if let Some(value) = value
        && value.as_i64().is_some_and(|number| number < 0)
    {
        causes.push(Cause::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// Checks that a field did not change.
pub(super) fn check_immutable(path: &str, new: Option<&Value>, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if new != old {
        causes.push(Cause::invalid(path, new.unwrap_or(&Value::Null), "field is immutable"));
    }
}

/// A quantity in thousandths, as far as an `i128` goes; `None` when it is malformed.
pub(super) fn quantity_milli(value: &Value) -> Option<i128> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0
        || whole.len() > 20
        || !(whole.to_owned() + fraction).bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    // (numerator, denominator) of the suffix in thousandths.
    let scale: (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent if exponent.starts_with(['e', 'E']) => {
            let power: u32 = exponent[1..].parse().ok().filter(|power| *power <= 18)?;
            (1_000 * 10i128.pow(power), 1)
        }
        _ => return None,
    };
    let fraction: String = fraction.chars().take(9).collect();
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let divisor = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let milli = whole.checked_mul(scale.0)?.checked_add(part.checked_mul(scale.0)? / divisor)? / scale.1;
    Some(if negative { -milli } else { milli })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read() {
        for (text, milli) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1e3", Some(1_000_000)),
            ("-2", Some(-2000)),
            ("0.1", Some(100)),
            ("x", None),
            ("1Q", None),
            ("", None),
            ("1.2.3", None),
        ] {
            assert_eq!(quantity_milli(&json!(text)), milli, "{text}");
        }
        assert_eq!(quantity_milli(&json!(2)), Some(2000));
    }

    proptest::proptest! {
        #[test]
        fn no_quantity_panics(text in ".{0,30}") {
            quantity_milli(&json!(text));
        }
    }
}
