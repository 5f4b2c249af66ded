//! Ports whose clients the shim carries to its container: they outlive the daemon, and nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use runtime::{OciRuntimeChoice, PortToCarry};
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

/// The last of the shim's protection against the kernel's want of memory.
const PROTECTED: &str = "-999";
/// The user that carries.
const NOBODY: u32 = 65_534;
/// Holds a process so that its end is not its parent's to see, until the input of this one ends.
const HOLD: &str = "import ctypes, sys\nSEIZE = 0x4206\n\
                    print(ctypes.CDLL(None, use_errno=True).ptrace(SEIZE, int(sys.argv[1]), None, None), flush=True)\nsys.stdin.read()\n";

/// The value of a process' status, of which that file tells: the first word behind a name.
fn status(pid: u32, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn score(pid: u32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

/// A container whose shim carries one port, the shim, and the process that carries, after a first client.
async fn carried(place: &Place) -> (u32, u32, SocketAddr, TcpListener) {
    place.create("one", run(&["/bin/sleep", "1000"])).await;
    let (listener, target) = served();
    let (socket, at) = bound();
    place.runtime.carry("one", vec![PortToCarry { socket, is_datagram: false, target }]).await.unwrap();
    place.runtime.start("one").await.unwrap();
    let shim = status(place.runtime.state("one").await.unwrap().pid, "PPid:").unwrap();
    // As the daemon's service has it. Who may not set it has no shim that is protected.
    let _ = std::fs::write(format!("/proc/{shim}/oom_score_adj"), PROTECTED);
    ask(at, &listener);
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| status(*pid, "PPid:") == Some(shim) && status(*pid, "Uid:") == Some(NOBODY);
    (shim, pids.into_iter().find(is_it).unwrap(), at, listener)
}

#[tokio::test]
async fn who_carries_is_not_protected_from_the_want_of_memory() {
    let place = Place::new();
    let (shim, process, ..) = carried(&place).await;
    assert_eq!(score(process), score(shim).max(0));
    place.close().await;
}

#[tokio::test]
async fn ports_of_a_process_that_does_not_end_count_as_carried_until_it_does() {
    let place = Place::new();
    let (_, process, at, listener) = carried(&place).await;
    let mut holder = Command::new("python3");
    holder.args(["-c", HOLD, &process.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "0\n");
    let refused = place.runtime.stop_carrying("one").await.unwrap_err();
    assert!(refused.to_string().contains("its ports are still taken"), "{refused}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    // Nothing was given back: the next process carries on.
    ask(at, &listener);
    place.runtime.stop_carrying("one").await.unwrap();
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    place.close().await;
}

#[tokio::test]
async fn who_carries_is_nobody_s_new_process() {
    let Some(runc) = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| std::path::Path::new(path).exists())
    else {
        return;
    };
    // Whose word on a new process is that of the one that is in the file.
    let directory = tempfile::tempdir().unwrap();
    let (liar, word) = (directory.path().join("runc"), directory.path().join("word"));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' exec '*)\n  read word < {}\n  while [ $# -gt 0 ]; do\n    \
         [ \"$1\" = --pid-file ] && echo $word > \"$2\"\n    shift\n  done\n  exit 0;;\nesac\nexec {runc} \"$@\"\n",
        word.display()
    );
    std::fs::write(&liar, script).unwrap();
    std::fs::set_permissions(&liar, std::fs::Permissions::from_mode(0o755)).unwrap();
    let place = Place::with(OciRuntimeChoice::Runc(liar));
    let (_, process, at, listener) = carried(&place).await;
    std::fs::write(&word, format!("{process}\n")).unwrap();
    let request = node::ExecRequest { command: vec!["/bin/true".to_owned()], ..node::ExecRequest::default() };
    let Err(refused) = place.runtime.exec("one", request).await else { panic!("it was taken for the new process") };
    assert!(refused.to_string().contains("its process is not there"), "{refused}");
    // Nor was it ended as one that is left behind.
    assert_eq!(status(process, "Uid:"), Some(NOBODY));
    ask(at, &listener);
    place.close().await;
}
