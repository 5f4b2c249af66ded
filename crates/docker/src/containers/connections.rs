//! A container's networks and ports, out of a create request. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::container::{Link, NetworkEndpoint, PortMapping};

use super::config::{ImageDefaults, Surroundings, Translated, mode};
use super::wire::{CreateRequest, EndpointConfig, HostConfig};
use crate::error::{Error, Result};

/// Network mode and endpoints.
pub(super) fn networks(
    request: &CreateRequest,
    host: &HostConfig,
    around: &dyn Surroundings,
    out: &mut Translated,
) -> Result<()> {
    let wanted = match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    };
    let spec = &mut out.spec;
    let mut endpoints: BTreeMap<String, NetworkEndpoint> = BTreeMap::new();
    for (name, config) in &request.networking_config.endpoints_config {
        config.as_ref().map_or(Ok(()), |config| check_addresses(name, config, around))?;
        let object = around.network_object(if name == "default" { "bridge" } else { name })?;
        endpoints.insert(object, config.clone().unwrap_or_default().into_object());
    }
    match wanted {
        "none" | "host" => spec.network_mode = wanted.to_owned(),
        _ if wanted.starts_with("container:") => {
            if !request.hostname.is_empty() {
                return Err(Error::Invalid("conflicting options: hostname and the network mode".into()));
            }
            if !host.port_bindings.is_empty() || host.publish_all_ports {
                return Err(Error::Invalid(
                    "conflicting options: port publishing and the container type network mode".into(),
                ));
            }
            spec.network_mode = mode(wanted, around)?;
        }
        _ => {
            let object = around.network_object(wanted)?;
            let has_options = endpoints.iter().any(|(name, e)| name != &object || *e != NetworkEndpoint::default());
            if object != api::names::DEFAULT_NETWORK || has_options {
                endpoints.entry(object.clone()).or_default();
            } else {
                endpoints.clear();
            }
            if !request.mac_address.is_empty() {
                let endpoint = endpoints.entry(object.clone()).or_default();
                if endpoint.mac_address.is_empty() {
                    endpoint.mac_address.clone_from(&request.mac_address);
                }
            }
            spec.network_mode = object;
            spec.networks = endpoints;
        }
    }
    for link in &host.links {
        let (other, alias) = link.split_once(':').unwrap_or((link, link));
        let (id, other_spec) = around
            .other_container(other)
            .map_err(|_| Error::Invalid(format!("could not get container for {other}: No such container: {other}")))?;
        let alias = alias.rsplit('/').next().unwrap_or(alias);
        let user_network = !matches!(spec.network_mode.as_str(), api::names::DEFAULT_NETWORK | "host" | "none");
        if user_network {
            // On a network with names of its own a link is one more name.
            let endpoint = spec.networks.entry(spec.network_mode.clone()).or_default();
            endpoint.links.push(format!("{}:{alias}", other_spec.name));
            continue;
        }
        spec.links.push(Link {
            container: id,
            name: other_spec.name.clone(),
            alias: alias.to_owned(),
            ports: other_spec.exposed_ports.clone(),
            environment: other_spec.environment.clone(),
        });
    }
    Ok(())
}

/// A chosen address needs a network whose addresses the user chose.
pub(super) fn check_addresses(network: &str, asked: &EndpointConfig, around: &dyn Surroundings) -> Result<()> {
    let Some(asked) = &asked.ipam_config else { return Ok(()) };
    let mut wanted: Vec<IpAddr> = Vec::new();
    for (family, address) in [("IPv4", &asked.ipv4_address), ("IPv6", &asked.ipv6_address)] {
        if !address.is_empty() {
            let ip: Option<IpAddr> = address.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == (family == "IPv4"));
            wanted.push(ip.ok_or_else(|| Error::Invalid(format!("invalid {family} address: {address}")))?);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    if matches!(network, "" | "default" | "bridge" | "host" | "none") {
        return Err(Error::Invalid("user specified IP address is supported on user defined networks only".into()));
    }
    let subnets = around.network_subnets(&around.network_object(network)?);
    for ip in wanted {
        if !subnets.iter().any(|subnet| subnet.contains(':') == ip.is_ipv6()) {
            return Err(Error::Invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
                    .into(),
            ));
        }
        if !subnets.iter().any(|subnet| crate::cidr::holds(subnet, ip)) {
            return Err(Error::Invalid(format!(
                "Invalid address {ip}: It does not belong to any of this network's subnets"
            )));
        }
    }
    Ok(())
}

/// Exposed and published ports.
pub(super) fn ports(
    request: &CreateRequest,
    host: &HostConfig,
    image: &ImageDefaults,
    out: &mut Translated,
) -> Result<()> {
    let mut exposed: BTreeSet<String> = image.exposed_ports.iter().cloned().collect();
    for port in request.exposed_ports.keys().chain(host.port_bindings.keys()) {
        parse_port(port)?;
        exposed.insert(if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    }
    let without_ports = matches!(out.spec.network_mode.as_str(), "host" | "none");
    if without_ports && !host.port_bindings.is_empty() && out.spec.network_mode == "host" {
        out.warnings.push("Published ports are discarded when using host network mode".into());
    }
    if !without_ports {
        for (port, bindings) in &host.port_bindings {
            let (container_port, protocol) = parse_port(port)?;
            for binding in bindings.iter().flatten() {
                let (host_port, host_port_end) = host_ports(&binding.host_port)?;
                if !binding.host_ip.is_empty() && binding.host_ip.parse::<std::net::IpAddr>().is_err() {
                    return Err(Error::Invalid(format!("invalid IP address: {}", binding.host_ip)));
                }
                let protocol = protocol.clone();
                let host_ip = binding.host_ip.clone();
                out.spec.ports.push(PortMapping { container_port, protocol, host_ip, host_port, host_port_end });
            }
            if host.publish_all_ports && bindings.iter().flatten().next().is_none() {
                out.spec.ports.push(PortMapping { container_port, protocol, ..PortMapping::default() });
            }
        }
        if host.publish_all_ports {
            for port in exposed.iter().filter(|port| !host.port_bindings.contains_key(*port)) {
                let (container_port, protocol) = parse_port(port)?;
                out.spec.ports.push(PortMapping { container_port, protocol, ..PortMapping::default() });
            }
        }
    }
    out.spec.exposed_ports = exposed.into_iter().collect();
    Ok(())
}

/// First and last port of `8080` or `8080-8090` on the host; 0 for any, and for no range.
fn host_ports(text: &str) -> Result<(u16, u16)> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let invalid = || Error::Invalid(format!("invalid port specification: {}", crate::text::quote(text)));
    let port = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let Some((first, last)) = text.split_once('-') else { return Ok((port(text)?, 0)) };
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 || last < first {
        return Err(invalid());
    }
    Ok((first, if last == first { 0 } else { last }))
}

/// `80`, `80/tcp`.
pub(crate) fn parse_port(text: &str) -> Result<(u16, String)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number.parse().ok().filter(|port| *port != 0);
    match (number, protocol.to_ascii_lowercase().as_str()) {
        (Some(number), protocol @ ("tcp" | "udp" | "sctp")) => Ok((number, protocol.to_owned())),
        (None, _) => Err(Error::Invalid(format!("invalid port specification: {}", crate::text::quote(text)))),
        (_, other) => Err(Error::Invalid(format!("invalid proto: {other}"))),
    }
}
