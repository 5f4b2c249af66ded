//! Group `nuee.dev`: our own kinds, from crate `api`.

use apiserver::{Cause, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{CustomResourceExt, Resource};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::columns::{age, column, path, wide};
use super::fields::{check_immutable, text};
use super::{Registration, texts};

/// A registration of one of our types, named by the type itself.
fn own<T: CustomResourceExt + Resource<DynamicType = ()>>(refine: impl FnOnce(&mut Kind)) -> Registration {
    let mut kind = Kind::new(&T::group(&()), &T::version(&()), &T::kind(&()), &T::plural(&()));
    kind.short_names = T::shortnames().iter().map(|name| (*name).to_owned()).collect();
    kind.categories = texts(&["nuee"]);
    kind.status_subresource = true;
    kind.structural = true;
    kind.unique_field = Some("/spec/name".into());
    kind.selectable_fields = vec![("spec.name".into(), "/spec/name".into())];
    refine(&mut kind);
    Registration { kind, document: schema_of::<T> }
}

/// The CRD's schema, completed with what every object has, without defaults (a spec says only what was said).
fn schema_of<T: CustomResourceExt>(generator: &mut SchemaGenerator) -> Schema {
    let definition = serde_json::to_value(T::crd()).unwrap_or_default();
    let mut schema = definition
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .cloned()
        .unwrap_or_else(|| json!({"type": "object"}));
    forget_defaults(&mut schema);
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = generator.subschema_for::<ObjectMeta>().to_value();
    Schema::try_from(schema).unwrap_or_default()
}

fn forget_defaults(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("default");
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(forget_defaults);
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(field) {
            forget_defaults(inner);
        }
    }
}

/// The name that Docker shows is given once.
fn validate_name(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    if text(new, "/spec/name").is_empty() { vec![Cause::required("spec.name", "")] } else { Vec::new() }
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        own::<api::Container>(|kind| {
            kind.selectable_fields.push(("spec.nodeName".into(), "/spec/nodeName".into()));
            kind.columns = vec![
                path("Container", "string", ".spec.name"),
                path("Image", "string", ".spec.image"),
                path("State", "string", ".status.state"),
                path("Node", "string", ".spec.nodeName"),
                age(),
                wide(column("IP", "string", |object, _| {
                    let networks = object.pointer("/status/networks").and_then(Value::as_object);
                    let addresses: Vec<&str> =
                        networks.into_iter().flatten().map(|(_, one)| text(one, "/ip")).collect();
                    addresses.join(",").into()
                })),
                wide(path("Exit Code", "integer", ".status.exitCode")),
            ];
            kind.validate = |new, old| {
                let mut causes = validate_name(new, old);
                if let Some(old) = old.filter(|old| old["spec"]["nodeName"].is_string()) {
                    let (now, before) = (new.pointer("/spec/nodeName"), old.pointer("/spec/nodeName"));
                    check_immutable("spec.nodeName", now, before, &mut causes);
                }
                causes
            };
        }),
        own::<api::Network>(|kind| {
            kind.columns = vec![
                path("Network", "string", ".spec.name"),
                path("Driver", "string", ".spec.driver"),
                path("Subnet", "string", ".status.subnet"),
                path("Phase", "string", ".status.phase"),
                age(),
                wide(path("Bridge", "string", ".status.bridge")),
            ];
            kind.validate = validate_name;
        }),
        own::<api::Volume>(|kind| {
            kind.columns = vec![
                path("Volume", "string", ".spec.name"),
                path("Driver", "string", ".spec.driver"),
                path("Node", "string", ".spec.nodeName"),
                path("Phase", "string", ".status.phase"),
                age(),
                wide(path("Path", "string", ".status.path")),
            ];
            kind.validate = validate_name;
        }),
    ]
}
