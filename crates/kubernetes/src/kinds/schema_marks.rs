//! The extensions that Kubernetes' published schema carries and the Rust types do not: merge keys of lists, atomic maps.
//! `Source:` the `+patchMergeKey`, `+listType`, `+listMapKey`, `+mapType` marks of k8s.io/api.

use serde_json::{Map, Value, json};

/// A list merged by keys: definition (end of its name), field, key of strategic merge, keys of apply, whether absent
/// keys are retained (`retainKeys`).
struct Merged(&'static str, &'static str, &'static str, &'static [&'static str], bool);

const MERGED: &[Merged] = &[
    Merged("core.v1.PodSpec", "containers", "name", &["name"], false),
    Merged("core.v1.PodSpec", "initContainers", "name", &["name"], false),
    Merged("core.v1.PodSpec", "ephemeralContainers", "name", &["name"], false),
    Merged("core.v1.PodSpec", "volumes", "name", &["name"], true),
    Merged("core.v1.PodSpec", "imagePullSecrets", "name", &["name"], false),
    Merged("core.v1.PodSpec", "hostAliases", "ip", &["ip"], false),
    Merged("core.v1.PodSpec", "topologySpreadConstraints", "topologyKey", &["topologyKey", "whenUnsatisfiable"], false),
    Merged("core.v1.PodSpec", "schedulingGates", "name", &["name"], false),
    Merged("core.v1.PodSpec", "resourceClaims", "name", &["name"], true),
    Merged("core.v1.Container", "env", "name", &["name"], false),
    Merged("core.v1.Container", "ports", "containerPort", &["containerPort", "protocol"], false),
    Merged("core.v1.Container", "volumeMounts", "mountPath", &["mountPath"], false),
    Merged("core.v1.Container", "volumeDevices", "devicePath", &["devicePath"], false),
    Merged("core.v1.EphemeralContainer", "env", "name", &["name"], false),
    Merged("core.v1.EphemeralContainer", "ports", "containerPort", &["containerPort", "protocol"], false),
    Merged("core.v1.EphemeralContainer", "volumeMounts", "mountPath", &["mountPath"], false),
    Merged("core.v1.EphemeralContainer", "volumeDevices", "devicePath", &["devicePath"], false),
    Merged("core.v1.ResourceRequirements", "claims", "", &["name"], false),
    Merged("core.v1.PodStatus", "conditions", "type", &["type"], false),
    Merged("core.v1.PodStatus", "podIPs", "ip", &["ip"], false),
    Merged("core.v1.PodStatus", "resourceClaimStatuses", "name", &["name"], true),
    Merged("core.v1.ServiceSpec", "ports", "port", &["port", "protocol"], false),
    Merged("core.v1.ServiceStatus", "conditions", "type", &["type"], false),
    Merged("core.v1.ServiceAccount", "secrets", "name", &["name"], false),
    Merged("core.v1.NodeStatus", "addresses", "type", &["type"], false),
    Merged("core.v1.NodeStatus", "conditions", "type", &["type"], false),
    Merged("core.v1.NamespaceStatus", "conditions", "type", &["type"], false),
    Merged("apps.v1.DeploymentStatus", "conditions", "type", &["type"], false),
    Merged("apps.v1.ReplicaSetStatus", "conditions", "type", &["type"], false),
    Merged("apps.v1.DaemonSetStatus", "conditions", "type", &["type"], false),
    Merged("apps.v1.StatefulSetStatus", "conditions", "type", &["type"], false),
    Merged("batch.v1.JobStatus", "conditions", "type", &["type"], false),
    Merged("policy.v1.PodDisruptionBudgetStatus", "conditions", "type", &["type"], false),
    Merged("meta.v1.ObjectMeta", "ownerReferences", "uid", &["uid"], false),
    Merged("admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", "name", &["name"], false),
    Merged("admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", "name", &["name"], false),
    Merged("admissionregistration.v1.MutatingWebhook", "matchConditions", "name", &["name"], false),
    Merged("admissionregistration.v1.ValidatingWebhook", "matchConditions", "name", &["name"], false),
    Merged("admissionregistration.v1.ValidatingAdmissionPolicySpec", "matchConditions", "name", &["name"], false),
    Merged("admissionregistration.v1.ValidatingAdmissionPolicySpec", "variables", "name", &["name"], false),
    Merged("admissionregistration.v1.ValidatingAdmissionPolicyStatus", "conditions", "", &["type"], false),
    Merged("apiextensions.v1.CustomResourceDefinitionStatus", "conditions", "", &["type"], false),
];

/// Lists that are sets: definition, field, whether strategic merge merges them too.
const SETS: &[(&str, &str, bool)] = &[
    ("meta.v1.ObjectMeta", "finalizers", true),
    ("core.v1.NodeSpec", "podCIDRs", true),
    ("discovery.v1.Endpoint", "addresses", false),
];

/// Objects that apply treats as one value.
const ATOMIC_MAPS: &[&str] = &[
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "core.v1.ObjectReference",
    "core.v1.LocalObjectReference",
    "core.v1.TypedLocalObjectReference",
    "core.v1.SecretKeySelector",
    "core.v1.ConfigMapKeySelector",
    "core.v1.ObjectFieldSelector",
    "core.v1.ResourceFieldSelector",
    "core.v1.SecretReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ScopeSelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "discovery.v1.EndpointPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
    "admissionregistration.v1.ParamRef",
    "admissionregistration.v1.ParamKind",
    "admissionregistration.v1.MatchResources",
    "admissionregistration.v1.NamedRuleWithOperations",
];

/// Fields that are one value for apply, and replaced by strategic merge when so said: definition, field.
const ATOMIC_FIELDS: &[(&str, &str)] = &[
    ("core.v1.PodSpec", "nodeSelector"),
    ("core.v1.ServiceSpec", "selector"),
    ("core.v1.ResourceQuotaSpec", "scopes"),
];

/// Puts the marks on the definitions that are there.
pub(super) fn apply(definitions: &mut Map<String, Value>) {
    for (name, definition) in definitions.iter_mut() {
        let is = |end: &str| name.ends_with(end) && name.starts_with("io.k8s.");
        for Merged(end, field, merge_key, map_keys, retain) in MERGED.iter().filter(|merged| is(merged.0)) {
            let Some(property) = definition.pointer_mut(&format!("/properties/{field}")) else { continue };
            property["x-kubernetes-list-type"] = "map".into();
            property["x-kubernetes-list-map-keys"] = json!(map_keys);
            if !merge_key.is_empty() {
                property["x-kubernetes-patch-merge-key"] = (*merge_key).into();
                property["x-kubernetes-patch-strategy"] = if *retain { "merge,retainKeys" } else { "merge" }.into();
            }
            let _ = end;
        }
        for (_, field, merge) in SETS.iter().filter(|set| is(set.0)) {
            let Some(property) = definition.pointer_mut(&format!("/properties/{field}")) else { continue };
            property["x-kubernetes-list-type"] = "set".into();
            if *merge {
                property["x-kubernetes-patch-strategy"] = "merge".into();
            }
        }
        for (_, field) in ATOMIC_FIELDS.iter().filter(|atomic| is(atomic.0)) {
            let Some(property) = definition.pointer_mut(&format!("/properties/{field}")) else { continue };
            let kind = if property["type"] == "array" { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" };
            property[kind] = "atomic".into();
        }
        if ATOMIC_MAPS.iter().any(|end| is(end)) {
            definition["x-kubernetes-map-type"] = "atomic".into();
        }
        if is("apps.v1.DeploymentSpec")
            && let Some(strategy) = definition.pointer_mut("/properties/strategy")
        {
            strategy["x-kubernetes-patch-strategy"] = "retainKeys".into();
        }
        // Any value at all: the generator says "object" for want of a word.
        if name.ends_with("apiextensions.v1.JSON")
            && let Some(map) = definition.as_object_mut()
        {
            map.remove("type");
        }
        mark_unmarked_lists(definition);
    }
}

/// Lists without a mark are atomic in Kubernetes.
fn mark_unmarked_lists(definition: &mut Value) {
    let Some(properties) = definition.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for property in properties.values_mut() {
        if property["type"] == "array" && property.get("x-kubernetes-list-type").is_none() {
            property["x-kubernetes-list-type"] = "atomic".into();
        }
    }
}
