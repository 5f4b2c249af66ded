//! What the snapshot says about a name. Pure.
//!
//! `Source:` Kubernetes DNS-Based Service Discovery, schema version 1.1.0.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::subnet::Subnet;

use super::{HeadlessEndpoint, NetworkNames, Records, ServicePort, ServiceRecord};

/// Records change with the cluster: clients may keep them for a few seconds only, as with CoreDNS. Units: seconds.
pub(super) const TTL_SECONDS: u32 = 5;
/// The version of the specification, as `dns-version` tells it.
const SCHEMA_VERSION: &str = "1.1.0";

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// These records.
    Found(Vec<Record>),
    /// An alias for a name that must be looked up in turn.
    Alias(Box<(Record, Name)>),
    /// The name is there, with other records.
    NoData,
    /// There is no such name.
    NoSuchName,
    /// Not ours to know: ask the machine's resolvers.
    NotOurs,
    /// Not ours to know, and the client is on an internal network.
    NoWayOut,
}

/// A snapshot, indexed.
pub(super) struct View {
    records: Records,
    domain: Vec<String>,
    /// Names of services and endpoints by address.
    reverse: HashMap<Ipv4Addr, Vec<String>>,
}

impl View {
    pub(super) fn new(records: Records, domain: &str) -> View {
        let domain = domain.to_ascii_lowercase();
        let mut reverse: HashMap<Ipv4Addr, Vec<String>> = HashMap::new();
        for ((namespace, name), service) in &records.services {
            let full = format!("{name}.{namespace}.svc.{domain}.");
            match service {
                ServiceRecord::Cluster { address, .. } => reverse.entry(*address).or_default().push(full),
                ServiceRecord::Headless { endpoints } => {
                    for endpoint in endpoints {
                        let names = reverse.entry(endpoint.address).or_default();
                        names.push(format!("{}.{full}", host_label(endpoint)));
                    }
                }
                ServiceRecord::External { .. } => {}
            }
        }
        View { records, domain: domain.split('.').map(str::to_owned).collect(), reverse }
    }

    /// Answers a question of `client`.
    pub(super) fn answer(&self, client: Option<Ipv4Addr>, name: &Name, kind: RecordType) -> Reply {
        // Labels that are no text are nobody's names here.
        let labels: Option<Vec<String>> =
            name.iter().map(|l| std::str::from_utf8(l).ok().map(str::to_ascii_lowercase)).collect();
        let Some(labels) = labels else { return Reply::NotOurs };
        // The network that the client asks on comes first.
        let networks = || {
            let all = || self.records.networks.iter();
            all().filter(|n| is_on(n, client)).chain(all().filter(|n| !is_on(n, client) && is_elsewhere(n, client)))
        };
        let inside = |network: &NetworkNames| is_on(network, client);
        if let Some(reply) = networks().find_map(|n| on_network(n, inside(n), &labels, name, kind)) {
            return reply;
        }
        if let Some(reply) = self.reverse(&labels, name, kind, networks()) {
            return reply;
        }
        if let Some(inside) = labels.strip_suffix(self.domain.as_slice()) {
            return self.in_cluster(inside, name, kind);
        }
        if networks().next().is_some() && networks().all(|n| n.internal) {
            return Reply::NoWayOut;
        }
        Reply::NotOurs
    }

