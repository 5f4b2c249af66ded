//! What answers a guest on its networks: DHCP, names, metadata; its published ports; and the end of all of them.

use std::net::{IpAddr, Ipv4Addr};

use api::{KeyPair, VirtualMachine};
use kube::Api;
use network::{Mac, PortMapping};

use super::join::Place;
use super::record::{machine_of, owner};
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::guest::metadata::{Entry, Link};

/// How often a guest is told what its networks say, when that changes meanwhile.
const TOLD_TIMES_MAX: usize = 5;

/// Answers what the guest will ask on each of its networks. The way to everything else is told on the first one alone. Doing it again
/// changes nothing.
pub async fn serve(context: &Context, object: &VirtualMachine, uid: &str, places: &[Place]) -> Result<()> {
    let plans = || -> Vec<network::Plan> {
        places.iter().map(|place| context.networks.current(&place.network).plan.clone()).collect()
    };
    for _ in 0..TOLD_TIMES_MAX {
        let told = plans();
        serve_once(context, object, uid, places).await?;
        // Who was not there yet when a plan changed was not told by whoever changed it.
        if plans() == told {
            break;
        }
    }
    Ok(())
}

async fn serve_once(context: &Context, object: &VirtualMachine, uid: &str, places: &[Place]) -> Result<()> {
    let (hostname, name) = (hostname(object), Key::of(object).name);
    for (at, place) in places.iter().enumerate() {
        let (network, attachment) = (&context.networks.current(&place.network), &place.attachment);
        let lease = network::dhcp::Lease {
            address: attachment.address,
            prefix: attachment.prefix,
            server: network.gateway,
            leads_out: at == 0 && !network.internal,
            plan: network.plan.clone(),
            hostname: hostname.clone(),
            domain: String::new(),
            mtu: u16::try_from(network.mtu).unwrap_or(u16::MAX),
        };
        context.guests.dhcp.offer(&network.bridge, attachment.mac, lease)?;
        // On the default network, as with containers, names are told to nobody.
        if network.id != network::DEFAULT_NETWORK && network.uplink.is_none() {
            let mut names = vec![name.clone(), hostname.clone()];
            names.dedup();
            let (addresses, owner) = (vec![attachment.address.into()], owner(uid, place.nic.slot));
            context.directory.join(network, &place.nic.network, &owner, addresses, names, Vec::new());
        }
    }
    // Nobody of ours is on a bridged network to be asked.
    let asked: Vec<&Place> = places.iter().filter(|place| place.network.uplink.is_none()).collect();
    if !asked.is_empty() {
        let entry = entry(context, object, uid, places).await?;
        for place in asked {
            let gateway = context.networks.current(&place.network).gateway;
            context.guests.tell(gateway, place.attachment.address, entry.clone()).await?;
        }
    }
    Ok(())
}

/// What the guest is told about itself.
pub async fn entry(context: &Context, object: &VirtualMachine, uid: &str, places: &[Place]) -> Result<Entry> {
    let link = |(at, place): (usize, &Place)| {
        let network = context.networks.current(&place.network);
        Link {
            network: place.nic.network.clone(),
            network_id: network.id.clone(),
            address: place.attachment.address.to_string(),
            mac: place.attachment.mac.to_string(),
            prefix: place.attachment.prefix,
            own: network.gateway,
            leads_out: at == 0 && !network.internal,
            has_servers: network.uplink.is_none(),
            plan: network.plan.clone(),
            mtu: network.mtu,
        }
    };
    Ok(Entry {
        uid: uid.to_owned(),
        name: Key::of(object).name,
        hostname: hostname(object),
        flavor: object.spec.flavor.clone(),
        keys: keys(context, object).await?,
        user_data: object.spec.user_data.clone(),
        links: places.iter().enumerate().map(link).collect(),
    })
}

fn hostname(object: &VirtualMachine) -> String {
    match object.spec.hostname.as_str() {
        "" => object.metadata.name.clone().unwrap_or_default(),
        name => name.to_owned(),
    }
}

