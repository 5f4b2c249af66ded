//! The networks of a container that runs: joined and left as its object says, and what cannot be now is tried again.

use std::time::Duration;

use api::container::NetworkEndpoint;
use tokio::time::Instant;

use super::Driver;
use crate::container::{start, step};
use crate::context::Key;
use crate::error::{Result, chain};
use crate::ports::{self, Held};

/// Pause before the network of a port that is not the container's own yet is tried again.
const NETWORKS_RETRY: Duration = Duration::from_secs(2);

impl Driver {
    /// After a restart of the daemon the name server must learn the names again.
    pub(super) async fn join_names(&self) {
        for (name, endpoint) in start::wanted_networks(&self.object.spec) {
            let Some(place) = self.status.networks.get(&name) else { continue };
            let key = Key { namespace: self.key.namespace.clone(), name: name.clone() };
            let network = self.context.networks.ensure(&self.context.client, &self.context.directory, &key).await;
            let addresses: Vec<_> = [&place.ip, &place.ipv6].into_iter().filter_map(|a| a.parse().ok()).collect();
            if let Ok(network) = network
                && !addresses.is_empty()
                && network.id != network::DEFAULT_NETWORK
            {
                let (names, links) = (place.aliases.clone(), start::links(&endpoint));
                let netns = start::netns_path(&self.context, &self.id);
                self.context.directory.choose(&self.id, &self.object.spec.dns, &netns);
                self.context.directory.join(&network, &name, &self.id, addresses, names, links);
            }
        }
    }

    /// Joins and leaves networks while the container runs.
    pub(super) async fn adjust_networks(&mut self) {
        self.networks_retry = None;
        if !matches!(self.machine.phase, step::Phase::Running { .. }) {
            return;
        }
        let (new, gone) = start::network_changes(&self.object.spec, &self.status.networks);
        if new.is_empty() && gone.is_empty() && (self.object.spec.ports.is_empty() || self.publication().is_some()) {
            return;
        }
        let netns = start::netns_path(&self.context, &self.id);
        for name in gone {
            self.leave_network(&name).await;
        }
        let (port, new) = self.port_among(new).await;
        for (name, endpoint) in new {
            let further = !self.status.networks.is_empty();
            let (context, object) = (self.context.clone(), self.object.clone());
            match start::join_network(
                &context,
                &self.key.namespace,
                &self.id,
                &object.spec,
                &netns,
                &name,
                &endpoint,
                port.as_ref(),
                further,
            )
            .await
            {
                Ok((place, _)) => drop(self.status.networks.insert(name, place)),
                Err(error) => tracing::warn!(id = self.id, error = %chain(&error), "cannot join a network"),
            }
        }
        self.publish_again().await;
        self.report().await;
    }

    /// Its ports as they are published, whatever is told of them.
    fn publication(&self) -> Option<network::Publication> {
        self.context.fabric.list().publications.into_iter().find(|one| one.owner == self.id)
    }

    /// Publishes ports that were withdrawn with a network on the first one that there is now. What cannot be now is tried again.
    async fn publish_again(&mut self) {
        let is_published = self.publication().is_some();
        if self.object.spec.ports.is_empty() || (is_published && !self.status.ports.is_empty()) {
            return;
        }
        let wanted = start::wanted_networks(&self.object.spec);
        let found = wanted.iter().find_map(|(name, _)| self.status.networks.get(name)).cloned();
        let Some(place) = found else { return self.status.ports.clear() };
        // Published and not told, before the daemon was ended: the shim has the sockets, which would be in the way.
        let mut outcome = if is_published { self.withdraw_ports().await } else { Ok(()) };
        if outcome.is_ok() {
            outcome = match start::publish(&self.context, &self.id, &place, &self.object.spec).await {
                Ok(ports) => {
                    self.status.ports = ports;
                    start::carry(&self.context, &self.id).await
                }
                Err(error) => Err(error),
            };
        }
        if let Err(error) = outcome {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot publish the ports again yet");
            self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
            if let Err(error) = self.withdraw_ports().await {
                tracing::warn!(id = self.id, error = %chain(&error), "cannot withdraw the ports");
            }
        }
    }

    /// Nothing leads to the container from the machine any more.
    ///
    /// Errors: its shim still carries; then all stays published.
    async fn withdraw_ports(&mut self) -> Result<()> {
        // A shim of an older release does not know the request, and carries nothing.
        if self.publication().is_some_and(|one| one.carried6) {
            self.context.runtime.stop_carrying(&self.id).await?;
        }
        self.context.fabric.unpublish(&self.id).await?;
        self.status.ports.clear();
        Ok(())
    }

    /// Takes the container off a network, whose object may be gone or another by now. What cannot be now is tried again, and is told until
    /// then: the container has its address and access.
    async fn leave_network(&mut self, name: &str) {
        let attachments = self.context.fabric.list().attachments;
        let place = self.status.networks.get(name).cloned();
        // Before the address is free for others.
        let target = place.as_ref().and_then(|place| place.ip.parse::<std::net::Ipv4Addr>().ok());
        if self.publication().is_some_and(|one| Some(one.target) == target)
            && let Err(error) = self.withdraw_ports().await
        {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot withdraw the ports of a network yet");
            self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
            return;
        }
        if let Some(network) = place.as_ref().and_then(|place| start::network_behind(&attachments, &self.id, &place.ip))
        {
            if let Err(error) = self.context.fabric.detach(&self.id, network).await {
                tracing::warn!(id = self.id, error = %chain(&error), "cannot leave a network yet");
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                return;
            }
            self.context.directory.leave(&self.id, Some(network));
        }
        self.status.networks.remove(name);
    }

    /// Its port, if one of these networks is that one's, and those of them that can be joined: on its port's network it is on its port, or
    /// not at all, as nobody would guard it. Nobody waits for the port here: the container runs, and is tried again.
    async fn port_among(
        &mut self,
        mut new: Vec<(String, NetworkEndpoint)>,
    ) -> (Option<Held>, Vec<(String, NetworkEndpoint)>) {
        let label = self.object.spec.labels.get(api::port::LABEL).filter(|name| !name.is_empty()).cloned();
        let Some(name) = label.filter(|_| !new.is_empty()) else { return (None, new) };
        let uid = self.object.metadata.uid.clone().unwrap_or_default();
        let (error, network) = match ports::held(&self.context, &self.key, &name, &uid).await {
            Ok(held) => match start::is_on(&held, &new) {
                Ok(is_on) => return (is_on.then_some(held), new),
                Err(error) => (error, Ok(Some(held.network))),
            },
            Err(error) => {
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                (error, ports::network_of(&self.context, &self.key.namespace, &name).await)
            }
        };
        tracing::warn!(id = self.id, port = name, error = %chain(&error), "cannot join the network of a port");
        match network {
            Ok(Some(network)) => new.retain(|(own, _)| *own != network),
            // It may be any of them.
            Ok(None) | Err(_) => new.clear(),
        }
        (None, new)
    }
}
