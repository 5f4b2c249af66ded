//! What a machine's own credential may reach: beyond its role, only objects that concern this very machine. A stolen
//! machine must not read the secrets of another. `Source:` Kubernetes' documentation, "Using Node Authorization".

use serde_json::Value;

use crate::cache::Caches;
use crate::keys;
use crate::user::{Attributes, GROUP_MASTERS, UserInfo};

/// Group of all machines.
const GROUP_NODES: &str = "system:nodes";
/// Prefix of their names.
const USER_PREFIX: &str = "system:node:";
/// Namespace of the machines' leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Phases in which a migration brings its guest to the target. One that has ended must not leave that machine a right for ever.
const MOVING: [&str; 3] = ["Scheduled", "Copying", "Handover"];

/// The machine that the user is, when it is one.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty() && user.is_in(GROUP_NODES))
}

/// Why a machine may not do what its role allows; `None` when it may.
pub fn objection(caches: &Caches, node: &str, a: &Attributes) -> Option<String> {
    if a.non_resource_path.is_some() {
        return None;
    }
    let verb = a.verb.as_str();
    let reads = matches!(verb, "get" | "list" | "watch");
    let own = |name: &str| {
        (name != node).then(|| format!("node '{node}' cannot {verb} '{name}', only its own {}", a.resource))
    };
    let named = |found: bool| (!found).then(|| format!("no relationship found between node '{node}' and this object"));
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "nodes", _) if verb == "create" => None,
        ("", "nodes", _) => own(&a.name),
        ("", "secrets", _) => {
            named(reads && (is_used(caches, node, a, SECRETS) || is_in_container(caches, node, a, true)))
        }
        ("", "configmaps", _) => {
            named(reads && (is_used(caches, node, a, CONFIG_MAPS) || is_in_container(caches, node, a, false)))
        }
        ("", "persistentvolumeclaims", _) => named(is_used(caches, node, a, CLAIMS)),
        ("", "persistentvolumes", _) => named(volume_is_used(caches, node, a)),
        ("", "serviceaccounts", _) => named(
            pods_of(caches, node, &a.namespace)
                .iter()
                .any(|pod| pod["spec"]["serviceAccountName"] == a.name.as_str() && !a.name.is_empty()),
        ),
        ("", "pods", _) if verb == "get" => named(pod_is_here(caches, node, a)),
        ("", "pods", _) if reads => selects(a, node),
        ("nuee.dev", "containers", _) if verb == "get" => named(is_bound(caches, "nuee.dev", "containers", node, a)),
        ("nuee.dev", "containers", _) if reads => selects(a, node),
        ("nuee.dev", "virtualmachines", _) if verb == "get" => {
            named(is_bound(caches, "nuee.dev", "virtualmachines", node, a))
        }
        ("nuee.dev", "virtualmachines", _) if reads => selects(a, node),
        ("nuee.dev", "diskimages", "content") => named(reads && image_is_used(caches, node, a)),
        ("nuee.dev", "migrations", _) if verb == "get" => named(moves_by(caches, node, a)),
        ("nuee.dev", "migrations", _) if reads => selects_by(a, "status.sourceNode", node),
        ("nuee.dev", "floatingips", "status") => named(leads_here(caches, node, a)),
        ("nuee.dev", "floatingips", _) if verb == "get" => named(leads_here(caches, node, a)),
        ("nuee.dev", "floatingips", _) if reads => selects_by(a, "status.nodeName", node),
        ("nuee.dev", "ports", _) if verb == "get" => named(port_is_used(caches, node, a)),
        ("nuee.dev", "ports", _) if reads => selects_by(a, "status.nodeName", node),
        ("coordination.k8s.io", "leases", _) if a.namespace != LEASE_NAMESPACE => {
            Some(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"))
        }
        ("coordination.k8s.io", "leases", _) if verb == "create" => None,
        ("coordination.k8s.io", "leases", _) => own(&a.name),
        _ => None,
    }
}

