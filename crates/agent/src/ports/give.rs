//! Gives each `Port` its address, and says which workload is on it. On the pool's first machine alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::port::{FINALIZER, PortAttachment, PortPhase, PortStatus};
use api::{Container, Network, Port, VirtualMachine};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use network::Reservation;
use serde_json::{Value, json};

use super::LOOK_AGAIN;
use super::users::{Kind, Named, User, Users, holder};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::{informer, objects};

/// Time after which all ports are looked at though none of them has changed: nobody tells that a network has gone.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// What is said to be done when a port cannot be written into.
const WRITE: &str = "write the port";
/// The most ports of one namespace on the default network, which all namespaces share.
const DEFAULT_NETWORK_PORTS_MAX: usize = 64;

type Ports = BTreeMap<Key, Arc<Port>>;

enum State {
    Ports(Ports),
    Users(Kind, Named),
}

/// The workloads of a kind that name ports.
fn named<K>(context: &Context, kind: Kind, read: fn(&K) -> Option<User>) -> BoxStream<'static, State>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default,
{
    let known = informer::selected(Api::<K>::all(context.client.clone()), watcher::Config::default(), read);
    known.map(move |named| State::Users(kind, named)).boxed()
}

/// Gives all ports of the pool their addresses and workloads, until the agent is dropped. On the pool's first machine alone.
pub async fn give(context: Arc<Context>) {
    let ports = informer::states(Api::<Port>::all(context.client.clone()), watcher::Config::default());
    let mut states: SelectAll<BoxStream<'static, State>> = SelectAll::new();
    states.push(ports.map(State::Ports).boxed());
    let mut ports: Option<Ports> = None;
    let (mut users, mut follows) = (Users::default(), false);
    let mut open = false;
    loop {
        let next = tokio::select! {
            next = states.next() => match next {
                Some(next) => Some(next),
                None => return,
            },
            () = tokio::time::sleep(if open { LOOK_AGAIN } else { LOOK_ANYWAY }) => None,
        };
        match next {
            Some(State::Ports(known)) => ports = Some(known),
            Some(State::Users(kind, known)) => drop(users.insert(kind, known)),
            None => {}
        }
        let Some(ports) = &ports else { continue };
        // Workloads come and go often, and most pools have no ports.
        if !follows && !ports.is_empty() {
            states.push(named::<VirtualMachine>(&context, Kind::VirtualMachine, User::of_guest));
            states.push(named::<Container>(&context, Kind::Container, User::of_container));
            states.push(named::<Pod>(&context, Kind::Pod, User::of_pod));
            follows = true;
        }
        // Half a list would take ports from workloads that are still there.
        if follows && users.len() < Kind::ALL.len() {
            continue;
        }
        open = false;
        let Ok(found) = context.fabric.list().await else { continue };
        let mut kept = Kept::of(found.reservations, ports);
        for (key, port) in ports {
            if let Err(error) = settle(&context, key, port, &users, &mut kept).await {
                tracing::warn!(port = key.name, error = %chain(&error), "cannot settle a port");
                open = true;
            }
            open |= port.status.as_ref().is_none_or(|status| status.address.is_empty() || !status.message.is_empty());
        }
        if let Err(error) = forget(&context, ports, &kept).await {
            tracing::warn!(error = %chain(&error), "cannot give up the address of a port");
        }
    }
}

/// What is kept for ports, read once for a look at all of them.
struct Kept {
    /// By the port's uid.
    reservations: HashMap<String, Reservation>,
    /// How many ports each namespace has on the default network.
    on_default: HashMap<String, usize>,
}

impl Kept {
    fn of(reservations: Vec<Reservation>, ports: &Ports) -> Self {
        let reservations: HashMap<_, _> = reservations.into_iter().map(|one| (one.owner.clone(), one)).collect();
        let mut kept = Self { reservations, on_default: HashMap::new() };
        for (key, port) in ports {
            let own = port.metadata.uid.as_ref().and_then(|uid| kept.reservations.get(uid));
            if own.is_some_and(|own| own.network == network::DEFAULT_NETWORK) {
                *kept.on_default.entry(key.namespace.clone()).or_default() += 1;
            }
        }
        kept
    }

    /// Refuses one more port of a namespace on a network, where the others would have to do without. Pure.
    fn check(&self, namespace: &str, network: &str) -> Result<()> {
        let has = self.on_default.get(namespace).copied().unwrap_or_default();
        if network != network::DEFAULT_NETWORK || has < DEFAULT_NETWORK_PORTS_MAX {
            return Ok(());
        }
        let text = format!(
            "namespace {namespace} has {has} ports on the default network, which is all it may have there; \
             ports on a Network of its own are not counted"
        );
        Err(Error::Invalid(text))
    }

