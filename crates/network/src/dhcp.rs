//! DHCP for guests: each gets the one address that its network port may speak with, and nobody else gets anything. One
//! socket per network, bound to its bridge, while there are guests on it.

mod message;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::error::{IoContext, Result};
use crate::plan::Plan;
use crate::types::Mac;
use message::{Kind, Request};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long a guest may use its address before it asks again. Units: seconds.
const LEASE_SECONDS: u32 = 3600;
/// Requests are at most an Ethernet frame. Units: bytes.
const REQUEST_BYTES_MAX: usize = 1500;
/// Acknowledgements that a slow listener may fall behind.
const ACKNOWLEDGEMENTS_KEPT: usize = 256;

/// What a guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix: u8,
    /// The server's own address on this network: its gateway and name server, unless the plan says others.
    pub server: Ipv4Addr,
    /// Its way out is by this network.
    pub leads_out: bool,
    /// What it is told beside.
    pub plan: Plan,
    /// Its host name.
    pub hostname: String,
    /// Its domain; empty for none.
    pub domain: String,
    /// Largest packet. Units: bytes.
    pub mtu: u16,
}

type Leases = HashMap<Mac, Lease>;

struct Bridge {
    leases: Arc<Mutex<Leases>>,
    task: JoinHandle<()>,
}

/// Answers guests on bridges. Dropping it ends the answers.
pub struct Server {
    bridges: Mutex<HashMap<String, Bridge>>,
    acknowledged: broadcast::Sender<Mac>,
}

impl Default for Server {
    fn default() -> Self {
        let (acknowledged, _) = broadcast::channel(ACKNOWLEDGEMENTS_KEPT);
        Self { bridges: Mutex::default(), acknowledged }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.bridges.lock().values().for_each(|bridge| bridge.task.abort());
    }
}

impl Server {
    /// Tells who took its address, from now on.
    pub fn acknowledged(&self) -> broadcast::Receiver<Mac> {
        self.acknowledged.subscribe()
    }

    /// Answers a guest on a bridge with this lease, in place of any earlier one.
    ///
    /// Errors: somebody else serves DHCP on the bridge.
    pub fn offer(&self, bridge: &str, mac: Mac, lease: Lease) -> Result<()> {
        let mut bridges = self.bridges.lock();
        if let Some(known) = bridges.get(bridge) {
            known.leases.lock().insert(mac, lease);
            return Ok(());
        }
        let socket = open(bridge).at("serve DHCP on", bridge)?;
        let leases = Arc::new(Mutex::new(HashMap::from([(mac, lease)])));
        let task = tokio::spawn(serve(socket, leases.clone(), self.acknowledged.clone()));
        bridges.insert(bridge.to_owned(), Bridge { leases, task });
        Ok(())
    }

    /// Has guests on a bridge told this when they ask next.
    pub fn replan(&self, bridge: &str, plan: &Plan) {
        if let Some(known) = self.bridges.lock().get(bridge) {
            known.leases.lock().values_mut().for_each(|lease| lease.plan.clone_from(plan));
        }
    }

    /// Stops answering a guest on a bridge; with the last one there the socket is closed.
    pub fn withdraw(&self, bridge: &str, mac: Mac) {
        let mut bridges = self.bridges.lock();
        let Some(known) = bridges.get(bridge) else { return };
        let is_empty = {
            let mut leases = known.leases.lock();
            leases.remove(&mac);
            leases.is_empty()
        };
        if is_empty && let Some(gone) = bridges.remove(bridge) {
            gone.task.abort();
        }
    }
}

/// A socket that hears and speaks on one bridge alone.
fn open(bridge: &str) -> std::io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&descriptor, sockopt::ReuseAddr, &true)?;
    setsockopt(&descriptor, sockopt::Broadcast, &true)?;
    setsockopt(&descriptor, sockopt::BindToDevice, &bridge.into())?;
    rustix::net::bind(&descriptor, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT))?;
    UdpSocket::from_std(descriptor.into())
}

