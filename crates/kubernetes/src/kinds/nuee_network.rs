//! Group `nuee.dev`: networks, and what guards and connects them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::security_group::{GROUPS_MAX, RULES_MAX};
use apiserver::Cause;
use serde_json::Value;

use super::Registration;
use super::columns::{age, column, path, wide};
use super::fields::{check_immutable, check_label, items, text};
use super::nuee::{own, plain, validate_name};

/// The names of a machine's security groups.
pub(super) fn check_group_names(machine: &Value, causes: &mut Vec<Cause>) {
    let names = items(&machine["spec"], "securityGroups");
    check_names("spec.securityGroups", names, GROUPS_MAX, causes);
}

/// A list of names: each an object's, none twice, not too many.
fn check_names(path: &str, names: &[Value], most: usize, causes: &mut Vec<Cause>) {
    if names.len() > most {
        causes.push(Cause::invalid(path, &names.len().into(), &format!("must have at most {most} items")));
    }
    let mut seen = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        let (path, text) = (format!("{path}[{at}]"), name.as_str().unwrap_or_default());
        check_name(&path, text, causes);
        if !seen.insert(text) {
            causes.push(Cause::invalid(&path, name, "must not be named twice"));
        }
    }
}

/// A name of an object: labels with dots between them.
fn check_name(path: &str, name: &str, causes: &mut Vec<Cause>) {
    name.split('.').for_each(|label| check_label(path, label, causes));
}

fn validate_group(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let rules = items(&new["spec"], "rules");
    if rules.len() > RULES_MAX {
        let text = format!("must have at most {RULES_MAX} items");
        causes.push(Cause::invalid("spec.rules", &rules.len().into(), &text));
        return causes;
    }
    for (at, value) in rules.iter().enumerate() {
        // What is of another shape is the schema's to refuse.
        let Ok(rule) = serde_json::from_value::<api::SecurityGroupRule>(value.clone()) else { continue };
        match rule.read() {
            Err((field, flaw)) => {
                causes.push(Cause::invalid(&format!("spec.rules[{at}].{field}"), &value[field], flaw))
            }
            Ok((_, api::security_group::Remote::Group(name))) => {
                check_name(&format!("spec.rules[{at}].remoteGroup"), &name, &mut causes);
            }
            Ok(_) => {}
        }
    }
    causes
}

fn validate_floating(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    let address = text(new, "/spec/address");
    if !address.is_empty() && address.parse::<Ipv4Addr>().is_err() {
        causes.push(Cause::invalid("spec.address", &spec["address"], "must be an IPv4 address"));
    }
    if !text(new, "/spec/virtualMachine").is_empty() {
        check_name("spec.virtualMachine", text(new, "/spec/virtualMachine"), &mut causes);
    }
    if !text(new, "/spec/virtualMachine").is_empty() && !text(new, "/spec/container").is_empty() {
        let flaw = "cannot go with virtualMachine";
        causes.push(Cause::invalid("spec.container", &spec["container"], flaw));
    }
    if let Some(old) = old {
        check_immutable("spec.address", spec.get("address"), old["spec"].get("address"), &mut causes);
    }
    causes
}

fn validate_router(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_names("spec.networks", items(&new["spec"], "networks"), api::router::NETWORKS_MAX, &mut causes);
    causes
}

fn validate_network(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = validate_name(new, old);
    let spec = &new["spec"];
    let uplink = text(new, "/spec/uplink");
    match text(new, "/spec/mode") {
        "bridged" => {
            if uplink.is_empty() {
                causes.push(Cause::required("spec.uplink", "the interface to be on"));
            }
            if text(new, "/spec/subnet").is_empty() {
                causes.push(Cause::required("spec.subnet", "the subnet of the interface's network"));
            }
        }
        _ if !uplink.is_empty() => {
            causes.push(Cause::invalid("spec.uplink", &spec["uplink"], "needs the mode bridged"));
        }
        "routed" if text(new, "/spec/subnet").is_empty() => {
            causes.push(Cause::required("spec.subnet", "addresses that are routed to this machine"));
        }
        _ => {}
    }
    if let Some(old) = old {
        for field in ["mode", "uplink"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
    }
    causes
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        own::<api::Network>(|kind| {
            kind.columns = vec![
                path("Network", "string", ".spec.name"),
                path("Driver", "string", ".spec.driver"),
                path("Subnet", "string", ".status.subnet"),
                path("Phase", "string", ".status.phase"),
                age(),
                wide(path("Mode", "string", ".spec.mode")),
                wide(path("Bridge", "string", ".status.bridge")),
            ];
            kind.validate = validate_network;
        }),
        own::<api::NetworkRoute>(|kind| {
            plain(kind);
            kind.namespaced = false;
            kind.status_subresource = false;
            kind.columns = vec![
                path("Network", "string", ".spec.network"),
                path("Destination", "string", ".spec.destination"),
                path("Node", "string", ".spec.nodeName"),
                path("Machine", "string", ".spec.machineAddress"),
                age(),
            ];
        }),
        own::<api::SecurityGroup>(|kind| {
            plain(kind);
            kind.columns = vec![
                column("Rules", "integer", |object, _| items(&object["spec"], "rules").len().into()),
                column("Members", "integer", |object, _| items(&object["status"], "members").len().into()),
                age(),
                wide(path("Description", "string", ".spec.description")),
            ];
            kind.validate = validate_group;
        }),
        own::<api::FloatingIP>(|kind| {
            plain(kind);
            kind.selectable_fields = vec![("status.nodeName".into(), "/status/nodeName".into())];
            kind.columns = vec![
                path("Address", "string", ".status.address"),
                path("Phase", "string", ".status.phase"),
                path("Machine", "string", ".spec.virtualMachine"),
                path("Container", "string", ".spec.container"),
                path("Leads To", "string", ".status.fixedAddress"),
                age(),
                wide(path("Node", "string", ".status.nodeName")),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = validate_floating;
        }),
        own::<api::Router>(|kind| {
            plain(kind);
            kind.columns = vec![
                column("Networks", "string", |object, _| {
                    let names = items(&object["spec"], "networks").iter().filter_map(Value::as_str);
                    names.collect::<Vec<_>>().join(",").into()
                }),
                column("Connected", "integer", |object, _| items(&object["status"], "connected").len().into()),
                age(),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = validate_router;
        }),
    ]
}
