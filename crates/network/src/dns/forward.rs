//! Asks the machine's own resolvers, or those of a client's choice, one after the other, each for a short while.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::{Answer, Cache};
use crate::error::{Error, IoContext, Result};
use crate::kernel::namespace;

/// One attempt. Clients wait five seconds in all by default, and there may be three resolvers.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// glibc too looks at three only.
const UPSTREAMS_MAX: usize = 3;
/// Questions under way at once; each holds a socket. More are refused rather than queued.
const CONCURRENT_MAX: usize = 256;
/// The same for one client with resolvers of its own choice: they may be silent, and others have to be asked meanwhile.
const CONCURRENT_PER_CLIENT_MAX: usize = 16;
/// The size that passes every network without fragments (DNS flag day 2020).
pub(super) const PAYLOAD_BYTES: u16 = 1232;
/// Datagrams that are no answer to our question are ignored, so many of them per attempt.
const STRANGERS_MAX: usize = 16;
/// How long a reading of `/etc/resolv.conf` holds.
const RESOLV_CONF_HOLDS: Duration = Duration::from_secs(5);
const DNS_PORT: u16 = 53;

/// Asks other resolvers, with a cache.
pub(super) struct Forwarder {
    fixed: Vec<SocketAddr>,
    own: Mutex<HashSet<SocketAddr>>,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    cache: Mutex<Cache>,
    permits: Semaphore,
    /// Apart from `permits`: no choice of a client's takes the machine's resolvers from the others.
    chosen_permits: Semaphore,
}

/// Resolvers of a client's own choice.
pub(super) struct Own {
    servers: Vec<IpAddr>,
    namespace: PathBuf,
    permits: Arc<Semaphore>,
}

impl Own {
    /// What is under way by an earlier choice of the same client counts on.
    pub(super) fn new(servers: Vec<IpAddr>, namespace: PathBuf, before: Option<&Arc<Own>>) -> Own {
        let permits = before
            .map_or_else(|| Arc::new(Semaphore::new(CONCURRENT_PER_CLIENT_MAX)), |before| Arc::clone(&before.permits));
        Own { servers, namespace, permits }
    }
}

/// The first servers that can be asked, each in the one spelling that [`Forwarder::add_own`] knows.
pub(super) fn usable(servers: &[IpAddr]) -> Vec<IpAddr> {
    let canonical = servers.iter().map(IpAddr::to_canonical);
    let single = |server: &IpAddr| {
        !server.is_unspecified() && !server.is_multicast() && *server != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    canonical.filter(single).take(UPSTREAMS_MAX).collect()
}

impl Forwarder {
    pub(super) fn new(fixed: Vec<SocketAddr>) -> Forwarder {
        Forwarder {
            fixed,
            own: Mutex::default(),
            read: Mutex::default(),
            cache: Mutex::default(),
            permits: Semaphore::new(CONCURRENT_MAX),
            chosen_permits: Semaphore::new(CONCURRENT_MAX),
        }
    }

    /// Notes an address that is ourselves, and must not be asked.
    pub(super) fn add_own(&self, address: SocketAddr) {
        self.own.lock().insert(address);
    }

    fn upstreams(&self, now: Instant) -> Vec<SocketAddr> {
        let found = if self.fixed.is_empty() { self.system(now) } else { self.fixed.clone() };
        let own = self.own.lock();
        found.into_iter().filter(|a| !own.contains(a)).take(UPSTREAMS_MAX).collect()
    }

    fn system(&self, now: Instant) -> Vec<SocketAddr> {
        let mut read = self.read.lock();
        if let Some((when, found)) = read.as_ref()
            && now.saturating_duration_since(*when) < RESOLV_CONF_HOLDS
        {
            return found.clone();
        }
        let found = parse_resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        *read = Some((now, found.clone()));
        found
    }

    /// The answer of the first resolver that gives one.
    pub(super) async fn resolve(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let now = Instant::now();
        if let Some(answer) = self.cache.lock().get(name, kind, now) {
            return Some(answer);
        }
        let _permit = self.permits.try_acquire().ok()?;
        for upstream in self.upstreams(now) {
            if let Some(answer) = ask(None, upstream, name, kind).await {
                self.cache.lock().put(name, kind, &answer, Instant::now());
                return Some(answer);
            }
        }
        None
    }
}

impl Forwarder {
    /// The same from resolvers of a client's own choice, asked from where the client is. What they say is nobody else's, so it
    /// is not kept.
    pub(super) async fn resolve_by(&self, own: &Own, name: &Name, kind: RecordType) -> Option<Answer> {
        let _of_client = own.permits.try_acquire().ok()?;
        let _permit = self.chosen_permits.try_acquire().ok()?;
        for server in &own.servers {
            let upstream = SocketAddr::new(*server, DNS_PORT);
            if self.own.lock().contains(&upstream) {
                continue;
            }
            if let Some(answer) = ask(Some(&own.namespace), upstream, name, kind).await {
                return Some(answer);
            }
        }
        None
    }
}

/// The resolvers named in a `resolv.conf`.
pub(super) fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    addresses.map(|a| SocketAddr::new(a, DNS_PORT)).collect()
}

