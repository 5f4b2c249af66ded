//! Follows the `FloatingIP` objects that lead to workloads of this machine, and has the network answer for their addresses.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::{FloatingIP, FloatingIPRefusal};
use futures::StreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;

use crate::context::{Context, Key};
use crate::error::chain;
use crate::informer;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);
/// Time after which refused addresses are looked at again: what stood in the way may be gone.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let api = Api::<FloatingIP>::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("status.nodeName={}", context.node_name));
    let mut states = std::pin::pin!(informer::states(api, config));
    let Some(mut known) = states.next().await else { return };
    loop {
        let wanted: Vec<_> = known.values().filter_map(|object| pair(object)).collect();
        let refused = loop {
            match context.fabric.sync_floating_addresses(wanted.clone()).await {
                Ok(refused) => break refused,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "cannot answer for the floating addresses");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        for object in known.values() {
            let refusal = refusal(object, &refused, &context.node_name);
            if object.status.as_ref().and_then(|status| status.refusal.clone()) != refusal {
                tell(&context, object, refusal.as_ref()).await;
            }
        }
        tokio::select! {
            next = states.next() => match next {
                Some(next) => known = next,
                None => return,
            },
            () = tokio::time::sleep(LOOK_AGAIN), if !refused.is_empty() => {}
        }
    }
}

/// Why this machine does not answer for an object's address, if it does not.
fn refusal(object: &FloatingIP, refused: &[Ipv4Addr], node_name: &str) -> Option<FloatingIPRefusal> {
    let (address, _) = pair(object).filter(|(address, _)| refused.contains(address))?;
    Some(FloatingIPRefusal {
        node_name: node_name.to_owned(),
        address: address.to_string(),
        message: format!("{address} is an address of machine {node_name} itself, or of one of its networks"),
    })
}

async fn tell(context: &Context, object: &FloatingIP, refusal: Option<&FloatingIPRefusal>) {
    let key = Key::of(object);
    let objects: Api<FloatingIP> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = Patch::Merge(serde_json::json!({ "status": { "refusal": refusal } }));
    if let Err(error) = objects.patch_status(&key.name, &PatchParams::default(), &patch).await {
        tracing::warn!(name = key.name, error = %chain(&error), "cannot say what becomes of a floating address");
    }
}

fn pair(object: &FloatingIP) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let status = object.status.as_ref()?;
    Some((status.address.parse().ok()?, status.fixed_address.parse().ok()?))
}
