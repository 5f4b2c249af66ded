//! A network namespace to play in, with a world outside of it, and servers and clients in any namespace.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use network::{
    AttachRequest, Attachment, DEFAULT_NETWORK, Fabric, FabricOptions, NetworkConfig, PortMapping, Protocol,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Long enough for a busy machine; only failures wait for it.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not get through.
pub const IMPATIENCE: Duration = Duration::from_millis(300);
/// The machine's address towards the world.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The world's address.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

pub struct Lab {
    pub fabric: Arc<Fabric>,
    pub options: FabricOptions,
    pub world: PathBuf,
}

/// Runs a test on a fresh machine with the default network.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    // Made and removed from outside of the mount namespace, where nothing is mounted in it.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let lab = Lab::new(&path).await;
            test(lab).await;
        });
    };
    let result = std::thread::spawn(body).join();
    directory.close().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Lab {
    async fn new(directory: &Path) -> Lab {
        shell("ip link set lo up");
        let mut options = FabricOptions::new(directory, "0123abcd");
        options.mtu = Some(1500);
        let fabric = Fabric::open(options.clone()).await.unwrap();
        let world = fabric.create_namespace("world").await.unwrap();
        shell(&format!(
            "ip link add out0 type veth peer name eth0 netns {0} && ip addr add {MACHINE}/24 dev out0 && ip link set out0 up &&
             nsenter --net={0} sh -c 'ip addr add {WORLD}/24 dev eth0 && ip link set eth0 up'",
            world.display()
        ));
        let subnet = Some("10.88.0.0/16".parse().unwrap());
        fabric
            .ensure_network(NetworkConfig { id: DEFAULT_NETWORK.into(), subnet, ..Default::default() })
            .await
            .unwrap();
        Lab { fabric, options, world }
    }

    /// A user network.
    pub async fn network(&self, id: &str, internal: bool) -> network::Network {
        self.fabric.ensure_network(NetworkConfig { id: id.into(), internal, ..Default::default() }).await.unwrap()
    }

    /// A namespace on a network.
    pub async fn workload(&self, owner: &str, network: &str) -> Attachment {
        let namespace = self.fabric.create_namespace(owner).await.unwrap();
        let request = AttachRequest { owner: owner.into(), namespace, network: network.into(), ..Default::default() };
        self.fabric.attach(request).await.unwrap()
    }

    /// A namespace under security groups.
    pub async fn guarded(&self, owner: &str, groups: &[&str]) -> Attachment {
        let namespace = self.fabric.create_namespace(owner).await.unwrap();
        let groups = groups.iter().map(|one| (*one).to_owned()).collect();
        let network = DEFAULT_NETWORK.to_owned();
        let request = AttachRequest { owner: owner.into(), namespace, network, groups, ..Default::default() };
        self.fabric.attach(request).await.unwrap()
    }

    /// Publishes one port on all addresses.
    pub async fn publish(&self, to: &Attachment, host_port: u16, target_port: u16, protocol: Protocol) -> u16 {
        let mapping = PortMapping { host_address: None, host_port, host_port_end: 0, target_port, protocol };
        self.fabric.publish(&to.owner, to.address, vec![mapping]).await.unwrap()[0].host_port
    }

    /// Opens the fabric again, as a new daemon would.
    pub async fn restart(&mut self) {
        self.fabric = Fabric::open(self.options.clone()).await.unwrap();
    }
}

/// Runs something inside a namespace; `None` is the machine.
pub fn inside<T: Send>(namespace: Option<&Path>, job: impl FnOnce() -> T + Send) -> T {
    let Some(path) = namespace else { return job() };
    let file = File::open(path).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        });
        thread.join().unwrap()
    })
}

/// A server of both families that answers each connection with `<name> <client's address>`, and then echoes lines. Ends with the test.
pub fn serve_tcp(namespace: Option<&Path>, port: u16, name: &str) {
    let listener = inside(namespace, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, name) = (stream.unwrap(), name.clone());
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = writeln!(stream, "{name} {peer}");
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..count]);
                }
            });
        }
    });
}

/// The same for datagrams.
pub fn serve_udp(namespace: Option<&Path>, port: u16, name: &str) {
    let socket = inside(namespace, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}\n", peer.ip().to_canonical()).as_bytes(), peer);
        }
    });
}

fn first_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Connects; the connection, and what the server said first.
pub fn dial(
    namespace: Option<&Path>,
    address: impl Into<IpAddr>,
    port: u16,
    timeout: Duration,
) -> std::io::Result<(TcpStream, String)> {
    let address = SocketAddr::new(address.into(), port);
    inside(namespace, move || {
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let line = first_line(&mut stream)?;
        Ok((stream, line))
    })
}

/// Connects and gives what the server said: its name and the client's address.
pub fn ask(namespace: Option<&Path>, address: impl Into<IpAddr>, port: u16) -> String {
    let address = address.into();
    dial(namespace, address, port, PATIENCE).unwrap_or_else(|e| panic!("{address}:{port} from {namespace:?}: {e}")).1
}

/// That nothing answers there.
pub fn assert_unreachable(namespace: Option<&Path>, address: impl Into<IpAddr>, port: u16) {
    let address = address.into();
    let answer = dial(namespace, address, port, IMPATIENCE).map(|(_, line)| line);
    assert!(answer.is_err(), "{address}:{port} answered {answer:?}");
}

/// That a connection is refused at once, not only lost.
pub fn assert_refused(namespace: Option<&Path>, address: impl Into<IpAddr>, port: u16) {
    let address = address.into();
    let error = dial(namespace, address, port, PATIENCE).map(|(_, line)| line).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}:{port}");
}

/// That a connection still carries data both ways.
pub fn assert_alive(stream: &mut TcpStream) {
    stream.write_all(b"still there\n").unwrap();
    assert_eq!(first_line(stream).unwrap(), "still there");
}

/// A datagram and its answer, from a socket that keeps its port.
pub fn ask_udp(
    socket: &UdpSocket,
    address: impl Into<IpAddr>,
    port: u16,
    timeout: Duration,
) -> std::io::Result<String> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"?", (address.into(), port))?;
    let mut buffer = [0; 1024];
    let (count, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).trim().to_owned())
}

/// A datagram socket in a namespace.
pub fn udp_socket(namespace: Option<&Path>) -> UdpSocket {
    inside(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap())
}
