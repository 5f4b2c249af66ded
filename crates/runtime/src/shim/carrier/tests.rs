//! Clients and containers are sockets of the test: both ways, both ends, and the bounds.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};

use super::*;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than all buffers on the way hold together.
const MUCH: usize = 24 << 20;

/// Carries to a target, by TCP and by UDP, as long as the test runs; gives where.
fn carried(target: SocketAddrV4) -> (SocketAddr, SocketAddr) {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let datagrams = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let places = (listener.local_addr().unwrap(), datagrams.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let ports = vec![
        Port { socket: listener.into(), is_datagram: false, target },
        Port { socket: datagrams.into(), is_datagram: true, target },
    ];
    std::thread::spawn(move || carry_all(&ports, &mut Streams::new(4), &mut Datagrams::new(2)));
    places
}

fn listen() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(place) = listener.local_addr().unwrap() else { unreachable!() };
    (listener, place)
}

fn dialled(place: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(place).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn each_way_ends_by_itself() {
    let (listener, target) = listen();
    let (place, _) = carried(target);
    let mut client = dialled(place);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    server.write_all(b"answer").unwrap();
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
}

#[test]
fn who_does_not_read_holds_the_other_back_and_loses_nothing() {
    let (listener, target) = listen();
    let (place, _) = carried(target);
    let mut client = dialled(place);
    let (mut server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    // Until all buffers between the two are full: the carrier does not take what nobody reads.
    let piece: Vec<u8> = (0..PIECE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let (mut sent, mut still) = (0, 0);
    while still < 20 {
        match client.write(&piece[sent % PIECE..]) {
            Ok(count) => (sent, still) = (sent + count, 0),
            Err(_) => {
                still += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(sent < MUCH, "the carrier takes without end");
    }
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    server.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);
    assert!(all.iter().enumerate().all(|(at, byte)| *byte == piece[at % PIECE]));
}

/// What is sent at once in a test.
const PIECE: usize = 251 * 200;

#[test]
fn a_container_that_refuses_or_resets_has_the_client_reset() {
    let (listener, target) = listen();
    let (place, _) = carried(target);
    let mut client = dialled(place);
    let (server, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    drop(listener);
    let mut client = dialled(place);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn connections_over_the_bound_wait_for_their_turn() {
    let (listener, target) = listen();
    let (place, _) = carried(target);
    let mut clients: Vec<_> = (0..5).map(|_| dialled(place)).collect();
    let mut servers: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
    clients[4].write_all(b"late").unwrap();
    // Its turn comes with the end of another: of the client and of the server that belong together.
    servers.remove(0);
    drop(clients.remove(0));
    let (mut server, _) = listener.accept().unwrap();
    let mut text = [0; 4];
    server.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"late");
}

#[test]
fn answers_to_datagrams_find_their_way_back_and_clients_over_the_bound_are_dropped() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(target) = server.local_addr().unwrap() else { unreachable!() };
    let (_, place) = carried(target);
    let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap()).collect();
    let mut buffer = [0; 64];
    for socket in clients.iter().chain([&server]) {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut back = Vec::new();
    for (index, client) in clients.iter().take(2).enumerate() {
        client.send_to(&[u8::try_from(index).unwrap()], place).unwrap();
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        back.push((buffer[..count].to_vec(), from));
    }
    for (text, to) in back.iter().rev() {
        server.send_to(text, to).unwrap();
    }
    for (index, client) in clients.iter().take(2).enumerate() {
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, place));
        assert_eq!(usize::from(buffer[0]), index);
    }
    clients[2].send_to(b"dropped", place).unwrap();
    clients[0].send_to(b"kept", place).unwrap();
    let (count, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"kept");
}
