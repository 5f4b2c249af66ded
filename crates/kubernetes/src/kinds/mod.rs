//! The built-in kinds, one file per API group. A kind is one registration: names, scope, columns, defaults, rules; its
//! schema comes from the types of `k8s-openapi` (or crate `api`) and is built when it is needed.

mod admissionregistration;
mod apiextensions;
mod apps;
mod apps_sets;
mod authentication;
mod authorization;
mod batch;
mod columns;
mod coordination;
mod core;
mod core_columns;
mod discovery;
mod events;
mod fields;
mod nuee;
mod nuee_disks;
mod nuee_machines;
mod nuee_network;
mod nuee_subnet;
mod pod_defaults;
mod pod_validation;
mod policy;
mod rbac;
mod scheduling;
pub(crate) mod schema;
mod schema_marks;
mod service;
mod workload_validation;

use apiserver::{Kind, KindSchema, Subresource};
use k8s_openapi::Resource;
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// Adds a kind's schema, with descriptions, to a generator and answers a reference to it.
pub(crate) type Document = fn(&mut SchemaGenerator) -> Schema;

/// A kind and how to get its full schema.
pub(crate) struct Registration {
    /// The kind, still without its schema.
    pub(crate) kind: Kind,
    /// How its schema is made.
    pub(crate) document: Document,
}

impl Registration {
    /// How the schema is made, and the name of its definition where the type gives it none.
    pub(crate) fn source(&self) -> (Document, String) {
        (self.document, format!("dev.nuee.{}.{}", self.kind.version, self.kind.kind))
    }
}

/// A registration of one of Kubernetes' own types, named by the type itself.
fn register<T: Resource + JsonSchema>(plural: &str, refine: impl FnOnce(&mut Kind)) -> Registration {
    let mut kind = Kind::new(T::GROUP, T::VERSION, T::KIND, plural);
    refine(&mut kind);
    Registration { kind, document: SchemaGenerator::subschema_for::<T> }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn selectable(list: &[&str]) -> Vec<(String, String)> {
    list.iter().map(|label| ((*label).to_owned(), format!("/{}", label.replace('.', "/")))).collect()
}

/// A subresource: name, kind, `group/version` of that kind (empty for the parent's), verbs.
fn sub(name: &str, kind: &str, group_version: &str, verbs: &[&str]) -> Subresource {
    let (group, version) = group_version.rsplit_once('/').unwrap_or(("", group_version));
    Subresource {
        name: name.into(),
        kind: kind.into(),
        group: group.into(),
        version: version.into(),
        verbs: texts(verbs),
    }
}

/// All registrations, cheap: no schema is built.
pub(crate) fn registrations() -> Vec<Registration> {
    let groups: &[fn() -> Vec<Registration>] = &[
        core::kinds,
        apps::kinds,
        batch::kinds,
        discovery::kinds,
        events::kinds,
        coordination::kinds,
        rbac::kinds,
        policy::kinds,
        scheduling::kinds,
        admissionregistration::kinds,
        apiextensions::kinds,
        authentication::kinds,
        authorization::kinds,
        nuee::kinds,
        nuee_network::kinds,
        nuee_subnet::kinds,
    ];
    groups.iter().flat_map(|group| group()).collect()
}

/// All built-in kinds with the schemas that the machinery needs (without the prose).
pub fn builtin_kinds() -> Vec<Kind> {
    let with_schema = |registration: Registration| {
        let source = registration.source();
        Kind { schema: KindSchema::lazy(move || schema::without_prose(source)), ..registration.kind }
    };
    registrations().into_iter().map(with_schema).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_with_its_properties() {
        for kind in builtin_kinds() {
            let schema = &kind.schema;
            assert!(schema.pointer("/properties/metadata").is_some(), "{} has no metadata", kind.kind);
        }
    }

    #[test]
    fn every_reference_of_a_schema_is_inside_it() {
        for kind in builtin_kinds() {
            let text = kind.schema.to_string();
            for part in text.split("\"$ref\":\"").skip(1) {
                let name = part.split('"').next().unwrap().rsplit('/').next().unwrap();
                assert!(kind.schema["components"]["schemas"].get(name).is_some(), "{}: {name}", kind.kind);
            }
            assert!(!text.contains("\"description\":\""), "{}", kind.kind);
        }
    }

    #[test]
    fn merge_keys_are_marked() {
        let kinds = builtin_kinds();
        let pod = kinds.iter().find(|kind| kind.is("", "pods")).unwrap();
        let containers = &pod.schema["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"][0], "name");
    }

    #[test]
    fn schemas_are_small_enough_to_keep() {
        let total: usize = builtin_kinds().iter().map(|kind| kind.schema.to_string().len()).sum();
        assert!(total < 1024 * 1024, "{total} bytes");
    }
}
