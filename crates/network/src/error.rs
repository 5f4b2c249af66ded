//! What can go wrong here, in kinds that a caller can tell apart. Must not know dialects: the texts that Docker users see
//! are the ones that Docker itself prints, because they are clear.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::types::Protocol;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network with this id.
    #[error("network {0} not found")]
    NetworkNotFound(String),
    /// The network cannot go while something is attached to it.
    #[error("network {0} has active endpoints")]
    NetworkInUse(String),
    /// The subnet overlaps with one that is in use, by another network or by a route of the machine.
    #[error("subnet {subnet} overlaps with {other}")]
    SubnetOverlap {
        /// What was asked for.
        subnet: String,
        /// What it collides with.
        other: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// All addresses of the subnet are taken.
    #[error("no available IPv4 addresses on this network's address pools: {0}")]
    AddressesExhausted(String),
    /// All IPv6 addresses of the subnet are taken.
    #[error("no available IPv6 addresses on this network's address pools: {0}")]
    Ipv6AddressesExhausted(String),
    /// All subnets of the pools are taken.
    #[error(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )]
    SubnetsExhausted,
    /// Somebody has this address.
    #[error("Address already in use: {0}")]
    AddressTaken(IpAddr),
    /// Somebody has this host port.
    #[error("Bind for {host}:{port} failed: port is already allocated")]
    PortTaken {
        /// Host address.
        host: IpAddr,
        /// Host port.
        port: u16,
        /// Protocol.
        protocol: Protocol,
    },
    /// No host port is free in the asked range.
    #[error("all ports are allocated")]
    PortsExhausted,
    /// The kernel refused a netlink request.
    #[error("{action}")]
    Netlink {
        /// What was being done.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// nft(8) could not be run, or refused a ruleset.
    #[error("nft: {0}")]
    Nft(String),
    /// A file or a namespace could not be read or changed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A thread of ours ended early.
    #[error("the worker for {0} ended without an answer")]
    WorkerLost(&'static str),
}

/// Result of a call to this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was being done, and to what, to an I/O error.
pub(crate) trait IoContext<T> {
    /// Turns it into [`Error::Io`].
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| Error::Io { action, path: path.into(), source: e.into() })
    }
}
