//! Says of each `Router` which networks it connects, and why not others. The machines connect them; see the agent's `routers`.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::names::DEFAULT_NETWORK;
use api::network::{Network, NetworkMode};
use api::router::{Router, RouterStatus};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, gone, watching};

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Router>::all(client.clone()), watching());
    let routers = controller.store();
    let controller = controller.watches(Api::<Network>::all(client.clone()), watching(), move |network| {
        let name = network.name_any();
        let concerned =
            |router: &Arc<Router>| router.namespace() == network.namespace() && router.spec.networks.contains(&name);
        let all = routers.state();
        all.iter().filter(|router| concerned(router)).map(|router| ObjectRef::from_obj(&**router)).collect::<Vec<_>>()
    });
    drive(controller, "router", reconcile, Arc::new(client)).await;
}

async fn reconcile(router: Arc<Router>, client: Arc<Client>) -> Result<Action> {
    let namespace = router.namespace().ok_or(Error::Incomplete("namespace"))?;
    let networks = Api::<Network>::namespaced((*client).clone(), &namespace).list(&ListParams::default()).await?.items;
    let wanted = status(&router.spec.networks, &networks);
    if router.status.as_ref() == Some(&wanted) {
        return Ok(Action::await_change());
    }
    let routers = Api::<Router>::namespaced((*client).clone(), &namespace);
    let change = json!({ "status": { "connected": wanted.connected, "message": wanted.message } });
    gone(routers.patch_status(&router.name_any(), &PatchParams::default(), &Patch::Merge(change)).await)?;
    Ok(Action::await_change())
}

/// What a router connects. Pure.
fn status(names: &[String], networks: &[Network]) -> RouterStatus {
    let (mut connected, mut problems) = (BTreeSet::new(), Vec::new());
    for name in names {
        let problem = match networks.iter().find(|network| network.name_any() == *name) {
            _ if name == DEFAULT_NETWORK => Some("is everybody's"),
            None => Some("not found"),
            Some(network) if network.spec.mode == NetworkMode::Bridged => Some("has another router, outside"),
            Some(network) if network.status.as_ref().is_none_or(|status| status.subnet.is_empty()) => {
                Some("has no addresses")
            }
            Some(_) => None,
        };
        match problem {
            Some(problem) => problems.push(format!("network {name} {problem}")),
            None => drop(connected.insert(name.clone())),
        }
    }
    RouterStatus { connected: connected.into_iter().collect(), message: problems.join("; ") }
}

#[cfg(test)]
mod tests {
    use api::network::{NetworkSpec, NetworkStatus};

    use super::*;

    #[test]
    fn a_router_says_what_it_does_not_connect() {
        let mut ready = Network::new("a", NetworkSpec::default());
        ready.status = Some(NetworkStatus { subnet: "10.89.0.0/24".into(), ..NetworkStatus::default() });
        let bridged = Network::new("lan", NetworkSpec { mode: NetworkMode::Bridged, ..NetworkSpec::default() });
        let names = ["a", "lan", "bridge", "none"].map(str::to_owned);
        let status = status(&names, &[ready, bridged]);
        assert_eq!(status.connected, ["a"]);
        assert_eq!(
            status.message,
            "network lan has another router, outside; network bridge is everybody's; network none not found"
        );
    }
}
