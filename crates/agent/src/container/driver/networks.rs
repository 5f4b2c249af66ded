//! The networks of a container that runs: joined and left as its object says, and what cannot be now is tried again.

use std::time::Duration;

use api::container::{NetworkEndpoint, PortMapping};
use tokio::time::Instant;

use super::Driver;
use crate::container::{publication, start, step};
use crate::context::Key;
use crate::error::{Error, Result, chain};
use crate::ports::{self, Held};

/// Pause before the network of a port that is not the container's own yet is tried again.
const NETWORKS_RETRY: Duration = Duration::from_secs(2);

/// What is to be done about the published ports of a container that runs.
#[derive(Debug, PartialEq, Eq)]
enum Ports {
    /// Nothing: they are as they are told.
    Told,
    /// They are to be told so.
    Untold(Vec<PortMapping>),
    /// They are to be published, again where they are without anybody having been told.
    Unpublished,
}

/// Compares what is published with what is told of it. Pure.
fn judge(wants_ports: bool, publication: Option<&network::Publication>, told: &[PortMapping]) -> Ports {
    match publication {
        _ if !wants_ports => Ports::Told,
        Some(one) if one.ports.is_empty() == told.is_empty() => match publication::told(one) {
            ports if ports == told => Ports::Told,
            ports => Ports::Untold(ports),
        },
        _ => Ports::Unpublished,
    }
}

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
        if new.is_empty() && gone.is_empty() && self.ports().await == Ports::Told {
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
                Err(error) => {
                    tracing::warn!(id = self.id, error = %chain(&error), "cannot join a network");
                    if matches!(error, Error::NotYet(_) | Error::Api { .. }) {
                        self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                    }
                }
            }
        }
        self.publish_again().await;
        self.report().await;
    }

    /// Takes up again what an earlier daemon did not get to: networks to join and to leave, ports to publish, to carry and to tell of.
    pub(super) async fn take_up_networks(&mut self) {
        // Of ports that are carried already, the fabric has no sockets.
        if let Err(error) = publication::carry(&self.context, &self.id).await {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot have the ports carried");
            // As good as not published.
            self.status.ports.clear();
        }
        self.networks_retry = Some(Instant::now());
    }

    /// Its ports as they are published, whatever is told of them.
    async fn publication(&self) -> Result<Option<network::Publication>> {
        Ok(self.context.fabric.publication(&self.id).await?)
    }

    async fn ports(&self) -> Ports {
        // Without an answer there is no process for long.
        let publication = self.publication().await.unwrap_or_default();
        judge(!self.object.spec.ports.is_empty(), publication.as_ref(), &self.status.ports)
    }

    /// Publishes ports that were withdrawn with a network on the first one that there is now. What cannot be now is tried again.
    async fn publish_again(&mut self) {
        match self.ports().await {
            Ports::Told => return,
            Ports::Untold(ports) => return self.status.ports = ports,
            Ports::Unpublished => {}
        }
        let wanted = start::wanted_networks(&self.object.spec);
        let found = wanted.iter().find_map(|(name, _)| self.status.networks.get(name)).cloned();
        let Some(place) = found else { return self.status.ports.clear() };
        let published = async {
            // Published and not told, before the daemon was ended: the shim may have the sockets, which would be in the way.
            self.withdraw_ports().await?;
            let ports = publication::publish(&self.context, &self.id, &place, &self.object.spec).await?;
            publication::carry(&self.context, &self.id).await?;
            Ok::<_, Error>(ports)
        };
        match published.await {
            Ok(ports) => self.status.ports = ports,
            Err(error) => {
                tracing::warn!(id = self.id, error = %chain(&error), "cannot publish the ports again yet");
                // Until they lead to it they are not told, by which the next try knows.
                self.status.ports.clear();
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                if let Err(error) = self.withdraw_ports().await {
                    tracing::warn!(id = self.id, error = %chain(&error), "cannot withdraw the ports");
                }
            }
        }
    }

    /// Nothing leads to the container from the machine any more.
    ///
    /// Errors: its shim still carries; then all stays published.
    async fn withdraw_ports(&self) -> Result<()> {
        // A shim of an older release does not know the request, and carries nothing.
        if self.publication().await?.is_some_and(|one| one.carried6) {
            self.context.runtime.stop_carrying(&self.id).await?;
        }
        Ok(self.context.fabric.unpublish(&self.id).await?)
    }

    /// Takes the container off a network, whose object may be gone or another by now. What cannot be now is tried again, and is told until
    /// then: the container has its address and access.
    async fn leave_network(&mut self, name: &str) {
        let Ok(inventory) = self.context.fabric.list().await else { return };
        let (attachments, mut publications) = (inventory.attachments, inventory.publications.into_iter());
        let place = self.status.networks.get(name).cloned();
        // Before the address is free for others.
        let target = place.as_ref().and_then(|place| place.ip.parse::<std::net::Ipv4Addr>().ok());
        if publications.any(|one| one.owner == self.id && Some(one.target) == target) {
            if let Err(error) = self.withdraw_ports().await {
                tracing::warn!(id = self.id, error = %chain(&error), "cannot withdraw the ports of a network yet");
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                return;
            }
            self.status.ports.clear();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_until_they_are_told_and_told_as_they_are() {
        let port = |host_port| network::PortMapping {
            host_address: None,
            host_port,
            host_port_end: 0,
            target_port: 80,
            protocol: network::Protocol::Tcp,
        };
        let published = |ports: Vec<network::PortMapping>, carried6| network::Publication {
            owner: "web".into(),
            target: [10, 88, 0, 2].into(),
            target6: None,
            carried6,
            ports,
        };
        let (carried, guarded) = (published(vec![port(8080)], true), published(vec![port(8080)], false));
        let (both, four) = (publication::told(&carried), publication::told(&guarded));
        assert_eq!([both.len(), four.len()], [2, 1]);
        assert_eq!(judge(true, Some(&carried), &both), Ports::Told);
        assert_eq!(judge(false, None, &[]), Ports::Told);
        // Withdrawn with a network, or ended before it was told.
        assert_eq!(judge(true, None, &[]), Ports::Unpublished);
        assert_eq!(judge(true, None, &both), Ports::Unpublished);
        assert_eq!(judge(true, Some(&carried), &[]), Ports::Unpublished);
        // Nobody carries any more; or the daemon was killed before it told of the new number.
        assert_eq!(judge(true, Some(&guarded), &both), Ports::Untold(four));
        let anew = published(vec![port(8081)], true);
        assert_eq!(judge(true, Some(&anew), &both), Ports::Untold(publication::told(&anew)));
        // A machine without IPv6 publishes nothing of what is to be there alone.
        assert_eq!(judge(true, Some(&published(Vec::new(), false)), &[]), Ports::Told);
    }
}
