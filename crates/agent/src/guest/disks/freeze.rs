//! Freezing disks: a new empty layer is put on top of each at one instant, and what was on top is never written again. It takes
//! milliseconds, whatever the disks' size.

use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::Guest;
use hypervisor::disk::LayerStore;

use super::blocking;
use crate::context::Context;
use crate::error::{Error, Result, chain};

/// A disk that is to be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The owner of its layers.
    pub owner: String,
    /// The name by which its guest's hypervisor knows it.
    pub disk: String,
    /// At least the size that its file may have by now. Units: bytes.
    pub least_bytes: u64,
}

/// What was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The layer.
    pub layer: String,
    /// Its size as a guest sees it. Units: bytes.
    pub bytes: u64,
    /// The guest held its file systems still.
    pub still: bool,
}

/// Freezes disks, which are plugged into this guest if there is one, and gives what is frozen to `owner`, or to nobody. The caller holds
/// the locks of all of them.
///
/// A crash in the middle leaves an empty layer that counts as the top and is not the guest's: the guest writes to the one below, which
/// nobody took for frozen, and all goes on as if nothing had been asked.
pub async fn freeze(
    context: &Context,
    sources: &[Source],
    guest: Option<&Arc<dyn Guest>>,
    owner: Option<&str>,
) -> Result<Vec<Frozen>> {
    let layers = context.guests.layers().await?;
    let wanted = sources.to_vec();
    let store = layers.clone();
    let made = blocking(move || {
        let mut made = Vec::new();
        let all = wanted.iter().try_for_each(|source| {
            made.push(put_on_top(&store, source)?);
            Ok(())
        });
        if all.is_err() {
            made.iter().for_each(|(_, new, _)| discard(&store, new));
        }
        all.map(|()| made)
    })
    .await?;
    let mut is_still = false;
    if let Some(guest) = guest {
        let tops: Vec<(String, PathBuf)> =
            sources.iter().zip(&made).map(|(source, (_, _, file))| (source.disk.clone(), file.clone())).collect();
        match guest.snapshot_disks(&tops).await {
            Ok(still) => is_still = still,
            Err(error) => {
                if matches!(error, hypervisor::Error::Refused { .. }) {
                    made.iter().for_each(|(_, new, _)| discard(&layers, new));
                }
                return Err(error.into());
            }
        }
    }
    let frozen: Vec<Frozen> = made.into_iter().map(|(frozen, _, _)| Frozen { still: is_still, ..frozen }).collect();
    let (given, owner) = (frozen.clone(), owner.map(str::to_owned));
    blocking(move || given.iter().try_for_each(|one| layers.set_owner(&one.layer, owner.as_deref()))).await?;
    Ok(frozen)
}

/// Puts an empty layer on a disk: what is frozen then, the new layer, and its file.
fn put_on_top(store: &LayerStore, source: &Source) -> hypervisor::Result<(Frozen, String, PathBuf)> {
    let top = store.owned_by(&source.owner).pop();
    let top = top.ok_or_else(|| hypervisor::Error::NotFound(format!("the disk of {}", source.owner)))?;
    let bytes = store.get(&top)?.virtual_bytes;
    let new = store.create(Some(&top), Some(bytes.max(source.least_bytes)), &source.owner)?;
    let file = store.chain(&new)?.swap_remove(0);
    Ok((Frozen { layer: top, bytes, still: false }, new, file))
}

/// Takes a layer away that nobody came to use. One that stays is empty, and costs a look-up.
fn discard(store: &LayerStore, layer: &str) {
    if let Err(error) = store.discard(layer) {
        tracing::warn!(layer, error = %chain(&error), "an empty layer stays");
    }
}

/// What an error of a disk means for an object that is to be made: whether another attempt may succeed.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::Invalid(_) | Error::Hypervisor(hypervisor::Error::Invalid(_) | hypervisor::Error::Conflict(_))
    )
}
