//! Asks the machine's own resolvers, one after the other, each for a short while.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::{Answer, Cache};

/// One attempt. Clients wait five seconds in all by default, and there may be three resolvers.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// glibc too looks at three only.
const UPSTREAMS_MAX: usize = 3;
/// Questions under way at once; each holds a socket. More are refused rather than queued.
const CONCURRENT_MAX: usize = 256;
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
}

impl Forwarder {
    pub(super) fn new(fixed: Vec<SocketAddr>) -> Forwarder {
        Forwarder {
            fixed,
            own: Mutex::default(),
            read: Mutex::default(),
            cache: Mutex::default(),
            permits: Semaphore::new(CONCURRENT_MAX),
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
            if let Some(answer) = ask(upstream, name, kind).await {
                self.cache.lock().put(name, kind, &answer, Instant::now());
                return Some(answer);
            }
        }
        None
    }
}

impl Forwarder {
    /// The same from resolvers of a client's own choice. What they say is nobody else's, so it is not kept.
    pub(super) async fn resolve_by(&self, servers: &[IpAddr], name: &Name, kind: RecordType) -> Option<Answer> {
        let _permit = self.permits.try_acquire().ok()?;
        for server in servers.iter().take(UPSTREAMS_MAX) {
            let upstream = SocketAddr::new(*server, DNS_PORT);
            if self.own.lock().contains(&upstream) {
                continue;
            }
            if let Some(answer) = ask(upstream, name, kind).await {
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

async fn ask(upstream: SocketAddr, name: &Name, kind: RecordType) -> Option<Answer> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    question.set_edns(edns);
    let bytes = question.to_vec().ok()?;
    let mut answer = timeout(ATTEMPT, over_udp(upstream, &bytes, &question)).await.ok()??;
    if answer.metadata.truncation {
        answer = timeout(ATTEMPT, over_tcp(upstream, &bytes, &question)).await.ok()??;
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

async fn over_udp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> Option<Message> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
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

async fn over_tcp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> Option<Message> {
    let mut stream = TcpStream::connect(upstream).await.ok()?;
    stream.write_u16(u16::try_from(bytes.len()).ok()?).await.ok()?;
    stream.write_all(bytes).await.ok()?;
    let mut answer = vec![0; usize::from(stream.read_u16().await.ok()?)];
    stream.read_exact(&mut answer).await.ok()?;
    Message::from_vec(&answer).ok().filter(|a| answers(question, a))
}
