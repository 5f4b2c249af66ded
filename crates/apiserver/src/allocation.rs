//! Addresses and node ports of Services: chosen from the free ones, and held by keys in the same transaction.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::keys;
use crate::kind::Kind;
use crate::server::{ApiServer, Error, Options};
use crate::status::{Cause, Status};

/// Largest range of Service addresses that is searched.
const MAX_ADDRESSES: u32 = 1 << 20;

/// The ranges to choose from.
#[derive(Debug)]
pub struct AddressRanges {
    first: u32,
    count: u32,
    ports: (u16, u16),
}

impl AddressRanges {
    /// Reads the options.
    pub fn new(options: &Options) -> Result<AddressRanges, Error> {
        let wrong = |detail: &str| Error::Option {
            option: "service_cidr",
            detail: format!("{}: {detail}", options.service_cidr),
        };
        let (address, prefix) = options.service_cidr.split_once('/').ok_or_else(|| wrong("no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong("no IPv4 address"))?;
        let prefix: u32 = prefix
            .parse()
            .ok()
            .filter(|prefix| (12..=30).contains(prefix))
            .ok_or_else(|| wrong("the prefix length must be 12 to 30"))?;
        if options.node_ports.0 == 0 || options.node_ports.0 > options.node_ports.1 {
            return Err(Error::Option { option: "node_ports", detail: "the range is empty".into() });
        }
        let size = (1_u32 << (32 - prefix)).min(MAX_ADDRESSES);
        let base = u32::from(address) & (u32::MAX << (32 - prefix));
        // The first address is the network's, the last its broadcast address.
        Ok(AddressRanges { first: base + 1, count: size - 2, ports: options.node_ports })
    }

    /// The first address: that of the `kubernetes` service.
    pub fn api_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first)
    }

    fn contains(&self, text: &str) -> bool {
        text.parse::<Ipv4Addr>().is_ok_and(|ip| (self.first..self.first + self.count).contains(&u32::from(ip)))
    }
}

fn addresses(service: &Value) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = crate::json::strings(service, "/spec/clusterIPs").into_iter().collect();
    found.insert(crate::json::text(service, "/spec/clusterIP").to_owned());
    found.retain(|address| !address.is_empty() && address != "None");
    found
}

fn ports(service: &Value) -> BTreeSet<u64> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_u64());
    ports.chain(service["spec"]["healthCheckNodePort"].as_u64()).filter(|port| *port > 0).collect()
}

/// The keys that hold what the Service has.
pub fn reserved_keys(service: &Value) -> impl Iterator<Item = String> {
    let held = addresses(service).into_iter().map(|address| keys::service("addresses", &address));
    held.chain(ports(service).into_iter().map(|port| keys::service("ports", &port.to_string())))
}

/// Whether the value was our own choice, so that another may be chosen. `asked` is the object as the client sent it.
pub fn may_retry(asked: &Value, key: &str) -> bool {
    key.starts_with("/reserved/services/") && !reserved_keys(asked).any(|own| own == key)
}

/// The answer when a value that the client chose is taken.
pub fn refusal(kind: &Kind, service: &Value, key: &str) -> Option<Status> {
    let (what, value) = key.strip_prefix("/reserved/services/")?.split_once('/')?;
    let cause = if what == "addresses" {
        Cause::invalid(
            "spec.clusterIPs",
            &json!([value]),
            &format!("failed to allocate IP {value}: provided IP is already allocated"),
        )
    } else {
        let wanted = value.parse::<u64>().ok();
        let at = service["spec"]["ports"]
            .as_array()?
            .iter()
            .position(|port| port["nodePort"].as_u64() == wanted)
            .unwrap_or(0);
        Cause::invalid(&format!("spec.ports[{at}].nodePort"), &json!(wanted), "provided port is already allocated")
    };
    Some(Status::invalid(&kind.group, &kind.kind, crate::json::text(service, "/metadata/name"), vec![cause]))
}