    fn in_cluster(&self, labels: &[String], name: &Name, kind: RecordType) -> Reply {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] if kind == RecordType::SOA => Reply::Found(vec![self.soa()]),
            [] | ["svc" | "pod"] => Reply::NoData,
            ["dns-version"] => found(name, kind, [RData::TXT(TXT::new(vec![SCHEMA_VERSION.into()]))]),
            [namespace, "svc"] if self.records.services.keys().any(|(ns, _)| ns == namespace) => Reply::NoData,
            [namespace, "pod"] if self.records.pods.contains_key(*namespace) => Reply::NoData,
            [address, namespace, "pod"] => self.pod(address, namespace, name, kind),
            [rest @ .., service, namespace, "svc"] => {
                match self.records.services.get(&((*namespace).to_owned(), (*service).to_owned())) {
                    Some(record) => self.service(record, rest, name, kind),
                    None => Reply::NoSuchName,
                }
            }
            _ => Reply::NoSuchName,
        }
    }

    fn pod(&self, label: &str, namespace: &str, name: &Name, kind: RecordType) -> Reply {
        let address = label.replace('-', ".").parse::<Ipv4Addr>().ok();
        let pods = self.records.pods.get(namespace);
        match address.filter(|a| pods.is_some_and(|p| p.contains(a))) {
            Some(address) => found(name, kind, [RData::A(A(address))]),
            None => Reply::NoSuchName,
        }
    }

    /// A name at or under a service's.
    fn service(&self, record: &ServiceRecord, rest: &[&str], name: &Name, kind: RecordType) -> Reply {
        match (record, rest) {
            (ServiceRecord::Cluster { address, .. }, []) => found(name, kind, [RData::A(A(*address))]),
            (ServiceRecord::Headless { endpoints }, []) if endpoints.is_empty() => Reply::NoSuchName,
            (ServiceRecord::Headless { endpoints }, []) => found(name, kind, addresses(endpoints.iter())),
            (ServiceRecord::External { name: target }, []) => alias(name, target),
            (ServiceRecord::Headless { endpoints }, [host]) => {
                let mut named = endpoints.iter().filter(|e| host_label(e) == *host).peekable();
                if named.peek().is_none() { Reply::NoSuchName } else { found(name, kind, addresses(named)) }
            }
            (ServiceRecord::Cluster { ports, .. }, [port, protocol]) => {
                let target = name.trim_to(usize::from(name.num_labels()) - 2);
                ports_found(name, kind, matching(ports, port, protocol).map(|p| srv(p.port, target.clone())).collect())
            }
            (ServiceRecord::Headless { endpoints }, [port, protocol]) => {
                let base = name.trim_to(usize::from(name.num_labels()) - 2);
                let of_endpoint = |e: &HeadlessEndpoint| {
                    let target = base.prepend_label(host_label(e).as_bytes()).ok();
                    let found = matching(&e.ports, port, protocol).map(|p| p.port).collect::<Vec<_>>();
                    found.into_iter().filter_map(move |p| Some(srv(p, target.clone()?))).collect::<Vec<_>>()
                };
                ports_found(name, kind, endpoints.iter().flat_map(of_endpoint).collect())
            }
            // `_tcp.<service>` is on the way to names that exist.
            (ServiceRecord::Cluster { ports, .. }, [protocol]) if has_protocol(ports, protocol) => Reply::NoData,
            _ => Reply::NoSuchName,
        }
    }

    fn reverse<'a>(
        &self,
        labels: &[String],
        name: &Name,
        kind: RecordType,
        mut networks: impl Iterator<Item = &'a NetworkNames>,
    ) -> Option<Reply> {
        let address = address_of(labels)?;
        let on_network = networks.find_map(|n| Some(format!("{}.{}.", n.reverse.get(&address)?, n.name)));
        let names: Vec<String> = match on_network {
            Some(name) => vec![name],
            None => match address {
                IpAddr::V4(address) => self.reverse.get(&address)?.clone(),
                IpAddr::V6(_) => return None,
            },
        };
        let pointers = names.iter().filter_map(|n| Some(RData::PTR(PTR(Name::from_ascii(n).ok()?))));
        Some(found(name, kind, pointers.collect::<Vec<_>>()))
    }

    /// The subnets of user networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = Subnet> {
        self.records.networks.iter().filter_map(|n| n.subnet)
    }

    /// The start-of-authority record that goes with negative answers.
    pub(super) fn soa(&self) -> Record {
        let zone = Name::from_ascii(format!("{}.", self.domain.join("."))).unwrap_or_else(|_| Name::root());
        let label = |l: &str| zone.prepend_label(l.as_bytes()).unwrap_or_else(|_| zone.clone());
        let hour = 3600;
        let soa = SOA::new(label("ns"), label("hostmaster"), 1, 2 * hour, hour / 2, 24 * hour, TTL_SECONDS);
        Record::from_rdata(zone.clone(), TTL_SECONDS, RData::SOA(soa))
    }

    /// Whether a negative answer for this name is ours to give.
    pub(super) fn is_in_cluster(&self, name: &Name) -> bool {
        let labels: Vec<String> = name.iter().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect();
        labels.ends_with(&self.domain)
    }
}

