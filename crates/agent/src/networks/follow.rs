//! Follows `Network` objects: the first machine makes them, the others have theirs be as it says, and all remove what has no object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Network;
use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use network::NetworkConfig;

use super::{Networks, config, newest};
use crate::context::{Context, Key};
use crate::directory::Directory;
use crate::error::{Error, Result, chain};
use crate::informer;

/// Time between two attempts at what could not be done about networks.
const AGAIN: Duration = Duration::from_secs(30);

/// Networks of users that have no object any more and are still there.
#[derive(Default)]
struct Gone {
    /// Ids of those that were there before the list that is being told.
    suspects: BTreeSet<String>,
    /// Ids of those to be removed, as soon as nothing is attached to them.
    ids: BTreeSet<String>,
}

impl Gone {
    /// A list begins. What is made from now on may be missing in it, though it has an object.
    fn begin(&mut self, present: impl Iterator<Item = String>) {
        self.suspects = present.filter(|id| id != network::DEFAULT_NETWORK).collect();
    }

    /// The list is complete: what it did not tell of has no object.
    fn end(&mut self) {
        self.ids.append(&mut self.suspects);
    }

    /// Removes what can be removed.
    async fn remove(&mut self, context: &Context) {
        if self.ids.is_empty() {
            return;
        }
        // Whoever read an object before it went may be about to make its network.
        let _making = context.networks.making.lock().await;
        let Ok(found) = context.fabric.list().await else { return };
        let left = found.networks.into_iter();
        let left: Vec<network::Network> = left.filter(|network| self.ids.contains(&network.id)).collect();
        self.ids.clear();
        for network in left {
            context.networks.known.lock().retain(|_, known| known.network.id != network.id);
            match context.fabric.remove_network(&network.id).await {
                Ok(()) if network.uplink.is_none() => {
                    context.networks.fall_silent(&context.directory, &network).await;
                }
                Ok(()) => {}
                // Said at each attempt, so no warning.
                Err(network::Error::NetworkInUse(id)) => {
                    tracing::debug!(network = id, "a network without an object is still in use");
                    self.ids.insert(id);
                }
                Err(error) => {
                    tracing::warn!(network = network.id, error = %chain(&error), "cannot remove the network yet");
                    self.ids.insert(network.id);
                }
            }
        }
    }
}

/// Follows `Network` objects until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let (_, stream) = informer::reflect(Api::<Network>::all(context.client.clone()), watcher::Config::default());
    let mut stream = std::pin::pin!(stream);
    let mut gone = Gone::default();
    // Networks that could not be as their objects say.
    let mut behind: BTreeMap<Key, Network> = BTreeMap::new();
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = again.tick() => {
                gone.remove(&context).await;
                context.networks.listen_again(&context.directory).await;
                context.networks.tell_again(&context.client, &context.directory).await;
                for object in std::mem::take(&mut behind).into_values() {
                    follow_plan(&context, object, &mut behind).await;
                }
                continue;
            }
        };
        match event {
            Some(Event::Init) => {
                let found = context.fabric.list().await.unwrap_or_default();
                gone.begin(found.networks.into_iter().map(|network| network.id));
            }
            Some(Event::InitApply(object)) => {
                gone.suspects.remove(object.metadata.uid.as_deref().unwrap_or_default());
                make_first(&context, &object).await;
                follow_plan(&context, object, &mut behind).await;
            }
            Some(Event::InitDone) => {
                gone.end();
                gone.remove(&context).await;
            }
            Some(Event::Apply(object)) => {
                make_first(&context, &object).await;
                follow_plan(&context, object, &mut behind).await;
            }
            Some(Event::Delete(object)) => {
                behind.remove(&Key::of(&object));
                gone.ids.extend(object.metadata.uid);
                gone.remove(&context).await;
            }
            None => return,
        }
    }
}

/// The first machine chooses the subnet; the others make a network when a workload of theirs is on it.
async fn make_first(context: &Context, object: &Network) {
    if context.networks.is_told(object) || context.is_member || object.metadata.deletion_timestamp.is_some() {
        return;
    }
    context.networks.make_or_note(&context.client, &context.directory, object).await;
}

