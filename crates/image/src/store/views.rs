//! Views: names of images that only one group of users has, over the names that all share. A view sees its own names first
//! and the shared ones behind them; what it names is seen by nobody else. Images and layers themselves are held once. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::index::Index;

/// The names of one view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Ids by full name with tag.
    pub names: BTreeMap<String, Digest>,
    /// Ids by full name with digest.
    #[serde(default)]
    pub digests: BTreeMap<String, Digest>,
}

impl Names {
    fn ids(&self) -> impl Iterator<Item = &Digest> {
        self.names.values().chain(self.digests.values())
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.digests.is_empty()
    }
}

impl Index {
    /// Whether a view has a name for an image.
    pub fn is_named_in_a_view(&self, id: &Digest) -> bool {
        self.views.values().any(|own| own.ids().any(|named| named == id))
    }

    fn is_named(&self, id: &Digest) -> bool {
        self.names_of(id).next().is_some() || self.digests_of(id).next().is_some() || self.is_named_in_a_view(id)
    }

    /// What a view sees: its own names over the shared ones, and no image that only others have names for.
    pub(super) fn seen_by(&self, view: &str) -> Index {
        let mut seen = self.overlaid(view);
        let shown: BTreeSet<&Digest> = seen.names.values().chain(seen.digests.values()).collect();
        let others = self.views.iter().filter(|(name, _)| *name != view).flat_map(|(_, own)| own.ids());
        let hidden: Vec<Digest> = others.filter(|id| !shown.contains(*id)).cloned().collect();
        hidden.iter().for_each(|id| drop(seen.images.remove(id)));
        seen
    }

    fn overlaid(&self, view: &str) -> Index {
        let mut seen = self.clone();
        if let Some(own) = self.views.get(view) {
            seen.names.extend(own.names.clone());
            seen.digests.extend(own.digests.clone());
        }
        seen
    }

    /// Edits the index as a view sees it: names that are given go to the view, shared ones stay as they are.
    ///
    /// Errors: those of `edit`; `Conflict` when an image would go that others have a name for.
    pub(super) fn edited_by<T>(&self, view: &str, edit: impl FnOnce(&mut Index) -> Result<T>) -> Result<(Index, T)> {
        let mut edited = self.overlaid(view);
        let result = edit(&mut edited)?;
        let before = self.views.get(view).cloned().unwrap_or_default();
        let own = |now: BTreeMap<String, Digest>, shared: &BTreeMap<String, Digest>, own: &BTreeMap<String, Digest>| {
            let mut kept = now;
            kept.retain(|name, id| shared.get(name) != Some(id) || own.get(name) == Some(id));
            kept
        };
        let own = Names {
            names: own(edited.names, &self.names, &before.names),
            digests: own(edited.digests, &self.digests, &before.digests),
        };
        (edited.names, edited.digests) = (self.names.clone(), self.digests.clone());
        edited.views.clone_from(&self.views);
        match own.is_empty() {
            true => drop(edited.views.remove(view)),
            false => drop(edited.views.insert(view.to_owned(), own)),
        }
        if let Some(id) = self.images.keys().find(|id| !edited.images.contains_key(*id) && edited.is_named(id)) {
            return Err(Error::Conflict(format!("image {} has names that others gave it", id.short())));
        }
        Ok((edited, result))
    }
}
