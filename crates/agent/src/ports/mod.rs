//! `Port` objects: places on networks that are there before their workloads, and outlive them. Workloads wait here for theirs ([`held`]);
//! every machine puts the ports of its own workloads under their security groups ([`run`]).
//!
//! | module | owns |
//! |---|---|
//! | [`give`] | the pool's first machine gives each an address, and says who is on it |
//! | `users` | who names ports, and whose one is, pure |

mod give;
mod users;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::Port;
use api::port::PortAttachment;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::Api;
use kube::runtime::watcher;
use network::{AttachRequest, Attachment, Mac};

pub use give::give;

use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::guest::interfaces::machine_of;
use crate::{container, informer, security};

/// Time after which what could not be done is tried again: a network may have come, or an address be free.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long a container or pod waits until a port is its own, and free of whoever was on it before.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);

/// A port that a workload is on.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Its uid, which holds the address.
    pub uid: String,
    /// Name of its network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its hardware address.
    pub mac: Mac,
    /// Names of its security groups.
    pub groups: Vec<String>,
}

/// The port of a workload.
///
/// Errors: [`Error::NotYet`] as long as it is another's, or has no address.
pub async fn held(context: &Context, user: &Key, name: &str, uid: &str) -> Result<Held> {
    let objects: Api<Port> = Api::namespaced(context.client.clone(), &user.namespace);
    let found = objects.get_opt(name).await.map_err(Error::api("read the port"))?;
    judge(found.as_ref(), name, uid).map_err(Error::NotYet)
}

/// Name of the network that a port is on; `None`: there is no such port.
pub async fn network_of(context: &Context, namespace: &str, name: &str) -> Result<Option<String>> {
    let objects: Api<Port> = Api::namespaced(context.client.clone(), namespace);
    let found = objects.get_opt(name).await.map_err(Error::api("read the port"))?;
    Ok(found.map(|port| port.spec.network().to_owned()))
}

/// The port that the label of a container, or the annotation of a pod, names, if one does. Waits until it is the workload's own.
///
/// Errors: [`Error::NotYet`] when it is another's; [`Error::Invalid`] where its network is not reached from here.
pub async fn of_label(context: &Context, user: &Key, label: Option<&String>, uid: &str) -> Result<Option<Held>> {
    let Some(name) = label.filter(|name| !name.is_empty()) else { return Ok(None) };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match held(context, user, name, uid).await {
            Err(Error::NotYet(_)) if tokio::time::Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            done => return done.map(Some),
        }
    }
}

/// Refuses a port of a network that is another on each machine, where it is not the one that the port is on.
pub fn check_reach(context: &Context, network: &network::Network, name: &str) -> Result<()> {
    let is_own = network.parts.is_none() && network.id != network::DEFAULT_NETWORK;
    match context.is_member && is_own {
        false => Ok(()),
        true => {
            let text = format!("network {name} is each machine's own, and its ports are on the pool's first machine");
            Err(Error::Invalid(text))
        }
    }
}

/// Puts a container or pod on its port. Whoever was on it before is gone, and may not have let go of the address yet.
pub async fn attach(
    context: &Context,
    network: &network::Network,
    held: &Held,
    request: AttachRequest,
) -> Result<Attachment> {
    let request =
        AttachRequest { address: Some(held.address), mac: Some(held.mac), port: Some(held.uid.clone()), ..request };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match context.networks.attach(network, request.clone(), true).await {
            Err(Error::Network(network::Error::AddressTaken(_))) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            done => return done,
        }
    }
}

/// Whether a workload may use a port, or why not yet. Pure.
fn judge(found: Option<&Port>, name: &str, uid: &str) -> std::result::Result<Held, String> {
    let port = found.ok_or_else(|| format!("port {name} not found"))?;
    let status = port.status.clone().unwrap_or_default();
    let attached = status.attached_to.unwrap_or_default();
    let (Ok(address), Ok(mac)) = (status.address.parse(), status.mac_address.parse()) else {
        return Err(format!("port {name} has no address: {}", status.message));
    };
    if attached.uid != uid {
        return Err(match users::described(&attached) {
            None => format!("port {name} is not given to this workload yet"),
            Some(other) => format!("port {name} is in use by {other}"),
        });
    }
    Ok(Held {
        name: name.to_owned(),
        uid: port.metadata.uid.clone().unwrap_or_default(),
        network: port.spec.network().to_owned(),
        address,
        mac,
        groups: port.spec.security_groups.clone(),
    })
}

