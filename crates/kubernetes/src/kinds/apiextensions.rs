//! Group `apiextensions.k8s.io`: CustomResourceDefinitions. What they define is the machinery's business.

use apiserver::Cause;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as api;
use serde_json::{Value, json};

use super::columns::created_at;
use super::fields::{check_immutable, check_word, default, items, object_mut, text};
use super::{Registration, register, texts};

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::CustomResourceDefinition>("customresourcedefinitions", |kind| {
        kind.namespaced = false;
        kind.short_names = texts(&["crd", "crds"]);
        kind.categories = texts(&["api-extensions"]);
        kind.status_subresource = true;
        kind.columns = vec![created_at()];
        kind.default = defaults;
        kind.validate = validate;
        kind.prepare_create = |object| {
            let stored: Vec<Value> = items(&object["spec"], "versions")
                .iter()
                .filter(|one| one["storage"] == true)
                .map(|one| one["name"].clone())
                .collect();
            object["status"] =
                json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored});
        };
    })]
}

fn defaults(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    default(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = object_mut(spec, "names") {
        let kind = text(names, "/kind").to_owned();
        default(names, "singular", kind.to_lowercase());
        default(names, "listKind", format!("{kind}List"));
    }
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    let (plural, group) = (text(spec, "/names/plural"), text(spec, "/group"));
    for (field, value) in
        [("spec.group", group), ("spec.names.plural", plural), ("spec.names.kind", text(spec, "/names/kind"))]
    {
        if value.is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let name = text(new, "/metadata/name");
    if name != format!("{plural}.{group}") {
        causes.push(Cause::invalid("metadata.name", &name.into(), "must be spec.names.plural+\".\"+spec.group"));
    }
    check_word("spec.scope", spec.get("scope"), &["Cluster", "Namespaced"], &mut causes);
    let versions = items(spec, "versions");
    if versions.iter().filter(|one| one["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"], detail));
    }
    for (index, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            causes.push(Cause::required(
                &format!("spec.versions[{index}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
    if let Some(old) = old {
        for field in ["group", "scope"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
    }
    causes
}
