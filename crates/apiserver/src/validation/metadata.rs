//! Checks of `metadata`: names, labels, annotations, finalizers, owners; and what an update may not change.

use serde_json::Value;

use super::names;
use crate::kind::Kind;
use crate::status::Cause;

/// Most bytes of all annotations together; Kubernetes' own bound.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// What is wrong with the metadata of a new or changed object.
pub fn validate(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = &object["metadata"];
    let name = crate::json::text(metadata, "/name");
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Some(problem) = name_problem(kind, name) {
        causes.push(Cause::invalid("metadata.name", &metadata["name"], &problem));
    }
    labels(&metadata["labels"], "metadata.labels", &mut causes);
    annotations(&metadata["annotations"], &mut causes);
    finalizers(metadata, &mut causes);
    owners(metadata, &mut causes);
    causes
}

fn name_problem(kind: &Kind, name: &str) -> Option<String> {
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("rbac.authorization.k8s.io", _) => names::path_segment(name),
        ("", "services") => names::dns1035_label(name),
        ("", "namespaces") => names::dns_label(name),
        _ => names::dns_subdomain(name),
    }
}

/// Checks a label map.
pub fn labels(labels: &Value, field: &str, causes: &mut Vec<Cause>) {
    let Some(labels) = labels.as_object() else {
        if !labels.is_null() {
            causes.push(Cause::type_invalid(field, labels, "must be a map of strings"));
        }
        return;
    };
    for (key, value) in labels {
        if let Some(problem) = names::qualified_name(key) {
            causes.push(Cause::invalid(field, &Value::from(key.as_str()), &problem));
        }
        match value.as_str() {
            Some(text) => {
                if let Some(problem) = names::label_value(text) {
                    causes.push(Cause::invalid(field, value, &problem));
                }
            }
            None => causes.push(Cause::type_invalid(field, value, "label values must be strings")),
        }
    }
}

fn annotations(annotations: &Value, causes: &mut Vec<Cause>) {
    let Some(map) = annotations.as_object() else {
        if !annotations.is_null() {
            causes.push(Cause::type_invalid("metadata.annotations", annotations, "must be a map of strings"));
        }
        return;
    };
    let mut total = 0;
    for (key, value) in map {
        if let Some(problem) = names::qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &Value::from(key.as_str()), &problem));
        }
        match value.as_str() {
            Some(text) => total += key.len() + text.len(),
            None => {
                causes.push(Cause::type_invalid("metadata.annotations", value, "annotation values must be strings"))
            }
        }
    }
    if total > MAX_ANNOTATION_BYTES {
        causes.push(Cause::too_long("metadata.annotations", MAX_ANNOTATION_BYTES));
    }
}

fn finalizers(metadata: &Value, causes: &mut Vec<Cause>) {
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        let text = finalizer.as_str().unwrap_or_default();
        if let Some(problem) = names::qualified_name(text) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, &problem));
        }
    }
}

fn owners(metadata: &Value, causes: &mut Vec<Cause>) {
    let mut controllers = 0;
    for (index, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for member in ["apiVersion", "kind", "name", "uid"] {
            if crate::json::is_empty(owner.get(member)) {
                causes.push(Cause::required(&format!("metadata.ownerReferences[{index}].{member}"), ""));
            }
        }
        controllers += usize::from(owner["controller"].as_bool().unwrap_or(false));
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
}

/// What is wrong with the metadata of an update beyond [`validate`].
pub fn validate_update(object: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let before = crate::json::strings(old, "/metadata/finalizers");
        let added: Vec<String> = crate::json::strings(object, "/metadata/finalizers")
            .into_iter()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            ));
        }
    }
    causes
}
