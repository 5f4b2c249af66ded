//! Watches our nftables tables: when somebody flushes the ruleset, it is back within milliseconds, before the daemon's
//! next round of checks and without any polling.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::inner::{Inner, netlink_error};
use crate::error::{IoContext, Result};
use crate::kernel::netlink::{message_kind, messages};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFT_MSG_DELTABLE` of the nftables subsystem.
const TABLE_DELETED: u16 = (10 << 8) | 2;
const STACK_BYTES: usize = 512 * 1024;

/// A thread that ends when this is dropped.
pub(super) struct Monitor {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts watching, in the calling thread's network namespace.
    pub(super) fn start(inner: &Arc<Inner>) -> Result<Monitor> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(netlink_error("watch nftables"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(netlink_error("watch nftables"))?;
        socket.add_membership(GROUP).map_err(netlink_error("watch nftables"))?;
        socket.set_non_blocking(true).map_err(netlink_error("watch nftables"))?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).at("make", "a pipe")?;
        let weak = Arc::downgrade(inner);
        let thread = std::thread::Builder::new()
            .name("nft-monitor".into())
            .stack_size(STACK_BYTES)
            .spawn(move || watch(&socket, &reader, &weak))
            .at("start", "a thread")?;
        Ok(Monitor { stop: Some(writer), thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(socket: &Socket, stop: &OwnedFd, inner: &Weak<Inner>) {
    loop {
        let mut descriptors =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if descriptors[1].revents().is_some_and(|e| !e.is_empty()) {
            return;
        }
        if !is_suspicious(socket) {
            continue;
        }
        let Some(inner) = inner.upgrade() else { return };
        // Our own replacement of the tables lands here too; looking costs two small requests.
        if let Err(error) = inner.heal() {
            tracing::warn!(%error, "could not bring back the nftables tables");
        }
    }
}

/// Reads all that waits. Whether a table went, or so much happened that the kernel could not tell it all.
fn is_suspicious(socket: &Socket) -> bool {
    let mut suspicious = false;
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => {
                suspicious |= messages(&bytes).any(|m| message_kind(m) == TABLE_DELETED);
            }
            Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => suspicious = true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return suspicious,
        }
    }
}
