//! Group `nuee.dev`: our own kinds, from crate `api`.

use apiserver::{Cause, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{CustomResourceExt, Resource};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::columns::{age, column, path, wide};
use super::fields::{check_immutable, text};
use super::{Registration, nuee_disks, nuee_machines, nuee_network, sub, texts};

/// A registration of one of our types, named by the type itself.
pub(super) fn own<T: CustomResourceExt + Resource<DynamicType = ()>>(refine: impl FnOnce(&mut Kind)) -> Registration {
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
pub(super) fn validate_name(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    if text(new, "/spec/name").is_empty() { vec![Cause::required("spec.name", "")] } else { Vec::new() }
}

/// Kinds that have no name beside their object's.
pub(super) fn plain(kind: &mut Kind) {
    kind.unique_field = None;
    kind.selectable_fields = Vec::new();
}

pub(super) fn check_size(object: &Value, pointer: &str, path: &str, causes: &mut Vec<Cause>) {
    let Some(value) = object.pointer(pointer).filter(|value| !value.is_null()) else { return };
    if value.as_str().and_then(api::quantity::whole).is_none_or(|bytes| bytes <= 0) {
        causes.push(Cause::invalid(path, value, "must be a positive amount of bytes, such as 512Mi"));
    }
}

/// A migration is of one machine to one place; it can be called off, no more.
fn validate_migration(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if text(new, "/spec/virtualMachine").is_empty() {
        causes.push(Cause::required("spec.virtualMachine", ""));
    }
    check_size(new, "/spec/bandwidth", "spec.bandwidth", &mut causes);
    if let Some(old) = old {
        for field in ["virtualMachine", "targetNode"] {
            let (now, before) = (new["spec"].get(field), old["spec"].get(field));
            check_immutable(&format!("spec.{field}"), now, before, &mut causes);
        }
    }
    causes
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        own::<api::VirtualMachine>(|kind| {
            plain(kind);
            kind.subresources = vec![
                sub("console", "VirtualMachineConsoleOptions", "", &["create", "get"]),
                sub("log", "VirtualMachine", "", &["get"]),
            ];
            kind.selectable_fields = vec![("spec.nodeName".into(), "/spec/nodeName".into())];
            kind.columns = vec![
                path("Phase", "string", ".status.phase"),
                path("IP", "string", ".status.addresses[0].ip"),
                path("CPUs", "integer", ".spec.cpus"),
                path("Memory", "string", ".spec.memory"),
                path("Image", "string", ".spec.image"),
                path("Node", "string", ".spec.nodeName"),
                age(),
                wide(path("Acceleration", "string", ".status.acceleration")),
            ];
            kind.validate = nuee_machines::validate_machine;
        }),
        own::<api::Migration>(|kind| {
            plain(kind);
            kind.selectable_fields = vec![("status.sourceNode".into(), "/status/sourceNode".into())];
            kind.columns = vec![
                path("Machine", "string", ".spec.virtualMachine"),
                path("Phase", "string", ".status.phase"),
                path("From", "string", ".status.sourceNode"),
                path("To", "string", ".status.targetNode"),
                path("Remaining", "integer", ".status.memory.remainingBytes"),
                path("Downtime", "integer", ".status.downtimeMs"),
                age(),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = validate_migration;
        }),
        own::<api::DiskImage>(|kind| {
            plain(kind);
            kind.columns = vec![
                path("Phase", "string", ".status.phase"),
                path("Bytes", "integer", ".status.virtualBytes"),
                wide(path("Fetched", "integer", ".status.fetchedBytes")),
                path("Boot", "string", ".spec.boot"),
                age(),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = nuee_machines::validate_disk_image;
        }),
        own::<api::Flavor>(|kind| {
            plain(kind);
            kind.namespaced = false;
            kind.status_subresource = false;
            kind.columns = vec![
                path("CPUs", "integer", ".spec.cpus"),
                path("Memory", "string", ".spec.memory"),
                path("Disk", "string", ".spec.disk"),
                age(),
            ];
            kind.validate = nuee_machines::validate_flavor;
        }),
        own::<api::KeyPair>(|kind| {
            plain(kind);
            kind.status_subresource = false;
            kind.columns = vec![age()];
            kind.validate = nuee_machines::validate_key_pair;
        }),
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
                let labels = |object: &Value| object["spec"]["labels"].clone();
                nuee_network::check_port_label("spec.labels", &labels(new), old.map(labels).as_ref(), &mut causes);
                causes
            };
        }),
        own::<api::SwarmService>(|kind| {
            kind.columns = vec![
                path("Service", "string", ".spec.name"),
                path("Mode", "string", ".spec.current.mode"),
                path("Replicas", "integer", ".spec.current.replicas"),
                path("Image", "string", ".spec.current.task.container.image"),
                path("Rollout", "string", ".status.rollout.phase"),
                age(),
            ];
            kind.validate = validate_name;
        }),
        own::<api::Volume>(|kind| {
            kind.columns = vec![
                path("Volume", "string", ".spec.name"),
                path("Driver", "string", ".spec.driver"),
                path("Size", "string", ".spec.size"),
                path("Attached", "string", ".status.attachedTo.virtualMachine"),
                path("Node", "string", ".spec.nodeName"),
                path("Phase", "string", ".status.phase"),
                age(),
                wide(path("Path", "string", ".status.path")),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.default = nuee_disks::name_volume;
            kind.validate = nuee_disks::validate_volume;
        }),
        own::<api::Snapshot>(|kind| {
            plain(kind);
            kind.columns = vec![
                path("Volume", "string", ".spec.volume"),
                path("Machine", "string", ".spec.virtualMachine"),
                path("Ready", "boolean", ".status.readyToUse"),
                path("Bytes", "integer", ".status.sizeBytes"),
                path("Phase", "string", ".status.phase"),
                age(),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = nuee_disks::validate_snapshot;
        }),
        own::<api::Backup>(|kind| {
            plain(kind);
            kind.columns = vec![
                path("Machine", "string", ".spec.virtualMachine"),
                path("Phase", "string", ".status.phase"),
                path("Copied", "integer", ".status.copiedBytes"),
                path("Total", "integer", ".status.totalBytes"),
                age(),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = nuee_disks::validate_backup;
        }),
    ]
}
