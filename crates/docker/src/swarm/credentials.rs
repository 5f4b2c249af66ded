//! Credentials of a service's registry (`--with-registry-auth`): a `Secret` of the service, which only the machines of its
//! tasks may read, and which goes with it.

use std::collections::BTreeMap;

use api::swarm::{MANAGED_LABEL, SwarmService};
use image::{Credentials, Reference};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Resource};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::state::Docker;

/// Who writes the `Secret`.
const MANAGER: &str = "nuee-docker";

/// Name of a service's `Secret`.
pub(super) fn secret_name(service: &str) -> String {
    format!("{service}-registry")
}

/// What the `Secret` holds: credentials by the registry's name, as a Docker client keeps them. Pure.
fn document(image: &str, credentials: &Credentials) -> Result<Value> {
    let reference = Reference::parse_tagged(image)?.to_string();
    let registry = reference.split('/').next().unwrap_or_default();
    let members = [
        ("username", &credentials.username),
        ("password", &credentials.password),
        ("identitytoken", &credentials.identity_token),
        ("registrytoken", &credentials.registry_token),
    ];
    let entry: BTreeMap<&str, &String> = members.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    Ok(json!({ "auths": { registry: entry } }))
}

/// Writes the `Secret` of a service; once the service is there, as a part of it.
pub(super) async fn keep(
    docker: &Docker,
    id: &str,
    service: Option<&SwarmService>,
    image: &str,
    credentials: &Credentials,
) -> Result<()> {
    let text = document(image, credentials)?.to_string();
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(id)),
            labels: Some(BTreeMap::from([(MANAGED_LABEL.to_owned(), "registry".to_owned())])),
            owner_references: service.and_then(|service| service.owner_ref(&())).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
        data: Some(BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(text.into_bytes()))])),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(docker.state.client.clone(), &docker.state.namespace);
    let parameters = PatchParams::apply(MANAGER).force();
    secrets.patch(&secret_name(id), &parameters, &Patch::Apply(&secret)).await.map(drop).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stand_under_the_registry_of_the_image() {
        let credentials = Credentials { username: "a".into(), password: "b".into(), ..Credentials::default() };
        let registry = |image: &str| {
            let document = document(image, &credentials).unwrap();
            assert_eq!(
                document["auths"].as_object().unwrap().values().next(),
                Some(&json!({"username": "a", "password": "b"}))
            );
            document["auths"].as_object().unwrap().keys().next().cloned().unwrap()
        };
        assert_eq!(registry("registry.example:5000/team/web:1"), "registry.example:5000");
        assert_eq!(registry("busybox"), registry("docker.io/library/busybox:latest"));
        assert!(document("Bad Name", &credentials).is_err());
    }
}
