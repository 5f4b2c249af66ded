//! What the fabric is asked for when a `Network` object is to be there. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use api::names::DOCKER_NAMESPACE;
use api::network::{Network, NetworkMode, NetworkStatus};
use network::{Ipv6Config, NetworkConfig};

use crate::error::{Error, Result};
use crate::subnets;

/// Options by which Docker names the bridge.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// Option by which Docker forbids talk between containers.
const ICC_OPTION: &str = "com.docker.network.bridge.enable_icc";
/// Option by which Docker sets the MTU.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// What the fabric is asked for; `None` for drivers without a bridge.
pub(super) fn config(object: &Network) -> Option<Result<NetworkConfig>> {
    let spec = &object.spec;
    if matches!(spec.driver.as_str(), "host" | "none" | "null") {
        return None;
    }
    let subnet = |text: &str| (!text.is_empty()).then(|| text.parse::<network::Subnet>()).transpose();
    let status = object.status.as_ref();
    let plan = status.and_then(|status| status.plan.as_ref()).filter(|_| spec.is_open());
    Some((|| {
        // It stays with the subnet, also when its `Subnet` has gone: whoever makes the network later has it as the others have.
        let told = status.filter(|_| spec.is_open()).map_or("", |status| status.gateway.as_str());
        let gateway = if spec.gateway.is_empty() { told } else { spec.gateway.trim() };
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
            beside_routes: object.metadata.namespace.as_deref() != Some(DOCKER_NAMESPACE),
            shared: {
                let known = object.status.as_ref().map(|status| status.subnet.as_str());
                let subnet = if spec.subnet.is_empty() { known.unwrap_or_default() } else { &spec.subnet };
                spec.shared(subnet).is_some()
            },
            plan: plan.map(subnets::plan_of).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use api::network::NetworkSpec;
    use api::subnet::AddressPlan;

    use super::*;

    #[test]
    fn the_gateway_of_a_subnet_stays_with_its_addresses() {
        let wanted = |own: &str, plan: Option<AddressPlan>| {
            let mut network = Network::new("a", NetworkSpec { subnet: own.into(), ..NetworkSpec::default() });
            let (subnet, gateway) = ("10.90.0.0/24".into(), "10.90.0.254".into());
            network.status = Some(NetworkStatus { subnet, gateway, plan, ..NetworkStatus::default() });
            let config = config(&network).unwrap().unwrap();
            (config.subnet.unwrap().to_string(), config.gateway)
        };
        let taken = ("10.90.0.0/24".to_owned(), Some(Ipv4Addr::new(10, 90, 0, 254)));
        assert_eq!(wanted("", Some(AddressPlan::default())), taken);
        assert_eq!(wanted("", None), taken);
        assert_eq!(wanted("10.91.0.0/24", None), ("10.91.0.0/24".to_owned(), None), "it says its addresses itself");
    }
}