/// Has a network of this machine be as the first one has said since, and its guests told so when they ask next. What cannot be now is noted
/// in `behind`: nobody tells when the last workload has left an address of before.
async fn follow_plan(context: &Context, object: Network, behind: &mut BTreeMap<Key, Network>) {
    behind.remove(&Key::of(&object));
    // Most have nothing to follow, which is seen without asking anybody.
    if context.networks.news(&object).is_none() {
        return;
    }
    match context.networks.follow(&context.client, &context.directory, &object).await {
        Ok(Some(network)) => context.guests.replan(&network),
        Ok(None) => {}
        Err(error) => {
            match &error {
                // As long as a workload of before stays.
                Error::Network(network::Error::NetworkInUse(_)) => {
                    tracing::debug!(network = object.spec.name, "a network with other addresses is still in use");
                }
                _ => tracing::warn!(network = object.spec.name, error = %chain(&error), "cannot follow the subnet yet"),
            }
            behind.insert(Key::of(&object), object);
        }
    }
}

impl Networks {
    /// What a network of a machine that is not the first should be, if it is not.
    fn news(&self, object: &Network) -> Option<NetworkConfig> {
        if !self.is_member || !object.spec.spans() || object.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let known = self.known.lock().get(&Key::of(object)).map(|known| known.network.clone())?;
        let wanted = config(object)?.ok()?;
        differs(&known, &wanted).then_some(wanted)
    }

    async fn follow(
        &self,
        client: &Client,
        directory: &Directory,
        object: &Network,
    ) -> Result<Option<Arc<network::Network>>> {
        let _making = self.making.lock().await;
        let Some(object) = newest(client, object).await? else { return Ok(None) };
        let Some(wanted) = self.news(&object) else { return Ok(None) };
        let network = self.realize(&object, wanted).await?;
        let plan = object.status.as_ref().and_then(|status| status.plan.clone());
        Ok(Some(self.adopt(client, directory, &object, network, plan, String::new()).await))
    }
}

/// Whether a network is not as it should be. Of another one of its name nothing is asked. Pure.
fn differs(known: &network::Network, wanted: &NetworkConfig) -> bool {
    let moved = wanted.subnet.is_some_and(|subnet| subnet != known.subnet)
        || wanted.gateway.is_some_and(|gateway| gateway != known.gateway);
    known.id == wanted.id && (moved || wanted.plan != known.plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_does_not_tell_of_is_gone_unless_it_was_made_since() {
        let mut gone = Gone::default();
        gone.begin(["default", "told", "stray"].map(str::to_owned).into_iter());
        gone.suspects.remove("told");
        gone.end();
        assert_eq!(gone.ids, ["stray".to_owned()].into());
        assert!(gone.suspects.is_empty());
    }

    #[test]
    fn a_network_follows_its_object_and_no_other_of_its_name() {
        let known: network::Network = serde_json::from_value(serde_json::json!({
            "id": "u", "bridge": "nuee0", "subnet": "10.90.0.0/24", "gateway": "10.90.0.1", "internal": false, "routed": false,
            "isolated_ports": false, "mtu": 1500,
        }))
        .unwrap();
        let wanted = |id: &str, subnet: &str, gateway: Option<[u8; 4]>| {
            let subnet = (!subnet.is_empty()).then(|| subnet.parse().unwrap());
            NetworkConfig { id: id.into(), subnet, gateway: gateway.map(Into::into), ..NetworkConfig::default() }
        };
        assert!(!differs(&known, &wanted("u", "", None)));
        assert!(!differs(&known, &wanted("u", "10.90.0.0/24", Some([10, 90, 0, 1]))));
        assert!(differs(&known, &wanted("u", "10.91.0.0/24", None)));
        assert!(differs(&known, &wanted("u", "10.90.0.0/24", Some([10, 90, 0, 254]))));
        assert!(!differs(&known, &wanted("v", "10.91.0.0/24", None)));
        let plan = network::Plan { without_gateway: true, ..network::Plan::default() };
        assert!(differs(&known, &NetworkConfig { plan, ..wanted("u", "", None) }));
    }
}
