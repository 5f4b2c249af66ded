//! The pods of a controller: which ones are its own, how they are made from its template, and how they go.

use std::fmt::Debug;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{Error, Result, events, is_missing, pods};

/// Requests under way at once.
const PARALLEL: usize = 16;
/// Most pods made or deleted in one go; the rest waits for the next turn. `Source:` Kubernetes' BurstReplicas.
pub const BURST: usize = 500;

/// What may own, or be owned: an object of a namespace.
pub trait Owner: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug {}

impl<K> Owner for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug
{
}

/// Whether the owner lives and is not about to go. The server is asked, as what an informer holds may be old: an owner that goes
/// and leaves its dependents behind would take back one that was just let go, and the collector would then delete it.
async fn may_adopt<K: Owner>(client: Client, owner: &K) -> Result<bool> {
    let meta = owner.meta();
    let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return Ok(false) };
    if meta.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let now = Api::<K>::namespaced(client, namespace).get_metadata_opt(name).await?;
    Ok(now.is_some_and(|now| now.metadata.uid == meta.uid && now.metadata.deletion_timestamp.is_none()))
}

/// The pods that the owner controls; pods that match and have no owner are adopted on the way.
pub async fn owned<O: Owner>(api: &Api<Pod>, owner: &O, selector: &LabelSelector) -> Result<Vec<Pod>> {
    claim(api, owner, selector, pods::is_active).await
}

/// The dependents that the owner controls, of those that its selector names; one that has no owner and is `adoptable` is adopted
/// on the way.
pub async fn claim<K: Owner, O: Owner>(
    api: &Api<K>,
    owner: &O,
    selector: &LabelSelector,
    adoptable: fn(&K) -> bool,
) -> Result<Vec<K>> {
    let Some(text) = pods::selector_text(selector) else { return Ok(Vec::new()) };
    let mut owned = Vec::new();
    // Asked once, and only when there is something to adopt.
    let mut may = None;
    for dependent in api.list(&ListParams::default().labels(&text)).await?.items {
        match pods::controller_of(&dependent) {
            Some(found) if Some(&found.uid) == owner.meta().uid.as_ref() => owned.push(dependent),
            Some(_) => {}
            None if adoptable(&dependent) => {
                if may.is_none() {
                    may = Some(may_adopt(api.clone().into_client(), owner).await?);
                }
                if may == Some(true) {
                    let reference = owner.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?;
                    let patch = json!({ "metadata": { "uid": dependent.meta().uid, "ownerReferences": [reference] } });
                    let name = dependent.name_any();
                    owned.push(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?);
                }
            }
            None => {}
        }
    }
    Ok(owned)
}

/// A pod as the template has it, with a name that the server completes.
pub fn from_template<K>(owner: &K, template: &PodTemplateSpec) -> Result<Pod>
where
    K: Resource<DynamicType = ()>,
{
    let meta = template.metadata.clone().unwrap_or_default();
    Ok(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.meta().name.as_deref().unwrap_or_default())),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

/// Makes the pods. A refusal is told as an event about the owner.
pub async fn create<K>(client: &Client, api: &Api<Pod>, owner: &K, wanted: &[Pod]) -> Result<()>
where
    K: Resource<DynamicType = ()>,
{
    let parameters = PostParams::default();
    let parameters = &parameters;
    let made = stream::iter(wanted.to_vec())
        .map(|pod| async move { api.create(parameters, &pod).await })
        .buffer_unordered(PARALLEL)
        .try_for_each(|_| async { Ok(()) })
        .await;
    match made {
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => {
            let text = format!("Error creating: {}", status.message);
            let about = events::reference(owner);
            events::publish_from(client, &about, "Warning", "FailedCreate", &text, events::CONTROLLER).await;
            Err(kube::Error::Api(status).into())
        }
        made => Ok(made?),
    }
}

/// Deletes the pods; those that are gone already are no error.
pub async fn delete(api: &Api<Pod>, victims: &[&Pod]) -> Result<()> {
    let names: Vec<(String, Option<String>)> =
        victims.iter().map(|pod| (pod.name_any(), pod.metadata.uid.clone())).collect();
    stream::iter(names)
        .map(|(name, uid)| async move {
            let same = Preconditions { uid, resource_version: None };
            match api.delete(&name, &DeleteParams::default().preconditions(same)).await {
                // Another of the same name is none of ours.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) if !is_missing(&error) => Err(error),
                _ => Ok(()),
            }
        })
        .buffer_unordered(PARALLEL)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    Ok(())
}
