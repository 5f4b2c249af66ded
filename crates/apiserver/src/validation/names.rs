//! The grammars of names. Each function answers what is wrong, or `None`. `Source:` apimachinery's `util/validation`.

/// Longest DNS subdomain, and so longest name of most objects. Units: bytes.
pub const MAX_SUBDOMAIN_BYTES: usize = 253;
/// Longest DNS label. Units: bytes.
pub const MAX_LABEL_BYTES: usize = 63;

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn edged(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if edge(*first) && edge(*last))
        && bytes.iter().all(|byte| edge(*byte) || inner(*byte))
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} bytes"))
}

/// RFC 1123 label.
pub fn dns_label(text: &str) -> Option<String> {
    too_long(text, MAX_LABEL_BYTES).or_else(|| (!edged(text, lower, |b| b == b'-')).then(|| LABEL_RULE.to_owned()))
}

/// RFC 1035 label: begins with a letter.
pub fn dns1035_label(text: &str) -> Option<String> {
    let fine = edged(text, lower, |b| b == b'-') && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    too_long(text, MAX_LABEL_BYTES).or_else(|| (!fine).then(|| DNS1035_RULE.to_owned()))
}

/// RFC 1123 subdomain.
pub fn dns_subdomain(text: &str) -> Option<String> {
    let fine = text.split('.').all(|part| edged(part, lower, |b| b == b'-'));
    too_long(text, MAX_SUBDOMAIN_BYTES).or_else(|| (!fine).then(|| SUBDOMAIN_RULE.to_owned()))
}

/// A name that can stand as one segment of a path; RBAC objects have such names.
pub fn path_segment(text: &str) -> Option<String> {
    match text {
        "." | ".." => Some(format!("may not be '{text}'")),
        _ if text.contains('/') => Some("may not contain '/'".to_owned()),
        _ if text.contains('%') => Some("may not contain '%'".to_owned()),
        _ => None,
    }
}

/// A label or annotation key: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Option<String> {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Some("prefix part must be non-empty".to_owned());
            }
            if let Some(problem) = dns_subdomain(prefix) {
                return Some(format!("prefix part {problem}"));
            }
            name
        }
    };
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > MAX_LABEL_BYTES {
        return Some(format!("name part must be no more than {MAX_LABEL_BYTES} bytes"));
    }
    let fine = edged(name, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'));
    (!fine).then(|| QUALIFIED_RULE.to_owned())
}

/// A label value.
pub fn label_value(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let fine = edged(text, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'));
    too_long(text, MAX_LABEL_BYTES).or_else(|| (!fine).then(|| LABEL_VALUE_RULE.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_accept_and_refuse_what_they_should() {
        for good in ["a", "a-b", "a.b", "0"] {
            assert_eq!(dns_subdomain(good), None, "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "a/b", &"a".repeat(254)] {
            assert!(dns_subdomain(bad).is_some(), "{bad}");
        }
        assert!(dns1035_label("1a").is_some() && dns_label("1a").is_none());
        assert!(qualified_name("example.com/Foo_bar").is_none() && qualified_name("/x").is_some());
        assert!(label_value("").is_none() && label_value("a b").is_some() && label_value(&"a".repeat(64)).is_some());
        assert!(path_segment("system:node").is_none() && path_segment("a/b").is_some());
    }
}
