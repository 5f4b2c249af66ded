//! The history of a controller's pod template, as ControllerRevisions: what `kubectl rollout history` shows and `undo` goes back to.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::deployment::rollout;
use crate::{Error, Result, is_missing, pods};

/// Label of pods and revisions with the hash of the template.
pub const HASH: &str = "controller-revision-hash";
/// Most templates whose hashes collide.
const COLLISIONS_MAX: i32 = 100;

/// The revisions of one controller, the newest last.
#[derive(Debug, Default)]
pub struct History {
    /// All of them.
    pub list: Vec<ControllerRevision>,
}

impl History {
    /// The revision of the present template.
    pub fn newest(&self) -> Option<&ControllerRevision> {
        self.list.last()
    }

    /// The template of a revision.
    pub fn template(&self, name: &str) -> Option<PodTemplateSpec> {
        let found = self.list.iter().find(|one| one.name_any() == name)?;
        serde_json::from_value(found.data.as_ref()?.0.pointer("/spec/template")?.clone()).ok()
    }
}

/// The hash that a revision's pods carry.
pub fn hash(revision: &ControllerRevision) -> String {
    revision.labels().get(HASH).cloned().unwrap_or_default()
}

fn data(template: &PodTemplateSpec) -> Result<Value> {
    let mut template = serde_json::to_value(template)?;
    if let Some(meta) = template.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        meta.remove("creationTimestamp");
    }
    template["$patch"] = "replace".into();
    Ok(json!({ "spec": { "template": template } }))
}

/// Reads the history, and adds the present template to it when it is new.
pub async fn sync<K>(
    client: &Client,
    owner: &K,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
) -> Result<History>
where
    K: Resource<DynamicType = ()>,
{
    let api =
        Api::<ControllerRevision>::namespaced(client.clone(), &owner.meta().namespace.clone().unwrap_or_default());
    let query = ListParams::default().labels(&pods::selector_text(selector).unwrap_or_default());
    let mut list = api.list(&query).await?.items;
    list.retain(|one| pods::controller_of(one).map(|found| &found.uid) == owner.meta().uid.as_ref());
    list.sort_by_key(|one| one.revision);
    let wanted = data(template)?;
    let next = list.last().map_or(1, |one| one.revision + 1);
    match list.iter().position(|one| one.data.as_ref().is_some_and(|data| data.0 == wanted)) {
        Some(index) if index + 1 == list.len() => {}
        // An old template is back: its revision becomes the newest.
        Some(index) => {
            let old = list.remove(index);
            let patch = Patch::Merge(json!({ "revision": next }));
            list.push(api.patch(&old.name_any(), &PatchParams::default(), &patch).await?);
        }
        None => list.push(create(&api, owner, template, wanted, next).await?),
    }
    Ok(History { list })
}

async fn create<K>(
    api: &Api<ControllerRevision>,
    owner: &K,
    template: &PodTemplateSpec,
    data: Value,
    revision: i64,
) -> Result<ControllerRevision>
where
    K: Resource<DynamicType = ()>,
{
    for collisions in 0..COLLISIONS_MAX {
        let hash = rollout::hash(&data, collisions);
        let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(HASH.into(), hash.clone());
        let name = format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default());
        let wanted = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                owner_references: Some(vec![owner.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
                ..ObjectMeta::default()
            },
            data: Some(k8s_openapi::apimachinery::pkg::runtime::RawExtension(data.clone())),
            revision,
        };
        match api.create(&PostParams::default(), &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => return Ok(made?),
        }
    }
    Err(Error::Incomplete("free name for a revision"))
}

/// Deletes the oldest revisions beyond the limit that no pod is of.
pub async fn prune(
    client: &Client,
    namespace: &str,
    history: &History,
    limit: i32,
    used: impl Fn(&ControllerRevision) -> bool,
) -> Result<()> {
    let api = Api::<ControllerRevision>::namespaced(client.clone(), namespace);
    let old = history.list.len().saturating_sub(1);
    let idle: Vec<&ControllerRevision> = history.list[..old].iter().filter(|one| !used(one)).collect();
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for one in idle.into_iter().take(surplus) {
        match api.delete(&one.name_any(), &DeleteParams::default()).await {
            Err(error) if !is_missing(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
