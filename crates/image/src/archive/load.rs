//! Reads docker-archives and OCI layouts. The archive is read once from front to back: every file becomes a candidate blob,
//! and only what the manifests name is kept.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use serde::Deserialize;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result, from_io};
use crate::layer::compress::{Compression, Decompressor};
use crate::layer::read::{Archive, Kind};
use crate::layer::tree::components;
use crate::manifest::{self, Descriptor, Document, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};
use crate::reference::Reference;
use crate::store::blobs::{Lease, MAX_DOCUMENT};
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, NewImage};
use crate::types::{Loaded, Platform};

/// Most files of an archive of images: a few per layer.
const MAX_FILES: u64 = 100_000;
/// How often links between the archive's files are followed.
const MAX_LINKS: usize = 8;

/// An image found in an archive, whose blobs are in the store.
pub(super) struct Found {
    config: Vec<u8>,
    pub layers: Vec<EntryLayer>,
    manifest: Option<Descriptor>,
    names: Vec<Reference>,
}

#[derive(Default)]
struct Files {
    blobs: HashMap<String, (Digest, u64)>,
    links: HashMap<String, String>,
    documents: HashMap<String, Vec<u8>>,
}

/// One image of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn read(store: &ImageStore, archive: &mut dyn Read, lease: &Lease) -> Result<Vec<Found>> {
    let files = read_files(store, archive, lease)?;
    if let Some(text) = files.documents.get("manifest.json") {
        let listed: Vec<Listed> = serde_json::from_slice(text)
            .map_err(|error| Error::Invalid(format!("invalid manifest.json in the archive: {error}")))?;
        return listed.iter().map(|image| from_docker(store, &files, image)).collect();
    }
    match files.documents.get("index.json") {
        Some(text) => from_oci(store, &files, text),
        None => Err(Error::Invalid("invalid archive: does not contain a manifest.json or index.json".to_owned())),
    }
}

fn read_files(store: &ImageStore, archive: &mut dyn Read, lease: &Lease) -> Result<Files> {
    let limits = store.options.limits;
    let mut archive = Archive::new(Decompressor::new(archive, limits)?, MAX_FILES);
    let mut files = Files::default();
    let mut total = 0_u64;
    while let Some(header) = archive.next()? {
        let name = String::from_utf8_lossy(&components(&header.path)?.join(&b'/')).into_owned();
        match header.kind {
            Kind::Regular => {}
            Kind::Symlink | Kind::HardLink => {
                let link = String::from_utf8_lossy(&header.link).into_owned();
                // A symbolic link is relative to where it stands, a hard link to the root.
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                let target = if header.kind == Kind::Symlink { format!("{parent}/{link}") } else { link };
                files
                    .links
                    .insert(name, String::from_utf8_lossy(&components(target.as_bytes())?.join(&b'/')).into_owned());
                continue;
            }
            _ => continue,
        }
        total = total.saturating_add(header.size);
        if total > limits.total_bytes {
            return Err(Error::Hostile(format!("the archive is larger than {} bytes", limits.total_bytes)));
        }
        if matches!(name.as_str(), "manifest.json" | "index.json") {
            if header.size > MAX_DOCUMENT {
                return Err(Error::Hostile(format!("{name} is larger than {MAX_DOCUMENT} bytes")));
            }
            let mut text = Vec::new();
            archive.read_to_end(&mut text).map_err(|error| from_io("cannot read the archive", error))?;
            files.documents.insert(name, text);
            continue;
        }
        let mut ingest = store.blobs.begin(crate::digest::Algorithm::Sha256)?;
        crate::layer::copy(&mut archive, &mut ingest).map_err(|error| from_io("cannot read the archive", error))?;
        files.blobs.insert(name, ingest.commit(None, lease)?);
    }
    archive.drain()?;
    Ok(files)
}

impl Files {
    fn find(&self, name: &str) -> Result<(Digest, u64)> {
        let missing = || Error::Invalid(format!("invalid archive: {name:?} is missing"));
        let mut current = String::from_utf8_lossy(&components(name.as_bytes())?.join(&b'/')).into_owned();
        for _ in 0..MAX_LINKS {
            if let Some(found) = self.blobs.get(&current) {
                return Ok(found.clone());
            }
            current = self.links.get(&current).cloned().ok_or_else(missing)?;
        }
        Err(missing())
    }

    fn digest(&self, descriptor: &Descriptor) -> Result<()> {
        let (found, size) =
            self.find(&format!("blobs/{}/{}", descriptor.digest.algorithm().name(), descriptor.digest.hex()))?;
        if found != descriptor.digest || size != descriptor.size {
            return Err(Error::Corrupt(format!("blob {} of the archive has digest {found}", descriptor.digest)));
        }
        Ok(())
    }
}