/// What is wrong with the first node port that is not of the range. Source: Kubernetes, `portallocator.ErrNotInRange`.
fn stray_port(service: &Value, (first, last): (u16, u16), kept: &BTreeSet<u64>) -> Option<Cause> {
    let mut all = service["spec"]["ports"].as_array()?.iter().enumerate();
    let range = u64::from(first)..=u64::from(last);
    let stray = |port: u64| port > 0 && !range.contains(&port) && !kept.contains(&port);
    all.find_map(|(at, port)| {
        let port = port["nodePort"].as_u64().filter(|port| stray(*port))?;
        let detail = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
        Some(Cause::invalid(&format!("spec.ports[{at}].nodePort"), &json!(port), &detail))
    })
}

/// Fills in addresses and ports that are wanted and not given; keeps those that the Service already has. Ports that are asked for must
/// be of the range, unless it may be `any_port`.
pub fn allocate(
    server: &ApiServer,
    kind: &Kind,
    service: &mut Value,
    old: Option<&Value>,
    any_port: bool,
) -> Result<(), Status> {
    let name = crate::json::text(service, "/metadata/name").to_owned();
    let invalid = |cause: Cause| Status::invalid(&kind.group, &kind.kind, &name, vec![cause]);
    let class = crate::json::text(service, "/spec/type").to_owned();
    if class == "ExternalName" {
        return Ok(());
    }
    if !service["spec"].is_object() {
        return Err(invalid(Cause::required("spec", "")));
    }
    let services = server.cache(kind).all("");
    let mut used: Option<(HashSet<String>, HashSet<u64>)> = None;
    let mut used = || {
        used.get_or_insert_with(|| {
            let trees: Vec<Value> = services.iter().map(crate::object::Object::to_value).collect();
            (trees.iter().flat_map(addresses).collect(), trees.iter().flat_map(ports).collect())
        })
        .clone()
    };
    if let Some(old) = old
        && crate::json::is_empty(service["spec"].get("clusterIP"))
    {
        service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
    }
    let address = match crate::json::text(service, "/spec/clusterIP") {
        "" => match crate::json::strings(service, "/spec/clusterIPs").first() {
            Some(first) => first.clone(),
            None => free_address(&server.addresses, &used().0)
                .ok_or_else(|| Status::internal("no free Service address is left"))?,
        },
        given => given.to_owned(),
    };
    let kept = old.is_some_and(|old| old["spec"]["clusterIP"] == address.as_str());
    if address != "None" && !kept && !server.addresses.contains(&address) {
        return Err(invalid(Cause::invalid(
            "spec.clusterIPs",
            &json!([address]),
            "failed to allocate IP: the provided IP is not in the valid range",
        )));
    }
    service["spec"]["clusterIP"] = json!(address);
    service["spec"]["clusterIPs"] = json!([address]);
    if matches!(class.as_str(), "NodePort" | "LoadBalancer") {
        let kept = old.map(ports).unwrap_or_default();
        if let Some(cause) = stray_port(service, server.addresses.ports, &kept).filter(|_| !any_port) {
            return Err(invalid(cause));
        }
        let mut taken = used().1;
        let before = old.map(|old| old["spec"]["ports"].as_array().cloned().unwrap_or_default()).unwrap_or_default();
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) > 0 {
                continue;
            }
            let same =
                before.iter().find(|other| other["port"] == port["port"] && other["protocol"] == port["protocol"]);
            let chosen = same.and_then(|same| same["nodePort"].as_u64()).filter(|port| *port > 0);
            let chosen = match chosen {
                Some(chosen) => chosen,
                None => free_port(server.addresses.ports, &taken)
                    .ok_or_else(|| Status::internal("no free node port is left"))?,
            };
            taken.insert(chosen);
            port["nodePort"] = json!(chosen);
        }
    } else if old.is_some_and(|old| crate::json::text(old, "/spec/type") != class) {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    Ok(())
}

fn free_address(ranges: &AddressRanges, used: &HashSet<String>) -> Option<String> {
    // The first addresses are left for those who ask for a fixed one.
    let low = (ranges.count / 16).clamp(1, 256).min(ranges.count - 1);
    let start = rand::random_range(low..ranges.count);
    let order = (start..ranges.count).chain(low..start).chain(1..low);
    order.map(|offset| Ipv4Addr::from(ranges.first + offset).to_string()).find(|address| !used.contains(address))
}

fn free_port((first, last): (u16, u16), used: &HashSet<u64>) -> Option<u64> {
    let start = rand::random_range(first..=last);
    (start..=last).chain(first..start).map(u64::from).find(|port| !used.contains(port))
}