/// Lists and watches of what is bound to machines must ask for this machine's part.
fn selects(a: &Attributes, node: &str) -> Option<String> {
    selects_by(a, "spec.nodeName", node)
}

/// The same by another field.
fn selects_by(a: &Attributes, field: &str, node: &str) -> Option<String> {
    let wanted = format!("{field}={node}");
    let asked = a.field_selector.split(',').any(|term| term.replace("==", "=") == wanted);
    (!asked).then(|| format!("can only list/watch {} with {field} field selector", a.resource))
}

/// Whether a floating address leads to a workload of the machine.
fn leads_here(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let found = caches.get(&keys::resource("nuee.dev", "floatingips")).get(&keys::relative(&a.namespace, &a.name));
    found.is_some_and(|found| found.to_value()["status"]["nodeName"] == node)
}

/// Whether a workload of the machine, or a guest that is on its way there, is on the port or should be.
fn port_is_used(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let found = caches.get(&keys::resource("nuee.dev", "ports")).get(&keys::relative(&a.namespace, &a.name));
    let guests = caches.get(&keys::resource("nuee.dev", "virtualmachines")).all(&format!("{}/", a.namespace));
    let migrations = caches.get(&keys::resource("nuee.dev", "migrations")).all(&format!("{}/", a.namespace));
    let comes = |guest: &Value| {
        migrations.iter().any(|migration| {
            let status = &migration.to_value()["status"];
            let is_under_way = MOVING.iter().any(|phase| status["phase"] == *phase);
            is_under_way && status["targetNode"] == node && status["machineUid"] == guest["metadata"]["uid"]
        })
    };
    let names = |guest: &Value| {
        let lists = [&guest["spec"]["interfaces"], &guest["status"]["addresses"]];
        let listed = lists.into_iter().filter_map(Value::as_array).flatten().map(|one| &one["port"]);
        listed.chain([&guest["spec"]["port"]]).any(|port| *port == a.name.as_str())
    };
    found.is_some_and(|found| found.to_value()["status"]["nodeName"] == node)
        || guests.iter().any(|guest| {
            let guest = guest.to_value();
            !a.name.is_empty() && names(&guest) && (guest["spec"]["nodeName"] == node || comes(&guest))
        })
        || !a.name.is_empty() && port_is_labelled(caches, node, a)
}

/// Whether a container or a pod of the machine names the port.
fn port_is_labelled(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let containers = caches.get(&keys::resource("nuee.dev", "containers")).all(&format!("{}/", a.namespace));
    let names = |labels: &Value| labels[api::port::LABEL] == a.name.as_str();
    pods_of(caches, node, &a.namespace).iter().any(|pod| names(&pod["metadata"]["annotations"]))
        || containers.iter().any(|container| {
            let spec = &container.to_value()["spec"];
            spec["nodeName"] == node && names(&spec["labels"])
        })
}

fn pod_is_here(caches: &Caches, node: &str, a: &Attributes) -> bool {
    is_bound(caches, "", "pods", node, a)
}

/// Whether a guest on the machine is made from the image.
fn image_is_used(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let guests = caches.get(&keys::resource("nuee.dev", "virtualmachines")).all(&format!("{}/", a.namespace));
    guests.iter().any(|guest| {
        let spec = &guest.to_value()["spec"];
        spec["nodeName"] == node && (spec["image"] == a.name.as_str() || spec["rescueImage"] == a.name.as_str())
    })
}

/// Whether this user may bind a virtual machine that is bound to another host: only the host that has it, and only to where a migration
/// takes it.
pub fn may_give_away(caches: &Caches, user: &UserInfo, guest: &Value, to: &Value) -> bool {
    let migrations = caches
        .get(&keys::resource("nuee.dev", "migrations"))
        .all(&format!("{}/", guest["metadata"]["namespace"].as_str().unwrap_or_default()));
    is_host(user, guest) && migrations.iter().any(|migration| takes(&migration.to_value(), guest, to))
}

