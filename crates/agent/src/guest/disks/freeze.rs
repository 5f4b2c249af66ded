//! Freezing disks: a new empty layer is put on top of each at one instant, and what was on top is never written again. It takes
//! milliseconds, whatever the disks' size.

use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::Guest;

use super::blocking;
use crate::context::Context;
use crate::error::{Error, Result};

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
        for source in &wanted {
            let top = store.owned_by(&source.owner).pop();
            let top = top.ok_or_else(|| hypervisor::Error::NotFound(format!("the disk of {}", source.owner)))?;
            let bytes = store.get(&top)?.virtual_bytes;
            let new = store.create(Some(&top), Some(bytes.max(source.least_bytes)), &source.owner)?;
            let file = store.chain(&new)?.swap_remove(0);
            made.push((Frozen { layer: top, bytes }, new, file));
        }
        Ok(made)
    })
    .await?;
    if let Some(guest) = guest {
        let tops: Vec<(String, PathBuf)> =
            sources.iter().zip(&made).map(|(source, (_, _, file))| (source.disk.clone(), file.clone())).collect();
        if let Err(error) = guest.snapshot_disks(&tops).await {
            if matches!(error, hypervisor::Error::Refused { .. }) {
                for (_, new, _) in &made {
                    layers.set_owner(new, None)?;
                }
            }
            return Err(error.into());
        }
    }
    let frozen: Vec<Frozen> = made.into_iter().map(|(frozen, _, _)| frozen).collect();
    let (given, owner) = (frozen.clone(), owner.map(str::to_owned));
    blocking(move || given.iter().try_for_each(|one| layers.set_owner(&one.layer, owner.as_deref()))).await?;
    Ok(frozen)
}

/// What an error of a disk means for an object that is to be made: whether another attempt may succeed.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::Invalid(_) | Error::Hypervisor(hypervisor::Error::Invalid(_) | hypervisor::Error::Conflict(_))
    )
}
