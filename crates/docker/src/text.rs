//! Small text work that the Engine API needs: percent-decoding, Go's quoting, ids and their short forms.

use std::fmt::Write as _;

use rand::RngCore as _;

/// Length of a full id in hexadecimal digits.
pub(crate) const ID_LENGTH: usize = 64;
/// Length of the short form that people see.
pub(crate) const SHORT_ID_LENGTH: usize = 12;

/// Decodes `%41`; malformed escapes stay as they are.
pub(crate) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Decodes a part of a query string, where `+` is a space.
pub(crate) fn percent_decode_plus(text: &str) -> String {
    percent_decode(&text.replace('+', " "))
}

/// What may stand in a query string for a text. `Source:` Go, `url.QueryEscape`.
pub(crate) fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            // Writing to a string cannot fail.
            other => drop(write!(escaped, "%{other:02X}")),
        }
    }
    escaped
}

/// A text in double quotes, as Go's `%q` writes it for ordinary texts.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A new random id.
pub(crate) fn new_id() -> String {
    loop {
        let mut bytes = [0_u8; ID_LENGTH / 2];
        rand::rng().fill_bytes(&mut bytes);
        let id = hex::encode(bytes);
        // An all-digit short form would be taken for a number as a host name.
        if !id[..SHORT_ID_LENGTH].bytes().all(|b| b.is_ascii_digit()) {
            return id;
        }
    }
}

/// The id that always belongs to a name, for things that exist without being made.
pub(crate) fn id_of_name(name: &str) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(name.as_bytes()))
}

/// First twelve digits.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..SHORT_ID_LENGTH).unwrap_or(id)
}

/// Whether a text could be the beginning of an id.
pub(crate) fn is_id_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= ID_LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Docker's rule for names of containers and volumes: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub(crate) fn is_restricted_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() >= 2
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

pub(crate) use api::names::object_name;

/// A size as Docker's command line prints it in errors and status lines (decimal units).
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[expect(clippy::cast_precision_loss, reason = "only for display")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.4}{}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_decoding_leaves_malformed_escapes() {
        assert_eq!(percent_decode("a%2Fb%zz%4"), "a/b%zz%4");
        assert_eq!(percent_decode_plus("a+b%2B"), "a b+");
    }

    #[test]
    fn ids_are_64_hexadecimal_digits_and_never_look_like_a_number() {
        let id = new_id();
        assert_eq!(id.len(), ID_LENGTH);
        assert!(is_id_prefix(&id));
        assert_eq!(short_id(&format!("sha256:{id}")), &id[..12]);
    }

    #[test]
    fn object_names_are_dns_names() {
        assert_eq!(object_name("web"), "web");
        assert_eq!(object_name("a.b-c"), "a.b-c");
        assert!(object_name("My_Volume").starts_with("x-"));
        assert!(object_name("-a").starts_with("x-"));
        assert!(object_name("a..b").starts_with("x-"));
        assert_ne!(object_name("A_"), object_name("a_"));
    }

    #[test]
    fn restricted_names_follow_dockers_rule() {
        assert!(is_restricted_name("a1") && is_restricted_name("A_b.c-d"));
        assert!(!is_restricted_name("a") && !is_restricted_name("_a") && !is_restricted_name("a b"));
    }
}
