//! Connections from inside a network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};

/// How long a connection may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a port on the loopback address of a namespace, IPv4 first.
pub async fn connect(namespace: &Path, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let socket = socket(namespace.to_owned(), address.is_ipv4()).await?;
        match tokio::time::timeout(TIMEOUT, socket.connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A socket keeps the namespace that it was made in; the thread that enters it ends right after.
async fn socket(namespace: PathBuf, ipv4: bool) -> io::Result<TcpSocket> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let handle = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("netns-socket".into()).spawn(move || {
        let _guard = handle.enter();
        let make = || -> io::Result<TcpSocket> {
            setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET)?;
            if ipv4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        };
        let _ = sender.send(make());
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread of the namespace failed"))?
}