/// One question to one server, from a namespace or from the machine's own.
async fn ask(inside: Option<&Path>, upstream: SocketAddr, name: &Name, kind: RecordType) -> Option<Answer> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    question.set_edns(edns);
    let bytes = question.to_vec().ok()?;
    let mut answer = timeout(ATTEMPT, over_udp(inside, upstream, &bytes, &question)).await.ok()??;
    if answer.metadata.truncation {
        answer = timeout(ATTEMPT, over_tcp(inside, upstream, &bytes, &question)).await.ok()??;
    }
    match answer.metadata.response_code {
        code @ (ResponseCode::NoError | ResponseCode::NXDomain) => {
            Some(Answer { code, answers: answer.answers, authorities: answer.authorities })
        }
        // Refused, failed or not understood: another one may know.
        _ => None,
    }
}

/// Whether this is the answer to our question: the same id and the same words.
fn answers(question: &Message, answer: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
        && answer.queries == question.queries
}

/// A socket of that namespace, or of the machine's own: it stays in the one that it was made in.
async fn made<T: Send + 'static>(inside: Option<&Path>, make: fn(bool) -> std::io::Result<T>, ipv4: bool) -> Result<T> {
    let Some(path) = inside.map(Path::to_owned) else { return make(ipv4).at("make", "a socket") };
    let job = move || namespace::run_inside(&path, || make(ipv4).at("make a socket in", &path));
    tokio::task::spawn_blocking(job).await.unwrap_or(Err(Error::WorkerLost("a network namespace")))
}

fn datagram_socket(ipv4: bool) -> std::io::Result<std::net::UdpSocket> {
    let any: SocketAddr = if ipv4 { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn stream_socket(ipv4: bool) -> std::io::Result<TcpSocket> {
    if ipv4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn over_udp(inside: Option<&Path>, upstream: SocketAddr, bytes: &[u8], question: &Message) -> Option<Message> {
    let socket = made(inside, datagram_socket, upstream.is_ipv4()).await.ok()?;
    let socket = UdpSocket::from_std(socket).ok()?;
    socket.connect(upstream).await.ok()?;
    socket.send(bytes).await.ok()?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..STRANGERS_MAX {
        let count = socket.recv(&mut buffer).await.ok()?;
        if let Some(answer) = Message::from_vec(&buffer[..count]).ok().filter(|a| answers(question, a)) {
            return Some(answer);
        }
    }
    None
}

async fn over_tcp(inside: Option<&Path>, upstream: SocketAddr, bytes: &[u8], question: &Message) -> Option<Message> {
    let socket = made(inside, stream_socket, upstream.is_ipv4()).await.ok()?;
    let mut stream = socket.connect(upstream).await.ok()?;
    stream.write_u16(u16::try_from(bytes.len()).ok()?).await.ok()?;
    stream.write_all(bytes).await.ok()?;
    let mut answer = vec![0; usize::from(stream.read_u16().await.ok()?)];
    stream.read_exact(&mut answer).await.ok()?;
    Message::from_vec(&answer).ok().filter(|a| answers(question, a))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_can_be_asked_has_one_spelling() {
        let servers = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let asked = servers(&["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.251", "ff02::fb", "255.255.255.255"]);
        assert_eq!(usable(&asked), servers(&[]));
        let asked = servers(&["::ffff:10.89.1.1", "9.9.9.9", "2620:fe::fe", "1.1.1.1"]);
        assert_eq!(usable(&asked), servers(&["10.89.1.1", "9.9.9.9", "2620:fe::fe"]));
    }

    #[test]
    fn a_new_choice_does_not_forget_what_a_client_has_under_way() {
        let first = Arc::new(Own::new(Vec::new(), PathBuf::new(), None));
        let _held = first.permits.try_acquire().unwrap();
        let second = Own::new(Vec::new(), PathBuf::new(), Some(&first));
        assert_eq!(second.permits.available_permits(), CONCURRENT_PER_CLIENT_MAX - 1);
    }

    #[tokio::test]
    async fn a_client_whose_namespace_is_gone_has_nobody_asked() {
        assert!(made(Some(Path::new("/nonexistent/namespace")), datagram_socket, true).await.is_err());
        assert!(made(None, datagram_socket, true).await.is_ok());
    }

    #[tokio::test]
    async fn a_question_comes_from_inside_the_namespace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (ready, told) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            ready.send((thread, socket.local_addr().unwrap())).unwrap();
            let mut heard = [0; 16];
            let count = socket.recv(&mut heard).unwrap();
            heard[..count].to_vec()
        });
        let (thread, address) = told.recv().unwrap();
        let path = format!("/proc/self/task/{thread}/ns/net");
        let socket = made(Some(Path::new(&path)), datagram_socket, true).await.unwrap();
        socket.send_to(b"inside", address).unwrap();
        assert_eq!(server.join().unwrap(), b"inside");
    }
}
