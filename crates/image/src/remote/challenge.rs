//! The `WWW-Authenticate` header. Pure.
//! Source: RFC 9110, section 11.6.1; the distribution project's token specification.

use std::collections::BTreeMap;

/// What a registry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For whom.
        service: String,
        /// For what.
        scope: String,
    },
}

/// Reads one header value. `None` for schemes that we do not know.
pub fn parse(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    let mut take = |name: &str| parameters.remove(name).unwrap_or_default();
    let realm = take("realm");
    (!realm.is_empty()).then(|| Challenge::Bearer { realm, service: take("service"), scope: take("scope") })
}

fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_start_matches([',', ' ']).trim().to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((i, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = i + 1;
                            break;
                        }
                        '\\' => value.extend(chars.next().map(|(_, c)| c)),
                        c => value.push(c),
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.insert(name, value);
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://a.example/token",service="r.example",scope="repository:x:pull,push""#;
        let Some(Challenge::Bearer { realm, service, scope }) = parse(text) else { panic!("no bearer") };
        assert_eq!((realm.as_str(), service.as_str()), ("https://a.example/token", "r.example"));
        assert_eq!(scope, "repository:x:pull,push");
        assert_eq!(parse("Basic realm=x"), Some(Challenge::Basic));
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer service=x"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(Bearer )?([=\",\\\\ ]|\\PC){0,60}") {
            let _ = parse(&text);
        }
    }
}
