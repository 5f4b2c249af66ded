//! Published host ports. Each is held by a bound socket, as Docker's proxy holds it: the kernel then refuses it to
//! everybody else, and our own binding shows every conflict. TCP sockets are bound but never listen; UDP sockets never
//! see a datagram, because it is translated before. Those of IPv6 that lead to a container without IPv6 are given on to whoever carries for
//! it, which is a process that outlives this one: it holds them as well.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::ops::{Range, RangeInclusive};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with};

use crate::error::{Error, Result};
use crate::names::check_id;
use crate::state::files;
use crate::types::{CarriedPort, PortMapping, Protocol, Publication, Target};

/// Where the fabric takes host ports from when none is wished, as Docker does.
pub(crate) const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;
/// A bound on how many ports one owner may publish: each costs a descriptor.
const PORTS_MAX: usize = 4096;

/// All published ports.
pub(crate) struct PortBook {
    directory: PathBuf,
    publications: BTreeMap<String, Held>,
    /// Last ephemeral port given.
    cursor: u16,
}

struct Held {
    publication: Publication,
    /// They hold the ports until they are dropped.
    sockets: Vec<Socket>,
}

/// A socket that holds a port.
struct Socket {
    descriptor: OwnedFd,
    mapping: PortMapping,
    host: IpAddr,
}

impl Held {
    /// The sockets that somebody must carry from.
    fn carried(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().filter(|socket| self.publication.carried6 && socket.host.is_ipv6())
    }

    /// Whether all that is to be carried is held here. After a restart it is held by who carries.
    fn holds_carried(&self) -> bool {
        let carried = |mapping: &&PortMapping| hosts(mapping, self.publication.carried6).iter().any(IpAddr::is_ipv6);
        let wanted = self.publication.ports.iter().filter(|mapping| mapping.protocol != Protocol::Sctp).filter(carried);
        !self.publication.carried6 || self.carried().count() == wanted.count()
    }
}

impl PortBook {
    /// Reads what is on disk and takes the ports again. A port that somebody took in the meantime stays published.
    pub(crate) fn open(directory: &Path) -> Result<PortBook> {
        let mut book =
            PortBook { directory: directory.into(), publications: BTreeMap::new(), cursor: *EPHEMERAL.end() };
        for (owner, publication) in files::read_all::<Publication>(directory)? {
            let sockets = publication.ports.iter().flat_map(|p| {
                let hosts = hosts(p, publication.target6.is_some() || publication.carried6);
                hosts.into_iter().filter_map(|host| match hold_one(p, host) {
                    Ok(socket) => socket,
                    // It is held by who carries.
                    Err(Error::PortTaken { .. }) if publication.carried6 && host.is_ipv6() => None,
                    Err(error) => {
                        tracing::warn!(%owner, %error, "a published port is used by another process of this machine");
                        None
                    }
                })
            });
            let sockets = sockets.collect();
            book.publications.insert(owner, Held { publication, sockets });
        }
        Ok(book)
    }

    /// Publishes ports, in place of what the owner had. All or nothing. Gives what was there before, and what is now.
    pub(crate) fn publish(
        &mut self,
        owner: &str,
        target: Target,
        ports: &[PortMapping],
    ) -> Result<(Option<Publication>, Publication)> {
        check_id(owner)?;
        if ports.len() > PORTS_MAX {
            return Err(Error::Invalid(format!("more than {PORTS_MAX} published ports")));
        }
        let carried6 = target.carries6 && target.address6.is_none() && has_ipv6();
        // As dockerd does: what nothing can lead from is left out, without a word.
        let leads = |port: &&PortMapping| match port.host_address {
            Some(IpAddr::V6(_)) if target.carries6 && target.address6.is_none() => {
                carried6 && port.protocol != Protocol::Sctp
            }
            _ => true,
        };
        let ports: &[PortMapping] = &ports.iter().filter(leads).copied().collect::<Vec<_>>();
        let wanted = (target.address, target.address6, carried6);
        let before = self.publications.get(owner).map(|h| h.publication.clone());
        if let Some(held) = self.publications.get(owner).filter(|held| {
            let now = &held.publication;
            (now.target, now.target6, now.carried6) == wanted && satisfies(&now.ports, ports) && held.holds_carried()
        }) {
            return Ok((None, held.publication.clone()));
        }
        // The owner's own sockets must not stand in its way; they come back if this fails.
        let held = self.publications.remove(owner);
        let taken = self.take_all(ports, target.address6.is_some() || carried6);
        let result = taken.and_then(|(ports, sockets)| {
            let (target, target6) = (target.address, target.address6);
            let publication = Publication { owner: owner.to_owned(), target, target6, carried6, ports };
            files::replace(&self.directory.join(owner), &publication)?;
            Ok(Held { publication, sockets })
        });
        match result {
            Ok(new) => {
                let publication = new.publication.clone();
                self.publications.insert(owner.to_owned(), new);
                Ok((before, publication))
            }
            Err(error) => {
                if let Some(held) = held {
                    self.publications.insert(owner.to_owned(), held);
                }
                Err(error)
            }
        }
    }

