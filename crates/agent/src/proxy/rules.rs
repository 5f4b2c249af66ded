//! Services and their endpoints as load-balancing rules and DNS records. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use api::swarm::{ALL_PORTS_ANNOTATION, NAMES_ANNOTATION, NETWORK_ANNOTATION};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as EndpointOfSlice, EndpointSlice};
use network::dns::{HeadlessEndpoint, ServicePort as DnsPort, ServiceRecord};
use network::{Endpoint, Protocol, ServiceRule};

use crate::directory::VirtualNames;

/// Label by which a slice names its service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Session affinity when none is given. Units: seconds. Source: Kubernetes API reference, `ClientIPConfig`.
const AFFINITY_DEFAULT_SECONDS: u32 = 10_800;

/// What services mean for this machine.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Load balancing.
    pub rules: Vec<ServiceRule>,
    /// Names.
    pub records: BTreeMap<(String, String), ServiceRecord>,
    /// Names on networks of users.
    pub names: VirtualNames,
}

/// Slices by the service that they belong to.
type Slices<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

/// What the fabric calls a network, by its object's namespace and name.
pub type Networks<'a> = dyn Fn(&str, &str) -> Option<String> + 'a;

/// Computes rules and records.
#[must_use]
pub fn plan<'a>(
    services: impl Iterator<Item = &'a Service>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node_name: &str,
    networks: &Networks<'_>,
) -> Plan {
    let mut by_service: Slices = BTreeMap::new();
    for slice in slices {
        let meta = &slice.metadata;
        if let (Some(namespace), Some(name)) =
            (meta.namespace.as_deref(), meta.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL)))
        {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut plan = Plan::default();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), &service.spec)
        else {
            continue;
        };
        let own = by_service.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        if let Some(record) = record(spec, own) {
            plan.records.insert((namespace.to_owned(), name.to_owned()), record);
        }
        // A service speaks for networks of its own namespace alone.
        let network = annotation(service, NETWORK_ANNOTATION).and_then(|object| networks(namespace, object));
        if let Some(network) = &network {
            add_names(service, spec, network, &mut plan.names);
        }
        plan.rules.extend(every_port(namespace, name, service, network, own));
        if annotation(service, ALL_PORTS_ANNOTATION) == Some("true") {
            continue;
        }
        let external = load_balancer_addresses(service);
        for port in spec.ports.iter().flatten() {
            plan.rules.extend(rule(namespace, name, spec, port, own, node_name, &external));
        }
    }
    plan.rules.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

fn cluster_ip(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok())
}

fn protocol(text: Option<&str>) -> Protocol {
    text.and_then(|t| t.parse().ok()).unwrap_or_default()
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|p| *p > 0)
}

fn load_balancer_addresses(service: &Service) -> Vec<Ipv4Addr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_ref());
    status.into_iter().flatten().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect()
}

fn rule(
    namespace: &str,
    name: &str,
    spec: &ServiceSpec,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    node_name: &str,
    load_balancer: &[Ipv4Addr],
) -> Option<ServiceRule> {
    let cluster_ip = cluster_ip(spec)?;
    let port_name = port.name.as_deref().unwrap_or_default();
    let kind = protocol(port.protocol.as_deref());
    let all = endpoints(slices, port_name, kind);
    let local = || all.iter().filter(|e| e.node == Some(node_name)).map(|e| e.endpoint).collect::<Vec<_>>();
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let every: Vec<Endpoint> = all.iter().map(|e| e.endpoint).collect();
    let inside = if internal_local { local() } else { every.clone() };
    let outside = match (internal_local, external_local) {
        (_, true) => Some(local()),
        (true, false) => Some(every),
        (false, false) => None,
    };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY_DEFAULT_SECONDS)
    });
    let mut external_addresses: Vec<Ipv4Addr> =
        spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    external_addresses.extend(load_balancer);
    Some(ServiceRule {
        name: format!(
            "{namespace}/{name}:{}/{kind}",
            if port_name.is_empty() { port.port.to_string() } else { port_name.to_owned() }
        ),
        cluster_ip: Some(cluster_ip),
        external_addresses,
        port: port_number(port.port)?,
        protocol: kind,
        node_port: port.node_port.and_then(port_number),
        endpoints: inside,
        external_endpoints: outside,
        from_network: None,
        affinity_seconds: affinity,
    })
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Names of a service's address on a network of users.
fn add_names(service: &Service, spec: &ServiceSpec, network: &str, names: &mut VirtualNames) {
    let Some(address) = cluster_ip(spec) else { return };
    let own = annotation(service, NAMES_ANNOTATION).unwrap_or_default().to_lowercase();
    let mut own = own.split(',').filter(|name| !name.is_empty()).peekable();
    let members = format!("tasks.{}", own.peek().copied().unwrap_or_default());
    let entry = names.entry(network.to_owned()).or_default();
    entry.extend(own.map(|name| (name.to_owned(), (address, members.clone()))));
}

