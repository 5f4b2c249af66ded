//! One interface gets its place on a network: by its port, the place that it has, or any that is free.

use std::net::Ipv4Addr;
use std::sync::Arc;

use api::virtual_machine::MachineAddress;
use hypervisor::Interface;
use network::{AttachRequest, Attachment, Mac};

use super::record::{Nic, owner};
use super::serve::leave;
use crate::context::{Context, Key};
use crate::error::Result;
use crate::{ports, security};

/// A place on the network.
#[derive(Clone, Debug)]
pub struct Place {
    /// The interface, with its place.
    pub nic: Nic,
    /// The place as the network knows it.
    pub attachment: Attachment,
    /// The network.
    pub network: Arc<network::Network>,
}

impl Place {
    /// As the object shows it.
    pub fn address(&self) -> MachineAddress {
        MachineAddress {
            network: self.nic.network.clone(),
            ip: self.attachment.address.to_string(),
            mac: self.attachment.mac.to_string(),
            port: self.nic.port.clone(),
            security_groups: if self.nic.port.is_empty() { self.nic.groups.clone() } else { Vec::new() },
        }
    }

    /// As the hypervisor takes it.
    pub fn interface(&self) -> Interface {
        Interface {
            slot: self.nic.slot,
            tap: self.attachment.host_interface.clone(),
            mac: self.attachment.mac.to_string(),
            mtu: self.network.mtu,
        }
    }
}

/// Which place an interface is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// That which its object says now, with what it had before given up where it is another.
    Anew,
    /// That which it has: its guest runs, or sleeps. What the fabric knows of it counts before what its objects say.
    Again,
}

/// What an interface's place is to be.
struct Wanted {
    /// Uid of the port.
    port_uid: Option<String>,
    /// Its address; `None`: a free one.
    address: Option<Ipv4Addr>,
    /// Its hardware address; `None`: one that is made from the address.
    mac: Option<Mac>,
    /// Names of the security groups.
    groups: Vec<String>,
}

/// The place that an interface has, by the fabric's own record: it is there whatever became of its port since.
async fn as_it_is(context: &Context, key: &Key, uid: &str, nic: &Nic, record: &Attachment) -> Wanted {
    let held = if nic.port.is_empty() { None } else { ports::held(context, key, &nic.port, uid).await.ok() };
    Wanted {
        port_uid: record.port.clone(),
        address: Some(record.address),
        mac: Some(record.mac),
        groups: groups_now(&key.namespace, nic, record, held),
    }
}

/// Names of the groups of an interface that has a place. Pure. Those of a port count only if it is the one that the interface is on.
fn groups_now(namespace: &str, nic: &Nic, record: &Attachment, held: Option<ports::Held>) -> Vec<String> {
    let name = |id: &String| id.strip_prefix(namespace)?.strip_prefix('/').map(str::to_owned);
    match held.filter(|held| record.port.as_ref() == Some(&held.uid)) {
        Some(held) => held.groups,
        None if record.port.is_none() && nic.port.is_empty() => nic.groups.clone(),
        None => record.groups.iter().filter_map(name).collect(),
    }
}

/// The place that is wished for, or that the interface had on another machine.
///
/// Errors: [`Error::NotYet`] when its port is another's, or has no address.
async fn as_wished(context: &Context, key: &Key, uid: &str, nic: &mut Nic) -> Result<Wanted> {
    if !nic.port.is_empty() {
        let held = ports::held(context, key, &nic.port, uid).await?;
        nic.network = held.network;
        let (address, mac) = (Some(held.address), Some(held.mac));
        return Ok(Wanted { port_uid: Some(held.uid), address, mac, groups: held.groups });
    }
    let (address, mac) = place_of(nic);
    Ok(Wanted { port_uid: None, address, mac, groups: nic.groups.clone() })
}

/// The addresses that an interface without a port had; without any, the hardware address that it wishes for. Pure.
fn place_of(nic: &Nic) -> (Option<Ipv4Addr>, Option<Mac>) {
    let (address, mac) = nic.place.unzip();
    (address, mac.or_else(|| nic.wished_mac.parse().ok()))
}

/// Forgets addresses that are not to be had on the network of that name any more, which was made anew with another subnet. Pure.
fn forget_strange(nic: &mut Nic, subnet: network::Subnet) {
    nic.place = nic.place.filter(|(address, _)| subnet.contains(*address));
}

/// The network behind a name; for an interface that has a place, the very one that it is on, though its object may be gone or another.
async fn network_of(context: &Context, key: &Key, record: Option<&Attachment>) -> Result<Arc<network::Network>> {
    let ensured = context.networks.ensure(&context.client, &context.directory, key).await;
    let Some(record) = record else { return ensured };
    match ensured {
        Ok(network) if network.id == record.network => Ok(network),
        other => {
            let found = context.fabric.list().await?.networks.into_iter().find(|one| one.id == record.network);
            found.map_or(other, |found| Ok(Arc::new(found)))
        }
    }
}

