//! The Service `kubernetes` in `default`, by which clients inside pods find the API. `Source:` Kubernetes, "Accessing the
//! Kubernetes API from a Pod".

use std::net::{Ipv4Addr, SocketAddrV4};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{Result, follow, watching};

/// Its name, as clients know it.
const NAME: &str = "kubernetes";
/// Its namespace.
const NAMESPACE: &str = "default";

/// Where the API is.
#[derive(Clone, Copy, Debug)]
pub struct ApiPlace {
    /// Address of the Service: the first of the Service range, which the certificate names.
    pub service: Ipv4Addr,
    /// Where the API itself listens.
    pub endpoint: SocketAddrV4,
}

/// Keeps the Service and its endpoints as they should be; a Service that was deleted comes back.
pub async fn run(client: Client, place: ApiPlace) -> Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    let mut changes = std::pin::pin!(follow(services, watching().fields(&format!("metadata.name={NAME}"))));
    while let Some(event) = changes.next().await {
        if matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
            write(&client, place).await?;
        }
    }
    Ok(())
}

async fn write(client: &Client, place: ApiPlace) -> Result<()> {
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let service = serde_json::from_value(json!({
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels },
        "spec": {
            "type": "ClusterIP", "clusterIP": place.service, "sessionAffinity": "None",
            "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": place.endpoint.port() }],
        },
    }))?;
    let (address, port) = (place.endpoint.ip(), place.endpoint.port());
    let slice = serde_json::from_value(json!({
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": NAME } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    }))?;
    let endpoints = serde_json::from_value(json!({
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": [{
            "addresses": [{ "ip": address }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        }],
    }))?;
    ensure::<Service>(client, &service).await?;
    ensure::<EndpointSlice>(client, &slice).await?;
    ensure::<Endpoints>(client, &endpoints).await
}

/// Makes the object, or puts right what differs in the one that is there.
async fn ensure<K>(client: &Client, wanted: &K) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    match api.create(&PostParams::default(), wanted).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(wanted)).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