    fn note(&mut self, namespace: &str, reservation: Reservation) {
        if reservation.network == network::DEFAULT_NETWORK {
            *self.on_default.entry(namespace.to_owned()).or_default() += 1;
        }
        self.reservations.insert(reservation.owner.clone(), reservation);
    }
}

/// Gives up addresses of ports that are gone without having waited for us.
async fn forget(context: &Context, ports: &Ports, kept: &Kept) -> Result<()> {
    let known: HashSet<&String> = ports.values().filter_map(|port| port.metadata.uid.as_ref()).collect();
    for owner in kept.reservations.keys().filter(|owner| !known.contains(owner)) {
        context.fabric.give_up_address(owner).await?;
    }
    Ok(())
}

/// Brings one port to what it should be.
async fn settle(context: &Context, key: &Key, port: &Port, users: &Users, kept: &mut Kept) -> Result<()> {
    let uid = port.metadata.uid.clone().unwrap_or_default();
    let old = port.status.clone().unwrap_or_default();
    let is_going = port.metadata.deletion_timestamp.is_some();
    let finalizers = port.metadata.finalizers.clone().unwrap_or_default();
    let is_ours = finalizers.iter().any(|one| one == FINALIZER);
    let holder = holder(key, port, users);
    if is_going && holder.is_none() {
        // Its machine has let go of the address before its object went.
        context.fabric.give_up_address(&uid).await?;
        let rest: Vec<String> = finalizers.into_iter().filter(|one| one != FINALIZER).collect();
        return if is_ours {
            objects::write_as_read(&context.client, port, json!({"finalizers": rest}), None, WRITE).await
        } else {
            Ok(())
        };
    }
    if !is_ours && !is_going {
        let all: Vec<String> = finalizers.into_iter().chain([FINALIZER.to_owned()]).collect();
        // What this changes comes by the watch, and the rest is settled then.
        return objects::write_as_read(&context.client, port, json!({"finalizers": all}), None, WRITE).await;
    }
    let address = keep(context, key, port, &uid, holder.is_some(), kept).await;
    let wanted = status(address.map_err(|error| chain(&error)), &old, holder);
    match wanted == old {
        true => Ok(()),
        false => objects::write_as_read(&context.client, port, json!({}), Some(whole(&wanted)), WRITE).await,
    }
}

/// Keeps an address for a port: that which it was told, or wishes for.
async fn keep(
    context: &Context,
    key: &Key,
    port: &Port,
    uid: &str,
    is_used: bool,
    kept: &mut Kept,
) -> Result<Reservation> {
    let network = Key { namespace: key.namespace.clone(), name: port.spec.network().to_owned() };
    // The address of a network that is gone would keep another of the same subnet from being made.
    let own = kept.reservations.get(uid).filter(|_| !is_used).map(|own| own.network.clone());
    if let Some(own) = own
        && !is_there(context, &network, &own).await?
    {
        context.fabric.give_up_address(uid).await?;
        kept.reservations.remove(uid);
    }
    // What it has it keeps as long as its network is there, and asks nobody for it at each look.
    let known = context.networks.id_of(&network.namespace, &network.name);
    if let Some(own) = kept.reservations.get(uid).filter(|own| Some(&own.network) == known.as_ref()) {
        return Ok(own.clone());
    }
    // Nobody's port waits for the network of another's; all are looked at again soon.
    let network = context.networks.ensure_now(&context.client, &context.directory, &network).await?;
    match kept.reservations.get(uid) {
        Some(own) if own.network == network.id => return Ok(own.clone()),
        Some(_) => {}
        None => kept.check(&key.namespace, &network.id)?,
    }
    let told = port.status.clone().unwrap_or_default();
    let first = |told: &str, wished: &str| if told.is_empty() { wished.to_owned() } else { told.to_owned() };
    let (address, mac) = (first(&told.address, &port.spec.address), first(&told.mac_address, &port.spec.mac_address));
    let (address, mac) = (address.parse().ok(), mac.parse().ok());
    let reservation = context.fabric.keep_address(uid, &network.id, address, mac).await?;
    kept.note(&key.namespace, reservation.clone());
    Ok(reservation)
}

/// Whether the network of this id is still the one behind the object: another of the same name may have come in its place.
async fn is_there(context: &Context, network: &Key, id: &str) -> Result<bool> {
    let known = context.networks.id_of(&network.namespace, &network.name);
    if id == network::DEFAULT_NETWORK || known.as_deref() == Some(id) {
        return Ok(true);
    }
    let objects: Api<Network> = Api::namespaced(context.client.clone(), &network.namespace);
    let object = objects.get_opt(&network.name).await.map_err(Error::api("read network"))?;
    Ok(object.is_some_and(|object| object.metadata.uid.as_deref() == Some(id)))
}

