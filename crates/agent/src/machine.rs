//! Facts about this machine.

use std::net::Ipv4Addr;

/// Its name.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().to_lowercase();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Its memory. Units: bytes.
pub fn memory_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<i64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Its processors.
pub fn cpus() -> i64 {
    std::thread::available_parallelism().ok().and_then(|n| i64::try_from(n.get()).ok()).unwrap_or(1)
}

/// The address by which others reach it: the source address of the default route, or loopback without one.
pub fn address() -> Ipv4Addr {
    let probe = || -> std::io::Result<Ipv4Addr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        // Sends nothing: connecting a datagram socket only asks the routing table. Source: RFC 5737 address.
        socket.connect("192.0.2.1:9")?;
        match socket.local_addr()?.ip() {
            std::net::IpAddr::V4(address) => Ok(address),
            std::net::IpAddr::V6(_) => Ok(Ipv4Addr::LOCALHOST),
        }
    };
    probe().ok().filter(|a| !a.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST)
}

/// One line of a file, or nothing.
pub fn line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
