//! Group `nuee.dev`: networks, and what guards and connects them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::interface::INTERFACES_MAX;
use api::names::DEFAULT_NETWORK;
use api::security_group::{GROUPS_MAX, RULES_MAX};
use apiserver::Cause;
use serde_json::Value;

use super::Registration;
use super::columns::{age, column, path, wide};
use super::fields::{check_immutable, check_label, items, text};
use super::nuee::{own, plain, validate_name};

/// Larger subnets are refused: nothing would be left for anybody else. Units: bits.
const SUBNET_PREFIX_MIN: u8 = 8;

/// What a machine says of its places on networks.
pub(super) fn check_places(machine: &Value, causes: &mut Vec<Cause>) {
    let spec = &machine["spec"];
    check_interface("spec", spec, causes);
    let list = items(spec, "interfaces");
    if list.len() > INTERFACES_MAX {
        let flaw = format!("must have at most {INTERFACES_MAX} items");
        causes.push(Cause::invalid("spec.interfaces", &list.len().into(), &flaw));
        return;
    }
    let (mut ports, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (at, interface) in list.iter().enumerate() {
        let path = format!("spec.interfaces[{at}]");
        check_interface(&path, interface, causes);
        let (port, mac) = (text(interface, "/port"), text(interface, "/macAddress").to_lowercase());
        if !port.is_empty() && !ports.insert(port) {
            causes.push(Cause::invalid(&format!("{path}.port"), &port.into(), "must not be named twice"));
        }
        if !mac.is_empty() && !macs.insert(mac.clone()) {
            causes.push(Cause::invalid(&format!("{path}.macAddress"), &mac.into(), "must not be named twice"));
        }
    }
    if let Some(first) = list.first() {
        check_shorthand(spec, first, causes);
    }
}

/// The single fields are those of the first interface, and say nothing else beside a list.
fn check_shorthand(spec: &Value, first: &Value, causes: &mut Vec<Cause>) {
    for field in ["network", "port", "securityGroups"] {
        let (alone, listed) = (&spec[field], &first[field]);
        let says_default = field == "network" && text(first, "/port").is_empty() && !is_set(listed);
        let is_same = alone == listed || (says_default && alone == DEFAULT_NETWORK);
        if is_set(alone) && !is_same {
            let flaw = "says another than spec.interfaces[0], whose shorthand it is";
            causes.push(Cause::invalid(&format!("spec.{field}"), alone, flaw));
        }
    }
}

fn is_set(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty()) || value.as_array().is_some_and(|list| !list.is_empty())
}

