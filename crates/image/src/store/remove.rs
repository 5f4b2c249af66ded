//! Removing names and images, with Docker's rules and Docker's words.
//! Source: moby, daemon/images/image_delete.go.

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::blobs::lock;
use crate::store::index::Index;
use crate::store::{ImageStore, resolve};
use crate::types::{ImageUser, ListFilter, Removal, RemoveOptions};

/// Twelve digits of a container's id, as Docker prints them.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl ImageStore {
    /// Takes a name from an image, and removes the image when that was its last; by id removes the image with all names.
    ///
    /// Errors: `Conflict` in Docker's words when it is in use; nothing is changed then.
    pub fn remove(&self, name: &str, options: &RemoveOptions) -> Result<Vec<Removal>> {
        let users = self.all_users(&options.users);
        let removals = self.change(|index| remove(index, name, options, &users))?;
        self.sweep_unreferenced(&removals);
        Ok(removals)
    }

    /// Removes images that nobody uses and that fit the filter: without `dangling: Some(false)` only untagged ones.
    /// Returns what went, and the bytes of the files in it.
    pub fn prune(&self, filter: &ListFilter, users: &[ImageUser]) -> Result<(Vec<Removal>, u64)> {
        let only_dangling = filter.dangling != Some(false);
        let wanted = ListFilter { dangling: only_dangling.then_some(true), ..filter.clone() };
        let used: BTreeSet<String> = self.all_users(users).into_iter().map(|user| user.image_id).collect();
        let before: u64 = self.layer_bytes();
        let mut removals = Vec::new();
        for image in self.list(&wanted)? {
            if used.contains(&image.id.to_string()) || self.look(|index| index.is_named_in_a_view(&image.id)) {
                continue;
            }
            let options = RemoveOptions { force: true, no_prune: false, users: users.to_vec() };
            // A child built on it keeps an image; that is no error here.
            match self.remove(&image.id.to_string(), &options) {
                Ok(more) => removals.extend(more),
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((removals, before.saturating_sub(self.layer_bytes())))
    }

    fn layer_bytes(&self) -> u64 {
        self.look(|index| index.layers.values().map(|layer| layer.size_bytes).sum())
    }

    /// The users that a caller knows, and snapshots, which count as stopped containers. Each has the id of its image.
    fn all_users(&self, known: &[ImageUser]) -> Vec<ImageUser> {
        let mut users = known.to_vec();
        // Mounts of containers that were made without looking at their images have names.
        for user in users.iter_mut().filter(|user| user.image_id.parse::<Digest>().is_err()) {
            if let Ok(id) = self.resolve(&user.image_id) {
                user.image_id = id.to_string();
            }
        }
        for snapshot in lock(&self.snapshots).values() {
            if !users.iter().any(|user| user.container_id == snapshot.container_id) {
                users.push(ImageUser {
                    container_id: snapshot.container_id.clone(),
                    image_id: snapshot.image_id.to_string(),
                    running: false,
                });
            }
        }
        users
    }
}

fn remove(index: &mut Index, name: &str, options: &RemoveOptions, users: &[ImageUser]) -> Result<Vec<Removal>> {
    let id = resolve(index, name)?;
    let users: Vec<&ImageUser> = users.iter().filter(|user| user.image_id == id.to_string()).collect();
    let mut removals = Vec::new();
    let named = named_reference(index, name, &id);
    if let Some(reference) = named {
        let last = index.names_of(&id).count() + index.digests_of(&id).count() == 1
            || (index.names_of(&id).count() == 1 && only_repository(index, &id).is_some());
        if last
            && !options.force
            && let Some(user) = users.first()
        {
            return Err(Error::Conflict(format!(
                "conflict: unable to remove repository reference \"{}\" (must force) - container {} is using its \
                 referenced image {}",
                name,
                short(&user.container_id),
                id.short()
            )));
        }
        untag(index, &reference, &mut removals);
        if last {
            untag_all(index, &id, &mut removals);
        }
        // With force a stopped container keeps the image, without names; a running one always does.
        if !last || !users.is_empty() || index.has_children(&id) || index.is_named_in_a_view(&id) {
            return Ok(removals);
        }
    } else {
        check_id_removal(index, &id, options, &users)?;
        untag_all(index, &id, &mut removals);
        if users.iter().any(|user| !user.running) || index.has_children(&id) {
            return Ok(removals);
        }
    }
    delete(index, &id, options.no_prune, &mut removals);
    Ok(removals)
}

/// The name that was meant; `None` when it was an id.
fn named_reference(index: &Index, name: &str, id: &Digest) -> Option<Reference> {
    let reference = Reference::parse_tagged(name).ok()?;
    let held = if reference.digest.is_some() {
        index.digests.get(&Reference { tag: None, ..reference.clone() }.to_string())
    } else {
        index.names.get(&reference.to_string())
    };
    (held == Some(id)).then_some(reference)
}

/// The repository of an image whose names are all of one repository.
fn only_repository(index: &Index, id: &Digest) -> Option<String> {
    let mut names = index.names_of(id).chain(index.digests_of(id)).filter_map(|name| Reference::parse(name).ok());
    let first = names.next()?.name();
    names.all(|name| name.name() == first).then_some(first)
}

fn check_id_removal(index: &Index, id: &Digest, options: &RemoveOptions, users: &[&ImageUser]) -> Result<()> {
    let conflict = |how: &str, why: String| {
        Err(Error::Conflict(format!("conflict: unable to delete {} ({how}) - {why}", id.short())))
    };
    if let Some(user) = users.iter().find(|user| user.running) {
        let why = format!("image is being used by running container {}", short(&user.container_id));
        return conflict("cannot be forced", why);
    }
    let tags = index.names_of(id).count();
    if index.has_children(id) && (tags == 0 || !options.force) {
        return conflict("cannot be forced", "image has dependent child images".to_owned());
    }
    if options.force {
        return Ok(());
    }
    if index.is_named_in_a_view(id) {
        return conflict("must be forced", "image has names of other users".to_owned());
    }
    if tags > 1 || (tags > 0 && only_repository(index, id).is_none()) {
        return conflict("must be forced", "image is referenced in multiple repositories".to_owned());
    }
    if let Some(user) = users.first() {
        let why = format!("image is being used by stopped container {}", short(&user.container_id));
        return conflict("must be forced", why);
    }
    Ok(())
}

fn untag(index: &mut Index, reference: &Reference, removals: &mut Vec<Removal>) {
    let key = reference.to_string();
    if index.names.remove(&key).is_some() || index.digests.remove(&key).is_some() {
        removals.push(Removal::Untagged(reference.familiar()));
    }
}

fn untag_all(index: &mut Index, id: &Digest, removals: &mut Vec<Removal>) {
    let names: Vec<String> = index.names_of(id).chain(index.digests_of(id)).cloned().collect();
    for reference in names.iter().filter_map(|name| Reference::parse(name).ok()) {
        untag(index, &reference, removals);
    }
}

/// Removes an image, and its untagged parents that nothing else is built on.
fn delete(index: &mut Index, id: &Digest, no_prune: bool, removals: &mut Vec<Removal>) {
    let mut next = Some(id.clone());
    while let Some(id) = next.take() {
        let Some(entry) = index.images.remove(&id) else { return };
        for own in index.views.values_mut() {
            own.names.retain(|_, named| *named != id);
            own.digests.retain(|_, named| *named != id);
        }
        removals.push(Removal::Deleted(id.to_string()));
        if let Some(parent) = entry.parent
            && !no_prune
            && index.names_of(&parent).next().is_none()
            && index.digests_of(&parent).next().is_none()
            && !index.is_named_in_a_view(&parent)
            && !index.has_children(&parent)
        {
            next = Some(parent);
        }
    }
}

impl ImageStore {
    /// Takes an image out of the index whatever it is called, when nothing uses it (a build that failed).
    pub fn forget(&self, id: &Digest) -> Result<()> {
        self.remove(&id.to_string(), &RemoveOptions { force: true, ..RemoveOptions::default() }).map(drop).or_else(
            |error| match error {
                Error::NotFound(_) | Error::Conflict(_) => Ok(()),
                other => Err(other),
            },
        )
    }

    /// Whether the image is there.
    pub fn exists(&self, id: &Digest) -> bool {
        self.look(|index| index.images.contains_key(id))
    }
}
