//! Writes images as one archive that is a docker-archive and an OCI layout at once. Layers are written uncompressed, each
//! once, so that the manifests in it are made anew.
//! Source: what docker 28 writes; OCI image specification, image-layout.md.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use serde_json::json;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::compress::Decompressor;
use crate::layer::write::{Entry, Writer};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::blobs::Lease;
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, no_such_image};

/// What is to be written. Holds it all in the store until then.
pub(super) struct Plan {
    images: BTreeMap<Digest, Image>,
    _lease: Lease,
}

struct Image {
    names: BTreeSet<Reference>,
    layers: Vec<EntryLayer>,
}

impl Plan {
    pub fn layers(&self) -> impl Iterator<Item = &EntryLayer> {
        self.images.values().flat_map(|image| &image.layers)
    }
}

pub(super) fn plan(store: &ImageStore, names: &[String]) -> Result<Plan> {
    let lease = store.blobs.lease();
    let mut images: BTreeMap<Digest, Image> = BTreeMap::new();
    for name in names {
        let mut wanted: Vec<(Digest, Option<Reference>)> = Vec::new();
        match store.resolve(name) {
            Ok(id) => {
                let reference = Reference::parse_tagged(name).ok().filter(|reference| {
                    reference.tag.is_some() && store.look(|index| index.names.get(&reference.to_string()) == Some(&id))
                });
                wanted.push((id, reference));
            }
            Err(error) => {
                // A bare name without `latest` means all its tags.
                let bare = Reference::parse(name)?;
                let tags: Vec<(Digest, Option<Reference>)> = store.look(|index| {
                    let parsed = index.names.iter().filter_map(|(n, id)| Some((id.clone(), Reference::parse(n).ok()?)));
                    parsed.filter(|(_, r)| r.name() == bare.name()).map(|(id, r)| (id, Some(r))).collect()
                });
                if bare.tag.is_some() || bare.digest.is_some() || tags.is_empty() {
                    return Err(error);
                }
                wanted.extend(tags);
            }
        }
        for (id, reference) in wanted {
            let (id, layers) = store.leased_layers(&id.to_string(), &lease)?;
            lease.keep(&id);
            if !store.exists(&id) {
                return Err(no_such_image(name));
            }
            let image = images.entry(id).or_insert_with(|| Image { names: BTreeSet::new(), layers });
            image.names.extend(reference);
        }
    }
    Ok(Plan { images, _lease: lease })
}

pub(super) fn write(store: &ImageStore, plan: &Plan, out: &mut dyn Write) -> Result<()> {
    let mut archive = Archive { out: Writer::new(out), written: BTreeSet::new() };
    archive.directory("blobs/")?;
    archive.directory("blobs/sha256/")?;
    let (mut manifests, mut listed) = (Vec::new(), Vec::new());
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (id, image) in &plan.images {
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(archive.layer(store, layer)?);
        }
        let config = store.blobs.document(id)?;
        archive.blob(id, &config)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: Descriptor::new(OCI_CONFIG, id.clone(), config.len() as u64),
            layers: layers.clone(),
            subject: None,
            annotations: None,
        };
        let bytes = to_json(&manifest)?;
        let digest = Digest::of(&bytes);
        archive.blob(&digest, &bytes)?;
        let plain = Descriptor::new(OCI_MANIFEST, digest, bytes.len() as u64);
        for name in &image.names {
            let tag = name.tag.clone().unwrap_or_default();
            let notes = BTreeMap::from([
                ("io.containerd.image.name".to_owned(), name.to_string()),
                ("org.opencontainers.image.ref.name".to_owned(), tag.clone()),
            ]);
            manifests.push(Descriptor { annotations: Some(notes), ..plain.clone() });
            let last = layers.last().map_or_else(String::new, |layer| layer.digest.hex().to_owned());
            repositories.entry(name.familiar_name()).or_default().insert(tag, last);
        }
        if image.names.is_empty() {
            manifests.push(plain);
        }
        let path = |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        let sources: BTreeMap<String, &Descriptor> = layers.iter().map(|l| (l.digest.to_string(), l)).collect();
        listed.push(json!({
            "Config": path(id),
            "RepoTags": image.names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
            "LayerSources": sources,
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    archive.file("index.json", &to_json(&index)?)?;
    archive.file("manifest.json", &to_json(&listed)?)?;
    archive.file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)?;
    if !repositories.is_empty() {
        archive.file("repositories", &to_json(&repositories)?)?;
    }
    archive.out.finish()?;
    Ok(())
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Internal(format!("cannot write JSON: {error}")))
}

struct Archive<W> {
    out: Writer<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn directory(&mut self, path: &str) -> Result<()> {
        let entry = Entry { kind: b'5', mode: 0o755, ..Entry::default() };
        self.out.entry(path.as_bytes(), &entry, std::io::empty())
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.out.entry(path.as_bytes(), &Entry { size: bytes.len() as u64, ..Entry::default() }, bytes)
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        self.file(&format!("blobs/sha256/{}", digest.hex()), bytes)
    }

    fn layer(&mut self, store: &ImageStore, layer: &EntryLayer) -> Result<Descriptor> {
        let digest = &layer.diff_id;
        let size = store
            .look(|index| index.layers.get(digest).map(|held| held.archive_bytes))
            .ok_or_else(|| Error::Internal(format!("layer {digest} is not unpacked")))?;
        let descriptor = Descriptor::new(OCI_LAYER, digest.clone(), size);
        if self.written.insert(digest.clone()) {
            let plain = Decompressor::new(store.blobs.file(&layer.blob.digest)?, store.options.limits)?;
            let path = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
            self.out.entry(path.as_bytes(), &Entry { size, ..Entry::default() }, plain.take(size))?;
        }
        Ok(descriptor)
    }
}
