//! Where the registry and the images meet: what is pushed becomes an image at once, and an image can be pulled under its
//! name at once.

use crate::archive::pair;
use crate::digest::Digest;
use crate::error::Result;
use crate::manifest::{self, DOCKER_CONFIG, Descriptor, Document, OCI_CONFIG};
use crate::reference::Reference;
use crate::store::blobs::Lease;
use crate::store::{ImageStore, NewImage};
use crate::types::Platform;

impl ImageStore {
    /// Makes an image of a manifest whose blobs are here, with names. Its layers are unpacked, and their digests checked,
    /// when a container first wants it. `None` when it is no image for this machine (an artifact, another platform).
    ///
    /// Errors: `Invalid` when it says it is an image and is none.
    pub fn enter_manifest(
        &self,
        descriptor: &Descriptor,
        names: &[Reference],
        lease: &Lease,
    ) -> Result<Option<Digest>> {
        let bytes = self.blobs.document(&descriptor.digest)?;
        let (descriptor, image) = match manifest::parse(&bytes, Some(&descriptor.media_type))? {
            Document::Manifest(image) => (descriptor.clone(), image),
            Document::Index(index) => {
                let Some(chosen) = manifest::choose(&index, &Platform::default()) else { return Ok(None) };
                if !self.blobs.has(&chosen.digest) {
                    return Ok(None);
                }
                match manifest::parse(&self.blobs.document(&chosen.digest)?, Some(&chosen.media_type))? {
                    Document::Manifest(image) => (chosen.clone(), image),
                    Document::Index(_) => return Ok(None),
                }
            }
        };
        if !matches!(image.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Ok(None);
        }
        lease.keep(&descriptor.digest);
        for blob in image.layers.iter().chain([&image.config]) {
            lease.keep(&blob.digest);
            if !self.blobs.has(&blob.digest) {
                return Ok(None);
            }
        }
        let config = self.blobs.document(&image.config.digest)?;
        let layers = pair(&config, image.layers)?;
        let stored = Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size);
        let new = NewImage { config: &config, layers, manifest: Some(stored), parent: None, cache_key: None };
        self.enter(new, names, lease).map(Some)
    }

    /// Takes a name away, whatever it names. The image stays.
    pub fn forget_name(&self, reference: &Reference) -> Result<()> {
        let key = reference.to_string();
        if self.look(|index| !index.names.contains_key(&key)) {
            return Ok(());
        }
        self.change(|index| Ok(drop(index.names.remove(&key))))
    }

    /// The manifest of the image with this name.
    pub fn manifest_of(&self, reference: &Reference) -> Option<Descriptor> {
        let key = Reference { digest: None, ..reference.clone() }.to_string();
        self.look(|index| {
            let id = index.names.get(&key)?;
            index.images.get(id).map(|entry| entry.manifest.clone())
        })
    }

    /// The manifest with this digest, when it is of an image with a name in this repository.
    pub fn manifest_in(&self, repository: &Reference, digest: &Digest) -> Option<Descriptor> {
        self.images_in(repository).into_iter().find(|(manifest, _)| manifest.digest == *digest).map(|(found, _)| found)
    }

    /// Whether the blob is of an image with a name in this repository.
    pub fn blob_in(&self, repository: &Reference, digest: &Digest) -> bool {
        self.images_in(repository).iter().any(|(_, blobs)| blobs.contains(digest))
    }

    /// Tags of images with a name in this repository.
    pub fn tags_in(&self, repository: &Reference) -> Vec<String> {
        let prefix = format!("{}:", repository.name());
        self.look(|index| index.names.keys().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect())
    }

    fn images_in(&self, repository: &Reference) -> Vec<(Descriptor, Vec<Digest>)> {
        let prefix = format!("{}:", repository.name());
        self.look(|index| {
            let named = index.names.iter().filter(|(name, _)| name.starts_with(&prefix));
            named
                .filter_map(|(_, id)| {
                    let entry = index.images.get(id)?;
                    let blobs = entry.layers.iter().map(|layer| layer.blob.digest.clone()).chain([id.clone()]);
                    Some((entry.manifest.clone(), blobs.collect()))
                })
                .collect()
        })
    }
}
