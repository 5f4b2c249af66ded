//! Carries what hypervisors say to each other over the connections of their agents, so that they need no network of their own.

use std::os::unix::net::{UnixListener, UnixStream as BlockingStream};

use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// What is carried at once, either way: the last pages of a guest go over while it stands still. Units: bytes.
const PORTION_BYTES: usize = 256 << 10;

/// A socket for the hypervisor whose other end this process carries over a connection.
pub(super) fn pumped(connection: Box<dyn node::Duplex>) -> Result<BlockingStream> {
    let failed = || Error::io("make", "a pair of sockets");
    let (theirs, ours) = BlockingStream::pair().map_err(failed())?;
    ours.set_nonblocking(true).map_err(failed())?;
    let ours = UnixStream::from_std(ours).map_err(failed())?;
    tokio::spawn(carry(ours, connection));
    Ok(theirs)
}

/// Either end may go at any time; the hypervisors notice, and say so.
async fn carry(mut ours: UnixStream, mut connection: Box<dyn node::Duplex>) {
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut ours, &mut connection, PORTION_BYTES, PORTION_BYTES);
    let _ = copied.await;
}

/// A listening socket for the hypervisor, and connections to it.
pub(super) fn disks_socket(run_dir: &std::path::Path, count: usize) -> Result<(UnixListener, Vec<BlockingStream>)> {
    use std::os::fd::AsRawFd;
    let opened = std::fs::File::open(run_dir).map_err(Error::io("open", run_dir))?;
    // However long the directory's path is.
    let path = format!("/proc/self/fd/{}/disks.sock", opened.as_raw_fd());
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::io("listen on", &path))?;
    let own = (0..count).map(|_| BlockingStream::connect(&path)).collect::<std::io::Result<_>>();
    Ok((listener, own.map_err(Error::io("connect to", &path))?))
}

/// Carries one of them over a connection.
pub(super) fn pump(own: BlockingStream, connection: Box<dyn node::Duplex>) {
    let ours = own.set_nonblocking(true).and_then(|()| UnixStream::from_std(own));
    match ours {
        Ok(ours) => drop(tokio::spawn(carry(ours, connection))),
        Err(error) => tracing::warn!(%error, "cannot carry a disk"),
    }
}
