//! Carries what comes to IPv6 addresses of the machine to the container's IPv4 address: the kernel translates no family to the other.
//!
//! The shim holds the sockets, because it lives as long as the container does. A socket costs no memory; the first client has the shim
//! fork a process that carries, which ends when nothing has been on its way for a while. So a container that nobody reaches by IPv6
//! costs nothing, and one that somebody does cannot make its shim slow.

mod datagrams;
mod room;
mod streams;

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use self::datagrams::Datagrams;
use self::streams::{Streams, WAITING_MAX};
use crate::children;
use crate::protocol::CarriedPort;
use crate::session::ANSWER_TIMEOUT;
use crate::sys;

/// Connections at the same time; others wait for a place.
const CONNECTIONS_MAX: usize = 512;
/// Clients of UDP ports at the same time; what others send for whom nobody gives way is dropped, as on a full link.
const ASSOCIATIONS_MAX: usize = 1_024;
/// Descriptors of the process for all else.
const SPARE_DESCRIPTORS: usize = 16 + WAITING_MAX;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;
/// How long a process that carries nothing stays.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next process after one has ended: one that fails at once must not keep the machine busy.
const REST: Duration = Duration::from_millis(500);
/// How long the process that carries may take to end when it is killed: it may have to wait for the processor, or be stuck in the kernel.
/// The shim does nothing else meanwhile.
const END_PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(END_PATIENCE.as_secs() * 2 < ANSWER_TIMEOUT.as_secs(), "the daemon hears of one that is stuck");
/// Ports of one container: each costs a descriptor.
pub(super) const PORTS_MAX: usize = 8_192;
/// The score by which the kernel chooses whom to end when there is no memory left, of a process that nothing protects.
/// `Source:` proc_pid_oom_score_adj(5).
const UNPROTECTED: i32 = 0;
/// Nobody: who carries needs no rights, as the sockets are open.
const NOBODY: u32 = 65_534;

/// A socket with what comes to it leads to.
pub(super) struct Port {
    socket: OwnedFd,
    is_datagram: bool,
    target: SocketAddrV4,
}

/// The shim's side: sockets, and the process that carries, if there is one.
#[derive(Default)]
pub(super) struct Carrier {
    ports: Vec<Port>,
    process: Option<u32>,
    rests_until: Option<Instant>,
}

impl Carrier {
    /// Adds ports; those of TCP are open from here on.
    ///
    /// Errors: what dockerd would say of a port; or the process that carries is stuck, and goes on as it is.
    pub fn add(&mut self, ports: Vec<CarriedPort>, sockets: Vec<OwnedFd>) -> Result<(), String> {
        if ports.len() != sockets.len() {
            return Err(format!("{} sockets came for {} ports", sockets.len(), ports.len()));
        }
        if self.ports.len() + ports.len() > PORTS_MAX {
            return Err(format!("more than {PORTS_MAX} ports are carried"));
        }
        // The process that carries knows those that there were.
        self.stop()?;
        for (port, socket) in ports.into_iter().zip(sockets) {
            rustix::io::ioctl_fionbio(&socket, true).map_err(|error| format!("a port cannot be carried: {error}"))?;
            if port.is_datagram {
                datagrams::tell_addresses(&socket).map_err(|error| format!("a port cannot be carried: {error}"))?;
            } else {
                // What went before it, and what it accepts, may still wait for last packets. A listener shares its port with nobody all the same.
                rustix::net::sockopt::set_socket_reuseaddr(&socket, true)
                    .map_err(|error| format!("listen: {error}"))?;
                rustix::net::listen(&socket, BACKLOG).map_err(|error| match error {
                    // Go's words, as dockerd's proxy has them.
                    rustix::io::Errno::ADDRINUSE => "listen: address already in use".to_owned(),
                    error => format!("listen: {error}"),
                })?;
            }
            self.ports.push(Port { socket, is_datagram: port.is_datagram, target: port.target });
        }
        Ok(())
    }