/// Whether the user is the host that the guest is bound to. A name alone proves nothing: whoever may hand out certificates or tokens under
/// such a name need not be able to make machines. The pool's first machine works with its administrator's rights. Pure.
fn is_host(user: &UserInfo, guest: &Value) -> bool {
    let is_machine = user.is_in(GROUP_NODES) || user.is_in(GROUP_MASTERS);
    let name = user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty() && is_machine);
    name.is_some_and(|node| guest["spec"]["nodeName"] == node)
}

/// Whether a migration of the guest's namespace takes it from where it is bound to there. Pure.
fn takes(migration: &Value, guest: &Value, to: &Value) -> bool {
    let status = &migration["status"];
    MOVING.iter().any(|phase| status["phase"] == *phase)
        && to.is_string()
        && status["sourceNode"] == guest["spec"]["nodeName"]
        && status["targetNode"] == *to
        && status["machineUid"].is_string()
        && status["machineUid"] == guest["metadata"]["uid"]
        && migration["spec"]["cancel"] != true
        && migration["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a migration starts or ends at the machine.
fn moves_by(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let found = caches.get(&keys::resource("nuee.dev", "migrations")).get(&keys::relative(&a.namespace, &a.name));
    found.is_some_and(|found| {
        let status = &found.to_value()["status"];
        status["sourceNode"] == node || status["targetNode"] == node
    })
}

fn is_bound(caches: &Caches, group: &str, plural: &str, node: &str, a: &Attributes) -> bool {
    let found = caches.get(&keys::resource(group, plural)).get(&keys::relative(&a.namespace, &a.name));
    found.is_some_and(|found| found.to_value()["spec"]["nodeName"] == node)
}

/// The pods of a namespace on this machine.
fn pods_of(caches: &Caches, node: &str, namespace: &str) -> Vec<Value> {
    let pods = caches.get(&keys::resource("", "pods")).all(&format!("{namespace}/"));
    // The machine's name is one of the kind's selectable fields, so other machines' pods need not be read.
    let here =
        pods.into_iter().filter(|pod| pod.meta.fields.is_empty() || pod.meta.fields.iter().any(|own| **own == *node));
    here.map(|pod| pod.to_value()).filter(|pod| pod["spec"]["nodeName"] == node).collect()
}

/// Members of a pod's spec that refer to something, and the members there that name it.
type References = &'static [(&'static str, &'static [&'static str])];
const SECRETS: References = &[
    ("secret", &["secretName", "name"]),
    ("secretRef", &["name"]),
    ("secretKeyRef", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("nodePublishSecretRef", &["name"]),
];
const CONFIG_MAPS: References =
    &[("configMap", &["name"]), ("configMapRef", &["name"]), ("configMapKeyRef", &["name"])];
const CLAIMS: References = &[("persistentVolumeClaim", &["claimName"])];

fn is_used(caches: &Caches, node: &str, a: &Attributes, references: References) -> bool {
    !a.name.is_empty()
        && pods_of(caches, node, &a.namespace).iter().any(|pod| refers(&pod["spec"], references, &a.name))
}

/// Whether a container on this machine has a file out of the secret or the config map, or its image's credentials in it.
fn is_in_container(caches: &Caches, node: &str, a: &Attributes, secret: bool) -> bool {
    let names = |file: &Value| {
        file["object"] == a.name.as_str() && file["secret"].as_bool().unwrap_or(false) == secret && !a.name.is_empty()
    };
    caches.get(&keys::resource("nuee.dev", "containers")).all(&format!("{}/", a.namespace)).iter().any(|container| {
        let spec = &container.to_value()["spec"];
        let credentials = secret && !a.name.is_empty() && spec["pullSecret"] == a.name.as_str();
        let file = spec["files"].as_array().is_some_and(|files| files.iter().any(names));
        spec["nodeName"] == node && (credentials || file)
    })
}

fn refers(value: &Value, references: References, name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(member, value)| {
            let here = references.iter().find(|(own, _)| own == member).is_some_and(|(_, names)| {
                let one = |value: &Value| names.iter().any(|own| value[*own] == name);
                one(value) || value.as_array().is_some_and(|items| items.iter().any(one))
            });
            here || refers(value, references, name)
        }),
        Value::Array(items) => items.iter().any(|item| refers(item, references, name)),
        _ => false,
    }
}

