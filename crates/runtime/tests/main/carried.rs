//! Ports whose clients the shim carries to its container: they outlive the daemon, and nothing else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use runtime::PortToCarry;
use rustix::net::{AddressFamily, SocketType, bind, socket};

use crate::place::{PATIENCE, Place, run};

/// A socket that is bound and does not listen, and where.
fn bound() -> (OwnedFd, SocketAddr) {
    let socket = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).unwrap();
    let place = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    (socket, place)
}

/// Something that the container could serve: it shares the machine's network here.
fn served() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(place) = listener.local_addr().unwrap() else { unreachable!() };
    (listener, place)
}

/// Asks what is served by a place, over a connection of its own.
fn ask(place: SocketAddr, served: &TcpListener) {
    let mut client = TcpStream::connect(place).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut server, _) = served.accept().unwrap();
    server.write_all(b"answer").unwrap();
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
}

#[tokio::test]
async fn ports_are_carried_whoever_is_the_daemon_and_end_with_the_container() {
    let place = Place::new();
    place.create("one", run(&["/bin/sleep", "1000"])).await;
    let (listener, target) = served();
    let ((first, at_first), (second, at_second)) = (bound(), bound());
    for socket in [first, second] {
        place.runtime.carry("one", vec![PortToCarry { socket, is_datagram: false, target }]).await.unwrap();
    }
    place.runtime.start("one").await.unwrap();
    ask(at_first, &listener);
    let other = place.reopened();
    ask(at_second, &listener);
    // More than one message may bring of them.
    let (sockets, places): (Vec<_>, Vec<_>) = (0..200).map(|_| bound()).unzip();
    let ports = sockets.into_iter().map(|socket| PortToCarry { socket, is_datagram: false, target });
    other.carry("one", ports.collect()).await.unwrap();
    ask(places[199], &listener);
    ask(at_first, &listener);
    other.stop_carrying("one").await.unwrap();
    for place in [at_first, at_second, places[0], places[199]] {
        assert_eq!(TcpStream::connect(place).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let (socket, at) = bound();
    other.carry("one", vec![PortToCarry { socket, is_datagram: false, target }]).await.unwrap();
    ask(at, &listener);
    other.kill("one", 9).await.unwrap();
    place.wait("one").await;
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    other.stop_carrying("one").await.unwrap();
    place.close().await;
}
