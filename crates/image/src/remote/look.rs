//! Looking into a registry without fetching an image: what a name stands for, and which repositories there are.

use http::{Method, header};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor, Document};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::remote::pull::ACCEPT;
use crate::remote::session::{Session, Wanted, escape, read_all};
use crate::store::ImageStore;
use crate::store::blobs::MAX_DOCUMENT;
use crate::types::{Credentials, Found, Platform, RemoteImage};

/// Names of repositories that one page of a catalogue may hold.
const PAGE: usize = 1000;
/// Pages that are read of a catalogue, as a bound on what one search costs a registry.
const MAX_PAGES: usize = 10;
/// Longest page. Units: bytes.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// What a name stands for at its registry, mirrors first.
pub(super) async fn describe(
    store: &ImageStore,
    reference: &Reference,
    credentials: Option<&Credentials>,
) -> Result<RemoteImage> {
    if reference.registry == DEFAULT_REGISTRY {
        for mirror in &store.options.mirrors {
            let tried = match Session::mirror(&store.options, mirror, reference).await {
                Ok(session) => describe_at(&session, reference).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(found) => return Ok(found),
                Err(error) => tracing::warn!(mirror, %error, image = %reference, "the mirror is passed by"),
            }
        }
    }
    let session = Session::open(&store.options, reference, credentials, "pull").await?;
    describe_at(&session, reference).await
}

async fn describe_at(session: &Session, reference: &Reference) -> Result<RemoteImage> {
    let wanted = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => crate::reference::DEFAULT_TAG.to_owned(),
    };
    let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
    let path = format!("/v2/{}/manifests/{wanted}", reference.repository);
    let response = session.request(Method::GET, &path, &Wanted { accept: &ACCEPT, ..Wanted::default() }).await?;
    let media_type =
        response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let bytes = read_all(response.into_body(), limit).await?;
    let digest = Digest::of(&bytes);
    if reference.digest.as_ref().is_some_and(|asked| asked.algorithm() == digest.algorithm() && *asked != digest) {
        return Err(Error::Corrupt(format!("manifest verification failed for digest {wanted}")));
    }
    let document = manifest::parse(&bytes, media_type.as_deref())?;
    let own = |kind: &str, usual: &str| if kind.is_empty() { usual.to_owned() } else { kind.to_owned() };
    let (kind, platforms) = match document {
        Document::Index(index) => {
            let kind = own(&index.media_type, manifest::OCI_INDEX);
            let platforms = index.manifests.into_iter().filter_map(|entry| entry.platform);
            (kind, platforms.map(|p| Platform { os: p.os, architecture: p.architecture, variant: p.variant }).collect())
        }
        Document::Manifest(image) => {
            // Which platform a single image is for stands in its configuration only.
            let path = format!("/v2/{}/blobs/{}", reference.repository, image.config.digest);
            let response = session.request(Method::GET, &path, &Wanted::default()).await?;
            let config = read_all(response.into_body(), limit).await?;
            #[derive(Default, Deserialize)]
            #[serde(default)]
            struct Config {
                os: String,
                architecture: String,
                variant: String,
            }
            let config: Config = serde_json::from_slice(&config)
                .map_err(|error| Error::Invalid(format!("invalid image configuration: {error}")))?;
            let platform = Platform { os: config.os, architecture: config.architecture, variant: config.variant };
            (own(&image.media_type, manifest::OCI_MANIFEST), vec![platform])
        }
    };
    Ok(RemoteImage { descriptor: Descriptor::new(&kind, digest, bytes.len() as u64), platforms })
}

/// Repositories whose name holds the term: of the registry that the term begins with, or else of those that this machine
/// serves and is configured with.
pub(super) async fn search(store: &ImageStore, term: &str, credentials: Option<&Credentials>) -> Result<Vec<Found>> {
    if let Some((registry, rest)) = term.split_once('/')
        && (registry.contains(['.', ':']) || registry == "localhost")
    {
        let session = Session::with_scope(&store.options, registry, credentials, "registry:catalog:*".into()).await?;
        let names = catalogue(&session).await?;
        return Ok(matching(names, rest, &format!("{registry}/")));
    }
    let mut found = matching(store.repositories().names(), term, "");
    let mut problem = None;
    for registry in store.options.mirrors.iter().chain(&store.options.plain_http) {
        let mirror = store.options.mirrors.contains(registry);
        let session = Session::catalogue(&store.options, registry).await;
        let names = match session {
            Ok(session) => catalogue(&session).await,
            Err(error) => Err(error),
        };
        match names {
            Ok(names) => {
                found.extend(matching(names, term, &if mirror { String::new() } else { format!("{registry}/") }))
            }
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn matching(names: Vec<String>, term: &str, prefix: &str) -> Vec<Found> {
    let term = term.strip_prefix("library/").unwrap_or(term).to_lowercase();
    let wanted = names.into_iter().filter(|name| name.to_lowercase().contains(&term));
    let found = wanted.map(|name| {
        // On a mirror of the Hub the official images are those below `library/`.
        let official = prefix.is_empty() && name.starts_with("library/");
        let shown = if official { name["library/".len()..].to_owned() } else { format!("{prefix}{name}") };
        Found { name: shown, official }
    });
    found.collect()
}

async fn catalogue(session: &Session) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Page {
        repositories: Option<Vec<String>>,
    }
    let mut names: Vec<String> = Vec::new();
    for _ in 0..MAX_PAGES {
        let last = names.last().map(|name| format!("&last={}", escape(name))).unwrap_or_default();
        let path = format!("/v2/_catalog?n={PAGE}{last}");
        let response = session.request(Method::GET, &path, &Wanted::default()).await?;
        let more = response.headers().contains_key(header::LINK);
        let bytes = read_all(response.into_body(), MAX_PAGE_BYTES).await?;
        let page: Page = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Unavailable(format!("the registry's catalogue cannot be read: {error}")))?;
        let before = names.len();
        names.extend(page.repositories.unwrap_or_default());
        if !more || names.len() == before {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_finds_parts_of_names_and_tells_official_images() {
        let names = || ["library/busybox", "team/BusyBox-tools", "other"].map(str::to_owned).to_vec();
        let hub = matching(names(), "busybox", "");
        let shown: Vec<_> = hub.iter().map(|found| (found.name.as_str(), found.official)).collect();
        assert_eq!(shown, [("busybox", true), ("team/BusyBox-tools", false)]);
        let own = matching(names(), "busy", "registry.example/");
        assert_eq!(own[0].name, "registry.example/library/busybox");
        assert!(!own[0].official);
    }
}
