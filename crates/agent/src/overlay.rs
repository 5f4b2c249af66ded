//! Follows `NetworkRoute` objects, and has the network lead to the other machines what they say.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::{NetworkRoute, NetworkRouteSpec};
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;
use network::{Overlay, Part};

use crate::context::Context;
use crate::error::chain;
use crate::informer;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let mut states =
        std::pin::pin!(informer::states(Api::<NetworkRoute>::all(context.client.clone()), watcher::Config::default()));
    while let Some(known) = states.next().await {
        let wanted = plan(known.values().map(|route| &route.spec), &context.node_name);
        while let Err(error) = context.fabric.sync_overlay(wanted.clone()).await {
            tracing::warn!(error = %chain(&error), "cannot lead to the other machines");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What the routes mean for one machine. Pure.
fn plan<'a>(routes: impl Iterator<Item = &'a NetworkRouteSpec> + Clone, node_name: &str) -> Overlay {
    let part = |route: &NetworkRouteSpec| {
        Some(Part {
            addresses: route.destination.parse().ok()?,
            inner: route.gateway.parse().ok()?,
            outer: route.machine_address.parse().ok()?,
        })
    };
    let routes = routes.filter(|route| route.network == network::DEFAULT_NETWORK);
    let mut overlay = Overlay::default();
    for route in routes {
        let Some(part) = part(route) else { continue };
        match (route.node_name == node_name, part.addresses.prefix()) {
            (true, 32) => overlay.here.push(part.addresses.address()),
            (true, _) => overlay.own = Some(part),
            (false, _) => overlay.elsewhere.push(part),
        }
    }
    // Addresses that came home need no word of their own.
    let own = overlay.own.map(|own| own.addresses);
    let away = |address: &Ipv4Addr| own.is_none_or(|own| !own.contains(*address));
    overlay.here.retain(away);
    overlay
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, node_name: &str, machine: u8) -> NetworkRouteSpec {
        NetworkRouteSpec {
            network: "default".into(),
            destination: destination.into(),
            node_name: node_name.into(),
            machine_address: format!("192.0.2.{machine}"),
            machine_port: 6443,
            gateway: format!("10.88.{machine}.255"),
        }
    }

    #[test]
    fn each_machine_leads_to_the_others_and_keeps_what_has_come() {
        let routes = [route("10.88.0.0/17", "n1", 1), route("10.88.128.0/24", "n2", 2), route("10.88.0.7/32", "n2", 2)];
        let first = plan(routes.iter(), "n1");
        assert_eq!(first.own.unwrap().inner, Ipv4Addr::new(10, 88, 1, 255));
        assert_eq!((first.elsewhere.len(), first.here.len()), (2, 0));
        let second = plan(routes.iter(), "n2");
        assert_eq!((second.elsewhere.len(), second.here), (1, vec![Ipv4Addr::new(10, 88, 0, 7)]));
        // One that is not (any more) of the pool leads nowhere.
        assert_eq!(plan(routes.iter(), "n3").own, None);
    }
}