/// The rule of a service whose address leads to its endpoints on every port.
fn every_port(
    namespace: &str,
    name: &str,
    service: &Service,
    network: Option<String>,
    slices: &[&EndpointSlice],
) -> Option<ServiceRule> {
    if annotation(service, ALL_PORTS_ANNOTATION) != Some("true") {
        return None;
    }
    let address = cluster_ip(service.spec.as_ref()?)?;
    let ready = |e: &&EndpointOfSlice| e.conditions.as_ref().and_then(|c| c.ready) != Some(false);
    let endpoints = slices.iter().filter(|s| s.address_type == "IPv4").flat_map(|s| s.endpoints.iter().flatten());
    let addresses = endpoints.filter(ready).filter_map(|e| e.addresses.first()?.parse().ok());
    Some(ServiceRule {
        name: format!("{namespace}/{name}:*"),
        cluster_ip: Some(address),
        external_addresses: Vec::new(),
        port: 0,
        protocol: Protocol::default(),
        node_port: None,
        endpoints: addresses.map(|address| Endpoint { address, port: 0 }).collect(),
        external_endpoints: None,
        from_network: network,
        affinity_seconds: None,
    })
}

struct Candidate<'a> {
    endpoint: Endpoint,
    node: Option<&'a str>,
}

/// Ready endpoints of one port; when none is ready, those that still serve while they end.
fn endpoints<'a>(slices: &[&'a EndpointSlice], port_name: &str, kind: Protocol) -> Vec<Candidate<'a>> {
    let (mut ready, mut serving) = (Vec::new(), Vec::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let port =
            slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or_default() == port_name && protocol(p.protocol.as_deref()) == kind
            });
        let Some(number) = port.and_then(|p| p.port).and_then(port_number) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let list = if conditions.ready != Some(false) {
                &mut ready
            } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
                &mut serving
            } else {
                continue;
            };
            // One address per endpoint is all that Kubernetes uses.
            if let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) {
                list.push(Candidate {
                    endpoint: Endpoint { address, port: number },
                    node: endpoint.node_name.as_deref(),
                });
            }
        }
    }
    let mut list = if ready.is_empty() { serving } else { ready };
    list.sort_by_key(|c| c.endpoint);
    list.dedup_by_key(|c| c.endpoint);
    list
}