fn from_docker(store: &ImageStore, files: &Files, listed: &Listed) -> Result<Found> {
    let (config_digest, _) = files.find(&listed.config)?;
    let config = store.blobs.document(&config_digest)?;
    let paths = listed.layers.clone().unwrap_or_default();
    let blobs = paths
        .iter()
        .map(|path| {
            let (digest, size) = files.find(path)?;
            Ok(Descriptor::new(layer_type(store, &digest)?, digest, size))
        })
        .collect::<Result<Vec<_>>>()?;
    let names =
        listed.repo_tags.iter().flatten().map(|name| crate::store::tag_target(name)).collect::<Result<Vec<_>>>()?;
    Ok(Found { layers: pair(&config, blobs)?, config, manifest: None, names })
}

/// Pairs the layers' blobs with the digests that the configuration gives them uncompressed.
pub(crate) fn pair(config: &[u8], blobs: Vec<Descriptor>) -> Result<Vec<EntryLayer>> {
    let config: ImageConfig = serde_json::from_slice(config)
        .map_err(|error| Error::Invalid(format!("invalid image configuration: {error}")))?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != blobs.len() || blobs.len() > manifest::MAX_LAYERS {
        return Err(Error::Invalid(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            diff_ids.len(),
            blobs.len()
        )));
    }
    Ok(diff_ids.into_iter().zip(blobs).map(|(diff_id, blob)| EntryLayer { diff_id, blob }).collect())
}

fn layer_type(store: &ImageStore, digest: &Digest) -> Result<&'static str> {
    let mut start = Vec::new();
    store.blobs.file(digest)?.take(6).read_to_end(&mut start).map_err(Error::io("cannot read a blob"))?;
    match Compression::detect(&start) {
        Compression::Plain => Ok(OCI_LAYER),
        Compression::Gzip => Ok(OCI_LAYER_GZIP),
        Compression::Zstd => Ok(OCI_LAYER_ZSTD),
        // The formats of images have no name for these.
        Compression::Bzip2 | Compression::Xz => {
            Err(Error::NotSupported("a layer compressed by bzip2 or xz is not supported".to_owned()))
        }
    }
}

fn from_oci(store: &ImageStore, files: &Files, text: &[u8]) -> Result<Vec<Found>> {
    let Document::Index(index) = manifest::parse(text, Some(manifest::OCI_INDEX))? else {
        return Err(Error::Invalid("invalid index.json in the archive".to_owned()));
    };
    let mut found: BTreeMap<Digest, Found> = BTreeMap::new();
    for descriptor in &index.manifests {
        let Some((descriptor, image)) = descend(store, files, descriptor)? else { continue };
        let name = |key: &str| index_annotation(&index, &descriptor, key);
        let reference = name("io.containerd.image.name").or_else(|| name("org.opencontainers.image.ref.name"));
        let image_entry = found.entry(descriptor.digest.clone()).or_insert(image);
        // A bare tag is no name: skopeo writes it when it was given no more.
        if let Some(reference) = reference.filter(|text| text.contains([':', '/'])) {
            image_entry.names.push(crate::store::tag_target(&reference)?);
        }
    }
    if found.is_empty() {
        return Err(Error::Invalid("invalid archive: it holds no image for this platform".to_owned()));
    }
    Ok(found.into_values().collect())
}

fn index_annotation(index: &manifest::Index, chosen: &Descriptor, key: &str) -> Option<String> {
    let own = chosen.annotations.as_ref().and_then(|notes| notes.get(key));
    // Through a nested index the name stands at the outer entry.
    let outer = || match index.manifests.as_slice() {
        [only] => only.annotations.as_ref().and_then(|notes| notes.get(key)),
        _ => None,
    };
    own.or_else(outer).cloned()
}

fn descend(store: &ImageStore, files: &Files, descriptor: &Descriptor) -> Result<Option<(Descriptor, Found)>> {
    files.digest(descriptor)?;
    let bytes = store.blobs.document(&descriptor.digest)?;
    let (descriptor, manifest) = match manifest::parse(&bytes, Some(&descriptor.media_type))? {
        Document::Manifest(manifest) => (descriptor.clone(), manifest),
        Document::Index(index) => {
            let Some(chosen) = manifest::choose(&index, &Platform::default()) else { return Ok(None) };
            files.digest(chosen)?;
            let bytes = store.blobs.document(&chosen.digest)?;
            match manifest::parse(&bytes, Some(&chosen.media_type))? {
                Document::Manifest(manifest) => {
                    let annotations = descriptor.annotations.clone();
                    (Descriptor { annotations, ..chosen.clone() }, manifest)
                }
                Document::Index(_) => return Err(Error::Hostile("an index within an index".to_owned())),
            }
        }
    };
    files.digest(&manifest.config)?;
    for layer in &manifest.layers {
        files.digest(layer)?;
    }
    let config = store.blobs.document(&manifest.config.digest)?;
    let layers = pair(&config, manifest.layers)?;
    let stored = Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size);
    Ok(Some((descriptor, Found { config, layers, manifest: Some(stored), names: Vec::new() })))
}

pub(super) fn enter(store: &ImageStore, found: Found, lease: &Lease) -> Result<Loaded> {
    let Found { config, layers, manifest, names } = found;
    let new = NewImage { config: &config, layers, manifest, parent: None, cache_key: None };
    let id = store.enter(new, &names, lease)?;
    Ok(Loaded { id, references: names.iter().map(Reference::familiar).collect() })
}