async fn serve(socket: UdpSocket, leases: Arc<Mutex<Leases>>, acknowledged: broadcast::Sender<Mac>) {
    let mut buffer = [0u8; REQUEST_BYTES_MAX];
    loop {
        let count = match socket.recv_from(&mut buffer).await {
            Ok((count, _)) => count,
            Err(error) => {
                tracing::warn!(%error, "cannot receive DHCP requests");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        let Some(request) = Request::parse(&buffer[..count]) else { continue };
        let lease = leases.lock().get(&request.mac).cloned();
        let Some((kind, reply)) = lease.and_then(|lease| answer(&request, &lease)) else { continue };
        // A guest without an address cannot be reached but by broadcast.
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        if let Err(error) = socket.send_to(&reply, to).await {
            tracing::warn!(%error, "cannot answer a DHCP request");
        } else if kind == Kind::Acknowledge {
            // Nobody may be listening.
            let _ = acknowledged.send(request.mac);
        }
    }
}

/// What to answer; `None` stays silent. `Source:` RFC 2131, 4.3
fn answer(request: &Request, lease: &Lease) -> Option<(Kind, Vec<u8>)> {
    if lease.plan.without_dhcp {
        return None;
    }
    let kind = match request.kind {
        Kind::Discover => Kind::Offer,
        Kind::Request if request.server.is_some_and(|server| server != lease.server) => return None,
        Kind::Request => {
            let wanted = request.wanted.or(Some(request.current).filter(|address| !address.is_unspecified()));
            if wanted == Some(lease.address) { Kind::Acknowledge } else { Kind::Refuse }
        }
        Kind::Inform => Kind::Acknowledge,
        _ => return None,
    };
    Some((kind, message::reply(request, kind, lease, LEASE_SECONDS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 88, 0, 7),
            prefix: 16,
            server: Ipv4Addr::new(10, 88, 0, 1),
            leads_out: true,
            plan: Plan::default(),
            hostname: "vm".into(),
            domain: String::new(),
            mtu: 1500,
        }
    }

    fn request(kind: Kind, wanted: Option<[u8; 4]>) -> Request {
        Request {
            kind,
            transaction: [1, 2, 3, 4],
            mac: Mac([2, 0x42, 10, 88, 0, 7]),
            current: Ipv4Addr::UNSPECIFIED,
            wanted: wanted.map(Ipv4Addr::from),
            server: None,
        }
    }

    #[test]
    fn a_guest_is_offered_its_own_address_and_refused_any_other() {
        let kinds = [
            (request(Kind::Discover, None), Some(Kind::Offer)),
            (request(Kind::Request, Some([10, 88, 0, 7])), Some(Kind::Acknowledge)),
            (request(Kind::Request, Some([10, 88, 0, 8])), Some(Kind::Refuse)),
            (request(Kind::Release, None), None),
        ];
        for (request, expected) in kinds {
            assert_eq!(answer(&request, &lease()).map(|(kind, _)| kind), expected, "{request:?}");
        }
        let elsewhere = Request { server: Some(Ipv4Addr::new(10, 0, 0, 9)), ..request(Kind::Request, None) };
        assert!(answer(&elsewhere, &lease()).is_none(), "it took another server's offer");
    }

    #[test]
    fn a_guest_is_told_what_its_network_says_now() {
        let (server, mac) = (Server::default(), Mac([2, 0x42, 10, 88, 0, 7]));
        let task = tokio::runtime::Builder::new_current_thread().build().unwrap().spawn(async {});
        let leases = Arc::new(Mutex::new(HashMap::from([(mac, lease())])));
        server.bridges.lock().insert("nuee0".into(), Bridge { leases: leases.clone(), task });
        let told = || answer(&request(Kind::Discover, None), &leases.lock()[&mac]).map(|(_, bytes)| bytes);
        let has = |needle: &[u8]| told().is_some_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle));
        assert!(has(&[3, 4, 10, 88, 0, 1]) && has(&[6, 4, 10, 88, 0, 1]));
        let name_servers = vec![Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)];
        let plan = Plan { name_servers, without_gateway: true, ..Plan::default() };
        server.replan("nuee0", &plan);
        assert!(has(&[6, 8, 192, 0, 2, 53, 192, 0, 2, 54]) && !has(&[3, 4, 10, 88, 0, 1]));
        assert!(has(&[121, 9, 32, 169, 254, 169, 254, 10, 88, 0, 1]), "the way to its metadata");
        server.replan("nuee0", &Plan { without_dhcp: true, ..plan });
        assert_eq!(told(), None);
    }
}
