//! `Network` objects and the bridges behind them: made when an object appears or is first used, removed with it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use api::names::{DEFAULT_NETWORK, DOCKER_NAMESPACE};
use api::network::{Network, NetworkMode, NetworkSpec, NetworkStatus};
use futures::StreamExt;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use network::{Fabric, Ipv6Config, NetworkConfig};
use parking_lot::Mutex;

use crate::context::{Context, Key};
use crate::directory::Directory;
use crate::error::{Error, Result, chain};
use crate::informer;

/// Port of DNS.
const DNS_PORT: u16 = 53;
/// Options by which Docker names the bridge.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// Option by which Docker forbids talk between containers.
const ICC_OPTION: &str = "com.docker.network.bridge.enable_icc";
/// Option by which Docker sets the MTU.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// What is known of networks.
pub struct Networks {
    fabric: Arc<Fabric>,
    known: Mutex<HashMap<Key, Arc<network::Network>>>,
    default: Arc<network::Network>,
    outside: Outside,
}

/// What the machine's operator lets networks be towards the outside.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Addresses that networks may show, and be reached by.
    pub routed: Vec<network::Subnet>,
    /// Interfaces that networks may be on.
    pub interfaces: Vec<String>,
}

impl Outside {
    /// Refuses what the operator does not let.
    fn check(&self, spec: &NetworkSpec, subnet: Option<network::Subnet>) -> Result<()> {
        let of = |range: &network::Subnet| {
            subnet.is_some_and(|own| range.contains(own.address()) && range.contains(own.last()))
        };
        match spec.mode {
            NetworkMode::Routed if !self.routed.iter().any(of) => {
                Err(Error::Invalid("the subnet is not of routedAddresses in the machine's settings".into()))
            }
            NetworkMode::Bridged if !self.interfaces.contains(&spec.uplink) => {
                Err(Error::Invalid(format!("{} is not of bridgedInterfaces in the machine's settings", spec.uplink)))
            }
            _ => Ok(()),
        }
    }
}

impl Networks {
    /// Makes the default network, which everything else may rely on.
    pub async fn open(
        fabric: Arc<Fabric>,
        subnet: Option<network::Subnet>,
        ip_range: Option<network::Subnet>,
        outside: Outside,
    ) -> Result<Self> {
        let id = network::DEFAULT_NETWORK.to_owned();
        let config = NetworkConfig { id, subnet, ip_range, routed: true, ..NetworkConfig::default() };
        let default = Arc::new(fabric.ensure_network(config).await?);
        Ok(Self { fabric, known: Mutex::default(), default, outside })
    }

    /// The network that pods are on.
    pub fn default_network(&self) -> Arc<network::Network> {
        self.default.clone()
    }

