//! Images that came through the registry: a manifest whose blobs are here becomes an image of the store.

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{self, DOCKER_CONFIG, Descriptor, Document, OCI_CONFIG};
use crate::reference::Reference;
use crate::store::blobs::Lease;
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, NewImage};

impl ImageStore {
    /// Enters the image of a manifest whose blobs are all here and kept by `lease`, with names.
    ///
    /// Errors: `Invalid` when it is no image of a container (another artifact, or an index), `NotFound` for a blob.
    pub fn register(&self, manifest: &Descriptor, names: &[Reference], lease: &Lease) -> Result<Digest> {
        let document = self.blobs.document(&manifest.digest)?;
        let Document::Manifest(image) = manifest::parse(&document, Some(&manifest.media_type))? else {
            return Err(Error::Invalid("an index is no image".to_owned()));
        };
        if !matches!(image.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(Error::Invalid(format!("an artifact with a {} is no image", image.config.media_type)));
        }
        for blob in image.layers.iter().chain([&image.config]) {
            if self.blobs.size(&blob.digest) != Some(blob.size) {
                return Err(Error::NotFound(format!("content {} not found", blob.digest)));
            }
        }
        let config = self.blobs.document(&image.config.digest)?;
        let parsed: ImageConfig = serde_json::from_slice(&config)
            .map_err(|error| Error::Invalid(format!("invalid image configuration: {error}")))?;
        if parsed.rootfs.diff_ids.len() != image.layers.len() {
            return Err(Error::Invalid("the layers of the image are not those of its configuration".to_owned()));
        }
        let pair = |(diff_id, blob)| EntryLayer { diff_id, blob };
        let layers = parsed.rootfs.diff_ids.into_iter().zip(image.layers).map(pair).collect();
        let new = NewImage { config: &config, layers, manifest: Some(manifest.clone()), parent: None, cache_key: None };
        self.enter(new, names, lease)
    }
}
