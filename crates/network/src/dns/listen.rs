//! Sockets, and the way of one question through the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Server;
use super::answer::Reply;
use super::forward::PAYLOAD_BYTES;
use crate::error::{IoContext, Result};

/// A client without EDNS takes no more over UDP (RFC 1035). Units: bytes.
const PLAIN_PAYLOAD_BYTES: u16 = 512;
/// Length of the fixed part of a message. Units: bytes.
const HEADER_BYTES: usize = 12;
/// Aliases of aliases are followed so far.
const ALIASES_MAX: usize = 4;
/// Open TCP connections.
const CONNECTIONS_MAX: usize = 128;
/// Datagrams that are being answered.
const DATAGRAMS_MAX: usize = 1024;
/// A TCP client must ask within this time.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What one server does at once, over all its sockets.
pub(super) struct Limits {
    connections: Arc<Semaphore>,
    datagrams: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            datagrams: Arc::new(Semaphore::new(DATAGRAMS_MAX)),
        }
    }
}

/// Binds both sockets of an address, and serves them until the tasks are aborted.
pub(super) async fn start(server: &Arc<Server>, address: SocketAddr) -> Result<[JoinHandle<()>; 2]> {
    let udp = UdpSocket::bind(address).await.at("listen (UDP) on", address.to_string())?;
    let tcp = TcpListener::bind(address).await.at("listen (TCP) on", address.to_string())?;
    let weak = Arc::downgrade(server);
    Ok([tokio::spawn(serve_udp(Arc::new(udp), weak.clone())), tokio::spawn(serve_tcp(tcp, weak))])
}

async fn serve_udp(socket: Arc<UdpSocket>, server: Weak<Server>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Errors here are those of earlier answers (a client that is gone); the socket itself stays good.
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(server) = server.upgrade() else { return };
        // Over the limit the datagram is lost, as datagrams are; the client asks again.
        let Ok(permit) = Arc::clone(&server.limits.datagrams).try_acquire_owned() else { continue };
        // An answer that takes its time does not keep the address from whoever comes next.
        let (socket, bytes) = (Arc::downgrade(&socket), buffer[..count].to_vec());
        tokio::spawn(async move {
            let answer = server.handle(&bytes, peer.ip(), true).await;
            if let (Some(answer), Some(socket)) = (answer, socket.upgrade()) {
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(listener: TcpListener, server: Weak<Server>) {
    // Running out of descriptors must not turn this into a busy loop.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(server) = server.upgrade() else { return };
        let Ok(permit) = Arc::clone(&server.limits.connections).try_acquire_owned() else { continue };
        tokio::spawn(async move {
            let _ = serve_stream(stream, peer.ip(), &server).await;
            drop(permit);
        });
    }
}

async fn serve_stream(mut stream: TcpStream, peer: IpAddr, server: &Server) -> std::io::Result<()> {
    loop {
        let length = timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(answer) = server.handle(&bytes, peer, false).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        timeout(TCP_IDLE, async {
            stream.write_u16(length).await?;
            stream.write_all(&answer).await
        })
        .await??;
    }
}

impl Server {
    /// The bytes that answer these bytes; `None` says nothing.
    pub(super) async fn handle(&self, bytes: &[u8], peer: IpAddr, is_datagram: bool) -> Option<Vec<u8>> {
        let client = match peer.to_canonical() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => return None,
        };
        let view = self.view.load();
        let allowed = self.options.clients.iter().any(|c| c.contains(client))
            || view.networks().any(|subnet| subnet.contains(client));
        // Too short, or an answer itself: two servers must never talk to each other for ever.
        if !allowed || bytes.len() < HEADER_BYTES || bytes[2] & 0x80 != 0 {
            return None;
        }
        drop(view);
        let Ok(question) = Message::from_vec(bytes) else {
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
        };
        let answer = self.respond(&question, client).await;
        let limit = question
            .edns
            .as_ref()
            .map_or(PLAIN_PAYLOAD_BYTES, |e| e.max_payload().clamp(PLAIN_PAYLOAD_BYTES, PAYLOAD_BYTES));
        let encoded = answer.to_vec().ok()?;
        if is_datagram && encoded.len() > usize::from(limit) {
            return answer.truncate().to_vec().ok();
        }
        Some(encoded)
    }

    async fn respond(&self, question: &Message, client: Ipv4Addr) -> Message {
        let mut answer = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.queries.clone_from(&question.queries);
        if let Some(theirs) = &question.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_BYTES);
            answer.set_edns(edns);
            if theirs.version() > 0 {
                answer.metadata.response_code = ResponseCode::BADVERS;
                return answer;
            }
        }
        let code = match (question.metadata.op_code, question.queries.as_slice()) {
            (OpCode::Query, [query]) if query.query_class() == DNSClass::IN => {
                self.look_up(&mut answer, query.name(), query.query_type(), client).await
            }
            (OpCode::Query, [_]) => ResponseCode::Refused,
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        answer.metadata.response_code = code;
        answer
    }

    /// Fills in the answer, following aliases.
    async fn look_up(&self, answer: &mut Message, name: &Name, kind: RecordType, client: Ipv4Addr) -> ResponseCode {
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return ResponseCode::Refused;
        }
        let view = self.view.load_full();
        let mut name = name.clone();
        for step in 0..ALIASES_MAX {
            let reply = view.answer(Some(client), &name, kind);
            answer.metadata.authoritative |= step == 0 && !matches!(reply, Reply::NotOurs | Reply::NoWayOut);
            match reply {
                Reply::Found(mut records) => {
                    rotate(&mut records, answer.metadata.id);
                    answer.answers.extend(records);
                    return ResponseCode::NoError;
                }
                Reply::Alias(alias) => {
                    let (record, target) = *alias;
                    answer.answers.push(record);
                    if kind == RecordType::CNAME {
                        return ResponseCode::NoError;
                    }
                    name = target;
                }
                negative @ (Reply::NoData | Reply::NoSuchName) => {
                    if view.is_in_cluster(&name) {
                        answer.authorities.push(view.soa());
                    }
                    return if negative == Reply::NoData { ResponseCode::NoError } else { ResponseCode::NXDomain };
                }
                Reply::NoWayOut => return ResponseCode::ServFail,
                Reply::NotOurs => return self.forward(answer, &name, kind, client).await,
            }
        }
        ResponseCode::ServFail
    }

    async fn forward(&self, answer: &mut Message, name: &Name, kind: RecordType, client: Ipv4Addr) -> ResponseCode {
        let chosen = self.chosen.load().get(&client).cloned();
        let found = match chosen {
            Some(own) => self.forwarder.resolve_by(&own, name, kind).await,
            None => self.forwarder.resolve(name, kind).await,
        };
        let Some(found) = found else { return ResponseCode::ServFail };
        answer.answers.extend(found.answers);
        answer.authorities.extend(found.authorities);
        found.code
    }
}

/// Another record first each time, so that clients that take the first spread.
fn rotate(records: &mut [Record], by: u16) {
    if !records.is_empty() {
        let count = records.len();
        records.rotate_left(usize::from(by) % count);
    }
}
