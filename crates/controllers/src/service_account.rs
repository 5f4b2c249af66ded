//! Every namespace has a `default` ServiceAccount and the cluster's CA as a ConfigMap.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, drive, watching};

/// Name of the ConfigMap with the cluster's CA. `Source:` Kubernetes' root-ca-cert-publisher.
const ROOT_CA: &str = "kube-root-ca.crt";

struct Context {
    client: Client,
    root_ca: String,
}

/// Runs the controller.
pub async fn run(client: Client, root_ca: String) {
    let controller = Controller::new(Api::<Namespace>::all(client.clone()), watching()).watches(
        Api::<ServiceAccount>::all(client.clone()),
        watching(),
        |account| account.namespace().map(|name| ObjectRef::<Namespace>::new(&name)),
    );
    drive(controller, "serviceaccount", reconcile, Arc::new(Context { client, root_ca })).await;
}

async fn reconcile(namespace: Arc<Namespace>, context: Arc<Context>) -> Result<Action> {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    if namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating") {
        return Ok(Action::await_change());
    }
    let name = namespace.name_any();
    let account = ServiceAccount { metadata: named("default"), ..ServiceAccount::default() };
    ensure(&Api::namespaced(context.client.clone(), &name), "default", &account).await?;
    let bundle = ConfigMap {
        metadata: named(ROOT_CA),
        data: Some([("ca.crt".to_owned(), context.root_ca.clone())].into_iter().collect()),
        ..ConfigMap::default()
    };
    ensure(&Api::namespaced(context.client.clone(), &name), ROOT_CA, &bundle).await?;
    Ok(Action::await_change())
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

async fn ensure<K>(api: &Api<K>, name: &str, wanted: &K) -> Result<()>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    if api.get_metadata_opt(name).await?.is_some() {
        return Ok(());
    }
    match api.create(&PostParams::default(), wanted).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}
