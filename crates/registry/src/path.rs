//! Paths: a repository's name has slashes itself, so a path is taken apart from its end.

use image::Digest;
use image::reference::{is_repository, is_tag};

use crate::error::{Code, Failure};

/// Longest name of a repository. Source: distribution's reference grammar.
const MAX_NAME: usize = 255;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Root,
    Catalog,
    Tags(String),
    Referrers(String, Digest),
    Blob(String, Digest),
    Uploads(String),
    Upload(String, String),
    Manifest(String, Reference),
}

/// A manifest is named by tag or digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Path {
    pub fn parse(path: &str) -> Result<Path, Failure> {
        // Of all that a client may escape, only the colon of digests occurs in valid paths.
        let path = path.replace("%3A", ":").replace("%3a", ":");
        let rest = path.strip_prefix("/v2").unwrap_or_default().trim_start_matches('/');
        match rest {
            "" => return Ok(Path::Root),
            "_catalog" => return Ok(Path::Catalog),
            _ => {}
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
            return Ok(Path::Uploads(name_of(name)?));
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Path::Tags(name_of(name)?));
        }
        let not_found = || {
            Failure::with_status(axum::http::StatusCode::NOT_FOUND, Code::Unsupported, "no such path in the registry")
        };
        let (head, last) = rest.rsplit_once('/').ok_or_else(not_found)?;
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            return Ok(Path::Upload(name_of(name)?, last.to_owned()));
        }
        let (name, kind) = head.rsplit_once('/').ok_or_else(not_found)?;
        match kind {
            "blobs" => Ok(Path::Blob(name_of(name)?, digest_of(last)?)),
            "referrers" => Ok(Path::Referrers(name_of(name)?, digest_of(last)?)),
            "manifests" if last.contains(':') => {
                Ok(Path::Manifest(name_of(name)?, Reference::Digest(digest_of(last)?)))
            }
            "manifests" if is_tag(last) => Ok(Path::Manifest(name_of(name)?, Reference::Tag(last.to_owned()))),
            "manifests" => Err(Failure::new(Code::ManifestInvalid, format!("invalid tag {last:?}"))),
            _ => Err(not_found()),
        }
    }
}

fn name_of(name: &str) -> Result<String, Failure> {
    if name.len() > MAX_NAME || !is_repository(name) {
        return Err(Failure::new(Code::NameInvalid, format!("invalid repository name {name:?}")));
    }
    Ok(name.to_owned())
}

/// Parses a digest that a client gave.
pub(crate) fn digest_of(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|_| Failure::new(Code::DigestInvalid, format!("invalid digest {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_from_the_end() {
        let digest = Digest::of(b"x");
        let blob = Path::parse(&format!("/v2/a/blobs/b/blobs/{digest}")).unwrap();
        assert_eq!(blob, Path::Blob("a/blobs/b".to_owned(), digest.clone()));
        let escaped = format!("/v2/a/blobs/{}", digest.to_string().replace(':', "%3A"));
        assert_eq!(Path::parse(&escaped).unwrap(), Path::Blob("a".to_owned(), digest));
        assert_eq!(Path::parse("/v2/").unwrap(), Path::Root);
        assert_eq!(Path::parse("/v2/a/blobs/uploads/").unwrap(), Path::Uploads("a".to_owned()));
        for bad in ["/v2/A/tags/list", "/v2/../x/tags/list", "/v2/a/manifests/-x", "/v2/a/blobs/sha256:12", "/v2/a"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }
}
