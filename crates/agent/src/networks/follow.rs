//! Follows `Network` objects: the first machine makes them, the others have theirs be as it says, and all remove what has no object.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::Network;
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event};

use super::config;
use crate::context::{Context, Key};
use crate::error::chain;
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
        let left = context.fabric.list().networks.into_iter();
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
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            _ = again.tick() => {
                gone.remove(&context).await;
                context.networks.listen_again(&context.directory).await;
                continue;
            }
        };
        match event {
            Some(Event::Init) => {
                gone.begin(context.fabric.list().networks.into_iter().map(|network| network.id));
            }
            Some(Event::InitApply(object)) => {
                gone.suspects.remove(object.metadata.uid.as_deref().unwrap_or_default());
                make_first(&context, &object).await;
                follow_plan(&context, &object).await;
            }
            Some(Event::InitDone) => {
                gone.end();
                gone.remove(&context).await;
            }
            Some(Event::Apply(object)) => {
                make_first(&context, &object).await;
                follow_plan(&context, &object).await;
            }
            Some(Event::Delete(object)) => {
                gone.ids.extend(object.metadata.uid);
                gone.remove(&context).await;
            }
            None => return,
        }
    }
}

/// The first machine chooses the subnet; the others make a network when a workload of theirs is on it.
async fn make_first(context: &Context, object: &Network) {
    let known = context.networks.known.lock().contains_key(&Key::of(object));
    if known || context.is_member || object.metadata.deletion_timestamp.is_some() {
        return;
    }
    if let Err(error) = context.networks.make(&context.client, &context.directory, object).await {
        tracing::debug!(network = object.spec.name, error = %chain(&error), "network not made");
    }
}

/// Has a network of this machine be as the first one has said since, and its guests told so when they ask next.
async fn follow_plan(context: &Context, object: &Network) {
    let known = context.networks.known.lock().get(&Key::of(object)).cloned();
    let (Some(known), Some(Ok(wanted))) = (known, config(object)) else { return };
    if !context.is_member || !object.spec.spans() || object.metadata.deletion_timestamp.is_some() {
        return;
    }
    let moved = wanted.subnet.is_some_and(|subnet| subnet != known.network.subnet);
    if !moved && wanted.plan == known.network.plan {
        return;
    }
    match context.networks.realize(object, wanted).await {
        Ok(network) => {
            let plan = object.status.as_ref().and_then(|status| status.plan.clone());
            let network = context.networks.adopt(&context.client, &context.directory, object, network, plan).await;
            context.guests.replan(&network);
        }
        Err(error) => tracing::warn!(network = object.spec.name, error = %chain(&error), "cannot follow the subnet"),
    }
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
}