/// One interface of a machine: the specification itself, for the first, or one of the list.
fn check_interface(path: &str, interface: &Value, causes: &mut Vec<Cause>) {
    let (network, port, mac) = (text(interface, "/network"), text(interface, "/port"), text(interface, "/macAddress"));
    if !network.is_empty() {
        check_name(&format!("{path}.network"), network, causes);
    }
    if !port.is_empty() {
        check_name(&format!("{path}.port"), port, causes);
        for field in ["network", "macAddress", "securityGroups"].into_iter().filter(|field| is_set(&interface[*field]))
        {
            let flaw = "cannot go with port, which says it";
            causes.push(Cause::invalid(&format!("{path}.{field}"), &interface[field], flaw));
        }
    }
    let flaw = match api::port::mac(mac) {
        _ if mac.is_empty() => None,
        // A wish would show, or take, what others on a network have that all namespaces share.
        Some(_) if port.is_empty() && matches!(network, "" | "default" | DEFAULT_NETWORK) => {
            Some("needs a network of its own, or a port: all namespaces share the default network")
        }
        None => Some("must be an interface's hardware address, as in 52:54:00:12:34:56"),
        // Whoever has that address is given it.
        Some([one, two, ..]) if [one, two] == api::port::DERIVED => Some("is made from an IPv4 address"),
        Some(_) => None,
    };
    if let Some(flaw) = flaw {
        causes.push(Cause::invalid(&format!("{path}.macAddress"), &interface["macAddress"], flaw));
    }
    check_names(&format!("{path}.securityGroups"), items(interface, "securityGroups"), GROUPS_MAX, causes);
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
pub(super) fn check_name(path: &str, name: &str, causes: &mut Vec<Cause>) {
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

fn validate_port(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    let (network, address, mac) =
        (text(new, "/spec/network"), text(new, "/spec/address"), text(new, "/spec/macAddress"));
    if !network.is_empty() {
        check_name("spec.network", network, &mut causes);
    }
    let wanted = address.parse::<Ipv4Addr>();
    if !address.is_empty() && wanted.is_err() {
        causes.push(Cause::invalid("spec.address", &spec["address"], "must be an IPv4 address"));
    }
    match api::port::mac(mac) {
        _ if mac.is_empty() => {}
        None => {
            let flaw = "must be an interface's hardware address, as in 52:54:00:12:34:56";
            causes.push(Cause::invalid("spec.macAddress", &spec["macAddress"], flaw));
        }
        // Whoever has that address is given it.
        Some([one, two, rest @ ..])
            if [one, two] == api::port::DERIVED && wanted.map(|own| own.octets()) != Ok(rest) =>
        {
            let flaw = "is made from another IPv4 address than this port's";
            causes.push(Cause::invalid("spec.macAddress", &spec["macAddress"], flaw));
        }
        Some(_) => {}
    }
    check_names("spec.securityGroups", items(spec, "securityGroups"), GROUPS_MAX, &mut causes);
    if let Some(old) = old {
        for field in ["network", "address", "macAddress"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
    }
    causes
}

/// What the labels of a container, or the annotations of a pod, say of its port: one that says its groups, and the same for as long as the
/// object is there, since whose a port is is known by that.
pub(super) fn check_port_label(path: &str, new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let label = |labels: &Value, name: &str| labels[name].as_str().unwrap_or_default().to_owned();
    let (port, path) = (label(new, api::port::LABEL), format!("{path}[{}]", api::port::LABEL));
    if old.is_some_and(|old| label(old, api::port::LABEL) != port) {
        causes.push(Cause::invalid(&path, &port.into(), "field is immutable"));
        return;
    }
    if port.is_empty() {
        return;
    }
    if old.is_none() {
        check_name(&path, &port, causes);
    }
    if !label(new, api::security_group::LABEL).is_empty() {
        let flaw = format!("cannot go with {}, which it says", api::security_group::LABEL);
        causes.push(Cause::invalid(&path, &port.into(), &flaw));
    }
}

fn validate_router(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_names("spec.networks", items(&new["spec"], "networks"), api::router::NETWORKS_MAX, &mut causes);
    causes
}

/// Fields of a network that say its addresses.
const ADDRESSES: &[&str] = &["subnet", "ipRange", "gateway", "ipv6Subnet", "ipv6Range", "ipv6Gateway"];

/// Fields of a network that say how it is, by names of the user's.
const MEANINGS: &[&str] = &["options", "auxiliaryAddresses"];

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// What a new network asks for by names of the user's: whoever makes it hears at once what no machine could make of it. One that is there
/// was made when more, or other things, were let.
fn check_meanings(spec: &Value, causes: &mut Vec<Cause>) {
    // What is of another shape is the schema's to refuse.
    let Ok(read) = serde_json::from_value::<api::NetworkSpec>(spec.clone()) else { return };
    if let Err(flaw) = read.read_options() {
        causes.push(Cause::invalid("spec.options", &spec["options"], &flaw.to_string()));
    }
    if let Err(flaw) = read.read_auxiliary(read.shared(&read.subnet)) {
        causes.push(Cause::invalid("spec.auxiliaryAddresses", &spec["auxiliaryAddresses"], &flaw));
    }
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
    let subnet = text(new, "/spec/subnet");
    let is_new = old.is_none_or(|old| text(old, "/spec/subnet") != subnet);
    if is_new && subnet.parse::<api::share::Range>().is_ok_and(|range| range.prefix() < SUBNET_PREFIX_MIN) {
        let flaw = format!("is too large: its prefix must have at least {SUBNET_PREFIX_MIN} bits, as in 10.0.0.0/8");
        causes.push(Cause::invalid("spec.subnet", &spec["subnet"], &flaw));
    }
    if old.is_none() {
        check_meanings(spec, &mut causes);
    }
    if let Some(old) = old {
        for field in ["mode", "uplink"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
        // Machines make it one after another, and each by what it says then.
        for field in MEANINGS {
            let of = |network: &Value| network["spec"].get(*field).filter(|value| !is_empty(value)).cloned();
            check_immutable(&format!("spec.{field}"), of(new).as_ref(), of(old).as_ref(), &mut causes);
        }
        // Whoever is on it was told them. What is absent is as what is empty.
        let has_ipv6 = |network: &Value| network["spec"]["ipv6"].as_bool().unwrap_or_default();
        if has_ipv6(new) != has_ipv6(old) {
            causes.push(Cause::invalid("spec.ipv6", &spec["ipv6"], "field is immutable"));
        }
        for field in ADDRESSES {
            let pointer = format!("/spec/{field}");
            if text(new, &pointer) != text(old, &pointer) {
                causes.push(Cause::invalid(&format!("spec.{field}"), &spec[field], "field is immutable"));
            }
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
        own::<api::Port>(|kind| {
            plain(kind);
            kind.selectable_fields = vec![("status.nodeName".into(), "/status/nodeName".into())];
            kind.columns = vec![
                path("Network", "string", ".spec.network"),
                path("Address", "string", ".status.address"),
                path("MAC", "string", ".status.macAddress"),
                path("Phase", "string", ".status.phase"),
                column("Used By", "string", |object, _| {
                    let on = |field: &str| text(object, &format!("/status/attachedTo/{field}"));
                    let names = ["virtualMachine", "container", "pod"].map(on);
                    names.into_iter().find(|name| !name.is_empty()).unwrap_or_default().into()
                }),
                age(),
                wide(path("Node", "string", ".status.nodeName")),
                wide(path("Message", "string", ".status.message")),
            ];
            kind.validate = validate_port;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_subnet_has_a_bound_but_what_is_there_stays() {
        let network = |subnet: &str| json!({"metadata": {"name": "a"}, "spec": {"name": "a", "subnet": subnet}});
        let refused = |new: &Value, old: Option<&Value>| {
            validate_network(new, old).iter().any(|cause| cause.field == "spec.subnet")
        };
        assert!(!refused(&network("10.0.0.0/8"), None) && !refused(&network(""), None));
        assert!(refused(&network("0.0.0.0/0"), None) && refused(&network("32.0.0.0/3"), None));
        assert!(!refused(&network("32.0.0.0/3"), Some(&network("32.0.0.0/3"))));
        assert!(refused(&network("32.0.0.0/3"), Some(&network("10.0.0.0/24"))));
    }

    #[test]
    fn the_addresses_of_a_network_stay_as_they_were_made() {
        let network = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
        let causes = |new: Value, old: Value| -> Vec<String> {
            let causes = validate_network(&network(new), Some(&network(old)));
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
        };
        let (absent, empty) = (json!({"name": "a"}), json!({"name": "a", "subnet": "", "ipRange": "", "gateway": ""}));
        assert!(causes(absent.clone(), empty.clone()).is_empty() && causes(empty, absent.clone()).is_empty());
        for field in ADDRESSES {
            let (old, new) = (json!({"name": "a", *field: "10.0.0.1"}), json!({"name": "a", *field: "10.0.0.2"}));
            assert!(causes(old.clone(), old.clone()).is_empty());
            for (new, old) in [(new, old.clone()), (old.clone(), absent.clone()), (absent.clone(), old)] {
                let said = causes(new, old);
                assert!(said.len() == 1 && said[0].starts_with(&format!("spec.{field}:")), "{said:?}");
                assert!(said[0].ends_with("field is immutable"), "{said:?}");
            }
        }
    }

    #[test]
    fn what_a_network_was_told_by_options_stays() {
        let network = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
        let causes = |new: Value, old: Value| validate_network(&network(new), Some(&network(old))).len();
        for field in MEANINGS {
            let (absent, empty) = (json!({"name": "a"}), json!({"name": "a", *field: {}}));
            let (one, other) = (json!({"name": "a", *field: {"k": "1"}}), json!({"name": "a", *field: {"k": "2"}}));
            assert_eq!(causes(absent.clone(), empty.clone()) + causes(empty.clone(), absent.clone()), 0);
            assert_eq!(causes(one.clone(), one.clone()), 0);
            assert_eq!((causes(one.clone(), other), causes(one.clone(), absent), causes(empty, one)), (1, 1, 1));
        }
    }

    #[test]
    fn a_new_network_asks_for_what_can_be_had_and_one_that_is_there_stays() {
        let fields = |spec: &Value, is_new: bool| -> Vec<String> {
            let network = json!({"metadata": {"name": "a"}, "spec": spec});
            let causes = validate_network(&network, Some(&network).filter(|_| !is_new));
            causes.into_iter().map(|cause| cause.field).collect()
        };
        let option = |name: &str, value: &str| json!({"name": "a", "options": {(name): value}});
        let auxiliary = |count: usize| {
            let all = (0..count).map(|at| (format!("k{at}"), Value::from(format!("10.9.{}.9", at % 256))));
            let all: serde_json::Map<String, Value> = all.collect();
            json!({"name": "a", "driver": "bridge", "auxiliaryAddresses": all})
        };
        for fit in [
            option("com.docker.network.driver.mtu", "1400"),
            option("mine", "any"),
            auxiliary(api::network::AUXILIARY_MAX),
        ] {
            assert!(fields(&fit, true).is_empty(), "{:?}", fields(&fit, true));
        }
        for (unfit, field) in [
            (option("com.docker.network.driver.mtu", "many"), "spec.options"),
            (option("com.docker.network.bridge.gateway_mode_ipv4", "routed"), "spec.options"),
            (option("com.docker.network.bridge.host_binding_ipv4", "127.0.0.1"), "spec.options"),
            (json!({"name": "a", "auxiliaryAddresses": {"k": "nonsense"}}), "spec.auxiliaryAddresses"),
            (auxiliary(api::network::AUXILIARY_MAX + 1), "spec.auxiliaryAddresses"),
        ] {
            assert_eq!(fields(&unfit, true), [field]);
            assert!(fields(&unfit, false).is_empty());
        }
    }

    #[test]
    fn interfaces_are_few_and_different_and_the_single_fields_say_nothing_else() {
        let causes = |spec: Value| -> Vec<String> {
            let mut causes = Vec::new();
            check_places(&json!({ "spec": spec }), &mut causes);
            causes.into_iter().map(|cause| cause.field).collect()
        };
        let list = |list: Value| json!({ "interfaces": list });
        assert!(
            causes(list(json!([{}, {"network": "a"}, {"network": "a", "securityGroups": ["g"]}, {"port": "p"}])))
                .is_empty()
        );
        assert_eq!(causes(list(json!([{"port": "p"}, {"port": "p"}]))), ["spec.interfaces[1].port"]);
        assert_eq!(causes(list(json!([{"network": "a/b"}]))), ["spec.interfaces[0].network"]);
        let both = json!([{"port": "p", "network": "a", "macAddress": "52:54:00:00:00:01"}]);
        assert_eq!(causes(list(both)), ["spec.interfaces[0].network", "spec.interfaces[0].macAddress"]);
        for mac in ["02:42:0a:58:00:01", "01:00:5e:00:00:01", "x"] {
            assert_eq!(causes(list(json!([{ "macAddress": mac }]))), ["spec.interfaces[0].macAddress"], "{mac}");
        }
        for network in ["", "bridge", "default"] {
            let wish = json!([{"network": network, "macAddress": "52:54:00:00:00:01"}]);
            assert_eq!(causes(list(wish)), ["spec.interfaces[0].macAddress"], "{network:?} is everybody's");
        }
        assert!(causes(list(json!([{"network": "a", "macAddress": "52:54:00:00:00:01"}]))).is_empty());
        let twins = json!([
            {"network": "b", "macAddress": "52:54:00:00:00:0a"},
            {"network": "a", "macAddress": "52:54:00:00:00:0A"},
        ]);
        assert_eq!(causes(list(twins)), ["spec.interfaces[1].macAddress"]);
        assert_eq!(causes(list(vec![json!({}); INTERFACES_MAX + 1].into())), ["spec.interfaces"]);
        let with = |field: &str, value: Value, first: Value| causes(json!({"interfaces": [first], field: value}));
        assert!(with("network", "a".into(), json!({"network": "a"})).is_empty());
        assert!(with("network", "bridge".into(), json!({})).is_empty());
        assert!(with("securityGroups", json!([]), json!({"securityGroups": ["g"]})).is_empty());
        assert_eq!(with("network", "b".into(), json!({"network": "a"})), ["spec.network"]);
        assert_eq!(with("port", "p".into(), json!({"network": "a"})), ["spec.port"]);
        assert_eq!(with("securityGroups", json!(["g"]), json!({})), ["spec.securityGroups"]);
    }

    #[test]
    fn a_workload_says_its_port_once_and_no_groups_beside() {
        let causes = |new: Value, old: Option<Value>| {
            let mut causes = Vec::new();
            check_port_label("spec.labels", &new, old.as_ref(), &mut causes);
            causes.len()
        };
        let (port, other) = (json!({"nuee.dev/port": "p"}), json!({"nuee.dev/port": "q"}));
        assert_eq!((causes(port.clone(), None), causes(json!({}), None), causes(Value::Null, None)), (0, 0, 0));
        assert_eq!((causes(port.clone(), Some(port.clone())), causes(json!({}), Some(Value::Null))), (0, 0));
        for (new, old) in [(port.clone(), Some(other)), (port.clone(), Some(json!({}))), (Value::Null, Some(port))] {
            assert_eq!(causes(new, old), 1);
        }
        assert_eq!(causes(json!({"nuee.dev/port": "a/b"}), None), 1);
        let both = json!({"nuee.dev/port": "p", "nuee.dev/security-groups": "g"});
        assert_eq!((causes(both.clone(), None), causes(both, Some(json!({"nuee.dev/port": "p"})))), (1, 1));
    }
}