/// Follows the ports of workloads of this machine, until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let api = Api::<Port>::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("status.nodeName={}", context.node_name));
    let mut states = std::pin::pin!(informer::states(api, config));
    let Some(mut known) = states.next().await else { return };
    let (mut ending, mut ends) = (HashSet::new(), FuturesUnordered::new());
    loop {
        let mut failed = false;
        let Ok(found) = context.fabric.list().await else { return };
        let attachments = found.attachments.into_iter();
        let on: HashMap<String, String> = attachments.filter_map(|one| Some((one.port?, one.owner))).collect();
        for (key, port) in &known {
            let Some(owner) = guarded(port, &on) else { continue };
            let groups = security::ids(&key.namespace, &port.spec.security_groups);
            // Groups that change meanwhile would let others carry again, and nobody would know which of them has ended.
            if ending.contains(owner) {
                continue;
            }
            let is_guarded = !groups.is_empty();
            if let Err(error) = context.fabric.guard(owner, groups).await {
                tracing::warn!(port = key.name, error = %chain(&error), "cannot guard a port");
                failed = true;
            }
            if is_guarded && context.fabric.publication(owner).await.unwrap_or_default().is_some_and(|one| one.carried6)
            {
                // A shim that hangs holds up no other port.
                ending.insert(owner.clone());
                ends.push(end_carrying(context.clone(), owner.clone()));
            }
        }
        tokio::select! {
            next = states.next() => match next {
                Some(next) => known = next,
                None => return,
            },
            Some(owner) = ends.next() => drop(ending.remove(&owner)),
            () = tokio::time::sleep(LOOK_AGAIN), if failed => {}
        }
    }
}

/// Has what is carried to an owner end, which is under security groups by now: the machine speaks there in the clients' place, and would
/// pass them by. Gives the owner; as long as it has not ended, the caller tries again.
async fn end_carrying(context: Arc<Context>, owner: String) -> String {
    let ended = async {
        // Who was about to carry looks again, once it does, whether it still may (`container::publication::carry`).
        context.runtime.stop_carrying(&owner).await?;
        Ok::<_, Error>(context.fabric.forget_carried(&owner).await?)
    };
    match ended.await {
        Ok(()) => container::look_again(&context, &owner),
        Err(error) => {
            tracing::warn!(id = owner, error = %chain(&error), "ports still lead past security groups");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    owner
}

/// Who is under a port's groups: the workload that it is given to, once it is there. One that is to be on it from its next start on has
/// those of its place until then. `on` has the owners of places on ports, by the ports' uids. Pure.
fn guarded<'a>(port: &Port, on: &'a HashMap<String, String>) -> Option<&'a String> {
    let attached = port.status.as_ref()?.attached_to.as_ref()?;
    on.get(port.metadata.uid.as_ref()?).filter(|owner| is_of(owner, port.metadata.namespace.as_deref(), attached))
}

/// Whether this owner of a place on a network is that workload.
fn is_of(owner: &str, namespace: Option<&str>, attached: &PortAttachment) -> bool {
    match attached.container.as_str() {
        "" => machine_of(owner) == attached.uid,
        name => container::id_of(namespace.unwrap_or_default(), name).as_deref() == Some(owner),
    }
}

#[cfg(test)]
mod tests {
    use api::PortSpec;
    use api::port::PortStatus;

    use super::*;

    /// A port that this machine has.
    pub(super) fn port(attached: Option<&str>) -> Port {
        let mut port = Port::new("p", PortSpec::default());
        let attached_to = attached.map(|name| PortAttachment {
            virtual_machine: name.into(),
            uid: format!("u-{name}"),
            ..Default::default()
        });
        let (address, mac_address) = ("10.89.0.7".into(), "02:42:0a:59:00:07".into());
        port.status = Some(PortStatus { address, mac_address, attached_to, ..PortStatus::default() });
        port
    }

    #[test]
    fn a_port_guards_who_is_on_it_already() {
        let mut port = port(Some("a"));
        port.metadata.uid = Some("u-p".into());
        let on = |port: &str, owner: &str| HashMap::from([(port.to_owned(), owner.to_owned())]);
        assert_eq!(guarded(&port, &on("u-p", "u-a")).map(String::as_str), Some("u-a"));
        assert_eq!(guarded(&port, &on("u-p", "u-a.11")).map(String::as_str), Some("u-a.11"), "a further interface");
        assert_eq!(guarded(&port, &on("u-q", "u-a")), None, "it is on another until its next start");
        assert_eq!(guarded(&port, &on("u-p", "u-b")), None, "somebody else is not there yet");
        assert_eq!(guarded(&port, &HashMap::new()), None);
        // Containers are known to the network by their own ids.
        port.metadata.namespace = Some("shop".into());
        let attached = PortAttachment { container: "web".into(), uid: "u-a".into(), ..PortAttachment::default() };
        port.status.as_mut().unwrap().attached_to = Some(attached);
        let id = container::id_of("shop", "web").unwrap();
        assert_eq!(guarded(&port, &on("u-p", &id)), Some(&id));
        assert_eq!(guarded(&port, &on("u-p", "u-a")), None);
    }

    #[test]
    fn a_machine_uses_a_port_that_is_its_own_alone() {
        let said = |port: Option<&Port>| judge(port, "p", "u-a").map(|held| held.address.to_string()).unwrap_err();
        assert_eq!(said(None), "port p not found");
        assert_eq!(said(Some(&port(None))), "port p is not given to this workload yet");
        assert_eq!(said(Some(&port(Some("b")))), "port p is in use by virtual machine b");
        assert_eq!(judge(Some(&port(Some("a"))), "p", "u-a").unwrap().address, Ipv4Addr::new(10, 89, 0, 7));
        let mut without = port(Some("a"));
        without.status.as_mut().unwrap().address = String::new();
        assert!(said(Some(&without)).starts_with("port p has no address"));
    }
}
