//! Field selectors: `metadata.name=x,status.phase!=Running`, over the fields that a kind declares selectable.

use crate::kind::Kind;
use crate::object::Meta;

/// Most requirements of one selector.
const MAX_REQUIREMENTS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Declared(usize),
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<(Field, bool, String)>,
}

impl FieldSelector {
    /// Reads the text form for a kind. Errors: what is wrong, for people.
    pub fn parse(text: &str, kind: &Kind) -> Result<FieldSelector, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(format!("field selector has more than {MAX_REQUIREMENTS} requirements"));
            }
            let Some(at) = term.find(['=', '!']) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let (label, rest) = term.split_at(at);
            let (equal, value) = match (rest.strip_prefix("!="), rest.strip_prefix("=="), rest.strip_prefix('=')) {
                (Some(value), _, _) => (false, value),
                (_, Some(value), _) | (_, _, Some(value)) => (true, value),
                _ => return Err(format!("invalid selector: '{text}'; can't understand '{term}'")),
            };
            let field = match label {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                _ => match kind.selectable_fields.iter().position(|(name, _)| name == label) {
                    Some(index) => Field::Declared(index),
                    None => return Err(format!("field label not supported: {label}")),
                },
            };
            requirements.push((field, equal, unescape(value)?));
        }
        Ok(FieldSelector { requirements })
    }

    /// Whether an object of the kind satisfies it.
    pub fn matches(&self, meta: &Meta) -> bool {
        self.requirements.iter().all(|(field, equal, value)| {
            let own = match field {
                Field::Name => meta.name(),
                Field::Namespace => meta.namespace(),
                Field::Declared(index) => meta.fields.get(*index).map_or("", |own| own),
            };
            (own == value) == *equal
        })
    }

    /// The one name that it selects, when it names one.
    pub fn name(&self) -> Option<&str> {
        self.requirements
            .iter()
            .find(|(field, equal, _)| *field == Field::Name && *equal)
            .map(|(_, _, value)| value.as_str())
    }

    /// The same selector with this name required too.
    pub fn and_name(mut self, name: &str) -> FieldSelector {
        self.requirements.push((Field::Name, true, name.to_owned()));
        self
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                other => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{}",
                        other.map_or(String::new(), String::from)
                    ));
                }
            },
            '=' => return Err(format!("invalid field selector: unescaped character in value: {value}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta { key: "ns/web".into(), fields: Box::new(["Running".into()]), ..Meta::default() }
    }

    fn kind() -> Kind {
        Kind {
            selectable_fields: vec![("status.phase".into(), "/status/phase".into())],
            ..Kind::new("", "v1", "Pod", "pods")
        }
    }

    #[test]
    fn declared_fields_and_metadata_select() {
        for (text, expected) in [
            ("metadata.name=web", true),
            ("metadata.namespace!=ns", false),
            ("status.phase==Running,metadata.name=web", true),
            ("status.phase!=Running", false),
            ("", true),
        ] {
            assert_eq!(FieldSelector::parse(text, &kind()).unwrap().matches(&meta()), expected, "{text}");
        }
    }

    #[test]
    fn undeclared_fields_and_bad_syntax_are_refused() {
        for text in ["spec.x=1", "status.phase", "status.phase!", "status.phase=a=b", "status.phase=\\x"] {
            assert!(FieldSelector::parse(text, &kind()).is_err(), "{text}");
        }
    }
}
