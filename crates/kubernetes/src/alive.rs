//! Connections whose other end goes without a word: a machine that lost its power or its cable closes nothing.

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// A silent connection is asked for a sign of life after this time, this often, and given up after this many.
const IDLE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// What is sent and not acknowledged for this long gives it up too: while something is under way nobody asks for a sign of life, and the
/// kernel alone would try for a quarter of an hour. Units: milliseconds. `Source:` tcp(7), `TCP_USER_TIMEOUT`.
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// Has the kernel find out within a minute that the other end is gone.
pub fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}
