//! What a repository holds: what was pushed to it, and the store's images that are named after it. Where both have a
//! tag the store's wins, unless it is the very image that was pushed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;
use axum::http::header;
use image::manifest::{Descriptor, Document, parse};
use image::store::Repositories;
use image::{Digest, ImageStore, ListFilter, Reference, RemoveOptions};

use crate::error::{Code, Failure};

/// The registry's state.
pub(crate) struct Registry {
    pub images: Arc<ImageStore>,
    names: Vec<String>,
    pub access: Option<Arc<dyn crate::Access>>,
    /// Uploads that a request is writing to.
    busy: Mutex<HashSet<String>>,
}

/// Keeps other requests from an upload. Dropping it ends that.
pub(crate) struct Alone {
    registry: Arc<Registry>,
    id: String,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.registry.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// An image of the store with a name of this registry.
struct Local {
    reference: Reference,
    id: Digest,
}

impl Registry {
    pub fn new(images: Arc<ImageStore>, options: crate::RegistryOptions) -> Registry {
        Registry { images, names: options.names, access: options.access, busy: Mutex::default() }
    }

    pub fn repositories(&self) -> &Repositories {
        self.images.repositories()
    }

    /// Takes an upload for one request; `None` while another has it.
    pub fn alone(self: &Arc<Self>, id: &str) -> Option<Alone> {
        let fresh = self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        fresh.then(|| Alone { registry: self.clone(), id: id.to_owned() })
    }

    fn locals(&self) -> Result<Vec<Local>, Failure> {
        let mut found = Vec::new();
        for image in self.images.list(&ListFilter { all: true, ..ListFilter::default() })? {
            let references = image.references.iter().filter_map(|text| Reference::parse(text).ok());
            for reference in references.filter(|reference| self.names.contains(&reference.registry)) {
                found.push(Local { reference, id: image.id.clone() });
            }
        }
        Ok(found)
    }

    fn locals_of(&self, name: &str) -> Result<Vec<Local>, Failure> {
        Ok(self.locals()?.into_iter().filter(|local| local.reference.repository == name).collect())
    }

    /// Names of all repositories, sorted.
    pub fn catalog(&self) -> Result<Vec<String>, Failure> {
        let mut names = self.repositories().names();
        names.extend(self.locals()?.into_iter().map(|local| local.reference.repository));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Tags of a repository, sorted, with their manifests.
    pub fn tags(&self, name: &str) -> Result<BTreeMap<String, Digest>, Failure> {
        let repository = self.repositories().look(name, |repository| {
            let leads = |tag: &str, id: &Digest| {
                let Some(stored) = repository.tags.get(tag).and_then(|digest| repository.manifests.get(digest)) else {
                    return false;
                };
                let children = stored.needs.iter().filter_map(|need| repository.manifests.get(need));
                children.chain([stored]).any(|manifest| manifest.needs.contains(id))
            };
            let same: HashSet<(String, Digest)> = self
                .locals_of(name)?
                .into_iter()
                .filter_map(|local| Some((local.reference.tag?, local.id)))
                .filter(|(tag, id)| leads(tag, id))
                .collect();
            Ok::<_, Failure>((repository.tags.clone(), same))
        });
        let locals = self.locals_of(name)?;
        let (mut tags, same) = match repository {
            Some(found) => found?,
            None if locals.is_empty() => {
                return Err(Failure::new(Code::NameUnknown, "repository name not known to registry"));
            }
            None => Default::default(),
        };
        for Local { reference, id } in locals {
            let Some(tag) = reference.tag else { continue };
            if !same.contains(&(tag.clone(), id.clone())) {
                tags.insert(tag, self.images.manifest(&id)?.digest);
            }
        }
        Ok(tags)
    }

    /// The manifest of a digest, if the repository has it.
    pub fn manifest(&self, name: &str, digest: &Digest) -> Result<Option<Descriptor>, Failure> {
        let pushed = self
            .repositories()
            .look(name, |repository| repository.manifests.get(digest).map(|manifest| manifest.descriptor.clone()));
        if let Some(Some(pushed)) = pushed {
            return Ok(Some(pushed));
        }
        for local in self.locals_of(name)? {
            let manifest = self.images.manifest(&local.id)?;
            if manifest.digest == *digest {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Size of a blob that may be read through the repository.
    pub fn blob(&self, name: &str, digest: &Digest) -> Result<Option<u64>, Failure> {
        let Some(size) = self.images.blobs().size(digest) else { return Ok(None) };
        let linked = self.repositories().look(name, |repository| {
            repository.blobs.contains_key(digest)
                || repository.manifests.contains_key(digest)
                || repository.manifests.values().any(|manifest| manifest.needs.contains(digest))
        });
        if linked == Some(true) {
            return Ok(Some(size));
        }
        for local in self.locals_of(name)? {
            let manifest = self.images.manifest(&local.id)?;
            if manifest.digest == *digest || local.id == *digest {
                return Ok(Some(size));
            }
            let document = self.images.blobs().document(&manifest.digest)?;
            if let Document::Manifest(document) = parse(&document, Some(&manifest.media_type))?
                && document.layers.iter().any(|layer| layer.digest == *digest)
            {
                return Ok(Some(size));
            }
        }
        Ok(None)
    }

    /// The names that an image gets that is pushed under a tag: the one that the client used, and those it has already.
    pub fn references(&self, name: &str, tag: &str, request: &Request) -> Vec<Reference> {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let used = host.filter(|host| self.names.iter().any(|name| name == host)).or(self.names.first().map(|n| &**n));
        let reference = |host: &str| Reference {
            registry: host.to_owned(),
            repository: name.to_owned(),
            tag: Some(tag.to_owned()),
            digest: None,
        };
        let known = |reference: &Reference| self.images.resolve(&reference.to_string()).is_ok();
        let others = self.names.iter().filter(|host| used != Some(host)).map(|host| reference(host)).filter(known);
        used.map(reference).into_iter().chain(others).collect()
    }

    /// Takes the store's names for a tag away.
    pub fn untag(&self, name: &str, tag: &str) -> Result<bool, Failure> {
        let mut any = false;
        for local in self.locals_of(name)?.into_iter().filter(|local| local.reference.tag.as_deref() == Some(tag)) {
            // With force a container that uses the image keeps it, without the name.
            let options = RemoveOptions { force: true, ..RemoveOptions::default() };
            match self.images.remove(&local.reference.to_string(), &options) {
                Ok(_) => any = true,
                Err(image::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(any)
    }

    /// Tags of the store's images in this repository that have a manifest.
    pub fn local_tags_of(&self, name: &str, digest: &Digest) -> Result<Vec<String>, Failure> {
        let locals = self.locals_of(name)?.into_iter();
        let fits = |local: &Local| self.images.manifest(&local.id).is_ok_and(|manifest| manifest.digest == *digest);
        Ok(locals.filter(fits).filter_map(|local| local.reference.tag).collect())
    }
}
