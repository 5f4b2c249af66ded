//! The service proxy: watches Services and EndpointSlices and keeps the kernel's tables and the name server up to date.

mod rules;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use tokio::sync::Notify;

use crate::context::Context;
use crate::informer;

/// Changes that come within this time are handled together.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>, services: Store<Service>, changed: Arc<Notify>) {
    let slices_changed = changed.clone();
    let config = watcher::Config::default();
    let (slices, stream) = informer::reflect(Api::<EndpointSlice>::all(context.client.clone()), config);
    let watch = async move {
        let mut stream = std::pin::pin!(stream);
        while stream.next().await.is_some() {
            slices_changed.notify_one();
        }
    };
    let sync = async {
        // Rules from half a list would refuse connections that worked before a restart.
        let _ = services.wait_until_ready().await;
        let _ = slices.wait_until_ready().await;
        let mut last = None;
        loop {
            // What services say of a network counts once the network is here.
            let made = context.networks.made.notified();
            let (services, slices) = (services.state(), slices.state());
            let networks = |namespace: &str, name: &str| context.networks.id_of(namespace, name);
            let plan = rules::plan(
                services.iter().map(AsRef::as_ref),
                slices.iter().map(AsRef::as_ref),
                &context.node_name,
                &networks,
            );
            context.directory.set_services(plan.records, plan.names);
            if last.as_ref() != Some(&plan.rules) {
                match context.fabric.sync_services(plan.rules.clone()).await {
                    Ok(()) => last = Some(plan.rules),
                    Err(error) => {
                        tracing::warn!(error = %crate::error::chain(&error), "cannot install service rules");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                () = made => {}
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    };
    tokio::join!(watch, sync);
}
