//! Makes images: from the tar of a file system, from a container's changes, from a step of a build.

use std::io::Read;
use std::sync::Arc;

use crate::archive::empty_config;
use crate::build::apply_changes;
use crate::config::{History, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, MAX_LAYERS};
use crate::store::blobs::Lease;
use crate::store::index::EntryLayer;
use crate::store::{ImageStore, NewImage};
use crate::types::{CommitOptions, ImportOptions};

pub(super) fn import(store: &ImageStore, archive: &mut dyn Read, options: &ImportOptions) -> Result<Digest> {
    let names = options.reference.iter().map(|name| crate::store::tag_target(name)).collect::<Result<Vec<_>>>()?;
    let mut config = empty_config(&options.platform);
    apply_changes(&mut config.config, &options.changes)?;
    let lease = store.blobs.lease();
    let layer = store.add_layer(archive, &lease)?;
    let comment = if options.message.is_empty() { "Imported from -" } else { &options.message };
    let history = History { comment: Some(comment.to_owned()), ..History::default() };
    let mut layers = Vec::new();
    push_layer(&mut config, &mut layers, Some(layer), history)?;
    config.comment = Some(comment.to_owned());
    enter(store, &config, layers, None, None, &names, &lease)
}

pub(super) fn commit(store: &ImageStore, layer: &mut dyn Read, options: &CommitOptions) -> Result<Digest> {
    let names = options.reference.iter().map(|name| crate::store::tag_target(name)).collect::<Result<Vec<_>>>()?;
    let lease = store.blobs.lease();
    let (parent, mut layers) = store.leased_layers(&options.parent, &lease)?;
    let mut config = store.config(&parent)?;
    if let Some(defaults) = &options.config {
        config.config = defaults.clone();
    }
    apply_changes(&mut config.config, &options.changes)?;
    config.container.clone_from(&options.container);
    config.author = Some(options.author.clone()).filter(|author| !author.is_empty());
    config.comment = Some(options.comment.clone()).filter(|comment| !comment.is_empty());
    let layer = store.add_layer(layer, &lease)?;
    let history = History {
        created_by: options.created_by.clone(),
        author: config.author.clone(),
        comment: config.comment.clone(),
        ..History::default()
    };
    push_layer(&mut config, &mut layers, Some(layer), history)?;
    enter(store, &config, layers, Some(parent), None, &names, &lease)
}

/// A step of a build.
pub(crate) struct Step<'a> {
    /// The image before; `None` for `scratch`.
    pub parent: Option<&'a Digest>,
    /// The configuration after, with the layers and history of the image before.
    pub config: ImageConfig,
    /// The new layer, as an uncompressed archive.
    pub layer: Option<&'a mut dyn Read>,
    /// What the history says.
    pub created_by: &'a str,
    /// Free text of the history.
    pub comment: Option<String>,
    /// Under what the cache finds it.
    pub cache_key: Option<String>,
}

pub(super) fn step(store: &Arc<ImageStore>, step: Step<'_>) -> Result<Digest> {
    let lease = store.blobs.lease();
    let mut layers = match step.parent {
        Some(parent) => store.leased_layers(&parent.to_string(), &lease)?.1,
        None => Vec::new(),
    };
    let mut config = step.config;
    let layer = step.layer.map(|layer| store.add_layer(layer, &lease)).transpose()?;
    let history = History { created_by: step.created_by.to_owned(), comment: step.comment, ..History::default() };
    push_layer(&mut config, &mut layers, layer, history)?;
    enter(store, &config, layers, step.parent.cloned(), step.cache_key, &[], &lease)
}

/// Makes an image that differs from its parent in its configuration only, whose history says so already.
pub(super) fn configuration(store: &ImageStore, parent: Option<&Digest>, config: &ImageConfig) -> Result<Digest> {
    let lease = store.blobs.lease();
    let layers = match parent {
        Some(parent) => store.leased_layers(&parent.to_string(), &lease)?.1,
        None => Vec::new(),
    };
    enter(store, config, layers, parent.cloned(), None, &[], &lease)
}

/// The history stays, and says at its end what became one.
pub(super) fn squashed(
    store: &ImageStore,
    image: &Digest,
    base: Option<&Digest>,
    layer: &mut dyn Read,
) -> Result<Digest> {
    let lease = store.blobs.lease();
    let mut config = store.config(image)?;
    let (mut layers, kept, comment) = match base {
        Some(base) => {
            let below = store.config(base)?;
            config.rootfs.diff_ids = below.rootfs.diff_ids;
            let layers = store.leased_layers(&base.to_string(), &lease)?.1;
            (layers, below.history.len(), format!("merge {image} to {base}"))
        }
        None => {
            config.rootfs.diff_ids.clear();
            (Vec::new(), 0, format!("create new from {image}"))
        }
    };
    for entry in config.history.iter_mut().skip(kept) {
        entry.empty_layer = true;
    }
    let layer = store.add_layer(layer, &lease)?;
    push_layer(&mut config, &mut layers, Some(layer), History { comment: Some(comment), ..History::default() })?;
    enter(store, &config, layers, None, None, &[], &lease)
}

fn push_layer(
    config: &mut ImageConfig,
    layers: &mut Vec<EntryLayer>,
    layer: Option<(Digest, Descriptor)>,
    history: History,
) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    config.created = Some(now.clone());
    config.history.push(History { created: Some(now), empty_layer: layer.is_none(), ..history });
    if let Some((diff_id, blob)) = layer {
        if layers.len() >= MAX_LAYERS {
            return Err(Error::Invalid("max depth exceeded".to_owned()));
        }
        config.rootfs.diff_ids.push(diff_id.clone());
        layers.push(EntryLayer { diff_id, blob });
    }
    Ok(())
}

fn enter(
    store: &ImageStore,
    config: &ImageConfig,
    layers: Vec<EntryLayer>,
    parent: Option<Digest>,
    cache_key: Option<String>,
    names: &[crate::reference::Reference],
    lease: &Lease,
) -> Result<Digest> {
    let bytes = serde_json::to_vec(config).map_err(|error| Error::Internal(format!("cannot write JSON: {error}")))?;
    store.enter(NewImage { config: &bytes, layers, manifest: None, parent, cache_key }, names, lease)
}
