//! Links of the default network: what a container is told about another at its start, in /etc/hosts and in its environment.
//! Source: Docker's legacy container links.

use std::net::Ipv4Addr;

use api::container::{ContainerSpec, Link};

use crate::context::Context;
use crate::error::{Error, Result};

/// Variables that say nothing about the linked service.
const OWN_VARIABLES: [&str; 2] = ["HOME", "PATH"];

/// What links give to a container.
#[derive(Debug, Default)]
pub struct Linked {
    /// Address and names for /etc/hosts.
    pub hosts: Vec<(String, Vec<String>)>,
    /// `NAME=value`.
    pub environment: Vec<String>,
}

/// Looks up where the linked containers are now.
///
/// Errors: one of them does not run.
pub async fn resolve(context: &Context, namespace: &str, spec: &ContainerSpec) -> Result<Linked> {
    let mut linked = Linked::default();
    if spec.links.is_empty() {
        return Ok(linked);
    }
    let attachments = context.fabric.list().await?.attachments;
    for link in &spec.links {
        let place = attachments.iter().find(|place| place.owner == link.container);
        let place = place.filter(|place| context.is_neighbour(namespace, &place.owner));
        let address = place.map(|place| place.address).ok_or_else(|| {
            let (other, own, alias) = (&link.name, &spec.name, &link.alias);
            Error::Invalid(format!("Cannot link to a non running container: /{other} AS /{own}/{alias}"))
        })?;
        let short: String = link.container.chars().take(12).collect();
        let mut names = vec![link.alias.clone(), short];
        if link.name != link.alias {
            names.push(link.name.clone());
        }
        linked.hosts.push((address.to_string(), names));
        linked.environment.extend(environment(&spec.name, link, address));
    }
    Ok(linked)
}

/// The variables of one link. Pure.
fn environment(own: &str, link: &Link, address: Ipv4Addr) -> Vec<String> {
    let prefix = link.alias.to_uppercase().replace('-', "_");
    let mut ports: Vec<(u16, &str)> = link.ports.iter().filter_map(|port| parse(port)).collect();
    // The lowest port is the one that stands for the service; TCP comes before the rest.
    ports.sort_by_key(|(number, protocol)| (*number, *protocol != "tcp"));
    let mut lines = Vec::new();
    if let Some((number, protocol)) = ports.first() {
        lines.push(format!("{prefix}_PORT={protocol}://{address}:{number}"));
    }
    for (number, protocol) in &ports {
        let name = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        lines.push(format!("{name}={protocol}://{address}:{number}"));
        lines.push(format!("{name}_ADDR={address}"));
        lines.push(format!("{name}_PORT={number}"));
        lines.push(format!("{name}_PROTO={protocol}"));
    }
    lines.push(format!("{prefix}_NAME=/{own}/{}", link.alias));
    for variable in &link.environment {
        let Some((name, value)) = variable.split_once('=') else { continue };
        if !OWN_VARIABLES.contains(&name) {
            lines.push(format!("{prefix}_ENV_{name}={value}"));
        }
    }
    lines
}

fn parse(port: &str) -> Option<(u16, &str)> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    Some((number.parse().ok()?, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_ports_name_and_environment() {
        let link = Link {
            container: "c".repeat(64),
            name: "database".into(),
            alias: "my-db".into(),
            ports: vec!["5433/tcp".into(), "53/udp".into()],
            environment: vec!["PATH=/bin".into(), "USER=me".into()],
        };
        let lines = environment("web", &link, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(lines[0], "MY_DB_PORT=udp://10.0.0.2:53");
        assert!(lines.contains(&"MY_DB_PORT_5433_TCP_ADDR=10.0.0.2".to_owned()));
        assert!(lines.contains(&"MY_DB_NAME=/web/my-db".to_owned()));
        assert_eq!(lines.last().unwrap(), "MY_DB_ENV_USER=me");
        assert!(!lines.iter().any(|line| line.contains("PATH")));
    }
}
