//! The garbage collector: what an object owns goes with it. It keeps a graph of owners and dependents from metadata-only watches
//! of every kind, and checks with the API before it deletes. `Source:` Kubernetes documentation, Garbage Collection.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams,
    Preconditions,
};
use kube::core::discovery::verbs;
use kube::discovery::{Discovery, Scope};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;

use crate::{Result, chain, is_missing, watching};

/// Finalizer of an owner that waits for its dependents.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner that leaves its dependents behind.
const ORPHAN: &str = "orphan";
/// Kinds that never own and are never owned, and are many.
const LEFT_OUT: &[&str] = &["Event", "Lease"];

type Meta = PartialObjectMeta<DynamicObject>;

/// What the graph knows of an object.
#[derive(Clone, Debug)]
struct Item {
    resource: usize,
    namespace: Option<String>,
    name: String,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
    deleting: bool,
}

impl Item {
    /// The item and its uid; `None` of an object that has neither uid nor name.
    fn of(resource: usize, meta: &ObjectMeta) -> Option<(String, Item)> {
        let (uid, name) = (meta.uid.clone()?, meta.name.clone()?);
        let item = Item {
            resource,
            namespace: meta.namespace.clone(),
            name,
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        };
        Some((uid, item))
    }
}

#[derive(Default)]
struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    fn put(&mut self, uid: &str, item: Item) {
        self.take(uid);
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
        self.items.insert(uid.to_owned(), item);
    }

    fn take(&mut self, uid: &str) -> Option<Item> {
        let item = self.items.remove(uid)?;
        for owner in &item.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(item)
    }

    fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).map(|set| set.iter().cloned().collect()).unwrap_or_default()
    }
}

enum Change {
    Object(usize, Box<Event<Meta>>),
    /// A kind came or went: begin anew.
    Kinds,
}

struct Collector {
    client: Client,
    resources: Vec<(ApiResource, bool)>,
    graph: Graph,
    unsynced: HashSet<usize>,
    /// Objects to look at once everything is listed.
    due: HashSet<String>,
}

/// Runs until the set of kinds changes.
pub async fn run(client: Client) -> Result<()> {
    let resources = resources(&client).await?;
    let mut sources: Vec<BoxStream<'static, Change>> = Vec::new();
    for (index, (resource, _)) in resources.iter().enumerate() {
        let api = Api::<Meta>::all_with(client.clone(), resource);
        let events = watcher(api, watching()).default_backoff();
        let events = events.filter_map(|item| async move { item.ok() });
        sources.push(events.map(move |event| Change::Object(index, Box::new(event))).boxed());
    }
    sources.push(kinds_changed(&client).map(|()| Change::Kinds).boxed());
    let unsynced = (0..resources.len()).collect();
    let mut collector = Collector { client, resources, graph: Graph::default(), unsynced, due: HashSet::new() };
    let mut changes = select_all(sources);
    while let Some(change) = changes.next().await {
        match change {
            Change::Object(index, event) => collector.take_in(index, *event),
            Change::Kinds => return Ok(()),
        }
        if collector.unsynced.is_empty() {
            collector.work().await;
        }
    }
    Ok(())
}

async fn resources(client: &Client) -> Result<Vec<(ApiResource, bool)>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut found = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let usable =
                [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| capabilities.supports_operation(verb));
            if usable && !LEFT_OUT.contains(&resource.kind.as_str()) {
                found.push((resource, capabilities.scope == Scope::Namespaced));
            }
        }
    }
    Ok(found)
}

