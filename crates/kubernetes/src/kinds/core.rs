//! The core group: namespaces, nodes, events, configuration, accounts, pods, services, quotas.

use apiserver::{Allocator, Cause};
use base64::Engine;
use k8s_openapi::api::core::v1 as api;
use serde_json::{Value, json};

use super::columns::{age, column, created_at, path, wide};
use super::fields::{check_immutable, default, object_mut, text};
use super::{
    Registration, core_columns as show, pod_defaults, pod_validation, register, selectable, service, sub, texts,
};

/// Largest sum of the data of a Secret or ConfigMap. Units: bytes.
const MAX_DATA_BYTES: usize = 1024 * 1024;

pub(super) fn kinds() -> Vec<Registration> {
    let mut kinds =
        vec![namespace(), node(), event(), config_map(), secret(), service_account(), pod(), service_kind()];
    kinds.extend([endpoints(), resource_quota(), limit_range()]);
    kinds
}

fn namespace() -> Registration {
    register::<api::Namespace>("namespaces", |kind| {
        kind.namespaced = false;
        kind.short_names = texts(&["ns"]);
        kind.status_subresource = true;
        kind.subresources = vec![sub("finalize", "Namespace", "", &["update"])];
        kind.selectable_fields = selectable(&["status.phase"]);
        kind.columns = vec![path("Status", "string", ".status.phase"), age()];
        kind.validate = |new, _| {
            let mut causes = Vec::new();
            super::fields::check_label("metadata.name", text(new, "/metadata/name"), &mut causes);
            causes
        };
        // Phase and finalizer are given by the server, whatever the client sends.
        kind.prepare_create = |object| {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
            name_label(object);
        };
        kind.prepare_update = |object, old| {
            object["spec"] = old["spec"].clone();
            name_label(object);
        };
    })
}

/// Every namespace carries its own name as a label, for selectors.
fn name_label(object: &mut Value) {
    let name = object.pointer("/metadata/name").cloned().unwrap_or_default();
    if let Some(labels) = object_mut(&mut object["metadata"], "labels") {
        labels["kubernetes.io/metadata.name"] = name;
    }
}

fn node() -> Registration {
    register::<api::Node>("nodes", |kind| {
        kind.namespaced = false;
        kind.short_names = texts(&["no"]);
        kind.status_subresource = true;
        kind.selectable_fields = selectable(&["spec.unschedulable"]);
        kind.columns = vec![
            column("Status", "string", show::node_status),
            column("Roles", "string", show::node_roles),
            age(),
            path("Version", "string", ".status.nodeInfo.kubeletVersion"),
            wide(column("Internal-IP", "string", |object, _| show::node_address(object, "InternalIP"))),
            wide(column("External-IP", "string", |object, _| show::node_address(object, "ExternalIP"))),
            wide(path("OS-Image", "string", ".status.nodeInfo.osImage")),
            wide(path("Kernel-Version", "string", ".status.nodeInfo.kernelVersion")),
            wide(path("Container-Runtime", "string", ".status.nodeInfo.containerRuntimeVersion")),
        ];
    })
}

fn event() -> Registration {
    register::<api::Event>("events", |kind| {
        kind.short_names = texts(&["ev"]);
        kind.selectable_fields = event_fields();
        kind.columns = vec![
            column("Last Seen", "string", show::event_last_seen),
            path("Type", "string", ".type"),
            path("Reason", "string", ".reason"),
            column("Object", "string", show::event_object),
            wide(path("Subobject", "string", ".involvedObject.fieldPath")),
            wide(column("Source", "string", show::event_source)),
            column("Message", "string", |object, _| text(object, "/message").trim().into()),
            wide(column("First Seen", "string", show::event_first_seen)),
            wide(column("Count", "string", show::event_count)),
            wide(apiserver::Column { format: "name".into(), ..path("Name", "string", ".metadata.name") }),
        ];
        kind.validate = |new, _| {
            let mut causes = Vec::new();
            let (own, about) = (text(new, "/metadata/namespace"), text(new, "/involvedObject/namespace"));
            if own != about && !(about.is_empty() && own == "default") {
                causes.push(Cause::invalid(
                    "involvedObject.namespace",
                    &about.into(),
                    "does not match event.namespace",
                ));
            }
            causes
        };
    })
}

/// What events can be selected by, in both groups that serve them.
pub(super) fn event_fields() -> Vec<(String, String)> {
    let mut fields = selectable(&[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "type",
    ]);
    fields.push(("source".into(), "/source/component".into()));
    fields
}

fn config_map() -> Registration {
    register::<api::ConfigMap>("configmaps", |kind| {
        kind.short_names = texts(&["cm"]);
        kind.columns = vec![column("Data", "string", show::data_count), age()];
        kind.validate = |new, old| {
            let mut causes = Vec::new();
            check_data(new, &["data", "binaryData"], &mut causes);
            check_frozen(new, old, &["data", "binaryData"], &mut causes);
            causes
        };
    })
}

fn secret() -> Registration {
    register::<api::Secret>("secrets", |kind| {
        kind.columns = vec![path("Type", "string", ".type"), column("Data", "string", show::data_count), age()];
        kind.selectable_fields = selectable(&["type"]);
        kind.default = |object| {
            fold_string_data(object);
            default(object, "type", "Opaque");
        };
        kind.validate = |new, old| {
            let mut causes = Vec::new();
            check_data(new, &["data"], &mut causes);
            check_secret(new, &mut causes);
            if let Some(old) = old {
                check_immutable("type", new.get("type"), old.get("type"), &mut causes);
            }
            check_frozen(new, old, &["data"], &mut causes);
            causes
        };
    })
}

