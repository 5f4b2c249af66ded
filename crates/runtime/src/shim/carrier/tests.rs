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
    carried_at(Ipv6Addr::LOCALHOST, target)
}

fn carried_at(address: Ipv6Addr, target: SocketAddrV4) -> (SocketAddr, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let datagrams = UdpSocket::bind((address, 0)).unwrap();
    let places = (listener.local_addr().unwrap(), datagrams.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    datagrams.set_nonblocking(true).unwrap();
    let ports = vec![
        Port { socket: listener.into(), is_datagram: false, target },
        Port { socket: datagrams.into(), is_datagram: true, target },
    ];
    datagrams::tell_addresses(&ports[1].socket).unwrap();
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

/// A client that comes from an address of the machine's own, to a socket that takes both families.
fn from(address: [u8; 4], place: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((address, 0))).unwrap();
    rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, place.port()))).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// How many of these connections were reset; once they are so many, or after long.
fn resets(all: &[TcpStream], wanted: usize) -> usize {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut set: Vec<_> = all.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::empty())).collect();
        poll(&mut set, PollTimeout::ZERO).unwrap();
        let count =
            set.iter().filter(|one| one.revents().is_some_and(|flags| flags.contains(PollFlags::POLLHUP))).count();
        if count >= wanted || Instant::now() >= until {
            return count;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until something has come to a socket.
fn await_readable(socket: &OwnedFd) {
    let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut set, PollTimeout::try_from(PATIENCE).unwrap()).unwrap(), 1);
}

/// The text that one end says, at the other.
fn heard(mut from: &TcpStream, mut to: &TcpStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    let mut buffer = vec![0; text.len()];
    to.read_exact(&mut buffer).unwrap();
    assert_eq!(String::from_utf8(buffer).unwrap(), text);
}

#[test]
fn one_who_holds_all_connections_and_has_more_wait_keeps_nobody_else_away() {
    let (listener, target) = listen();
    let (place, _) = carried_at(Ipv6Addr::UNSPECIFIED, target);
    let (many, other, third) = ([127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]);
    // Silent ones: all that there may be, and as many again that wait.
    let clients: Vec<_> = (0..8).map(|_| from(many, place)).collect();
    let servers: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
    let pairs = [other, third].map(|address| {
        let client = from(address, place);
        (client, listener.accept().unwrap().0)
    });
    for (client, server) in &pairs {
        heard(client, server, "question");
        heard(server, client, "answer");
    }
    // The two that were silent longest made room, on both sides.
    assert_eq!((resets(&clients[..4], 2), resets(&servers, 2), resets(&clients, 2)), (2, 2, 2));
}

#[test]
fn connections_that_are_silent_for_long_make_room_for_new_ones() {
    let (listener, target) = listen();
    let clients = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let place = clients.local_addr().unwrap();
    clients.set_nonblocking(true).unwrap();
    let clients = OwnedFd::from(clients);
    let (mut streams, begin) = (Streams::new(2), Instant::now());
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut all = Vec::new();
    for seconds in [0, 30, 40] {
        all.push(dialled(place));
        await_readable(&clients);
        streams.accept(&clients, target, at(seconds));
    }
    assert_eq!(streams.deadline(), Some(at(30)), "the container has to accept");
    let servers = [listener.accept().unwrap().0, listener.accept().unwrap().0];
    // Both are accepted, which is the last thing that is heard of the first.
    let both_open = [PollFlags::POLLOUT, PollFlags::POLLOUT];
    streams.handle(&both_open, at(40));
    assert_eq!(streams.deadline(), Some(at(100)), "then one may have been silent for long");
    streams.handle(&[PollFlags::empty(); 4], at(99));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    streams.handle(&[PollFlags::empty(); 4], at(100));
    listener.set_nonblocking(false).unwrap();
    drop(listener.accept().unwrap());
    // One of the two went, and who waits no more asks for no look.
    assert_eq!((resets(&all[..1], 1), resets(&servers, 1), resets(&all, 1)), (1, 1, 1));
    assert_eq!(streams.deadline(), Some(at(130)), "the container has to accept");
}

#[test]
fn clients_of_datagrams_that_are_silent_make_room_and_the_places_of_others_stay() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(target) = server.local_addr().unwrap() else { unreachable!() };
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let place = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = Port { socket: socket.into(), is_datagram: true, target };
    let (mut datagrams, begin) = (Datagrams::new(2), Instant::now());
    let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap()).collect();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut say = |client: usize, seconds| {
        clients[client].send_to(&[u8::try_from(client).unwrap()], place).unwrap();
        await_readable(&port.socket);
        datagrams.receive(0, &port, begin + Duration::from_secs(seconds));
    };
    let heard = || {
        let mut buffer = [0; 8];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        (buffer[0], from)
    };
    say(0, 0);
    say(1, 2);
    let (_, (_, first)) = (heard(), heard());
    say(2, 4);
    // Nobody was silent for long enough; then one was.
    say(2, 6);
    let (text, second) = heard();
    assert_eq!(text, 2);
    say(1, 7);
    assert_eq!(heard(), (1, first));
    say(2, 8);
    assert_eq!(heard(), (2, second));
}

/// Runs in a network of its own, whose loopback interface has these addresses besides its own.
fn in_a_network(addresses: &[&str], test: impl FnOnce() + Send + 'static) {
    let commands: Vec<_> =
        addresses.iter().map(|address| format!("ip -6 address add {address} dev lo nodad")).collect();
    let alone = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for command in ["ip link set lo up".to_owned()].iter().chain(&commands) {
            let mut words = command.split(' ');
            assert!(std::process::Command::new(words.next().unwrap()).args(words).status().unwrap().success());
        }
        test();
    });
    alone.join().unwrap();
}

#[test]
fn an_answer_to_a_datagram_comes_from_the_address_that_was_asked() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    in_a_network(&["fd00::1/64", "fd00::2/64"], || {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(target) = server.local_addr().unwrap() else { unreachable!() };
        let (_, place) = carried_at(Ipv6Addr::UNSPECIFIED, target);
        let client = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut buffer = [0; 8];
        // Two questions of one client at a time, so that each has an association of its own.
        let asked: [SocketAddr; 2] =
            ["fd00::1", "fd00::2"].map(|one| (one.parse::<Ipv6Addr>().unwrap(), place.port()).into());
        let mut from = Vec::new();
        for address in asked {
            client.send_to(b"ask", address).unwrap();
            from.push(server.recv_from(&mut buffer).unwrap().1);
        }
        for (address, from) in asked.into_iter().zip(from) {
            server.send_to(b"told", from).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, address));
        }
    });
}