/// Yields whenever a custom kind is added, removed or becomes established.
fn kinds_changed(client: &Client) -> impl futures::Stream<Item = ()> + Send + 'static {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut known: Option<HashMap<String, bool>> = None;
    let mut listing = HashMap::new();
    crate::follow(api, watcher::Config::default().any_semantic()).filter_map(move |event| {
        let changed = match event {
            Event::Init => {
                listing.clear();
                false
            }
            Event::InitApply(kind) => {
                listing.insert(kind.metadata.name.clone().unwrap_or_default(), is_established(&kind));
                false
            }
            Event::InitDone => {
                let changed = known.as_ref().is_some_and(|before| *before != listing);
                known = Some(listing.clone());
                changed
            }
            Event::Apply(kind) => {
                let established = is_established(&kind);
                let name = kind.metadata.name.unwrap_or_default();
                known.get_or_insert_default().insert(name, established) != Some(established) && established
            }
            Event::Delete(kind) => {
                known.get_or_insert_default().remove(&kind.metadata.name.unwrap_or_default()).is_some()
            }
        };
        async move { changed.then_some(()) }
    })
}

fn is_established(kind: &CustomResourceDefinition) -> bool {
    let conditions = kind.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

impl Collector {
    fn take_in(&mut self, resource: usize, event: Event<Meta>) {
        match event {
            Event::Apply(meta) | Event::InitApply(meta) => self.see(resource, &meta),
            Event::Delete(meta) => {
                if let Some(uid) = meta.metadata.uid {
                    self.graph.take(&uid);
                    self.due.extend(self.graph.dependents(&uid));
                    let owners = meta.metadata.owner_references.into_iter().flatten();
                    self.due.extend(owners.map(|owner| owner.uid));
                }
            }
            Event::Init => {}
            Event::InitDone => {
                self.unsynced.remove(&resource);
            }
        }
    }

    fn see(&mut self, resource: usize, meta: &Meta) {
        let Some((uid, item)) = Item::of(resource, &meta.metadata) else { return };
        let interesting = !item.owners.is_empty() || item.deleting;
        self.graph.put(&uid, item);
        if interesting {
            self.due.insert(uid);
        }
    }

    async fn work(&mut self) {
        while let Some(uid) = self.due.iter().next().cloned() {
            self.due.remove(&uid);
            let Some(item) = self.graph.items.get(&uid).cloned() else { continue };
            if let Err(error) = self.look_at(&uid, &item).await {
                tracing::warn!(
                    object = item.name,
                    error = chain(&error),
                    "cannot collect; it is looked at again later"
                );
            }
        }
    }

    async fn look_at(&mut self, uid: &str, item: &Item) -> Result<()> {
        if item.deleting {
            return self.finish_deletion(uid, item).await;
        }
        if item.owners.is_empty() {
            return Ok(());
        }
        let mut alive = Vec::new();
        let mut waiting = false;
        for owner in &item.owners {
            match self.owner_state(item, owner).await? {
                Owner::Alive => alive.push(owner.clone()),
                Owner::WaitsForDependents => waiting = true,
                Owner::Gone => {}
            }
        }
        if !alive.is_empty() && (waiting || alive.len() == item.owners.len()) {
            return Ok(());
        }
        // The graph lags behind: what was let go of a moment ago still has its owner in it. When that is so, the watch brings the
        // change, and the object is looked at again.
        let now = self.api(item).get_metadata_opt(&item.name).await?.map(|now| now.metadata);
        let Some(now) = now.filter(|now| now.uid.as_deref() == Some(uid)) else { return Ok(()) };
        if now.owner_references.unwrap_or_default() != item.owners {
            return Ok(());
        }
        if alive.is_empty() {
            let parameters = if waiting { DeleteParams::foreground() } else { DeleteParams::background() };
            let same = Preconditions { uid: now.uid, resource_version: now.resource_version };
            tolerate(self.api(item).delete(&item.name, &parameters.preconditions(same)).await.map(drop))
        } else {
            self.set_owners(uid, item, &alive).await
        }
    }

    /// Lets go of an owner whose dependents were to go first, or to be left behind.
    async fn finish_deletion(&mut self, uid: &str, item: &Item) -> Result<()> {
        let dependents = self.graph.dependents(uid);
        if item.finalizers.iter().any(|name| name == ORPHAN) {
            for (dependent, child) in self.living_dependents(uid, item).await? {
                let kept: Vec<OwnerReference> = child.owners.iter().filter(|owner| owner.uid != uid).cloned().collect();
                self.set_owners(&dependent, &child, &kept).await?;
            }
            return self.drop_finalizer(uid, item, ORPHAN).await;
        }
        if item.finalizers.iter().any(|name| name == FOREGROUND) {
            let mut blocking = false;
            for dependent in dependents {
                let Some(child) = self.graph.items.get(&dependent) else { continue };
                let blocks =
                    child.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
                blocking |= blocks;
                if !child.deleting {
                    self.due.insert(dependent);
                }
            }
            if !blocking {
                return self.drop_finalizer(uid, item, FOREGROUND).await;
            }
        }
        Ok(())
    }

    /// The dependents by their uids, asked of the server: one that the graph has not seen yet would lose its owner unnoticed, and
    /// be deleted for it, though its user said that it should stay.
    async fn living_dependents(&self, uid: &str, owner: &Item) -> Result<Vec<(String, Item)>> {
        let mut found = Vec::new();
        for (index, (resource, namespaced)) in self.resources.iter().enumerate() {
            let api: Api<DynamicObject> = match &owner.namespace {
                Some(namespace) if *namespaced => Api::namespaced_with(self.client.clone(), namespace, resource),
                Some(_) => continue,
                None => Api::all_with(self.client.clone(), resource),
            };
            let listed = match api.list_metadata(&ListParams::default()).await {
                Err(error) if is_missing(&error) => continue,
                listed => listed?,
            };
            for meta in listed.items {
                let owned = meta.metadata.owner_references.iter().flatten().any(|reference| reference.uid == uid);
                if owned && let Some((uid, item)) = Item::of(index, &meta.metadata) {
                    found.push((uid, item));
                }
            }
        }
        Ok(found)
    }

    async fn owner_state(&self, child: &Item, owner: &OwnerReference) -> Result<Owner> {
        if let Some(known) = self.graph.items.get(&owner.uid) {
            let waits = known.deleting && known.finalizers.iter().any(|name| name == FOREGROUND);
            return Ok(if waits { Owner::WaitsForDependents } else { Owner::Alive });
        }
        // Not in the graph: ask, since a watch may lag behind.
        let Some((resource, namespaced)) = self.resource_of(owner) else { return Ok(Owner::Alive) };
        let api = match (&child.namespace, namespaced) {
            (Some(namespace), true) => Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, resource),
            (None, true) => return Ok(Owner::Gone),
            (_, false) => Api::all_with(self.client.clone(), resource),
        };
        let found = api.get_metadata_opt(&owner.name).await?;
        let same = found.is_some_and(|found| found.metadata.uid.as_deref() == Some(owner.uid.as_str()));
        Ok(if same { Owner::Alive } else { Owner::Gone })
    }

    fn resource_of(&self, owner: &OwnerReference) -> Option<&(ApiResource, bool)> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        self.resources.iter().find(|(resource, _)| resource.kind == owner.kind && resource.group == group)
    }

    fn api(&self, item: &Item) -> Api<DynamicObject> {
        let (resource, _) = &self.resources[item.resource];
        match &item.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    async fn set_owners(&self, uid: &str, item: &Item, owners: &[OwnerReference]) -> Result<()> {
        let patch = json!({ "metadata": { "uid": uid, "ownerReferences": owners } });
        let done = self.api(item).patch(&item.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        tolerate(done.map(drop))
    }

    async fn drop_finalizer(&self, uid: &str, item: &Item, finalizer: &str) -> Result<()> {
        let kept: Vec<&String> = item.finalizers.iter().filter(|name| *name != finalizer).collect();
        let patch = json!({ "metadata": { "uid": uid, "finalizers": kept } });
        let done = self.api(item).patch(&item.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        tolerate(done.map(drop))
    }
}

/// How an owner stands to its dependents.
enum Owner {
    Alive,
    WaitsForDependents,
    Gone,
}

/// Somebody else was there first: nothing to do.
fn tolerate(done: std::result::Result<(), kube::Error>) -> Result<()> {
    match done {
        Err(error) if is_missing(&error) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => Ok(other?),
    }
}
