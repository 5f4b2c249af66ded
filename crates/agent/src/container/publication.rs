//! The published ports of a container: what the fabric is asked for, what is told of them, and who carries between families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::container::{ContainerSpec, NetworkAttachment, PortMapping};

use crate::context::Context;
use crate::error::{Error, Result};

/// Publishes the ports of the spec at a place on a network, in place of what was published.
pub async fn publish(
    context: &Context,
    id: &str,
    place: &NetworkAttachment,
    spec: &ContainerSpec,
) -> Result<Vec<PortMapping>> {
    if spec.ports.is_empty() {
        return Ok(Vec::new());
    }
    let address = place.ip.parse().map_err(|_| Error::Invalid(format!("{} is no address", place.ip)))?;
    let target = network::Target { address, address6: place.ipv6.parse().ok(), carries6: true };
    let ports = spec.ports.iter().map(to_fabric).collect::<Result<Vec<_>>>()?;
    context.fabric.publish(id, target, ports).await.map_err(|error| {
        let short: String = id.chars().take(64).collect();
        Error::Invalid(format!(
            "driver failed programming external connectivity on endpoint {} ({short}): {error}",
            spec.name
        ))
    })?;
    let published = context.fabric.publication(id).await?;
    // Of an address of both families, IPv6 is shown where it leads somewhere.
    Ok(published.as_ref().map(told).unwrap_or_default())
}

/// What is told of ports that are published. Pure.
pub fn told(publication: &network::Publication) -> Vec<PortMapping> {
    let leads = |port: &network::PortMapping| {
        publication.target6.is_some() || (publication.carried6 && port.protocol != network::Protocol::Sctp)
    };
    publication.ports.iter().flat_map(|port| from_fabric(*port, leads(port))).collect()
}

/// Has the shim carry what comes by IPv6, if the container has no address of it.
pub async fn carry(context: &Context, id: &str) -> Result<()> {
    let ports = context.fabric.carried(id).await?;
    if ports.is_empty() {
        return Ok(());
    }
    let ports = ports.into_iter().map(|port| runtime::PortToCarry {
        socket: port.socket,
        is_datagram: port.protocol == network::Protocol::Udp,
        target: port.target,
    });
    context.runtime.carry(id, ports.collect()).await?;
    // Security groups that came meanwhile found nobody who carries.
    match context.fabric.carried(id).await?.is_empty() {
        true => Ok(context.runtime.stop_carrying(id).await?),
        false => Ok(()),
    }
}

fn to_fabric(port: &PortMapping) -> Result<network::PortMapping> {
    let host_address = (!port.host_ip.is_empty()).then(|| port.host_ip.parse()).transpose();
    Ok(network::PortMapping {
        host_address: host_address.map_err(|_| Error::Invalid(format!("invalid IP address: {}", port.host_ip)))?,
        host_port: port.host_port,
        host_port_end: port.host_port_end,
        target_port: port.container_port,
        protocol: port.protocol.parse()?,
    })
}

/// A port of all addresses is shown once for each family.
fn from_fabric(port: network::PortMapping, has_ipv6: bool) -> Vec<PortMapping> {
    let hosts = match port.host_address {
        Some(host) => vec![host],
        None if has_ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let mapping = |host: IpAddr| PortMapping {
        container_port: port.target_port,
        protocol: port.protocol.to_string(),
        host_ip: host.to_string(),
        host_port: port.host_port,
        host_port_end: 0,
    };
    hosts.into_iter().map(mapping).collect()
}
