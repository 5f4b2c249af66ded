//! Follows `Router` and `Network` objects, and has the network let those speak with each other that a router connects. Which those are
//! is the pure [`pairs`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::names::DEFAULT_NETWORK;
use api::{Network, Router};
use futures::StreamExt;
use futures::stream::{BoxStream, select};
use kube::Api;
use kube::runtime::watcher;

use crate::context::{Context, Key};
use crate::error::chain;
use crate::informer;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

enum State {
    Routers(BTreeMap<Key, Arc<Router>>),
    Networks(BTreeMap<Key, Arc<Network>>),
}

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let config = watcher::Config::default;
    let routers = informer::states(Api::<Router>::all(context.client.clone()), config());
    let networks = informer::states(Api::<Network>::all(context.client.clone()), config());
    let routers: BoxStream<'static, State> = routers.map(State::Routers).boxed();
    let mut states = select(routers, networks.map(State::Networks).boxed());
    let (mut routers, mut networks) = (None, None);
    while let Some(state) = states.next().await {
        match state {
            State::Routers(known) => routers = Some(known),
            State::Networks(known) => networks = Some(known),
        }
        let (Some(routers), Some(networks)) = (&routers, &networks) else { continue };
        let wanted: Vec<_> = pairs(routers, networks).into_iter().collect();
        while let Err(error) = context.fabric.sync_links(wanted.clone()).await {
            tracing::warn!(error = %chain(&error), "cannot connect networks");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Pairs of networks, by what the fabric calls them. A router reaches networks of its own namespace alone, and not the default one,
/// which is everybody's.
fn pairs(routers: &BTreeMap<Key, Arc<Router>>, networks: &BTreeMap<Key, Arc<Network>>) -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for (at, router) in routers.iter().filter(|(_, router)| router.metadata.deletion_timestamp.is_none()) {
        let id = |name: &String| {
            let key = Key { namespace: at.namespace.clone(), name: name.clone() };
            let found = networks.get(&key).filter(|_| name != DEFAULT_NETWORK)?;
            found.metadata.uid.clone()
        };
        let ids: BTreeSet<String> = router.spec.networks.iter().filter_map(id).collect();
        let each = ids.iter().flat_map(|one| ids.range(one.clone()..).skip(1).map(move |other| (one, other)));
        pairs.extend(each.map(|(one, other)| (one.clone(), other.clone())));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use api::{NetworkSpec, RouterSpec};

    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn a_router_reaches_networks_of_its_own_namespace_and_not_the_default_one() {
        let mut networks = BTreeMap::new();
        for (namespace, name) in [("shop", "a"), ("shop", "b"), ("shop", "c"), ("shop", "bridge"), ("other", "d")] {
            let mut network = Network::new(name, NetworkSpec::default());
            network.metadata.uid = Some(name.to_uppercase());
            networks.insert(key(namespace, name), Arc::new(network));
        }
        let of = |names: &[&str]| {
            let names = names.iter().map(|one| (*one).to_owned()).collect();
            let router = Router::new("r", RouterSpec { networks: names });
            pairs(&BTreeMap::from([(key("shop", "r"), Arc::new(router))]), &networks)
        };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(of(&["b", "a", "c"]), [pair("A", "B"), pair("A", "C"), pair("B", "C")].into());
        assert!(of(&["a", "d", "bridge", "none"]).is_empty());
        assert!(of(&["a"]).is_empty());
    }
}
