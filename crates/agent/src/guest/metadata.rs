//! What guests are told about themselves at 169.254.169.254: the forms of Amazon EC2 and of OpenStack. Who asks is known by
//! its address on its own network, which its port cannot forge; nothing in the request counts.
//!
//! `Source:` Amazon EC2 user guide, "Instance metadata categories"; OpenStack Nova, "Metadata service"

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use network::{Plan, StaticRoute, Subnet};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at once on one network.
const CONNECTIONS: usize = 128;
/// How long one connection may last.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
/// Answers do not leave the network of who asked. Units: hops.
const HOPS: u32 = 1;
/// Names of the same data, by the years' versions.
const EC2_VERSIONS: [&str; 3] = ["latest", "2009-04-04", "1.0"];

/// Where a default route leads.
const EVERYTHING: Subnet = Subnet::new_const(Ipv4Addr::UNSPECIFIED, 0);

/// What one guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Identity.
    pub uid: String,
    /// Name of its object.
    pub name: String,
    /// Host name.
    pub hostname: String,
    /// Name of its flavor.
    pub flavor: String,
    /// Public keys, by name.
    pub keys: Vec<(String, String)>,
    /// User data.
    pub user_data: String,
    /// Its network interfaces, the first one first.
    pub links: Vec<Link>,
}

/// A guest's interface as the guest should set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// Its address.
    pub address: String,
    /// Its hardware address.
    pub mac: String,
    /// Length of the network's prefix. Units: bits.
    pub prefix: u8,
    /// The machine's address there: gateway and name server, unless the plan says others.
    pub own: Ipv4Addr,
    /// The way to everything else is by this one.
    pub leads_out: bool,
    /// There are name servers.
    pub has_servers: bool,
    /// What the network says beside.
    pub plan: Plan,
    /// Largest packet. Units: bytes.
    pub mtu: u32,
}

/// Guests by their network's gateway and their own address.
pub type Entries = Arc<Mutex<HashMap<(Ipv4Addr, Ipv4Addr), Arc<Entry>>>>;

/// The answer to a path; `None` for what there is not. Pure.
pub fn answer(entry: &Entry, path: &str) -> Option<String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let first = parts.next();
    let rest: Vec<&str> = parts.collect();
    match first {
        None => Some(format!("{}\n", EC2_VERSIONS.join("\n"))),
        Some("openstack") => openstack(entry, &rest),
        Some(version) if EC2_VERSIONS.contains(&version) => ec2(entry, &rest),
        Some(_) => None,
    }
}

fn ec2(entry: &Entry, path: &[&str]) -> Option<String> {
    let key = |index: &str| index.parse::<usize>().ok().and_then(|index| entry.keys.get(index));
    Some(match path {
        [] => "meta-data\nuser-data".into(),
        ["user-data"] if !entry.user_data.is_empty() => entry.user_data.clone(),
        ["meta-data"] => {
            let names = "hostname\ninstance-id\ninstance-type\nlocal-hostname\nlocal-ipv4\nmac\nnetwork/";
            if entry.keys.is_empty() { names.into() } else { format!("{names}\npublic-keys/") }
        }
        ["meta-data", "instance-id"] => entry.uid.clone(),
        ["meta-data", "instance-type"] => entry.flavor.clone(),
        ["meta-data", "hostname" | "local-hostname"] => entry.hostname.clone(),
        ["meta-data", "local-ipv4"] => entry.links.first()?.address.clone(),
        ["meta-data", "mac"] => entry.links.first()?.mac.clone(),
        ["meta-data", "network"] => "interfaces/".into(),
        ["meta-data", "network", "interfaces"] => "macs/".into(),
        ["meta-data", "network", "interfaces", "macs"] => {
            entry.links.iter().map(|link| format!("{}/", link.mac)).collect::<Vec<_>>().join("\n")
        }
        ["meta-data", "network", "interfaces", "macs", mac, rest @ ..] => {
            let (number, link) = entry.links.iter().enumerate().find(|(_, link)| link.mac.eq_ignore_ascii_case(mac))?;
            match rest {
                [] => "device-number\nlocal-ipv4s\nmac\nsubnet-ipv4-cidr-block".into(),
                ["device-number"] => number.to_string(),
                ["local-ipv4s"] => link.address.clone(),
                ["mac"] => link.mac.clone(),
                ["subnet-ipv4-cidr-block"] => link.subnet()?,
                _ => return None,
            }
        }
        ["meta-data", "public-keys"] if !entry.keys.is_empty() => {
            let lines = entry.keys.iter().enumerate().map(|(index, (name, _))| format!("{index}={name}"));
            lines.collect::<Vec<_>>().join("\n")
        }
        ["meta-data", "public-keys", index] => key(index).map(|_| "openssh-key".to_owned())?,
        ["meta-data", "public-keys", index, "openssh-key"] => format!("{}\n", key(index)?.1),
        _ => return None,
    })
}