    fn take_all(&mut self, ports: &[PortMapping], has_ipv6: bool) -> Result<(Vec<PortMapping>, Vec<Socket>)> {
        let (mut chosen, mut sockets) = (Vec::new(), Vec::new());
        for wanted in ports {
            let (mapping, held) = self.take(wanted, &chosen, has_ipv6)?;
            chosen.push(mapping);
            sockets.extend(held);
        }
        Ok((chosen, sockets))
    }

    fn take(
        &mut self,
        wanted: &PortMapping,
        siblings: &[PortMapping],
        has_ipv6: bool,
    ) -> Result<(PortMapping, Vec<Socket>)> {
        if wanted.target_port == 0 {
            return Err(Error::Invalid("invalid port 0".into()));
        }
        let first = wanted.host_port;
        let last = first.max(wanted.host_port_end);
        let mut taken_on = None;
        // The second range is empty but for ephemeral ports, which go around the end.
        let (candidates, rest) = if first == 0 { self.ephemeral() } else { (first..=last, 0..0) };
        for port in candidates.chain(rest) {
            let mapping = PortMapping { host_port: port, host_port_end: 0, ..*wanted };
            if self.conflicts(&mapping) || siblings.iter().any(|s| conflict(s, &mapping)) {
                continue;
            }
            match hold(&mapping, has_ipv6) {
                Ok(sockets) => {
                    if wanted.host_port == 0 {
                        self.cursor = port;
                    }
                    return Ok((mapping, sockets));
                }
                Err(Error::PortTaken { host, .. }) => taken_on = Some(host),
                Err(error) => return Err(error),
            }
        }
        Err(if first == 0 || last > first { Error::PortsExhausted } else { taken(wanted, taken_on, first) })
    }

    /// All ephemeral ports, from the one after the last given, around the end.
    fn ephemeral(&self) -> (RangeInclusive<u16>, Range<u16>) {
        let next = self.cursor.saturating_add(1);
        let next = if EPHEMERAL.contains(&next) { next } else { *EPHEMERAL.start() };
        (next..=*EPHEMERAL.end(), *EPHEMERAL.start()..next)
    }

    fn conflicts(&self, mapping: &PortMapping) -> bool {
        self.publications.values().flat_map(|h| &h.publication.ports).any(|other| conflict(other, mapping))
    }

    /// Withdraws an owner's ports.
    pub(crate) fn unpublish(&mut self, owner: &str) -> Result<Option<Publication>> {
        if !self.publications.contains_key(owner) {
            return Ok(None);
        }
        files::remove(&self.directory.join(owner))?;
        Ok(self.publications.remove(owner).map(|h| h.publication))
    }

    /// The sockets of an owner that somebody must carry from.
    pub(crate) fn carried(&self, owner: &str) -> Result<Vec<CarriedPort>> {
        let Some(held) = self.publications.get(owner) else { return Ok(Vec::new()) };
        let given = |socket: &Socket| {
            let copy = socket.descriptor.try_clone();
            let copy =
                copy.map_err(|source| Error::Netlink { action: format!("give the ports of {owner} on"), source });
            Ok(CarriedPort {
                host: (socket.host, socket.mapping.host_port).into(),
                protocol: socket.mapping.protocol,
                target: SocketAddrV4::new(held.publication.target, socket.mapping.target_port),
                socket: copy?,
            })
        };
        held.carried().map(given).collect()
    }

