//! Who names ports, and whose one is. Pure.

use std::collections::BTreeMap;

use api::port::{LABEL, PortAttachment};
use api::virtual_machine::MachinePhase;
use api::{Container, Port, VirtualMachine};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;

use crate::context::Key;

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Container,
    Pod,
    VirtualMachine,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Container, Kind::Pod, Kind::VirtualMachine];
}

/// The workloads of one kind that have to do with ports.
pub(super) type Named = BTreeMap<Key, User>;
/// All of them.
pub(super) type Users = BTreeMap<Kind, Named>;

/// What matters of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    uid: String,
    created: Option<Timestamp>,
    node: Option<String>,
    is_going: bool,
    /// The ports that it is to be on.
    wishes: Vec<String>,
    /// The ports that it says it is on.
    on: Vec<String>,
    /// It may have taken one and not have told yet.
    is_starting: bool,
}

impl User {
    fn new(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, node: Option<&String>) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            node: node.cloned(),
            is_going: metadata.deletion_timestamp.is_some(),
            ..Self::default()
        }
    }

    pub(super) fn of_guest(guest: &VirtualMachine) -> Option<Self> {
        let status = guest.status.clone().unwrap_or_default();
        let wishes = guest.spec.interfaces().into_iter().map(|one| one.port);
        let user = Self {
            wishes: wishes.filter(|port| !port.is_empty()).collect(),
            on: status.addresses.into_iter().map(|one| one.port).filter(|port| !port.is_empty()).collect(),
            is_starting: status.phase == MachinePhase::Starting,
            ..Self::new(guest.meta(), guest.spec.node_name.as_ref())
        };
        (!user.wishes.is_empty() || !user.on.is_empty() || user.is_starting).then_some(user)
    }

    /// Its label stays as it is, so that what it names is what it is on for as long as its object is there.
    pub(super) fn of_container(container: &Container) -> Option<Self> {
        let label = container.spec.labels.get(LABEL).filter(|name| !name.is_empty())?;
        Some(Self { wishes: vec![label.clone()], ..Self::new(container.meta(), container.spec.node_name.as_ref()) })
    }

    /// As a container. One on its host's network is on no port.
    pub(super) fn of_pod(pod: &Pod) -> Option<Self> {
        let annotation = pod.metadata.annotations.as_ref()?.get(LABEL).filter(|name| !name.is_empty())?;
        if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            return None;
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        Some(Self { wishes: vec![annotation.clone()], ..Self::new(pod.meta(), node) })
    }

    fn has_to_do_with(&self, port: &str) -> bool {
        self.is_starting || self.wishes.iter().chain(&self.on).any(|one| one == port)
    }
}

/// Whose a port is, and that one's machine: who is on it until it is gone or on another, and then the first who names it.
pub(super) fn holder(key: &Key, port: &Port, users: &Users) -> Option<(PortAttachment, String)> {
    let own = || {
        let all = users.iter().flat_map(|(kind, named)| named.iter().map(move |(at, user)| (*kind, at, user)));
        all.filter(|(_, at, _)| at.namespace == key.namespace)
    };
    let now = port.status.as_ref().and_then(|status| status.attached_to.as_ref());
    let stays = now.and_then(|now| {
        // By the uid alone: names of two kinds would say nothing of who it is.
        own().find(|(.., user)| user.uid == now.uid && user.has_to_do_with(&key.name))
    });
    let comes = || {
        let is_free = |user: &User| user.wishes.contains(&key.name) && user.node.is_some() && !user.is_going;
        let wishing = own().filter(|(.., user)| is_free(user));
        let eldest = wishing.min_by_key(|(.., user)| (user.created, user.uid.clone()));
        eldest.filter(|_| port.metadata.deletion_timestamp.is_none())
    };
    let (kind, at, user) = stays.or_else(comes)?;
    let mut attached = PortAttachment { uid: user.uid.clone(), ..PortAttachment::default() };
    match kind {
        Kind::Container => attached.container.clone_from(&at.name),
        Kind::Pod => attached.pod.clone_from(&at.name),
        Kind::VirtualMachine => attached.virtual_machine.clone_from(&at.name),
    }
    Some((attached, user.node.clone().unwrap_or_default()))
}

fn kind_of(attached: &PortAttachment) -> Option<Kind> {
    let names = [&attached.container, &attached.pod, &attached.virtual_machine];
    names.into_iter().zip(Kind::ALL).find(|(name, _)| !name.is_empty()).map(|(_, kind)| kind)
}