/// What is told of a port. Pure.
fn status(
    kept: std::result::Result<Reservation, String>,
    old: &PortStatus,
    holder: Option<(PortAttachment, String)>,
) -> PortStatus {
    let (address, mac_address, message) = match kept {
        Ok(kept) => (kept.address.to_string(), kept.mac.to_string(), String::new()),
        // What it has it keeps, whatever troubles its network has.
        Err(problem) => (old.address.clone(), old.mac_address.clone(), problem),
    };
    let (attached_to, node_name) = holder.unzip();
    let phase = match (address.is_empty(), attached_to.is_some()) {
        (true, _) => PortPhase::Pending,
        (false, false) => PortPhase::Available,
        (false, true) => PortPhase::Active,
    };
    PortStatus { address, mac_address, phase, message, attached_to, node_name: node_name.unwrap_or_default() }
}

/// A status as a merge patch that leaves nothing of the one before: what is empty is not written, and the name of a holder of another kind
/// would stay. Pure.
fn whole(status: &PortStatus) -> Value {
    let mut whole = json!({"address": null, "macAddress": null, "message": null, "attachedTo": null, "nodeName": null});
    extend(&mut whole, &json!(status));
    if let Some(attached) = &status.attached_to {
        let mut holder = json!({"virtualMachine": null, "container": null, "pod": null});
        extend(&mut holder, &json!(attached));
        whole["attachedTo"] = holder;
    }
    whole
}

fn extend(object: &mut Value, more: &Value) {
    let fields = more.as_object().into_iter().flatten();
    fields.for_each(|(name, value)| object[name.as_str()] = value.clone());
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use api::PortSpec;
    use network::Mac;

    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn a_namespace_has_so_many_ports_on_the_default_network_and_no_more() {
        let reservation = |number: u8, network: &str| {
            let address = Ipv4Addr::new(10, 88, 0, number);
            let (owner, mac) = (format!("u-{number}"), Mac::from_address(address));
            Reservation { owner, network: network.into(), address, mac }
        };
        let named = |number: u8| {
            let mut port = Port::new(&format!("p{number}"), PortSpec::default());
            port.metadata.uid = Some(format!("u-{number}"));
            (key("shop", &format!("p{number}")), Arc::new(port))
        };
        let most = u8::try_from(DEFAULT_NETWORK_PORTS_MAX).unwrap();
        let ports: Ports = (1..=most).map(named).collect();
        let all = |last: u8| -> Vec<Reservation> {
            (1..=last).map(|number| reservation(number, network::DEFAULT_NETWORK)).collect()
        };
        let mut kept = Kept::of(all(most - 1), &ports);
        assert!(kept.check("shop", network::DEFAULT_NETWORK).is_ok());
        kept.note("shop", reservation(most, network::DEFAULT_NETWORK));
        let refused = kept.check("shop", network::DEFAULT_NETWORK).unwrap_err().to_string();
        assert!(refused.starts_with("namespace shop has 64 ports on the default network"), "{refused}");
        assert!(kept.check("shop", "another").is_ok() && kept.check("other", network::DEFAULT_NETWORK).is_ok());
        assert!(Kept::of(all(most), &ports).check("shop", network::DEFAULT_NETWORK).is_err(), "counted anew");
    }

    #[test]
    fn what_a_port_has_it_keeps_whatever_troubles_its_network_has() {
        let (address, mac_address) = ("10.89.0.7".into(), "02:42:0a:59:00:07".into());
        let old = PortStatus { address, mac_address, ..PortStatus::default() };
        let told = status(Err("network a is away".into()), &old, None);
        assert_eq!(
            (told.address.as_str(), told.phase, told.message.as_str()),
            ("10.89.0.7", PortPhase::Available, "network a is away")
        );
        let none = status(Err("network a not found".into()), &PortStatus::default(), None);
        assert_eq!(none.phase, PortPhase::Pending);
    }

    #[test]
    fn a_holder_of_another_kind_takes_the_name_of_the_one_before_away() {
        let attached_to = Some(PortAttachment { pod: "b".into(), uid: "u-b".into(), ..PortAttachment::default() });
        let status =
            PortStatus { address: "10.88.0.7".into(), phase: PortPhase::Active, attached_to, ..PortStatus::default() };
        let holder = json!({"virtualMachine": null, "container": null, "pod": "b", "uid": "u-b"});
        let wanted = json!({"address": "10.88.0.7", "macAddress": null, "phase": "Active", "message": null,
            "attachedTo": holder, "nodeName": null});
        assert_eq!(whole(&status), wanted);
        assert_eq!(whole(&PortStatus::default())["attachedTo"], Value::Null);
    }
}
