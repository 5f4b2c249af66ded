//! Merge keys of Kubernetes' own lists, for schemas that do not carry the extensions. `Source:` the `patchMergeKey`,
//! `listType` and `mapType` markers in k8s.io/api.

use crate::kind::Kind;

/// One list: its name, the field above it (empty: any), and by which members it merges.
pub struct Row {
    parent: &'static str,
    field: &'static str,
    /// For strategic merge patch.
    pub merge_key: Option<&'static str>,
    /// For server-side apply; empty: atomic.
    pub apply_keys: &'static [&'static str],
}

const fn list(
    parent: &'static str,
    field: &'static str,
    merge_key: &'static str,
    apply_keys: &'static [&'static str],
) -> Row {
    Row { parent, field, merge_key: Some(merge_key), apply_keys }
}

/// More exact rows first.
const ROWS: &[Row] = &[
    list("containers", "ports", "containerPort", &["containerPort", "protocol"]),
    list("initContainers", "ports", "containerPort", &["containerPort", "protocol"]),
    list("ephemeralContainers", "ports", "containerPort", &["containerPort", "protocol"]),
    list("resources", "claims", "name", &["name"]),
    list("", "containers", "name", &["name"]),
    list("", "initContainers", "name", &["name"]),
    list("", "ephemeralContainers", "name", &["name"]),
    list("", "env", "name", &["name"]),
    list("", "volumeMounts", "mountPath", &["mountPath"]),
    list("", "volumeDevices", "devicePath", &["devicePath"]),
    list("", "volumes", "name", &["name"]),
    list("", "imagePullSecrets", "name", &["name"]),
    list("", "hostAliases", "ip", &["ip"]),
    list("", "topologySpreadConstraints", "topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    list("", "schedulingGates", "name", &["name"]),
    list("spec", "resourceClaims", "name", &["name"]),
    list("status", "podIPs", "ip", &["ip"]),
    list("status", "hostIPs", "ip", &["ip"]),
    list("status", "addresses", "type", &["type"]),
    list("", "conditions", "type", &["type"]),
    list("metadata", "ownerReferences", "uid", &["uid"]),
    list("", "secrets", "name", &["name"]),
    list("", "webhooks", "name", &["name"]),
    list("", "matchConditions", "name", &["name"]),
    list("spec", "drivers", "name", &["name"]),
    list("spec", "variables", "name", &["name"]),
];

const SERVICE_PORTS: Row = list("spec", "ports", "port", &["port", "protocol"]);

/// Maps that apply takes as one value.
const ATOMIC_MAPS: &[&str] = &[
    "selector",
    "labelSelector",
    "namespaceSelector",
    "podSelector",
    "nodeSelector",
    "objectSelector",
    "secretRef",
    "configMapKeyRef",
    "secretKeyRef",
    "fieldRef",
    "resourceFieldRef",
    "roleRef",
    "targetRef",
    "scaleTargetRef",
    "involvedObject",
    "nodeSelectorTerms",
    "required",
];

fn is_builtin(kind: &Kind) -> bool {
    !kind.custom && (!kind.group.contains('.') || kind.group.ends_with(".k8s.io"))
}

/// The row of a list.
pub fn row(kind: &Kind, parent: &str, field: &str) -> Option<&'static Row> {
    if field == "ownerReferences" && parent == "metadata" {
        return ROWS.iter().find(|row| row.field == field);
    }
    if !is_builtin(kind) {
        return None;
    }
    if kind.is("", "services") && parent == "spec" && field == "ports" {
        return Some(&SERVICE_PORTS);
    }
    if kind.is("", "secrets") || kind.is("", "configmaps") {
        return None;
    }
    ROWS.iter().find(|row| row.field == field && (row.parent.is_empty() || row.parent == parent))
}

/// Whether a map is one value for apply.
pub fn is_atomic_map(kind: &Kind, field: &str) -> bool {
    is_builtin(kind) && ATOMIC_MAPS.contains(&field)
}
