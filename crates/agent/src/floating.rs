//! Follows the `FloatingIP` objects that lead to workloads of this machine, and has the network answer for their addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::FloatingIP;
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;

use crate::context::Context;
use crate::error::chain;
use crate::informer;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let api = Api::<FloatingIP>::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("status.nodeName={}", context.node_name));
    let mut states = std::pin::pin!(informer::states(api, config));
    let mut told: BTreeSet<Ipv4Addr> = BTreeSet::new();
    while let Some(known) = states.next().await {
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
        let refused: BTreeSet<Ipv4Addr> = refused.into_iter().collect();
        for address in refused.difference(&told) {
            tracing::error!(%address, "a floating address is this machine's own, or of its networks; it leads nowhere");
        }
        told = refused;
    }
}

fn pair(object: &FloatingIP) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let status = object.status.as_ref()?;
    Some((status.address.parse().ok()?, status.fixed_address.parse().ok()?))
}