/// Puts an interface of a machine on its network. Doing it again changes nothing. The caller records what the place says.
///
/// Errors: [`Error::NotYet`] when its port is another's, or has no address.
pub async fn join(context: &Context, key: &Key, uid: &str, mut nic: Nic, joining: Joining) -> Result<Place> {
    let owner = owner(uid, nic.slot);
    let own = context.fabric.list().await?.attachments.into_iter().find(|one| one.owner == owner);
    let record = own.as_ref().filter(|_| joining == Joining::Again);
    let mut wanted = match record {
        Some(record) => as_it_is(context, key, uid, &nic, record).await,
        None => as_wished(context, key, uid, &mut nic).await?,
    };
    let network_key = Key { namespace: key.namespace.clone(), name: nic.network.clone() };
    let network = network_of(context, &network_key, record).await?;
    // A guest that runs or sleeps has its addresses, whatever the network is now.
    if joining == Joining::Anew && nic.port.is_empty() {
        forget_strange(&mut nic, network.subnet);
        (wanted.address, wanted.mac) = place_of(&nic);
    }
    if record.is_none() && wanted.port_uid.is_some() {
        ports::check_reach(context, &network, &nic.network)?;
    }
    let is_other = |one: &Attachment| one.network != network.id || one.port != wanted.port_uid;
    if joining == Joining::Anew && own.as_ref().is_some_and(is_other) {
        leave(context, &owner).await?;
    }
    let request = AttachRequest {
        owner,
        network: network.id.clone(),
        tap: true,
        address: wanted.address,
        mac: wanted.mac,
        groups: security::ids(&key.namespace, &wanted.groups),
        port: wanted.port_uid.clone(),
        ..AttachRequest::default()
    };
    let attachment = context.networks.attach(&network, request, true).await?;
    nic.place = Some((attachment.address, attachment.mac));
    (nic.port_uid, nic.groups) = (wanted.port_uid, wanted.groups);
    Ok(Place { nic, attachment, network })
}

#[cfg(test)]
mod tests {
    use api::interface::MachineInterface;

    use super::*;

    fn record(port: Option<&str>) -> Attachment {
        let address = Ipv4Addr::new(10, 89, 0, 7);
        Attachment {
            owner: "u-a".into(),
            network: "default".into(),
            namespace: "/".into(),
            interface: String::new(),
            host_interface: "nuv0".into(),
            address,
            prefix: 24,
            gateway: Ipv4Addr::new(10, 89, 0, 1),
            ipv6: None,
            mac: Mac::from_address(address),
            tap: true,
            groups: vec!["shop/before".into()],
            port: port.map(str::to_owned),
        }
    }

    fn held(uid: &str) -> Option<ports::Held> {
        let address = Ipv4Addr::new(10, 89, 0, 7);
        Some(ports::Held {
            name: "p".into(),
            uid: uid.into(),
            network: "bridge".into(),
            address,
            mac: Mac::from_address(address),
            groups: vec!["now".into()],
        })
    }

    #[test]
    fn an_interface_keeps_no_address_of_another_subnet() {
        let (address, mac) = (Ipv4Addr::new(10, 89, 0, 7), Mac([0x52, 0x54, 0, 0, 0, 1]));
        let wish = MachineInterface { mac_address: mac.to_string(), ..MachineInterface::default() };
        let mut nic = Nic { place: Some((address, mac)), ..Nic::new(0, &wish) };
        forget_strange(&mut nic, "10.89.0.0/24".parse().unwrap());
        assert_eq!(place_of(&nic), (Some(address), Some(mac)));
        forget_strange(&mut nic, "10.90.0.0/24".parse().unwrap());
        assert_eq!(place_of(&nic), (None, Some(mac)), "what it wishes for it keeps");
        assert_eq!(place_of(&Nic::new(0, &MachineInterface::default())), (None, None));
    }

    #[test]
    fn an_interface_keeps_its_groups_until_it_is_on_another_port() {
        let wish = |port: &str, groups: &[&str]| MachineInterface {
            port: port.into(),
            security_groups: groups.iter().map(|one| (*one).to_owned()).collect(),
            ..MachineInterface::default()
        };
        let now = |nic: &Nic, record: &Attachment, held| groups_now("shop", nic, record, held);
        let (own, on) = (Nic::new(0, &wish("", &["web"])), Nic::new(0, &wish("p", &[])));
        assert_eq!(now(&own, &record(None), None), ["web"]);
        assert_eq!(now(&on, &record(Some("u-p")), held("u-p")), ["now"]);
        assert_eq!(now(&on, &record(Some("u-p")), held("u-new")), ["before"], "another of that name");
        assert_eq!(now(&on, &record(Some("u-p")), None), ["before"], "the port is gone");
        assert_eq!(now(&own, &record(Some("u-p")), None), ["before"]);
    }
}