fn is_on(network: &NetworkNames, client: Option<Ipv4Addr>) -> bool {
    client.is_some_and(|c| network.subnet.is_some_and(|s| s.contains(c)))
}

/// Whether the client is on the network, though it asks with its address on another.
fn is_elsewhere(network: &NetworkNames, client: Option<Ipv4Addr>) -> bool {
    client.is_some_and(|client| network.elsewhere.contains(&client))
}

/// `<name>` and `<name>.<network>`; names may hold dots themselves.
fn on_network(network: &NetworkNames, inside: bool, labels: &[String], name: &Name, kind: RecordType) -> Option<Reply> {
    let joined = labels.join(".");
    let look_up = |name: &str| match network.virtual_names.get(name).filter(|_| inside) {
        Some(address) => Some(vec![RData::A(A(*address))]),
        None => Some(network.names.get(name)?.iter().map(data_of).collect()),
    };
    let known = look_up(&joined)
        .or_else(|| look_up(joined.strip_suffix(&network.name.to_ascii_lowercase())?.strip_suffix('.')?))?;
    Some(found(name, kind, known))
}

fn data_of(address: &IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    }
}

/// The address that a name of a reverse look-up stands for. `Source:` RFC 1035, section 3.5; RFC 3596, section 2.5.
fn address_of(labels: &[String]) -> Option<IpAddr> {
    let (digits, zone) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    let (zone, last) = (zone.first()?.as_str(), zone.last()?.as_str());
    match (zone, last, digits.len()) {
        ("in-addr", "arpa", 4) => {
            let text = digits.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".");
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        ("ip6", "arpa", 32) if digits.iter().all(|d| d.len() == 1) => {
            let text: String = digits.iter().rev().map(String::as_str).collect();
            u128::from_str_radix(&text, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
        _ => None,
    }
}

/// The records of the asked type; none means that the name has others.
fn found(name: &Name, kind: RecordType, data: impl IntoIterator<Item = RData>) -> Reply {
    let wanted = data.into_iter().filter(|d| kind == d.record_type() || kind == RecordType::ANY);
    let records: Vec<Record> = wanted.map(|d| Record::from_rdata(name.clone(), TTL_SECONDS, d)).collect();
    if records.is_empty() { Reply::NoData } else { Reply::Found(records) }
}

fn ports_found(name: &Name, kind: RecordType, data: Vec<RData>) -> Reply {
    if data.is_empty() { Reply::NoSuchName } else { found(name, kind, data) }
}

fn alias(name: &Name, target: &str) -> Reply {
    match Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) {
        Ok(target) => {
            let record = Record::from_rdata(name.clone(), TTL_SECONDS, RData::CNAME(CNAME(target.clone())));
            Reply::Alias(Box::new((record, target)))
        }
        Err(_) => Reply::NoData,
    }
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a HeadlessEndpoint>) -> Vec<RData> {
    endpoints.map(|e| RData::A(A(e.address))).collect()
}

/// The label of an endpoint under its service: its hostname, or its address with dashes.
fn host_label(endpoint: &HeadlessEndpoint) -> String {
    if endpoint.hostname.is_empty() {
        endpoint.address.to_string().replace('.', "-")
    } else {
        endpoint.hostname.to_ascii_lowercase()
    }
}

fn matching<'a>(ports: &'a [ServicePort], port: &str, protocol: &str) -> impl Iterator<Item = &'a ServicePort> {
    ports.iter().filter(move |p| {
        !p.name.is_empty()
            && port.strip_prefix('_') == Some(p.name.to_ascii_lowercase().as_str())
            && protocol.strip_prefix('_') == Some(p.protocol.to_string().as_str())
    })
}

fn has_protocol(ports: &[ServicePort], protocol: &str) -> bool {
    ports.iter().any(|p| !p.name.is_empty() && protocol.strip_prefix('_') == Some(p.protocol.to_string().as_str()))
}

fn srv(port: u16, target: Name) -> RData {
    // Priority and weight as CoreDNS gives them.
    RData::SRV(SRV::new(0, 100, port, target))
}
