//! What the fabric is asked for when a `Network` object is to be there. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use api::names::DOCKER_NAMESPACE;
use api::network::{Network, NetworkMode, NetworkStatus};
use network::{Ipv6Config, NetworkConfig};

use crate::error::{Error, Result};
use crate::subnets;

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
        let options = spec.read_options().map_err(|error| Error::Invalid(error.to_string()))?;
        let known = status.map_or("", |status| status.subnet.as_str());
        let range = spec.shared(if spec.subnet.is_empty() { known } else { &spec.subnet });
        Ok(NetworkConfig {
            id: object.metadata.uid.clone().unwrap_or_default(),
            bridge: options.bridge,
            // The subnet that was taken once stays.
            subnet: match subnet(&spec.subnet)? {
                None => subnet(known)?,
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
            unmasqueraded: !options.masquerade,
            uplink: (spec.mode == NetworkMode::Bridged).then(|| spec.uplink.clone()),
            isolated_ports: !options.talk,
            mtu: options.mtu,
            published_on: options.published_on,
            interface_prefix: options.interface_prefix,
            kept: spec.read_auxiliary(range).map_err(Error::Invalid)?,
            beside_routes: object.metadata.namespace.as_deref() != Some(DOCKER_NAMESPACE),
            shared: range.is_some(),
            plan: plan.map(subnets::plan_of).unwrap_or_default(),
        })
    })())
}

/// The network as the fabric has it, where it may stay so although its object asks for what cannot be had: an older release took no
/// notice of that when it made the network, and whoever has been on it since finds it. Not one that is seen outside, which is the
/// operator's to let at each start, nor one whose addresses another object says. Pure.
pub(super) fn may_stay(object: &Network, there: Vec<network::Network>, error: &Error) -> Option<network::Network> {
    let is_refusal = matches!(
        error,
        Error::Invalid(_) | Error::Network(network::Error::Invalid(_) | network::Error::AddressTaken(_))
    );
    let has_plan = object.status.as_ref().is_some_and(|status| status.plan.is_some());
    let uid = object.metadata.uid.as_deref().filter(|_| is_refusal && !has_plan)?;
    there.into_iter().find(|one| one.id == uid && !one.plain && one.uplink.is_none())
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
    fn what_options_and_auxiliary_addresses_say_is_asked_of_the_fabric_or_refused() {
        let read = |driver: &str, option: &str, value: &str, kept: &str| {
            let spec = NetworkSpec {
                driver: driver.into(),
                subnet: "10.90.0.0/24".into(),
                options: [(format!("com.docker.network.{option}"), value.to_owned())].into(),
                auxiliary_addresses: [("other".to_owned(), kept.to_owned())].into(),
                ..NetworkSpec::default()
            };
            config(&Network::new("a", spec)).unwrap().map_err(|error| error.to_string())
        };
        let config = read("bridge", "bridge.enable_ip_masquerade", "0", "10.90.0.9").unwrap();
        assert!(config.unmasqueraded && !config.isolated_ports);
        assert_eq!(config.kept, [std::net::IpAddr::V4(Ipv4Addr::new(10, 90, 0, 9))]);
        assert!(read("overlay", "bridge.enable_ip_masquerade", "0", "10.90.0.9").unwrap().unmasqueraded);
        let published = read("bridge", "bridge.host_binding_ipv4", "127.0.0.1", "10.90.0.127").unwrap().published_on;
        assert_eq!(published, Some(Ipv4Addr::LOCALHOST));
        for (option, kept) in [("bridge.host_binding_ipv4", "10.90.0.9"), ("x", "10.90.0.127"), ("x", "nonsense")] {
            assert!(read("overlay", option, "127.0.0.1", kept).is_err(), "{option} {kept}");
        }
        assert!(read("bridge", "driver.mtu", "many", "10.90.0.9").is_err());
    }

    #[test]
    fn what_an_older_release_made_stays_as_it_is_unless_it_is_seen_outside() {
        let there = |id: &str, plain: bool, uplink: Option<&str>| -> network::Network {
            serde_json::from_value(serde_json::json!({
                "id": id, "bridge": "nuee0", "subnet": "10.90.0.0/24", "gateway": "10.90.0.1", "internal": false, "routed": plain,
                "plain": plain, "uplink": uplink, "isolated_ports": false, "mtu": 1500,
            }))
            .unwrap()
        };
        let options = [("com.docker.network.bridge.gateway_mode_ipv4".to_owned(), "routed".to_owned())].into();
        let mut object = Network::new("a", NetworkSpec { driver: "bridge".into(), options, ..NetworkSpec::default() });
        object.metadata.uid = Some("u".into());
        let refusal = config(&object).unwrap().unwrap_err();
        let usual = || vec![there("v", false, None), there("u", false, None)];
        assert_eq!(may_stay(&object, usual(), &refusal).map(|network| network.id), Some("u".into()));
        let of_fabric = Error::Network(network::Error::Invalid("auxiliary address".into()));
        assert!(may_stay(&object, usual(), &of_fabric).is_some());
        assert!(may_stay(&object, usual(), &Error::Timeout("the kernel")).is_none(), "it may be had later");
        for other in [there("v", false, None), there("u", true, None), there("u", false, Some("lan0"))] {
            assert!(may_stay(&object, vec![other], &refusal).is_none());
        }
        object.status = Some(NetworkStatus { plan: Some(AddressPlan::default()), ..NetworkStatus::default() });
        assert!(may_stay(&object, usual(), &refusal).is_none());
    }

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