/// Who is on a port, in words.
pub(super) fn described(attached: &PortAttachment) -> Option<String> {
    Some(match kind_of(attached)? {
        Kind::Container => format!("container {}", attached.container),
        Kind::Pod => format!("pod {}", attached.pod),
        Kind::VirtualMachine => format!("virtual machine {}", attached.virtual_machine),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::tests::port;
    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    fn guest(name: &str, spec: Value, status: Value) -> (Key, Arc<VirtualMachine>) {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("u-{name}")});
        let object = json!({"apiVersion": "nuee.dev/v1", "kind": "VirtualMachine", "metadata": metadata, "spec": spec, "status": status});
        (key("shop", name), Arc::new(serde_json::from_value(object).unwrap()))
    }

    fn users(guests: &[(Key, Arc<VirtualMachine>)]) -> Users {
        let read = |(at, guest): &(Key, Arc<VirtualMachine>)| Some((at.clone(), User::of_guest(guest)?));
        Users::from([(Kind::VirtualMachine, guests.iter().filter_map(read).collect())])
    }

    fn whose(port: &Port, guests: &[(Key, Arc<VirtualMachine>)]) -> Option<String> {
        holder(&key("shop", "p"), port, &users(guests)).map(|(one, _)| one.virtual_machine)
    }

    #[test]
    fn a_port_is_one_machines_until_it_is_gone_or_on_another() {
        let names = json!({"port": "p", "nodeName": "n1"});
        let (a, b) = (guest("a", names.clone(), json!({})), guest("b", names.clone(), json!({})));
        let one = |guest: &(Key, Arc<VirtualMachine>)| std::slice::from_ref(guest).to_vec();
        assert_eq!(whose(&port(None), &[a.clone(), b.clone()]).as_deref(), Some("a"));
        assert_eq!(whose(&port(Some("b")), &[a.clone(), b.clone()]).as_deref(), Some("b"), "who is on it stays");
        assert_eq!(whose(&port(Some("b")), &one(&a)).as_deref(), Some("a"), "b is gone");
        // b is to be on another one, and still runs on this.
        let other = json!({"port": "q", "nodeName": "n1"});
        let on = |port: &str| json!({"phase": "Running", "addresses": [{"port": port}]});
        assert_eq!(whose(&port(Some("b")), &[a.clone(), guest("b", other.clone(), on("p"))]).as_deref(), Some("b"));
        assert_eq!(whose(&port(Some("b")), &[a.clone(), guest("b", other.clone(), on("q"))]).as_deref(), Some("a"));
        let starting = json!({"phase": "Starting"});
        assert_eq!(whose(&port(Some("b")), &[a.clone(), guest("b", other, starting)]).as_deref(), Some("b"));
        // One of another namespace, one without a machine, and one made anew under the same name have no claim.
        let foreign = (key("other", "c"), {
            let mut guest = (*a.1).clone();
            guest.metadata.namespace = Some("other".into());
            Arc::new(guest)
        });
        assert_eq!(whose(&port(None), &[foreign]), None);
        assert_eq!(whose(&port(None), &[guest("d", json!({"port": "p"}), json!({}))]), None);
        let mut again = port(Some("a"));
        again.status.as_mut().unwrap().attached_to.as_mut().unwrap().uid = "u-before".into();
        let now = holder(&key("shop", "p"), &again, &users(std::slice::from_ref(&a))).unwrap().0;
        assert_eq!(now.uid, "u-a");
        // Nobody comes to one that goes.
        let mut going = port(None);
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(whose(&going, &one(&a)), None);
    }

    #[test]
    fn a_port_of_any_interface_is_held() {
        let on = json!({"phase": "Running", "addresses": [{"port": ""}, {"port": "p"}]});
        let second = json!({"interfaces": [{}, {"port": "p"}], "nodeName": "n1"});
        let a = guest("a", second, json!({}));
        assert_eq!(whose(&port(None), std::slice::from_ref(&a)).as_deref(), Some("a"));
        let leaving = guest("b", json!({"interfaces": [{}], "nodeName": "n1"}), on);
        assert_eq!(whose(&port(Some("b")), &[a, leaving]).as_deref(), Some("b"));
    }

    #[test]
    fn containers_pods_and_machines_wait_for_each_other() {
        let metadata = |uid: &str| json!({"name": "x", "namespace": "shop", "uid": uid, "annotations": {LABEL: "p"}});
        let pod: Pod = serde_json::from_value(
            json!({"metadata": metadata("u-pod"), "spec": {"nodeName": "n1", "containers": []}}),
        )
        .unwrap();
        let container: Container = serde_json::from_value(json!({"apiVersion": "nuee.dev/v1", "kind": "Container",
            "metadata": metadata("u-container"), "spec": {"labels": {LABEL: "p"}, "nodeName": "n2"}}))
        .unwrap();
        let (_, machine) = guest("x", json!({"port": "p", "nodeName": "n1"}), json!({}));
        let at = || key("shop", "x");
        let all = Users::from([
            (Kind::Pod, Named::from([(at(), User::of_pod(&pod).unwrap())])),
            (Kind::Container, Named::from([(at(), User::of_container(&container).unwrap())])),
            (Kind::VirtualMachine, Named::from([(at(), User::of_guest(&machine).unwrap())])),
        ]);
        // Nobody has an age: the uid decides.
        let (first, node) = holder(&key("shop", "p"), &port(None), &all).unwrap();
        assert_eq!((described(&first).as_deref(), node.as_str()), (Some("container x"), "n2"));
        let mut held = port(None);
        held.status.as_mut().unwrap().attached_to =
            Some(PortAttachment { pod: "x".into(), uid: "u-pod".into(), ..PortAttachment::default() });
        assert_eq!(holder(&key("shop", "p"), &held, &all).unwrap().0.pod, "x", "who is on it stays");
        let mut on_host = pod.clone();
        on_host.spec.as_mut().unwrap().host_network = Some(true);
        assert!(User::of_pod(&on_host).is_none(), "it has no address of its own");
        assert_eq!(described(&PortAttachment::default()), None);
        assert!(
            User::of_pod(&Pod::default()).is_none()
                && User::of_container(&Container::new("c", Default::default())).is_none()
        );
    }
}