fn volume_is_used(caches: &Caches, node: &str, a: &Attributes) -> bool {
    let Some(volume) = caches.get(&keys::resource("", "persistentvolumes")).get(&a.name) else { return false };
    let volume = volume.to_value();
    let claim = &volume["spec"]["claimRef"];
    let text = |member: &str| claim[member].as_str().unwrap_or_default().to_owned();
    let claim = Attributes { namespace: text("namespace"), name: text("name"), ..Attributes::default() };
    is_used(caches, node, &claim, CLAIMS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_machine_is_the_host_of_its_guests() {
        let guest = json!({"spec": {"nodeName": "n1"}});
        assert!(is_host(&UserInfo::new("system:node:n1", &[GROUP_NODES]), &guest));
        assert!(is_host(&UserInfo::new("system:node:n1", &[GROUP_MASTERS]), &guest));
        // The name alone, another machine, and somebody who may do everything but is no machine.
        assert!(!is_host(&UserInfo::new("system:node:n1", &["tenants"]), &guest));
        assert!(!is_host(&UserInfo::new("system:node:n2", &[GROUP_NODES]), &guest));
        assert!(!is_host(&UserInfo::master("admin"), &guest));
        assert!(!is_host(&UserInfo::new("system:node:", &[GROUP_NODES]), &json!({"spec": {"nodeName": ""}})));
    }

    #[test]
    fn a_guest_goes_only_where_a_migration_takes_it() {
        let guest = json!({"metadata": {"uid": "g1"}, "spec": {"nodeName": "n1"}});
        let fine = json!({"metadata": {"name": "m"}, "spec": {"virtualMachine": "web"}, "status": {
            "phase": "Copying", "sourceNode": "n1", "targetNode": "n2", "machineUid": "g1"}});
        for phase in MOVING {
            let mut moving = fine.clone();
            moving["status"]["phase"] = json!(phase);
            assert!(takes(&moving, &guest, &json!("n2")), "{phase}");
        }
        for (at, value) in [
            ("/status/phase", json!("Pending")),
            ("/status/phase", json!("Succeeded")),
            ("/status/phase", json!("Failed")),
            ("/status/phase", json!("Cancelled")),
            ("/status/sourceNode", json!("n3")),
            ("/status/targetNode", json!("n3")),
            ("/status/machineUid", json!("g2")),
            ("/status/machineUid", Value::Null),
        ] {
            let mut other = fine.clone();
            *other.pointer_mut(at).unwrap() = value.clone();
            assert!(!takes(&other, &guest, &json!("n2")), "{at}: {value}");
        }
        let mut cancelled = fine.clone();
        cancelled["spec"]["cancel"] = json!(true);
        assert!(!takes(&cancelled, &guest, &json!("n2")));
        let mut deleted = fine.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(!takes(&deleted, &guest, &json!("n2")));
        // Nowhere is no target, also of a migration that has none yet.
        let mut unplaced = fine;
        unplaced["status"].as_object_mut().unwrap().remove("targetNode");
        assert!(!takes(&unplaced, &guest, &Value::Null));
        // Two that have no uid are not the same.
        unplaced["status"]["targetNode"] = json!("n2");
        unplaced["status"].as_object_mut().unwrap().remove("machineUid");
        assert!(!takes(&unplaced, &json!({"metadata": {}, "spec": {"nodeName": "n1"}}), &json!("n2")));
    }
}