fn openstack(entry: &Entry, path: &[&str]) -> Option<String> {
    Some(match path {
        [] => "latest\n".into(),
        ["latest"] => "meta_data.json\nnetwork_data.json\nuser_data\n".into(),
        ["latest", "user_data"] if !entry.user_data.is_empty() => entry.user_data.clone(),
        ["latest", "meta_data.json"] => openstack_metadata(entry),
        ["latest", "network_data.json"] => openstack_network(entry),
        _ => return None,
    })
}

/// What OpenStack says of a machine.
pub fn openstack_metadata(entry: &Entry) -> String {
    let keys: serde_json::Map<_, _> = entry.keys.iter().map(|(name, key)| (name.clone(), json!(key))).collect();
    let list: Vec<_> = entry.keys.iter().map(|(name, key)| json!({"name": name, "type": "ssh", "data": key})).collect();
    json!({"uuid": entry.uid, "name": entry.name, "hostname": entry.hostname, "public_keys": keys, "keys": list,
        "meta": {}, "launch_index": 0})
    .to_string()
}

impl Link {
    /// Destinations and next hops.
    fn routes(&self) -> Vec<StaticRoute> {
        let gateway = self.plan.gateway(self.own, self.leads_out);
        let default = gateway.map(|next_hop| StaticRoute { destination: EVERYTHING, next_hop });
        default.into_iter().chain(self.plan.told_routes(self.own, self.leads_out)).collect()
    }

    fn servers(&self) -> Vec<Ipv4Addr> {
        if self.has_servers { self.plan.told_servers(self.own) } else { Vec::new() }
    }

    /// The network's subnet.
    fn subnet(&self) -> Option<String> {
        let address: Ipv4Addr = self.address.parse().ok()?;
        Some(format!("{}/{}", Ipv4Addr::from_bits(address.to_bits() & mask(self.prefix)), self.prefix))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(u32::BITS.saturating_sub(prefix.into())).unwrap_or(0)
}

/// What OpenStack says of its interfaces. The addresses come by DHCP where it is answered, and are those named here.
pub fn openstack_network(entry: &Entry) -> String {
    let (mut links, mut networks, mut all_services) = (Vec::new(), Vec::new(), Vec::new());
    for (number, link) in entry.links.iter().enumerate() {
        let route = |route: StaticRoute| {
            let netmask = Ipv4Addr::from(mask(route.destination.prefix()));
            json!({"network": route.destination.address(), "netmask": netmask, "gateway": route.next_hop})
        };
        let routes: Vec<_> = link.routes().into_iter().map(route).collect();
        let service = |server: Ipv4Addr| json!({"type": "dns", "address": server});
        let services: Vec<_> = link.servers().into_iter().map(service).collect();
        let id = format!("interface{number}");
        let kind = if link.plan.without_dhcp { "ipv4" } else { "ipv4_dhcp" };
        links.push(json!({"id": id, "type": "phy", "ethernet_mac_address": link.mac, "mtu": link.mtu}));
        networks.push(json!({"id": format!("network{number}"), "type": kind, "link": id,
            "network_id": link.network, "ip_address": link.address, "netmask": Ipv4Addr::from(mask(link.prefix)),
            "routes": routes, "services": services}));
        all_services.extend(services.into_iter().filter(|one| !all_services.contains(one)).collect::<Vec<_>>());
    }
    json!({"links": links, "networks": networks, "services": all_services}).to_string()
}

/// The same for NoCloud: version 2, which is YAML, and so may be JSON. `Source:` cloud-init, "Networking config Version 2"
pub fn no_cloud_network(entry: &Entry) -> String {
    let ethernet = |(number, link): (usize, &Link)| {
        let by_it = number == 0;
        let settings = match link.plan.without_dhcp {
            false => json!({"match": {"macaddress": link.mac}, "dhcp4": true, "mtu": link.mtu,
                "dhcp4-overrides": {"use-routes": by_it || !link.plan.routes.is_empty(), "use-dns": by_it}}),
            true => {
                let route = |route: StaticRoute| json!({"to": route.destination, "via": route.next_hop});
                let routes: Vec<_> = link.routes().into_iter().map(route).collect();
                let servers = if by_it { link.servers() } else { Vec::new() };
                json!({"match": {"macaddress": link.mac}, "dhcp4": false, "mtu": link.mtu,
                    "addresses": [format!("{}/{}", link.address, link.prefix)], "routes": routes,
                    "nameservers": {"addresses": servers}})
            }
        };
        (format!("interface{number}"), settings)
    };
    let ethernets: serde_json::Map<_, _> = entry.links.iter().enumerate().map(ethernet).collect();
    json!({"version": 2, "ethernets": ethernets}).to_string()
}

/// Serves guests on one network.
pub async fn listen(address: SocketAddrV4, entries: Entries) -> std::io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    listener.set_ttl(HOPS)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    Ok(tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept requests for metadata");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let entry = match peer.ip() {
                IpAddr::V4(guest) => entries.lock().get(&(*address.ip(), guest)).cloned(),
                IpAddr::V6(_) => None,
            };
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = respond(entry.as_deref(), &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // A guest that does not talk HTTP harms nobody but itself.
                let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
                drop(place);
            });
        }
    }))
}

