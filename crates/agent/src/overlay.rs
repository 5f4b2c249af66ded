//! Follows `NetworkRoute` objects, and has the network lead to the other machines what they say. What that is is the pure [`plan_of`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{NetworkRoute, NetworkRouteSpec};
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;
use network::{Overlay, Part};

use crate::context::Context;
use crate::directory::MembersElsewhere;
use crate::error::chain;
use crate::informer;
use crate::networks::Grant;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let mut states =
        std::pin::pin!(informer::states(Api::<NetworkRoute>::all(context.client.clone()), watcher::Config::default()));
    let mut plan = Plan::default();
    loop {
        let made = context.networks.made.notified();
        let led = context.fabric.sync_overlays(plan.overlays.values().cloned().collect()).await;
        if let Err(error) = &led {
            tracing::warn!(error = %chain(error), "cannot lead to the other machines");
        }
        // Whoever waits for a part finds that addresses can be taken from it, whatever troubles another network has.
        context.networks.grant(plan.grants.clone());
        context.directory.set_members_elsewhere(plan.members.clone());
        tokio::select! {
            () = made => {}
            // What is newer than the plan that failed may do better.
            () = tokio::time::sleep(RETRY), if led.is_err() => {}
            state = states.next() => match state {
                Some(known) => plan = plan_of(known.values().map(|route| &route.spec), &context.node_name),
                None => return,
            },
        }
    }
}

/// What routes mean for one machine.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// By network: the ways.
    overlays: BTreeMap<String, Overlay>,
    /// By network: who gives which addresses.
    grants: BTreeMap<String, Grant>,
    /// By network: names of workloads on other machines.
    members: MembersElsewhere,
}

/// Pure. Networks of which this machine has no part are none of its business.
fn plan_of<'a>(routes: impl Iterator<Item = &'a NetworkRouteSpec>, node_name: &str) -> Plan {
    let mut by_network: BTreeMap<&str, Vec<&NetworkRouteSpec>> = BTreeMap::new();
    routes.for_each(|route| by_network.entry(&route.network).or_default().push(route));
    let mut plan = Plan::default();
    for (network, routes) in by_network {
        let mut overlay = Overlay { network: network.to_owned(), ..Overlay::default() };
        let (mut grant, mut members) = (Grant::default(), Vec::new());
        for route in routes {
            let Ok(addresses) = route.destination.parse::<network::Subnet>() else { continue };
            overlay.number = route.number;
            let ways = (route.gateway.parse(), route.machine_address.parse());
            let part = if let (Ok(inner), Ok(outer)) = ways { Some(Part { addresses, inner, outer }) } else { None };
            match (route.node_name == node_name, addresses.prefix()) {
                (true, 32) => overlay.here.push(addresses.address()),
                (true, _) => {
                    grant.own.push(addresses);
                    grant.inner = route.gateway.parse().ok();
                    overlay.own = overlay.own.or(part);
                }
                (false, prefix) => {
                    overlay.elsewhere.extend(part);
                    if prefix < 32 {
                        grant.elsewhere.push((addresses, route.node_name.clone()));
                    }
                    let named = route.members.iter().filter(|one| !one.names.is_empty());
                    members.extend(named.filter_map(|one| Some((one.address.parse().ok()?, one.names.clone()))));
                }
            }
        }
        if grant.own.is_empty() {
            continue;
        }
        // Addresses that came home need no word of their own.
        overlay.here.retain(|address| !grant.own.iter().any(|own| own.contains(*address)));
        // Of the pods' network the machine's settings say from where addresses are given.
        if network != network::DEFAULT_NETWORK {
            overlay.parts = Some(grant.own.clone());
            plan.grants.insert(network.to_owned(), grant);
            plan.members.insert(network.to_owned(), members);
        }
        plan.overlays.insert(network.to_owned(), overlay);
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn route(network: &str, destination: &str, node_name: &str, machine: u8) -> NetworkRouteSpec {
        NetworkRouteSpec {
            network: network.into(),
            destination: destination.into(),
            node_name: node_name.into(),
            machine_address: format!("192.0.2.{machine}"),
            machine_port: 6443,
            gateway: format!("10.88.{machine}.255"),
            ..NetworkRouteSpec::default()
        }
    }

    #[test]
    fn each_machine_leads_to_the_others_and_keeps_what_has_come() {
        let routes = [
            route("default", "10.88.0.0/17", "n1", 1),
            route("default", "10.88.128.0/24", "n2", 2),
            route("default", "10.88.0.7/32", "n2", 2),
        ];
        let of = |node: &str| plan_of(routes.iter(), node).overlays.remove("default");
        let first = of("n1").unwrap();
        assert_eq!(first.own.unwrap().inner, Ipv4Addr::new(10, 88, 1, 255));
        assert_eq!((first.elsewhere.len(), first.here.len(), first.parts), (2, 0, None));
        let second = of("n2").unwrap();
        assert_eq!((second.elsewhere.len(), second.here), (1, vec![Ipv4Addr::new(10, 88, 0, 7)]));
        // One that is not (any more) of the pool leads nowhere.
        assert_eq!(of("n3"), None);
    }

    #[test]
    fn a_network_of_users_is_led_to_machines_that_have_a_part_of_it() {
        let mut routes = [
            route("u", "10.89.0.0/25", "n1", 1),
            route("u", "10.89.0.128/28", "n2", 2),
            route("u", "10.89.0.144/28", "n2", 2),
        ];
        for route in &mut routes {
            route.number = 7;
            // One without names is there for who counts addresses.
            let member = |address: &str, names: Vec<String>| api::NetworkMember { address: address.into(), names };
            route.members = vec![member("10.89.0.2", vec!["web".into()]), member("10.89.0.3", Vec::new())];
        }
        let plan = plan_of(routes.iter(), "n2");
        let overlay = &plan.overlays["u"];
        assert_eq!((overlay.number, overlay.parts.as_ref().unwrap().len(), overlay.elsewhere.len()), (7, 2, 1));
        assert_eq!(plan.grants["u"].elsewhere[0].1, "n1");
        assert_eq!(plan.members["u"], [(Ipv4Addr::new(10, 89, 0, 2), vec!["web".to_owned()])]);
        assert_eq!(plan_of(routes.iter(), "n3"), Plan::default());
        // A machine without a way to the others still has its parts.
        routes[1].machine_address = String::new();
        routes[2].machine_address = String::new();
        let plan = plan_of(routes.iter(), "n2");
        assert_eq!((plan.overlays["u"].own, plan.grants["u"].own.len()), (None, 2));
    }
}
