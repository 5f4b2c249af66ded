//! The names and addresses of this machine, read from procfs so that no netlink socket is needed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Host name and all local addresses. What cannot be read is left out.
pub(super) fn names() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut names = vec![Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
    let host = read("/proc/sys/kernel/hostname").trim().to_lowercase();
    if !host.is_empty() {
        names.push(host);
    }
    names.extend(ipv4(&read("/proc/net/fib_trie")).iter().map(ToString::to_string));
    names.extend(ipv6(&read("/proc/net/if_inet6")).iter().map(ToString::to_string));
    names
}

/// Addresses marked `/32 host LOCAL` in the kernel's routing trie.
fn ipv4(trie: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback()).map(IpAddr::V4));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Global addresses of `/proc/net/if_inet6` (scope 00), not link-local ones, which clients cannot name.
fn ipv6(table: &str) -> Vec<IpAddr> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let bits = u128::from_str_radix(fields.first()?, 16).ok()?;
            (*fields.get(3)? == "00").then(|| IpAddr::V6(Ipv6Addr::from(bits)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_from_procfs_text() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(ipv4(trie), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        let table =
            "fe800000000000000000000000000001 02 40 20 80 eth0\n20010db8000000000000000000000001 02 40 00 80 eth0\n";
        assert_eq!(ipv6(table), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    }
}