fn respond(entry: Option<&Entry>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), entry) {
        (&Method::GET | &Method::HEAD, Some(entry)) => match answer(entry, request.uri().path()) {
            Some(text) => (StatusCode::OK, text),
            None => (StatusCode::NOT_FOUND, "404 Not Found\n".to_owned()),
        },
        (&Method::GET | &Method::HEAD, None) => (StatusCode::NOT_FOUND, "404 Not Found\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An interface on the network 10.`number`.0.0/20; the first one leads out.
    pub(in super::super) fn link(number: u8) -> Link {
        Link {
            network: format!("lan{number}"),
            network_id: format!("u-lan{number}"),
            address: format!("10.{number}.2.3"),
            mac: format!("02:42:0a:0{number}:02:03"),
            prefix: 20,
            own: Ipv4Addr::new(10, number, 0, 1),
            leads_out: number == 1,
            has_servers: number == 1,
            plan: Plan::default(),
            mtu: 1500,
        }
    }

    #[test]
    fn where_no_dhcp_is_answered_the_documents_say_everything() {
        let mut link = link(1);
        link.plan = Plan {
            without_dhcp: true,
            name_servers: vec![Ipv4Addr::new(192, 0, 2, 53)],
            routes: vec![StaticRoute {
                destination: "192.168.4.0/22".parse().unwrap(),
                next_hop: Ipv4Addr::new(10, 1, 0, 9),
            }],
            ..Plan::default()
        };
        let read = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let entry = |link: &Link| Entry { links: vec![link.clone()], ..Entry::default() };
        let network = read(openstack_network(&entry(&link)))["networks"][0].clone();
        assert_eq!((&network["type"], &network["ip_address"]), (&json!("ipv4"), &json!("10.1.2.3")));
        let routes = json!([
            {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"},
            {"network": "192.168.4.0", "netmask": "255.255.252.0", "gateway": "10.1.0.9"},
        ]);
        assert_eq!(network["routes"], routes);
        assert_eq!(network["services"], json!([{"type": "dns", "address": "192.0.2.53"}]));
        let settings = read(no_cloud_network(&entry(&link)))["ethernets"]["interface0"].clone();
        assert_eq!((&settings["dhcp4"], &settings["addresses"]), (&json!(false), &json!(["10.1.2.3/20"])));
        assert_eq!(settings["routes"][1], json!({"to": "192.168.4.0/22", "via": "10.1.0.9"}));
        assert_eq!(settings["nameservers"]["addresses"], json!(["192.0.2.53"]));
        link.plan.without_gateway = true;
        let network = read(openstack_network(&entry(&link)))["networks"][0].clone();
        let to: Vec<_> = network["routes"].as_array().unwrap().iter().map(|route| route["network"].clone()).collect();
        assert_eq!(to, ["192.168.4.0", "169.254.169.254"]);
    }

    #[test]
    fn a_guest_finds_what_cloud_clients_look_for() {
        let entry = Entry {
            uid: "u-1".into(),
            name: "vm".into(),
            hostname: "host".into(),
            keys: vec![("mine".into(), "ssh-ed25519 AAAA me".into())],
            user_data: "#!/bin/sh\n".into(),
            ..Entry::default()
        };
        for (path, expected) in [
            ("/latest/meta-data/public-keys/0/openssh-key", Some("ssh-ed25519 AAAA me\n")),
            ("/2009-04-04/meta-data/public-keys/", Some("0=mine")),
            ("/latest/meta-data/instance-id", Some("u-1")),
            ("/latest/user-data", Some("#!/bin/sh\n")),
            ("/openstack/latest/user_data", Some("#!/bin/sh\n")),
            ("/latest/meta-data/public-keys/1/openssh-key", None),
            ("/latest/../../etc/shadow", None),
            ("/", Some("latest\n2009-04-04\n1.0\n")),
        ] {
            assert_eq!(answer(&entry, path).as_deref(), expected, "{path}");
        }
        let two = Entry { links: vec![link(1), link(2)], ..entry.clone() };
        let macs = "/latest/meta-data/network/interfaces/macs/";
        assert_eq!(answer(&two, macs).as_deref(), Some("02:42:0a:01:02:03/\n02:42:0a:02:02:03/"));
        let of_second = |what: &str| answer(&two, &format!("{macs}02:42:0a:02:02:03/{what}"));
        assert_eq!(of_second("device-number").as_deref(), Some("1"));
        assert_eq!(of_second("subnet-ipv4-cidr-block").as_deref(), Some("10.2.0.0/20"));
        assert_eq!((of_second("x"), answer(&two, &format!("{macs}02:42:0a:03:02:03/mac"))), (None, None));
        assert_eq!(answer(&two, "/latest/meta-data/local-ipv4").as_deref(), Some("10.1.2.3"));
        let document = answer(&entry, "/openstack/latest/meta_data.json").unwrap();
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["public_keys"]["mine"], "ssh-ed25519 AAAA me");
    }
}
