//! Variables in the values of a Compose file. Pure. Source: the Compose specification, "Interpolation".

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

/// Deepest nesting of `${a:-${b:-…}}`.
const MAX_NESTING: usize = 16;

/// Values by name.
pub type Variables = BTreeMap<String, String>;

/// Replaces the variables in all texts of a document; keys stay as they are.
pub fn document(value: &mut Value, variables: &Variables) -> Result<()> {
    match value {
        Value::String(text) if text.contains('$') => *text = interpolate(text, variables)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| document(item, variables))?,
        Value::Object(map) => map.values_mut().try_for_each(|item| document(item, variables))?,
        _ => {}
    }
    Ok(())
}

/// Replaces `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME:?word}`, `${NAME:+word}` and the same without colon; `$$` is a dollar.
pub fn interpolate(text: &str, variables: &Variables) -> Result<String> {
    expand(text, variables, 0)
}

fn expand(text: &str, variables: &Variables, depth: usize) -> Result<String> {
    if depth > MAX_NESTING {
        bail!("variables are nested deeper than {MAX_NESTING} levels");
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| anyhow::anyhow!("invalid interpolation format for {text:?}"))?;
            out.push_str(&braced(&after[..end], variables, depth)?);
            rest = &after[end + 1..];
        } else {
            let end = name_length(rest);
            if end == 0 {
                bail!("invalid interpolation format for {text:?}. You may need to escape any $ with another $");
            }
            out.push_str(variables.get(&rest[..end]).map_or("", String::as_str));
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn name_length(text: &str) -> usize {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// Where the brace closes that is open at the start.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn braced(inner: &str, variables: &Variables, depth: usize) -> Result<String> {
    let end = name_length(inner);
    let (name, rest) = inner.split_at(end);
    if name.is_empty() {
        bail!("invalid interpolation format for \"${{{inner}}}\"");
    }
    let value = variables.get(name);
    if rest.is_empty() {
        return Ok(value.cloned().unwrap_or_default());
    }
    // With a colon an empty value counts as none.
    let (colon, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
    let set = value.filter(|value| !(colon && value.is_empty()));
    let mut chars = rest.chars();
    let operator = chars.next();
    let word = chars.as_str();
    match (operator, set) {
        (Some('-'), Some(value)) | (Some('?'), Some(value)) => Ok(value.clone()),
        (Some('-'), None) | (Some('+'), Some(_)) => expand(word, variables, depth + 1),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            bail!("required variable {name} is missing a value: {}", expand(word, variables, depth + 1)?)
        }
        _ => bail!("invalid interpolation format for \"${{{inner}}}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_replaced() {
        let variables = Variables::from([("A".into(), "x".into()), ("E".into(), String::new())]);
        for (text, wanted) in [
            ("$A-${A}", "x-x"),
            ("$$A", "$A"),
            ("${N:-d}${N-d}${E:-d}${E-d}", "ddd"),
            ("${A:+y}${N:+y}${E+y}", "yy"),
            ("${N:-${M:-deep}}", "deep"),
            ("${A:?no}", "x"),
        ] {
            assert_eq!(interpolate(text, &variables).unwrap(), wanted, "{text}");
        }
        for bad in ["${A", "${}", "$", "${A!b}", "$1", "${N:?must}", "${E:?must}"] {
            assert!(interpolate(bad, &variables).is_err(), "{bad}");
        }
    }
}
