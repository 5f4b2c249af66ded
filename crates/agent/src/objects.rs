//! How objects of the API are written into.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, Result, is_not_found};

/// Writes metadata, or a status, into an object if it is still the version that was read; what is newer comes by the watch. `action`: what is
/// said to be done when it cannot.
///
/// Errors: those of the apiserver, but that the object is gone or newer.
pub async fn write_as_read<K>(
    client: &Client,
    object: &K,
    metadata: Value,
    status: Option<Value>,
    action: &'static str,
) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let objects: Api<K> = Api::namespaced(client.clone(), object.meta().namespace.as_deref().unwrap_or_default());
    let (name, parameters) = (object.name_any(), PatchParams::default());
    let mut patch = json!({ "metadata": metadata });
    patch["metadata"]["uid"] = json!(object.meta().uid);
    patch["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
    let done = match status {
        None => objects.patch(&name, &parameters, &Patch::Merge(patch)).await,
        Some(status) => {
            patch["status"] = status;
            objects.patch_status(&name, &parameters, &Patch::Merge(patch)).await
        }
    };
    match done {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
        Err(error) => Err(Error::api(action)(error)),
    }
}
