//! Waiting until this machine's node is Ready.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};

/// How long the node may take to become Ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns when the node is Ready.
pub async fn wait(client: &Client, node_name: &str) -> Result<()> {
    let is_ready = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()).and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
    };
    match tokio::time::timeout(PATIENCE, await_condition(Api::<Node>::all(client.clone()), node_name, is_ready)).await {
        Ok(done) => done.map(drop).context("cannot watch this machine's node"),
        Err(_) => bail!("this machine's node did not become Ready within {} s", PATIENCE.as_secs()),
    }
}
