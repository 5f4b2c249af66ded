//! Manifests and indexes: the JSON documents that tie blobs together. OCI's and Docker's forms are one here.
//! Sources: OCI image specification (manifest.md, image-index.md), Docker image manifest V2 schema 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::types::Platform;

/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an OCI configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of Docker's configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media type of an uncompressed layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a gzip layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a zstd layer.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Most layers of an image: overlayfs takes 500.
pub const MAX_LAYERS: usize = 500;
/// Most manifests of an index.
pub const MAX_MANIFESTS: usize = 1000;

/// Points to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Kind of artifact, in an index of referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// Other places to fetch it from; never followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}

impl Descriptor {
    /// A plain descriptor.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            artifact_type: None,
            annotations: None,
            platform: None,
            urls: None,
        }
    }
}

/// Platform of a manifest in an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A manifest of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A list of manifests, one per platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its own type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Either document.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one at a time, on the stack of one task
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Parses a manifest or index. The document's own type wins; a document that has both layers and manifests is refused.
pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Document> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        #[serde(default)]
        schema_version: u32,
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let invalid = |error: serde_json::Error| Error::Invalid(format!("invalid manifest: {error}"));
    let probe: Probe = serde_json::from_slice(bytes).map_err(invalid)?;
    if probe.schema_version != 2 {
        return Err(Error::NotSupported(format!("manifests of schema version {}", probe.schema_version)));
    }
    if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
        return Err(Error::Hostile("a manifest that is also an index".to_owned()));
    }
    let own = probe.media_type.as_deref().or(media_type);
    let is_index = match own {
        Some(OCI_INDEX | DOCKER_LIST) => true,
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
        _ => probe.manifests.is_some(),
    };
    if is_index {
        let index: Index = serde_json::from_slice(bytes).map_err(invalid)?;
        if index.manifests.len() > MAX_MANIFESTS {
            return Err(Error::Hostile(format!("an index of more than {MAX_MANIFESTS} manifests")));
        }
        return Ok(Document::Index(index));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(invalid)?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(Error::Hostile(format!("a manifest of more than {MAX_LAYERS} layers")));
    }
    Ok(Document::Manifest(manifest))
}

/// Picks the manifest for a platform out of an index.
pub fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|platform| {
            platform.os == wanted.os
                && platform.architecture == wanted.architecture
                && (wanted.variant.is_empty() || platform.variant.is_empty() || platform.variant == wanted.variant)
        })
    };
    let only = || match index.manifests.as_slice() {
        [one] if one.platform.is_none() => Some(one),
        _ => None,
    };
    index.manifests.iter().find(fits).or_else(only)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(architecture: &str, byte: char) -> serde_json::Value {
        let digest = format!("sha256:{}", byte.to_string().repeat(64));
        serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 2,
            "platform": {"architecture": architecture, "os": "linux"}})
    }

    #[test]
    fn the_right_platform_is_chosen_and_two_faced_documents_are_refused() {
        let text = serde_json::json!({"schemaVersion": 2, "manifests": [entry("arm64", 'a'), entry("amd64", 'b')]});
        let Document::Index(index) = parse(text.to_string().as_bytes(), None).unwrap() else { panic!("no index") };
        let platform = |architecture: &str| Platform { architecture: architecture.to_owned(), ..Platform::default() };
        assert!(choose(&index, &platform("amd64")).unwrap().digest.hex().starts_with('b'));
        assert!(choose(&index, &platform("s390x")).is_none());
        let both = serde_json::json!({"schemaVersion": 2, "manifests": [], "layers": []});
        assert!(matches!(parse(both.to_string().as_bytes(), Some(OCI_MANIFEST)), Err(Error::Hostile(_))));
        assert!(parse(b"{\"schemaVersion\":1}", None).is_err());
    }
}