/// `stringData` is write-only: it goes into `data`, encoded.
fn fold_string_data(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    if let Some(data) = object_mut(object, "data") {
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data[&key] = base64::engine::general_purpose::STANDARD.encode(text).into();
        }
    }
}

fn check_data(object: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    const KEY_RULE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    let mut total = 0;
    for field in fields {
        for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            if key.is_empty() || key.len() > 253 || key == "." || key.starts_with("..") || !key.bytes().all(fits) {
                causes.push(Cause::invalid(&format!("{field}[{key}]"), &key.as_str().into(), KEY_RULE));
            }
            total += value.as_str().map_or(0, str::len);
        }
    }
    if total > MAX_DATA_BYTES {
        causes.push(Cause::too_long("", MAX_DATA_BYTES));
    }
}

fn check_secret(object: &Value, causes: &mut Vec<Cause>) {
    let needed: &[&str] = match text(object, "/type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if object.pointer(&format!("/data/{key}")).is_none() {
            causes.push(Cause::required(&format!("data[{key}]"), ""));
        }
    }
    for (key, value) in object.get("data").and_then(Value::as_object).into_iter().flatten() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
        if decoded.is_err() {
            causes.push(Cause::invalid(&format!("data[{key}]"), &Value::Null, "illegal base64 data"));
        }
    }
}

/// `immutable: true` freezes the data and itself.
fn check_frozen(new: &Value, old: Option<&Value>, fields: &[&str], causes: &mut Vec<Cause>) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if new["immutable"] != true {
        causes.push(Cause::forbidden("immutable", DETAIL));
    }
    for field in fields.iter().filter(|field| new.get(**field) != old.get(**field)) {
        causes.push(Cause::forbidden(field, DETAIL));
    }
}

fn service_account() -> Registration {
    register::<api::ServiceAccount>("serviceaccounts", |kind| {
        kind.short_names = texts(&["sa"]);
        kind.subresources = vec![sub("token", "TokenRequest", "authentication.k8s.io/v1", &["create"])];
        kind.columns =
            vec![column("Secrets", "string", |object, _| super::columns::length(object.get("secrets")).into()), age()];
    })
}

fn pod() -> Registration {
    register::<api::Pod>("pods", |kind| {
        kind.short_names = texts(&["po"]);
        kind.categories = texts(&["all"]);
        kind.status_subresource = true;
        kind.subresources = vec![
            sub("attach", "PodAttachOptions", "", &["create", "get"]),
            sub("binding", "Binding", "", &["create"]),
            sub("ephemeralcontainers", "Pod", "", &["get", "patch", "update"]),
            sub("eviction", "Eviction", "policy/v1", &["create"]),
            sub("exec", "PodExecOptions", "", &["create", "get"]),
            sub("log", "Pod", "", &["get"]),
            sub("portforward", "PodPortForwardOptions", "", &["create", "get"]),
            sub("resize", "Pod", "", &["get", "patch", "update"]),
        ];
        kind.selectable_fields = selectable(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]);
        kind.columns = vec![
            column("Ready", "string", show::pod_ready),
            column("Status", "string", show::pod_status),
            column("Restarts", "string", show::pod_restarts),
            age(),
            wide(column("IP", "string", |object, _| show::or_none_at(object, "/status/podIP"))),
            wide(column("Node", "string", |object, _| show::or_none_at(object, "/spec/nodeName"))),
            wide(column("Nominated Node", "string", |object, _| show::or_none_at(object, "/status/nominatedNodeName"))),
            wide(column("Readiness Gates", "string", show::pod_readiness_gates)),
        ];
        kind.default = |object| {
            if let Some(spec) = object_mut(object, "spec") {
                pod_defaults::pod_spec(spec);
            }
        };
        kind.validate = pod_validation::pod;
        kind.prepare_create = |object| {
            let class = pod_defaults::quality_of_service(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
        };
    })
}

fn service_kind() -> Registration {
    register::<api::Service>("services", |kind| {
        kind.short_names = texts(&["svc"]);
        kind.categories = texts(&["all"]);
        kind.status_subresource = true;
        kind.allocator = Some(Allocator::ServiceAddresses);
        kind.selectable_fields = selectable(&["spec.clusterIP", "spec.type"]);
        kind.columns = vec![
            path("Type", "string", ".spec.type"),
            column("Cluster-IP", "string", service::cluster_ip),
            column("External-IP", "string", service::external_ip),
            column("Port(s)", "string", service::ports),
            age(),
            wide(column("Selector", "string", |object, _| {
                super::columns::selector_text(object.pointer("/spec/selector"))
            })),
        ];
        kind.default = service::defaults;
        kind.validate = service::validate;
        kind.prepare_create = |object| object["status"] = json!({"loadBalancer": {}});
        kind.prepare_update = service::keep_allocated;
    })
}

fn endpoints() -> Registration {
    register::<api::Endpoints>("endpoints", |kind| {
        kind.singular = "endpoints".into();
        kind.short_names = texts(&["ep"]);
        kind.columns = vec![column("Endpoints", "string", service::endpoints), age()];
    })
}

fn resource_quota() -> Registration {
    register::<api::ResourceQuota>("resourcequotas", |kind| {
        kind.short_names = texts(&["quota"]);
        kind.status_subresource = true;
        kind.columns = vec![
            column("Request", "string", |object, _| show::quota(object, false)),
            column("Limit", "string", |object, _| show::quota(object, true)),
            age(),
        ];
        kind.validate = |new, _| {
            let mut causes = Vec::new();
            pod_validation::check_quantities("spec.hard", new.pointer("/spec/hard"), &mut causes);
            causes
        };
    })
}

fn limit_range() -> Registration {
    register::<api::LimitRange>("limitranges", |kind| {
        kind.short_names = texts(&["limits"]);
        kind.columns = vec![created_at()];
    })
}