    /// What the fabric calls the network behind an object, once it was made.
    pub fn id_of(&self, namespace: &str, name: &str) -> Option<String> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        self.known.lock().get(&key).map(|network| network.id.clone())
    }

    /// The bridge behind an object; makes it if need be.
    pub async fn ensure(&self, client: &Client, directory: &Directory, key: &Key) -> Result<Arc<network::Network>> {
        if key.name == DEFAULT_NETWORK || key.name == "default" {
            return Ok(self.default.clone());
        }
        if let Some(network) = self.known.lock().get(key) {
            return Ok(network.clone());
        }
        let objects: Api<Network> = Api::namespaced(client.clone(), &key.namespace);
        let object = objects.get_opt(&key.name).await.map_err(Error::api("read network"))?;
        let object = object.ok_or_else(|| Error::Invalid(format!("network {} not found", key.name)))?;
        self.make(client, directory, &object).await
    }

    async fn make(&self, client: &Client, directory: &Directory, object: &Network) -> Result<Arc<network::Network>> {
        let key = Key::of(object);
        if key.name == DEFAULT_NETWORK {
            self.report(client, object, &status(&self.default)).await;
            return Ok(self.default.clone());
        }
        match config(object) {
            Some(config) => match self.realize(object, config?).await {
                Ok(network) => {
                    let network = Arc::new(network);
                    self.known.lock().insert(key, network.clone());
                    if network.uplink.is_none() {
                        listen(directory, network.gateway).await;
                    }
                    self.report(client, object, &status(&network)).await;
                    Ok(network)
                }
                Err(error) => {
                    let old = object.status.clone().unwrap_or_default();
                    let message = chain(&error);
                    self.report(client, object, &NetworkStatus { phase: "Failed".into(), message, ..old }).await;
                    Err(error)
                }
            },
            // `host` and `none` have nothing behind them.
            None => {
                self.report(client, object, &NetworkStatus { phase: "Ready".into(), ..NetworkStatus::default() }).await;
                Err(Error::Invalid(format!("network {} has no addresses", key.name)))
            }
        }
    }

    async fn realize(&self, object: &Network, config: NetworkConfig) -> Result<network::Network> {
        self.outside.check(&object.spec, config.subnet)?;
        Ok(self.fabric.ensure_network(config).await?)
    }

    async fn report(&self, client: &Client, object: &Network, status: &NetworkStatus) {
        if object.status.as_ref() == Some(status) {
            return;
        }
        let key = Key::of(object);
        let objects: Api<Network> = Api::namespaced(client.clone(), &key.namespace);
        let patch = Patch::Merge(serde_json::json!({ "status": status }));
        if let Err(error) = objects.patch_status(&key.name, &PatchParams::default(), &patch).await {
            tracing::warn!(network = key.name, error = %chain(&error), "cannot write the network's status");
        }
    }
}

fn status(network: &network::Network) -> NetworkStatus {
    NetworkStatus {
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        ipv6_subnet: network.ipv6.map(|six| six.subnet.to_string()).unwrap_or_default(),
        ipv6_gateway: network.ipv6.map(|six| six.gateway.to_string()).unwrap_or_default(),
        bridge: network.bridge.clone(),
        phase: "Ready".into(),
        message: String::new(),
    }
}

/// What the fabric is asked for; `None` for drivers without a bridge.
fn config(object: &Network) -> Option<Result<NetworkConfig>> {
    let spec = &object.spec;
    if matches!(spec.driver.as_str(), "host" | "none" | "null") {
        return None;
    }
    let subnet = |text: &str| (!text.is_empty()).then(|| text.parse::<network::Subnet>()).transpose();
    Some((|| {
        let gateway = spec.gateway.trim();
        Ok(NetworkConfig {
            id: object.metadata.uid.clone().unwrap_or_default(),
            bridge: spec.options.get(BRIDGE_NAME_OPTION).cloned().unwrap_or_default(),
            // The subnet that was taken once stays.
            subnet: match subnet(&spec.subnet)? {
                None => subnet(object.status.as_ref().map_or("", |s| s.subnet.as_str()))?,
                some => some,
            },
            ip_range: subnet(&spec.ip_range)?,
            gateway: (!gateway.is_empty())
                .then(|| gateway.parse::<Ipv4Addr>())
                .transpose()
                .map_err(|_| Error::Invalid(format!("invalid gateway address {gateway:?}")))?,
            ipv6: spec.ipv6.then(|| config6(object)).transpose()?,
            internal: spec.internal,
            routed: false,
            plain: spec.mode == NetworkMode::Routed,
            uplink: (spec.mode == NetworkMode::Bridged).then(|| spec.uplink.clone()),
            isolated_ports: spec.options.get(ICC_OPTION).is_some_and(|v| v == "false"),
            mtu: spec.options.get(MTU_OPTION).and_then(|v| v.parse().ok()),
        })
    })())
}

