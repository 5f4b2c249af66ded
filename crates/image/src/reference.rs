//! Names of images: parsing with Docker's normalisation and Docker's messages.
//! Source: the grammar of the distribution project's reference package.

use std::fmt;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Registry of names that say none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Tag of names that say none.
pub const DEFAULT_TAG: &str = "latest";
const OFFICIAL_PREFIX: &str = "library/";
/// Longest repository name, without the registry. Source: distribution reference grammar.
const MAX_NAME: usize = 255;
/// Longest tag. Source: OCI distribution specification.
const MAX_TAG: usize = 128;

/// A normalised name: registry, repository, and a tag or digest or both or neither.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Host and optional port: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// Path at the registry: `library/busybox`.
    pub repository: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest of a manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses what a user types (`busybox`, `me/app:1`, `localhost:5000/x@sha256:…`). No tag is added.
    ///
    /// Errors: `Invalid`, in Docker's words.
    pub fn parse(text: &str) -> Result<Reference> {
        let invalid = |why: &str| Error::Invalid(why.to_owned());
        let format_error = || invalid("invalid reference format");
        if text.is_empty() {
            return Err(format_error());
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::Invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(format_error());
        }
        let (registry, path) = split_registry(name);
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid("invalid reference format: repository name (")
                .with_suffix(&format!("{path}) must be lowercase")));
        }
        if !is_registry(&registry) || !is_repository(&path) {
            return Err(format_error());
        }
        if path.len() > MAX_NAME {
            return Err(invalid("repository name must not be more than 255 characters"));
        }
        Ok(Reference { registry, repository: path, tag: tag.map(str::to_owned), digest })
    }

    /// Parses, and adds the tag `latest` when neither tag nor digest is given.
    pub fn parse_tagged(text: &str) -> Result<Reference> {
        let mut reference = Reference::parse(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.to_owned());
        }
        Ok(reference)
    }

    /// Registry and repository, in full: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as Docker prints it: `busybox`, `me/app`, `localhost:5000/x`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL_PREFIX) {
            Some(short) if !short.contains('/') => short.to_owned(),
            // Alone, `a.b/c` would name another registry.
            _ if split_registry(&self.repository) != (DEFAULT_REGISTRY.to_owned(), self.repository.clone()) => {
                self.name()
            }
            _ => self.repository.clone(),
        }
    }

    /// The whole reference as Docker prints it: `busybox:latest`, `x@sha256:…`.
    pub fn familiar(&self) -> String {
        self.with_suffixes(self.familiar_name())
    }

    /// The same name with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Reference {
        Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() }
    }

    fn with_suffixes(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for Reference {
    /// The reference in full: `docker.io/library/busybox:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffixes(self.name()))
    }
}

impl Error {
    fn with_suffix(self, suffix: &str) -> Error {
        match self {
            Error::Invalid(text) => Error::Invalid(text + suffix),
            other => other,
        }
    }
}

/// The first part is a registry when it has a dot or a colon, is `localhost`, or has capitals.
fn split_registry(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    (registry.to_owned(), path)
}

/// Whether the text is a valid tag.
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= MAX_TAG
        && tag.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && matches!(b, b'.' | b'-')))
}

/// Whether the text is a valid repository path: components of lower-case letters and digits, joined by `.`, `_`, `__`
/// or dashes.
pub fn is_repository(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

/// Whether the text is a host name, IPv4 or bracketed IPv6 address with an optional port.
pub fn is_registry(host: &str) -> bool {
    let (host, port) = match host.rfind(':') {
        Some(at) if !host.ends_with(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.len() <= MAX_NAME
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, full: &str, familiar: &str) {
        let reference = Reference::parse_tagged(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.to_string(), full);
        assert_eq!(reference.familiar(), familiar);
    }

    #[test]
    fn names_are_normalised_as_docker_does() {
        let sha = format!("sha256:{}", "0123456789abcdef".repeat(4));
        check("busybox", "docker.io/library/busybox:latest", "busybox:latest");
        check("docker.io/busybox:1", "docker.io/library/busybox:1", "busybox:1");
        check("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest");
        check("me/app:v1.2_3-x", "docker.io/me/app:v1.2_3-x", "me/app:v1.2_3-x");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest");
        check("docker.io/docker.io/c/d", "docker.io/docker.io/c/d:latest", "docker.io/docker.io/c/d:latest");
        check(
            "localhost:5000/a/b__c/d-e.f",
            "localhost:5000/a/b__c/d-e.f:latest",
            "localhost:5000/a/b__c/d-e.f:latest",
        );
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check(&format!("x@{sha}"), &format!("docker.io/library/x@{sha}"), &format!("x@{sha}"));
        check(&format!("q.io/x:1@{sha}"), &format!("q.io/x:1@{sha}"), &format!("q.io/x:1@{sha}"));
    }

    #[test]
    fn bad_names_are_refused_in_dockers_words() {
        for (text, message) in [
            ("", "invalid reference format"),
            (":tag", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("Uppercase", "invalid reference format: repository name (library/Uppercase) must be lowercase"),
            ("a//b", "invalid reference format"),
            ("../etc", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("x@sha256:12", "invalid checksum digest format"),
            ("a:b:c/d", "invalid reference format"),
        ] {
            assert_eq!(Reference::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        let id = "ab".repeat(32);
        assert!(Reference::parse(&id).unwrap_err().to_string().contains("64-byte hexadecimal"));
        assert!(Reference::parse(&format!("a/{}", "b".repeat(300))).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_printing_is_stable(text in "\\PC{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
                prop_assert!(!reference.repository.contains(".."));
            }
        }
    }
}