    /// The sockets to wait at: none while somebody carries, or rests.
    pub fn awaited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waits = self.process.is_none() && self.rests_until.is_none();
        self.ports.iter().filter(move |_| waits).map(|port| port.socket.as_fd())
    }

    /// When the next process may begin, if that is not now.
    pub fn deadline(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Ends a rest that is over.
    pub fn wake(&mut self, now: Instant) {
        self.rests_until = self.rests_until.filter(|until| *until > now);
    }

    /// A client is there: somebody is to carry.
    pub fn begin(&mut self, now: Instant) {
        if self.process.is_some() || self.ports.is_empty() {
            return;
        }
        let shim = std::process::id();
        match sys::fork() {
            Ok(Some(pid)) => self.process = Some(pid),
            Ok(None) => {
                let code = i32::from(carry(std::mem::take(&mut self.ports), shim).is_err());
                sys::end_at_once(code);
            }
            Err(_) => self.rests_until = Some(now + REST),
        }
    }

    /// Whether this child is the one that carries, running or ended.
    pub fn is_process(&self, pid: u32) -> bool {
        self.process == Some(pid)
    }

    /// A child has ended; whether it was the one that carries.
    pub fn ended(&mut self, pid: u32, now: Instant) -> bool {
        let was = self.is_process(pid);
        if was {
            self.process = None;
            self.rests_until = Some(now + REST);
        }
        was
    }

    /// Gives all ports back, with the connections that go through them.
    ///
    /// Errors: the process that carries is stuck, and the ports are taken until it ends; they stay as they are.
    pub fn close(&mut self) -> Result<(), String> {
        self.stop()?;
        self.ports = Vec::new();
        Ok(())
    }

    /// Gives all ports back for good. Those that a process holds which is stuck are free when that ends: it was killed, and can do nothing.
    pub fn end(&mut self) {
        // There is nobody to tell: whoever wants such a port next hears that it is taken.
        let _ = self.stop();
        self.ports = Vec::new();
    }

    /// Ends the process that carries, and waits for it: it holds the sockets, too.
    ///
    /// Errors: it is stuck. It counts as the one that carries until it ends.
    fn stop(&mut self) -> Result<(), String> {
        let Some(pid) = self.process else { return Ok(()) };
        sys::kill(pid, libc::SIGKILL);
        if !children::wait_for_end(pid, END_PATIENCE) {
            return Err(
                "the process that carries ports was killed and does not end: its ports are still taken".to_owned()
            );
        }
        // Here, as long as its number is known: others are not to take it for a process of the container.
        children::reap(pid);
        self.process = None;
        Ok(())
    }
}

/// What the process that carries does until there is nothing to do any more.
fn carry(ports: Vec<Port>, shim: u32) -> std::io::Result<()> {
    // Before the descriptors are closed: those of the shim are nobody's here.
    let mut kept: Vec<_> = ports.iter().map(|port| port.socket.as_raw_fd()).collect();
    kept.sort_unstable();
    sys::close_all_except(&kept)?;
    let descriptors = raise_descriptors().saturating_sub(ports.len() + SPARE_DESCRIPTORS);
    give_up_protection()?;
    give_up_rights()?;
    // After the change of identity, which takes it back.
    sys::end_with_parent(shim)?;
    // Half of the descriptors for each; a connection has two.
    let mut streams = Streams::new(CONNECTIONS_MAX.min(descriptors / 4));
    let mut datagrams = Datagrams::new(ASSOCIATIONS_MAX.min(descriptors / 2));
    carry_all(&ports, &mut streams, &mut datagrams)
}

fn carry_all(ports: &[Port], streams: &mut Streams, datagrams: &mut Datagrams) -> std::io::Result<()> {
    let mut idle_since = Instant::now();
    loop {
        let mut set = Vec::new();
        for port in ports {
            set.push(PollFd::new(port.socket.as_fd(), PollFlags::POLLIN));
        }
        streams.await_in(&mut set);
        let first_datagram = set.len();
        datagrams.await_in(&mut set);
        let now = Instant::now();
        let busy = !streams.is_empty() || !datagrams.is_empty();
        let idle = (!busy).then(|| idle_since + IDLE_TIMEOUT);
        let due = [idle, streams.deadline(), datagrams.deadline()].into_iter().flatten().min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            // Rounded up, so that a deadline has passed when poll returns.
            let left = due.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut set, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = set.iter().map(|one| one.revents().unwrap_or(PollFlags::empty())).collect();
        drop(set);
        let now = Instant::now();
        streams.handle(&ready[ports.len()..first_datagram], now);
        datagrams.handle(&ready[first_datagram..], ports, now);
        for (index, (port, _)) in ports.iter().zip(&ready).enumerate().filter(|(_, (_, flags))| !flags.is_empty()) {
            match port.is_datagram {
                true => datagrams.receive(index, port, now),
                false => streams.accept(&port.socket, port.target, now),
            }
        }
        if busy {
            idle_since = now;
        } else if streams.is_empty() && datagrams.is_empty() && now >= idle_since + IDLE_TIMEOUT {
            return Ok(());
        }
    }
}

/// A socket that is on its way to the container.
fn dial(target: SocketAddrV4, kind: SocketType) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddr::V4(target)) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// As many descriptors as this process may have. Its own: the container never gets this limit.
fn raise_descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    /// More than there can be use for.
    const WANTED: u64 = 16_384;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let wanted = WANTED.min(hard).max(soft);
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft };
    usize::try_from(limit.min(WANTED)).unwrap_or(0)
}

/// The shim is the last that the kernel ends when memory is short. Who serves strangers is worth no more than others.
fn give_up_protection() -> std::io::Result<()> {
    let file = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(file)?;
    match score.trim().parse::<i32>().is_ok_and(|score| score >= UNPROTECTED) {
        true => Ok(()),
        false => std::fs::write(file, UNPROTECTED.to_string()),
    }
}

fn give_up_rights() -> std::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(NOBODY), rustix::fs::Gid::from_raw(NOBODY));
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

#[cfg(test)]
mod tests;