fn record(spec: &ServiceSpec, slices: &[&EndpointSlice]) -> Option<ServiceRecord> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec.external_name.clone().map(|name| ServiceRecord::External { name });
    }
    if let Some(address) = cluster_ip(spec) {
        let ports = spec.ports.iter().flatten().filter_map(|p| {
            Some(DnsPort {
                name: p.name.clone().unwrap_or_default(),
                protocol: protocol(p.protocol.as_deref()),
                port: port_number(p.port)?,
            })
        });
        return Some(ServiceRecord::Cluster { address, ports: ports.collect() });
    }
    if spec.cluster_ip.as_deref() != Some("None") {
        return None;
    }
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let mut list = Vec::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let ports: Vec<DnsPort> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                Some(DnsPort {
                    name: p.name.clone().unwrap_or_default(),
                    protocol: protocol(p.protocol.as_deref()),
                    port: port_number(p.port?)?,
                })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if !unready_too && endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                continue;
            }
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            list.push(HeadlessEndpoint {
                hostname: endpoint.hostname.clone().unwrap_or_default(),
                address,
                ports: ports.clone(),
            });
        }
    }
    list.sort_by_key(|e| e.address);
    list.dedup_by_key(|e| e.address);
    Some(ServiceRecord::Headless { endpoints: list })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(spec: Value, endpoints: Value) -> Plan {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints
        }))
        .unwrap();
        plan([&service].into_iter(), [&slice].into_iter(), "n1", &|_, _| None)
    }

    fn addresses(list: &[Endpoint]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_service_leads_to_its_ready_endpoints() {
        let plan = check(
            json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "ports": [{"name": "http", "port": 80, "nodePort": 30080, "targetPort": 8080}]}),
            json!([{"addresses": ["10.88.0.3"], "conditions": {"ready": true}}, {"addresses": ["10.88.0.4"], "conditions": {"ready": false}}]),
        );
        let rule = &plan.rules[0];
        assert_eq!(
            (rule.name.as_str(), rule.port, rule.node_port, rule.affinity_seconds),
            ("shop/web:http/tcp", 80, Some(30080), Some(10800))
        );
        assert_eq!(addresses(&rule.endpoints), ["10.88.0.3 . 8080"]);
    }

    #[test]
    fn ending_endpoints_serve_while_no_other_does() {
        let plan = check(
            json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}),
            json!([{"addresses": ["10.88.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}}]),
        );
        assert_eq!(plan.rules[0].endpoints.len(), 1);
    }

    #[test]
    fn local_traffic_policy_keeps_outside_traffic_on_this_machine() {
        let plan = check(
            json!({"clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
            json!([{"addresses": ["10.88.0.3"], "nodeName": "n1"}, {"addresses": ["10.88.1.3"], "nodeName": "n2"}]),
        );
        assert_eq!(plan.rules[0].endpoints.len(), 2);
        assert_eq!(addresses(plan.rules[0].external_endpoints.as_ref().unwrap()), ["10.88.0.3 . 8080"]);
    }

    #[test]
    fn a_swarm_service_has_names_on_its_network_and_leads_on_from_every_port() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {
                ALL_PORTS_ANNOTATION: "true", NETWORK_ANNOTATION: "net", NAMES_ANNOTATION: "Web,front" }},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "any", "port": 1}]},
        }))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.89.0.3"]}, {"addresses": ["10.89.0.4"], "conditions": {"ready": false}}],
        }))
        .unwrap();
        let networks = |namespace: &str, name: &str| (namespace == "shop").then(|| format!("id-of-{name}"));
        let plan = plan([&service].into_iter(), [&slice].into_iter(), "n1", &networks);
        let [rule] = plan.rules.as_slice() else { panic!("{:?}", plan.rules) };
        assert_eq!((rule.port, rule.from_network.as_deref()), (0, Some("id-of-net")));
        assert_eq!(addresses(&rule.endpoints), ["10.89.0.3 . 0"]);
        let names: Vec<&str> = plan.names["id-of-net"].keys().map(String::as_str).collect();
        assert_eq!(names, ["front", "web"]);
        assert_eq!(plan.names["id-of-net"]["front"].1, "tasks.web");
        // A network of another namespace is not there for it.
        let elsewhere = super::plan([&service].into_iter(), [&slice].into_iter(), "n1", &|_, _| None);
        assert!(elsewhere.names.is_empty() && elsewhere.rules[0].from_network.is_none());
    }

    #[test]
    fn a_headless_service_is_only_names() {
        let plan =
            check(json!({"clusterIP": "None", "ports": []}), json!([{"addresses": ["10.88.0.3"], "hostname": "db-0"}]));
        assert!(plan.rules.is_empty());
        let record = &plan.records[&("shop".to_owned(), "web".to_owned())];
        assert!(matches!(record, ServiceRecord::Headless { endpoints } if endpoints[0].hostname == "db-0"));
    }
}
