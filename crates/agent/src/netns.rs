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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_connection_is_made_inside_the_namespace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // A thread enters a namespace of its own, brings loopback up by joining no link at all: the test binds there.
        let (ready, told) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            loopback_up();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            ready.send((thread, listener.local_addr().unwrap().port())).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"inside").unwrap();
            drop(stream);
            let _ = finished.recv();
        });
        let (thread, port) = told.recv().unwrap();
        let path = format!("/proc/self/task/{thread}/ns/net");
        let mut stream = connect(Path::new(&path), port).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "inside");
        assert!(connect(Path::new(&path), 1).await.is_err());
        finish.send(()).unwrap();
        server.join().unwrap();
    }

    /// Loopback comes up when an address is set on it through a socket's ioctl.
    fn loopback_up() {
        let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(status.success());
    }
}
