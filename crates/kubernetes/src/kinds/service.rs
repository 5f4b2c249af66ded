//! Services and endpoints: defaults, rules, cells. `Source:` pkg/apis/core of Kubernetes 1.36. Pure.

use std::collections::HashSet;

use apiserver::Cause;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::columns::or_none;
use super::fields::{
    check_immutable, check_label, check_label_1035, check_port, check_word, default, items, items_mut, object_mut, text,
};

/// Most endpoints that `kubectl get endpoints` lists by address.
const SHOWN_ENDPOINTS: usize = 3;
/// Timeout of `ClientIP` affinity.
const AFFINITY_SECONDS: i64 = 10_800;
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// Fills in a Service.
pub(super) fn defaults(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
    }
    let kind = text(spec, "/type").to_owned();
    for port in items_mut(spec, "ports") {
        default(port, "protocol", "TCP");
        let number = port["port"].clone();
        let unset = port.get("targetPort").is_none_or(|target| target.is_null() || target == 0 || target == "");
        if let (true, Some(map)) = (unset, port.as_object_mut()) {
            map.insert("targetPort".into(), number);
        }
    }
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// An update that leaves out the addresses and node ports keeps those that were handed out.
pub(super) fn keep_allocated(new: &mut Value, old: &Value) {
    let kind = text(new, "/spec/type").to_owned();
    if kind == "ExternalName" || text(old, "/spec/type") == "ExternalName" {
        return;
    }
    if text(new, "/spec/clusterIP").is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(field) {
                new["spec"][field] = value.clone();
            }
        }
    }
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        return;
    }
    let before: Vec<Value> = items(&old["spec"], "ports").to_vec();
    for port in items_mut(&mut new["spec"], "ports") {
        let same = before.iter().find(|one| one["port"] == port["port"] && one["protocol"] == port["protocol"]);
        if let Some(node_port) = same.and_then(|one| one.get("nodePort")) {
            default(port, "nodePort", node_port.clone());
        }
    }
}

/// Checks a Service.
pub(super) fn validate(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    if old.is_none() {
        check_label_1035("metadata.name", text(new, "/metadata/name"), &mut causes);
    }
    check_word("spec.type", spec.get("type"), TYPES, &mut causes);
    check_word("spec.sessionAffinity", spec.get("sessionAffinity"), &["ClientIP", "None"], &mut causes);
    let kind = text(spec, "/type");
    let headless = text(spec, "/clusterIP") == "None";
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if kind == "ExternalName" && text(spec, "/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), &detail));
    }
    check_ports(ports, kind, &mut causes);
    let pinned = old.filter(|old| {
        let before = text(old, "/spec/type");
        before != "ExternalName" && kind != "ExternalName" && !text(old, "/spec/clusterIP").is_empty()
    });
    if let Some(old) = pinned {
        let (new_ip, old_ip) = (new.pointer("/spec/clusterIP"), old.pointer("/spec/clusterIP"));
        check_immutable("spec.clusterIP", new_ip, old_ip, &mut causes);
    }
    causes
}

fn check_ports(ports: &[Value], kind: &str, causes: &mut Vec<Cause>) {
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let name = text(port, "/name");
        if ports.len() > 1 || !name.is_empty() {
            check_label(&format!("{at}.name"), name, causes);
        }
        if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &name.into()));
        }
        check_port(&format!("{at}.port"), &port["port"], causes);
        check_word(&format!("{at}.protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"], causes);
        if port["targetPort"].is_number() {
            check_port(&format!("{at}.targetPort"), &port["targetPort"], causes);
        }
        if !numbers.insert((port["port"].as_i64(), text(port, "/protocol"))) {
            let shown = json!({"port": port["port"], "protocol": port["protocol"]});
            causes.push(Cause::duplicate(&at, &shown));
        }
        if kind == "ClusterIP" && port.get("nodePort").and_then(Value::as_i64).is_some_and(|port| port != 0) {
            causes.push(Cause::forbidden(&format!("{at}.nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
    }
}

pub(super) fn cluster_ip(object: &Value, _: Timestamp) -> Value {
    let ip = text(object, "/spec/clusterIP");
    if ip.is_empty() { "<none>".into() } else { ip.into() }
}

pub(super) fn external_ip(object: &Value, _: Timestamp) -> Value {
    let spec = &object["spec"];
    let external: Vec<&str> = items(spec, "externalIPs").iter().filter_map(Value::as_str).collect();
    let balancer = object.pointer("/status/loadBalancer").unwrap_or(&Value::Null);
    let ingress: Vec<&str> = items(balancer, "ingress")
        .iter()
        .filter_map(|one| [text(one, "/ip"), text(one, "/hostname")].into_iter().find(|text| !text.is_empty()))
        .collect();
    match text(spec, "/type") {
        "LoadBalancer" if ingress.is_empty() && external.is_empty() => "<pending>".into(),
        "LoadBalancer" => ingress.into_iter().chain(external).collect::<Vec<_>>().join(",").into(),
        "ExternalName" => or_none(text(spec, "/externalName").to_owned()),
        _ => or_none(external.join(",")),
    }
}

pub(super) fn ports(object: &Value, _: Timestamp) -> Value {
    let shown: Vec<String> = items(&object["spec"], "ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (port["port"].as_i64().unwrap_or_default(), text(port, "/protocol"));
            match port["nodePort"].as_i64().filter(|port| *port > 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    or_none(shown.join(","))
}

/// Addresses with ports of an `Endpoints` object, the first few.
pub(super) fn endpoints(object: &Value, _: Timestamp) -> Value {
    let mut shown = Vec::new();
    for subset in items(object, "subsets") {
        let ports = items(subset, "ports");
        for address in items(subset, "addresses") {
            let ip = text(address, "/ip");
            if ports.is_empty() {
                shown.push(ip.to_owned());
            }
            shown.extend(ports.iter().map(|port| format!("{ip}:{}", port["port"].as_i64().unwrap_or_default())));
        }
    }
    let more = shown.len().saturating_sub(SHOWN_ENDPOINTS);
    shown.truncate(SHOWN_ENDPOINTS);
    let text = shown.join(",");
    if more > 0 { format!("{text} + {more} more...").into() } else { or_none(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_service_gets_kubernetes_defaults() {
        let mut service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}], "type": "NodePort"}});
        defaults(&mut service);
        assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(service["spec"]["sessionAffinity"], "None");
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        assert!(validate(&service, None).is_empty());
    }

    #[test]
    fn wrong_services_are_refused_by_field() {
        let check = |spec: Value, field: &str| {
            let causes = validate(&json!({"metadata": {"name": "web"}, "spec": spec}), None);
            assert_eq!(causes.first().map(|cause| cause.field.as_str()), Some(field));
        };
        check(json!({"type": "ClusterIP"}), "spec.ports");
        check(json!({"ports": [{"port": 0}]}), "spec.ports[0].port");
        check(json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[0].name");
        check(json!({"ports": [{"port": 1}], "type": "Magic"}), "spec.type");
    }

    #[test]
    fn an_update_keeps_what_was_handed_out() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut new = json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        new["spec"]["clusterIP"] = "10.0.0.2".into();
        assert_eq!(validate(&new, Some(&old))[0].field, "spec.clusterIP");
    }
}
