//! When an object that is being deleted may really go, and the life cycle of namespaces.

use serde_json::{Value, json};

use crate::kind::Kind;

/// Finalizer by which dependents of a foreground deletion hold their owner.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer by which an owner waits until its dependents were let go.
pub(crate) const ORPHAN: &str = "orphan";

/// Whether nothing holds the object any more: it is being deleted, its time is over, no finalizer is left.
pub(super) fn may_go(kind: &Kind, object: &Value) -> bool {
    let metadata = &object["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && crate::json::is_empty(metadata.get("finalizers"))
        && (!kind.is("", "namespaces") || crate::json::is_empty(object["spec"].get("finalizers")))
}

/// A new namespace is active, and held until its contents are gone.
pub(super) fn prepare_namespace(kind: &Kind, object: &mut Value) {
    if kind.is("", "namespaces") {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
        let name = object["metadata"]["name"].clone();
        if name.is_string() {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
    }
}

/// Marks what changes when a namespace is deleted.
pub(super) fn terminate_namespace(kind: &Kind, object: &mut Value) {
    if kind.is("", "namespaces") {
        object["status"]["phase"] = json!("Terminating");
    }
}
