//! Overlay networks: those of the swarm's services. Their rows are with those of all networks, in `networks.rs`.

use std::net::{IpAddr, Ipv4Addr};

use api::network::{Network, NetworkSpec};
use api::swarm::{FINALIZER, MANAGED_LABEL};
use kube::ResourceExt;
use serde_json::json;

use super::cluster::Swarm;
use super::precondition;
use crate::cidr::Cidr;
use crate::error::{Error, Result};
use crate::state::Docker;
use crate::text;

/// Largest number of subnets of a pool that are looked at for a free one.
const SUBNETS_MAX: u32 = 1 << 16;

/// Whether a network is a swarm's.
pub(crate) fn is_overlay(network: &Network) -> bool {
    network.spec.driver == "overlay"
}

/// The object of an overlay network: held until no task is on it.
pub(crate) fn object(spec: NetworkSpec) -> Network {
    let name = format!("n-{}", text::short_id(&spec.id));
    let mut network = Network::new(&name, spec);
    network.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    network.labels_mut().insert(MANAGED_LABEL.into(), "network".into());
    network
}

/// Refuses a container that would join a network that is for services alone.
pub(crate) fn check_attachable(network: &Network) -> Result<()> {
    if !is_overlay(network) || network.spec.attachable {
        return Ok(());
    }
    let name = &network.spec.name;
    Err(Error::Forbidden(format!(
        "Could not attach to network {name}: rpc error: code = PermissionDenied desc = network {name} not manually attachable"
    )))
}

/// Refuses a pool of addresses that is none.
pub(super) fn check_pool(pool: &str) -> Result<()> {
    match Cidr::parse(pool) {
        Ok(Some(pool)) if !pool.is_ipv6() => Ok(()),
        _ => Err(super::invalid(format!("invalid default address pool {pool}"))),
    }
}

/// A free subnet of the pools that the user gave the swarm; empty without pools: then the machine takes one.
///
/// Errors: the pools are used up.
pub(crate) fn free_subnet(docker: &Docker, swarm: &Swarm) -> Result<String> {
    let (pools, size) = swarm.address_pools();
    if pools.is_empty() {
        return Ok(String::new());
    }
    let all = docker.networks.all();
    let taken: Vec<Cidr> = all
        .iter()
        .filter_map(|network| {
            let now = network.status.as_ref().map(|status| status.subnet.as_str()).filter(|subnet| !subnet.is_empty());
            Cidr::parse(now.unwrap_or(&network.spec.subnet)).ok().flatten()
        })
        .collect();
    let pools: Vec<Cidr> = pools.iter().filter_map(|pool| Cidr::parse(pool).ok().flatten()).collect();
    first_free(&pools, size, &taken).ok_or_else(|| {
        precondition("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network")
    })
}

/// The first subnet of a size that overlaps with nothing. Pure.
fn first_free(pools: &[Cidr], size: u32, taken: &[Cidr]) -> Option<String> {
    for pool in pools.iter().filter(|pool| pool.prefix() <= size && size <= 30) {
        let IpAddr::V4(base) = pool.base() else { continue };
        let count = 1_u32.checked_shl(size - pool.prefix()).unwrap_or(SUBNETS_MAX).min(SUBNETS_MAX);
        for index in 0..count {
            let text = format!("{}/{size}", Ipv4Addr::from_bits(base.to_bits().wrapping_add(index << (32 - size))));
            let subnet = Cidr::parse(&text).ok().flatten()?;
            if !taken.iter().any(|other| other.overlaps(&subnet)) {
                return Some(text);
            }
        }
    }
    None
}

/// Refuses to remove what a service is on.
pub(crate) async fn check_unused(docker: &Docker, network: &Network) -> Result<()> {
    let object = network.name_any();
    let all = docker.services().await?;
    let user = all.iter().find(|service| service.spec.current.task.networks.iter().any(|one| one.network == object));
    match user {
        Some(user) => {
            Err(precondition(format!("network {} is in use by service {}", network.spec.id, user.name_any())))
        }
        None => Ok(()),
    }
}

/// Lets a network go: its name is free at once, its tasks end in peace.
pub(crate) async fn remove(docker: &Docker, network: &Network) -> Result<()> {
    let change = json!({ "metadata": { "uid": network.metadata.uid }, "spec": { "name": format!("removed/{}", network.spec.id) } });
    docker.networks.patch(&network.name_any(), &change).await?;
    docker.networks.delete(&network.name_any()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Cidr {
        Cidr::parse(text).unwrap().unwrap()
    }

    #[test]
    fn subnets_are_dealt_out_of_the_pools_in_order_without_overlap() {
        let pools = [subnet("10.9.0.0/23"), subnet("10.20.0.0/24")];
        let free = |taken: &[&str]| first_free(&pools, 24, &taken.iter().map(|text| subnet(text)).collect::<Vec<_>>());
        assert_eq!(free(&[]).as_deref(), Some("10.9.0.0/24"));
        assert_eq!(free(&["10.9.0.128/25"]).as_deref(), Some("10.9.1.0/24"));
        assert_eq!(free(&["10.9.0.0/16"]).as_deref(), Some("10.20.0.0/24"));
        assert_eq!(free(&["10.0.0.0/8"]), None);
    }

    #[test]
    fn only_attachable_networks_take_containers() {
        let network = |attachable| {
            object(NetworkSpec { id: "x".into(), driver: "overlay".into(), attachable, ..NetworkSpec::default() })
        };
        assert_eq!(check_attachable(&network(false)).map_err(|error| error.status().as_u16()), Err(403));
        assert!(check_attachable(&network(true)).is_ok());
    }
}