    /// Lets go of an owner's sockets that somebody carried from. Those may listen, so they hold nothing that is to be refused.
    pub(crate) fn forget_carried(&mut self, owner: &str) -> Result<()> {
        let Some(held) = self.publications.get_mut(owner).filter(|held| held.publication.carried6) else {
            return Ok(());
        };
        let publication = Publication { carried6: false, ..held.publication.clone() };
        files::replace(&self.directory.join(owner), &publication)?;
        held.publication = publication;
        held.sockets.retain(|socket| socket.host.is_ipv4());
        Ok(())
    }

    /// The publication of an owner.
    pub(crate) fn of(&self, owner: &str) -> Option<&Publication> {
        self.publications.get(owner).map(|held| &held.publication)
    }

    /// All publications.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Publication> {
        self.publications.values().map(|h| &h.publication)
    }
}

fn taken(mapping: &PortMapping, address: Option<IpAddr>, port: u16) -> Error {
    let host = address.or(mapping.host_address).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    Error::PortTaken { host, port, protocol: mapping.protocol }
}

/// Whether what is published already is what is wished now, so that nothing has to change.
fn satisfies(published: &[PortMapping], wanted: &[PortMapping]) -> bool {
    published.len() == wanted.len()
        && published.iter().zip(wanted).all(|(p, w)| {
            let in_range = w.host_port == 0 || (w.host_port..=w.host_port.max(w.host_port_end)).contains(&p.host_port);
            in_range && (p.host_address, p.target_port, p.protocol) == (w.host_address, w.target_port, w.protocol)
        })
}

/// Whether two mappings want the same port.
fn conflict(a: &PortMapping, b: &PortMapping) -> bool {
    a.protocol == b.protocol && a.host_port == b.host_port && share(a.host_address, b.host_address)
}

/// Whether two host addresses have one in common: 0.0.0.0 is every address of its family, `None` every address.
fn share(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Binds the sockets that hold the port. SCTP is not held: many kernels do not have it.
fn hold(mapping: &PortMapping, has_ipv6: bool) -> Result<Vec<Socket>> {
    let held = hosts(mapping, has_ipv6).into_iter().map(|host| hold_one(mapping, host)).collect::<Result<Vec<_>>>()?;
    Ok(held.into_iter().flatten().collect())
}

/// The addresses that a port is held on.
fn hosts(mapping: &PortMapping, has_ipv6: bool) -> Vec<IpAddr> {
    match mapping.host_address {
        Some(address) => vec![address],
        None if has_ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    }
}

/// Whether this machine has IPv6, as dockerd finds out: something can be bound there.
fn has_ipv6() -> bool {
    let bound = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP));
    bound.and_then(|socket| bind(&socket, &SocketAddr::from((Ipv6Addr::LOCALHOST, 0)))).is_ok()
}

fn hold_one(mapping: &PortMapping, host: IpAddr) -> Result<Option<Socket>> {
    let (kind, protocol) = match mapping.protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => return Ok(None),
    };
    let address = SocketAddr::new(host, mapping.host_port);
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // SO_REUSEADDR lets us pass connections that linger in TIME_WAIT, as every server does; it is taken away again at once,
    // because a listener of somebody else with the same option could otherwise share the port with us.
    let bound = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)).and_then(|socket| {
        if host.is_ipv6() {
            set_ipv6_v6only(&socket, true)?;
        }
        set_socket_reuseaddr(&socket, mapping.protocol == Protocol::Tcp)?;
        bind(&socket, &address)?;
        set_socket_reuseaddr(&socket, false)?;
        Ok(socket)
    });
    match bound {
        Ok(descriptor) => Ok(Some(Socket { descriptor, mapping: *mapping, host })),
        Err(Errno::ADDRINUSE) => Err(taken(mapping, Some(host), mapping.host_port)),
        Err(Errno::ADDRNOTAVAIL) => {
            Err(Error::Invalid(format!("failed to bind host port for {address}: cannot assign requested address")))
        }
        Err(errno) => {
            Err(Error::Netlink { action: format!("hold host port {}", mapping.host_port), source: errno.into() })
        }
    }
}
