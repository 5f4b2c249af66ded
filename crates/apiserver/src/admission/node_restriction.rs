//! What a machine may write: its own Node, lease and pods, and of these nothing that would widen its rights. What it may
//! address at all is `crate::authorization::node`'s business. `Source:` Kubernetes' `NodeRestriction` admission.

use serde_json::Value;

use super::Request;
use crate::authorization::{LEASE_NAMESPACE, node_name};
use crate::server::ApiServer;
use crate::status::Status;
use crate::write::Verb;

/// Labels below kubernetes.io and k8s.io that a machine may set on itself.
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains in which a machine may set any label.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Annotation of pods that mirror what a machine runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Checks a write of a machine. Errors: forbidden.
pub(super) fn check(_: &ApiServer, request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let Some(node) = node_name(&request.ctx.user) else { return Ok(()) };
    let (kind, path) = (request.kind, request.path);
    let name = path.name.as_deref().unwrap_or_else(|| crate::json::text(object, "/metadata/name"));
    let objection = match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "nodes") => node_objection(request, node, name, object),
        ("", "pods") => pod_objection(request, node, object),
        ("nuee.dev", "containers") if has_other_files(request, object) => {
            // Files name secrets, and a machine may read those that its containers name.
            Some(format!("node {node:?} is not allowed to modify the files of containers"))
        }
        ("nuee.dev", "containers" | "virtualmachines") => is_foreign(request, node, object)
            .then(|| format!("node {node:?} can only update {} with spec.nodeName set to itself", kind.plural)),
        ("nuee.dev", "migrations") => {
            let comes_from = |object: &Value| object["status"]["sourceNode"] == node;
            // Whose guest goes where is the pool's to say, and what is over stays over: the target believes both.
            let said =
                |object: &Value| ["targetNode", "machineUid"].map(|field| object["status"][field].clone()).to_vec();
            let is_over = |object: &Value| {
                matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"))
            };
            let keeps = |old: &Value| {
                said(old) == said(object) && (!is_over(old) || old["status"]["phase"] == object["status"]["phase"])
            };
            let fits = request
                .old
                .is_some_and(|old| comes_from(old) && (object.is_null() || comes_from(object) && keeps(old)));
            (!fits).then(|| format!("node {node:?} can only update migrations that start on it"))
        }
        ("nuee.dev", "floatingips") => {
            let told = |object: &Value| {
                let mut status = object["status"].clone();
                if let Some(status) = status.as_object_mut() {
                    status.remove("refusal");
                }
                (object["spec"].clone(), status)
            };
            let fits = request.old.is_some_and(|old| !object.is_null() && told(old) == told(object));
            (!fits).then(|| format!("node {node:?} can only update status.refusal of floatingips"))
        }
        // Whoever has the content may take an object that nobody has.
        ("nuee.dev", "volumes" | "diskimages" | "snapshots" | "backups") => {
            let holder = |object: &Value| object["spec"]["nodeName"].is_null() || object["spec"]["nodeName"] == node;
            let fits = request.old.is_none_or(holder) && (object.is_null() || holder(object));
            (!fits).then(|| format!("node {node:?} can only update {} that are on it", kind.plural))
        }
        ("coordination.k8s.io", "leases") => {
            if path.namespace.as_deref() != Some(LEASE_NAMESPACE) {
                Some(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"))
            } else {
                (name != node)
                    .then(|| "can only access node lease with the same name as the requesting node".to_owned())
            }
        }
        _ => None,
    };
    objection.map_or(Ok(()), |text| Err(Status::forbidden(&kind.group, &kind.plural, name, &text)))
}

fn has_other_files(request: &Request<'_>, object: &Value) -> bool {
    !object.is_null() && request.old.is_some_and(|old| old["spec"]["files"] != object["spec"]["files"])
}

fn is_foreign(request: &Request<'_>, node: &str, object: &Value) -> bool {
    let bound = request.old.unwrap_or(object);
    // Where a machine may go from here is another check's.
    let stays =
        request.kind.is("nuee.dev", "virtualmachines") || object.is_null() || object["spec"]["nodeName"] == node;
    bound["spec"]["nodeName"] != node || !stays
}

fn node_objection(request: &Request<'_>, node: &str, name: &str, object: &Value) -> Option<String> {
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    if request.verb == Verb::Delete {
        return Some(format!("node {node:?} is not allowed to delete itself"));
    }
    let old = request.old.unwrap_or(&Value::Null);
    let changed = |pointer: &str| {
        let (new, old) = (object.pointer(pointer), old.pointer(pointer));
        new != old && !(crate::json::is_empty(new) && crate::json::is_empty(old))
    };
    if request.verb == Verb::Update && changed("/spec/taints") {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    // An owner that does not exist would have the garbage collector delete the node.
    if changed("/metadata/ownerReferences") {
        return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let none = serde_json::Map::new();
    let labels = |object: &Value| object["metadata"]["labels"].as_object().unwrap_or(&none).clone();
    let (new, before) = (labels(object), labels(old));
    let mut modified: Vec<&String> =
        new.keys().chain(before.keys()).filter(|key| new.get(*key) != before.get(*key) && !is_own_label(key)).collect();
    modified.sort();
    modified.dedup();
    (!modified.is_empty()).then(|| {
        let list: Vec<&str> = modified.iter().map(|key| key.as_str()).collect();
        format!("is not allowed to modify labels: {}", list.join(", "))
    })
}

fn is_own_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let in_domain = |wanted: &str| domain == wanted || domain.ends_with(&format!(".{wanted}"));
    let reserved = in_domain("kubernetes.io") || in_domain("k8s.io");
    if in_domain("node-restriction.kubernetes.io") {
        return false;
    }
    !reserved || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|own| in_domain(own))
}

fn pod_objection(request: &Request<'_>, node: &str, object: &Value) -> Option<String> {
    let old = request.old.unwrap_or(&Value::Null);
    match (request.verb, request.path.subresource.as_deref()) {
        (Verb::Create, _) => {
            if object["metadata"]["annotations"][MIRROR].is_null() {
                return Some(format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                ));
            }
            if !crate::json::text(object, "/spec/serviceAccountName").is_empty() {
                return Some(format!("node {node:?} can not create pods that reference a service account"));
            }
            (object["spec"]["nodeName"] != node)
                .then(|| format!("node {node:?} can only create pods with spec.nodeName set to itself"))
        }
        (Verb::Delete, _) => (old["spec"]["nodeName"] != node)
            .then(|| format!("node {node:?} can only delete pods with spec.nodeName set to itself")),
        (Verb::Update, Some("status")) => {
            if old["spec"]["nodeName"] != node {
                return Some(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            (object["metadata"]["labels"] != old["metadata"]["labels"])
                .then(|| format!("node {node:?} cannot update labels through pod status"))
        }
        // Finalizers and other metadata of its own pods; never what they run.
        (Verb::Update, None) => (old["spec"]["nodeName"] != node || object["spec"] != old["spec"])
            .then(|| format!("node {node:?} may not change the spec of pods")),
        (_, other) => Some(format!(
            "unexpected pod subresource {:?}, only 'status' and 'eviction' are allowed for nodes",
            other.unwrap_or_default()
        )),
    }
}