/// The keys of those pairs that are there. One that is gone keeps no guest from being looked after that had it before.
async fn keys(context: &Context, object: &VirtualMachine) -> Result<Vec<(String, String)>> {
    let mut keys = Vec::new();
    for (name, pair) in pairs(context, object).await? {
        match pair {
            Some(pair) => keys.push((name, pair.spec.public_key.trim().to_owned())),
            None => tracing::warn!(vm = Key::of(object).name, pair = name, "a key pair is gone; going on without it"),
        }
    }
    Ok(keys)
}

/// Refuses a machine whose key pairs are not all there: without them nobody could enter a guest that starts for the first time.
pub async fn check_keys(context: &Context, object: &VirtualMachine) -> Result<()> {
    let missing = pairs(context, object).await?.into_iter().find(|(_, pair)| pair.is_none());
    missing.map_or(Ok(()), |(name, _)| Err(Error::Invalid(format!("key pair {name} not found"))))
}

/// The key pairs that a machine names.
async fn pairs(context: &Context, object: &VirtualMachine) -> Result<Vec<(String, Option<KeyPair>)>> {
    let objects: Api<KeyPair> = Api::namespaced(context.client.clone(), &Key::of(object).namespace);
    let mut pairs = Vec::new();
    for name in &object.spec.key_pairs {
        let pair = objects.get_opt(name).await.map_err(Error::api("read the key pair"))?;
        pairs.push((name.clone(), pair));
    }
    Ok(pairs)
}

/// Publishes the machine's ports, which lead to its first interface.
pub async fn publish(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    places: &[Place],
) -> Result<Vec<api::container::PortMapping>> {
    let place = places.first().ok_or_else(|| Error::Invalid("the machine is on no network".into()))?;
    let ports = object.spec.ports.iter().map(|port| {
        let host = |text: &str| text.parse::<Ipv4Addr>().map(IpAddr::V4);
        let host = (!port.host_ip.is_empty()).then(|| host(&port.host_ip)).transpose();
        Ok(PortMapping {
            host_address: host.map_err(|_| Error::Invalid(format!("invalid IPv4 address: {}", port.host_ip)))?,
            host_port: port.host_port,
            host_port_end: 0,
            target_port: port.container_port,
            protocol: port.protocol.parse()?,
        })
    });
    let ports: Vec<PortMapping> = ports.collect::<Result<_>>()?;
    let bound = context.fabric.publish(uid, place.attachment.address, ports).await?;
    Ok(bound
        .into_iter()
        .map(|port| api::container::PortMapping {
            container_port: port.target_port,
            protocol: port.protocol.to_string(),
            host_ip: port
                .host_address
                .filter(|host| !host.is_unspecified())
                .map(|host| host.to_string())
                .unwrap_or_default(),
            host_port: port.host_port,
            host_port_end: 0,
        })
        .collect())
}

/// Takes one interface off its network, and ends what answers it there. With the machine's first one go its published ports.
pub async fn leave(context: &Context, owner: &str) -> Result<()> {
    let inventory = context.fabric.list().await?;
    for one in inventory.attachments.iter().filter(|one| one.owner == owner) {
        if let Some(network) = inventory.networks.iter().find(|network| network.id == one.network) {
            context.guests.dhcp.withdraw(&network.bridge, one.mac);
        }
        context.guests.forget(one.gateway, one.address);
    }
    context.directory.leave(owner, None);
    Ok(context.fabric.release(owner).await?)
}

/// Takes a machine off all of its networks.
pub async fn leave_all(context: &Context, uid: &str) -> Result<()> {
    let attachments = context.fabric.list().await?.attachments.into_iter();
    let further = attachments.map(|one| one.owner).filter(|owner| owner != uid && machine_of(owner) == uid);
    for owner in further.chain([uid.to_owned()]) {
        leave(context, &owner).await?;
    }
    Ok(())
}

/// Whether an acknowledged address is that of a machine's first interface.
pub fn is_first(places: &[Place], mac: Mac) -> bool {
    places.first().is_some_and(|place| place.attachment.mac == mac)
}
