//! Namespace: when one is deleted, everything in it goes first.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::discovery::verbs;
use kube::discovery::{Discovery, Scope};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};

use crate::{Error, Result, drive, is_missing, watching};

/// What the API server puts on every namespace, for us to take off.
const FINALIZER: &str = "kubernetes";
/// How soon to look again whether the contents are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Namespace>::all(client.clone()), watching());
    drive(controller, "namespace", reconcile, Arc::new(client)).await;
}

async fn reconcile(namespace: Arc<Namespace>, client: Arc<Client>) -> Result<Action> {
    let held = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let held = held.is_some_and(|finalizers| finalizers.iter().any(|name| name == FINALIZER));
    if namespace.metadata.deletion_timestamp.is_none() || !held {
        return Ok(Action::await_change());
    }
    let name = namespace.name_any();
    if empty_out(&client, &name).await? > 0 {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let Some(mut current) = Api::<Namespace>::all((*client).clone()).get_opt(&name).await? else {
        return Ok(Action::await_change());
    };
    if let Some(finalizers) = current.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|name| name != FINALIZER);
    }
    let body = serde_json::to_vec(&current)?;
    let request = kube::api::Request::new("/api/v1/namespaces")
        .replace_subresource("finalize", &name, &kube::api::PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    match client.request::<Namespace>(request).await {
        Err(error) if !is_missing(&error) => Err(error.into()),
        _ => Ok(Action::await_change()),
    }
}

/// Asks for the deletion of all that is in the namespace; returns how many objects are still there.
async fn empty_out(client: &Client, namespace: &str) -> Result<usize> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut left = 0;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let deletable =
                capabilities.supports_operation(verbs::DELETE) && capabilities.supports_operation(verbs::LIST);
            if capabilities.scope != Scope::Namespaced || !deletable {
                continue;
            }
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
            let listed = match api.list_metadata(&ListParams::default()).await {
                Ok(listed) => listed.items,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            left += listed.len();
            for object in listed.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
                let name = object.metadata.name.clone().ok_or(Error::Incomplete("name"))?;
                match api.delete(&name, &DeleteParams::background()).await {
                    Err(error) if !is_missing(&error) => {
                        tracing::warn!(namespace, name, error = crate::chain(&error), "cannot delete; trying again");
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(left)
}