/// The IPv6 part of [`config`].
fn config6(object: &Network) -> Result<Ipv6Config> {
    let (spec, empty) = (&object.spec, NetworkStatus::default());
    let status = object.status.as_ref().unwrap_or(&empty);
    let subnet = |text: &str| (!text.is_empty()).then(|| text.parse::<network::Subnet6>()).transpose();
    let gateway = spec.ipv6_gateway.trim();
    Ok(Ipv6Config {
        // The subnet that was taken once stays.
        subnet: match subnet(&spec.ipv6_subnet)? {
            None => subnet(&status.ipv6_subnet)?,
            some => some,
        },
        range: subnet(&spec.ipv6_range)?,
        gateway: (!gateway.is_empty())
            .then(|| gateway.parse::<Ipv6Addr>())
            .transpose()
            .map_err(|_| Error::Invalid(format!("invalid gateway address {gateway:?}")))?,
    })
}

/// Answers DNS on a network's gateway.
pub async fn listen(directory: &Directory, gateway: Ipv4Addr) {
    let address = SocketAddr::new(IpAddr::V4(gateway), DNS_PORT);
    if let Err(error) = directory.server().listen(address).await {
        tracing::warn!(%address, error = %chain(&error), "cannot answer DNS here");
    }
}

/// Creates the objects of the networks that are always there.
pub async fn ensure_objects(context: &Context) -> Result<()> {
    if context.is_member {
        return Ok(());
    }
    let objects: Api<Network> = Api::namespaced(context.client.clone(), DOCKER_NAMESPACE);
    for (name, driver) in [(DEFAULT_NETWORK, "bridge"), ("host", "host"), ("none", "null")] {
        let id = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(format!("nuee network {name}")));
        let spec = NetworkSpec { name: name.into(), id, driver: driver.into(), ..NetworkSpec::default() };
        match objects.create(&PostParams::default(), &Network::new(name, spec)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Error::api("create the default networks")(error)),
        }
    }
    Ok(())
}

/// Follows `Network` objects until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let (_, stream) = informer::reflect(Api::<Network>::all(context.client.clone()), watcher::Config::default());
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Event::Apply(object) | Event::InitApply(object) if object.metadata.deletion_timestamp.is_none() => {
                let known = context.networks.known.lock().contains_key(&Key::of(&object));
                // The first machine chooses the subnet; the others make a network when a workload of theirs is on it.
                if !known
                    && !context.is_member
                    && let Err(error) = context.networks.make(&context.client, &context.directory, &object).await
                {
                    tracing::debug!(network = object.spec.name, error = %chain(&error), "network not made");
                }
            }
            Event::Delete(object) => {
                let known = context.networks.known.lock().remove(&Key::of(&object));
                if let Some(network) = known {
                    context.directory.server().stop(SocketAddr::new(IpAddr::V4(network.gateway), DNS_PORT));
                    if let Err(error) = context.fabric.remove_network(&network.id).await {
                        tracing::warn!(network = object.spec.name, error = %chain(&error), "cannot remove the network");
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_shows_outside_what_the_operator_lets_it() {
        let outside = Outside { routed: vec!["192.0.2.0/24".parse().unwrap()], interfaces: vec!["lan0".into()] };
        let check = |mode, subnet: &str, uplink: &str| {
            let spec = NetworkSpec { mode, uplink: uplink.into(), ..NetworkSpec::default() };
            outside.check(&spec, subnet.parse().ok()).is_ok()
        };
        assert!(check(NetworkMode::Nat, "10.0.0.0/24", ""));
        assert!(check(NetworkMode::Routed, "192.0.2.128/25", ""));
        assert!(!check(NetworkMode::Routed, "192.0.2.0/23", ""), "larger than what is let");
        assert!(!check(NetworkMode::Routed, "10.0.0.0/24", ""));
        assert!(check(NetworkMode::Bridged, "10.0.0.0/24", "lan0"));
        assert!(!check(NetworkMode::Bridged, "10.0.0.0/24", "eth0"));
    }
}
