//! Raw frames of a hostile workload: none of them reaches a neighbour, from the first moment on, and after a flush of the
//! ruleset has healed.
#![allow(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use network::{DEFAULT_NETWORK, Ipv6Config, Mac, NetworkConfig};

use crate::lab::{self, IMPATIENCE, PATIENCE, ask_udp, inside, serve_udp, shell, udp_socket};

const EVERYTHING: u16 = 0x0003;
const MARK: &[u8] = b"nuee-spoof-test-";

/// A raw packet socket in a namespace.
pub fn packet_socket(namespace: &Path) -> OwnedFd {
    inside(Some(namespace), || {
        // SAFETY: socket(2) takes no pointers; the descriptor is fresh and owned by nobody else.
        unsafe {
            let descriptor =
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(EVERYTHING.to_be()));
            assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(descriptor)
        }
    })
}

/// Sends a frame out of `eth0` of a namespace.
pub fn send(namespace: &Path, frame: &[u8]) {
    let socket = packet_socket(namespace);
    let index: i32 = inside(Some(namespace), || shell("ip -o link show eth0 | cut -d: -f1")).trim().parse().unwrap();
    // SAFETY: the address is plain data for which zeros are valid, and the pointers and lengths are those of live objects.
    let sent = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_ifindex = index;
        let length = u32::try_from(std::mem::size_of_val(&address)).unwrap();
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), length)
    };
    assert!(sent > 0, "{}", std::io::Error::last_os_error());
}

/// The markers of the frames that arrive until the one that ends the test.
pub fn receive(socket: &OwnedFd, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut buffer = [0u8; 2048];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !seen.iter().any(|s| s == last) {
        // SAFETY: the buffer is live and as long as we say.
        let count =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        let Ok(count) = usize::try_from(count) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let frame = &buffer[..count];
        if let Some(at) = frame.windows(MARK.len()).position(|w| w == MARK) {
            let name: Vec<u8> =
                frame[at + MARK.len()..].iter().copied().take_while(u8::is_ascii_alphanumeric).collect();
            seen.push(String::from_utf8(name).unwrap());
        }
    }
    seen
}

pub fn frame(to: [u8; 6], from: Mac, ether_type: u16, body: &[u8], name: &str) -> Vec<u8> {
    [&to[..], &from.0, &ether_type.to_be_bytes(), body, MARK, name.as_bytes(), b"."].concat()
}

fn arp_reply(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac.0, &address.octets(), &[0xff; 6], &[10, 88, 0, 3]].concat()
}

/// IPv4 and UDP headers; the kernel drops datagrams whose length or checksum is wrong by itself, so these are right.
pub fn datagram(source: Ipv4Addr, from: u16, to: u16, name: &str) -> Vec<u8> {
    datagram_to(source, Ipv4Addr::new(10, 88, 0, 2), from, to, name)
}

/// The same to any address.
pub fn datagram_to(source: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16, name: &str) -> Vec<u8> {
    let payload = u16::try_from(MARK.len() + name.len() + 1).unwrap();
    let mut header = [&[0x45, 0][..], &(28 + payload).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    header.extend([source.octets(), target.octets()].concat());
    let sum: u32 = header.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [from.to_be_bytes(), to.to_be_bytes(), (8 + payload).to_be_bytes(), [0, 0]].concat();
    [header, udp].concat()
}

#[test]
fn forged_frames_reach_nobody() {
    lab::run(|lab| async move {
        let victim = lab.workload("victim", DEFAULT_NETWORK).await;
        let socket = packet_socket(&victim.namespace);
        let evil = lab.workload("evil", DEFAULT_NETWORK).await;
        let other = Mac([2, 0x42, 10, 88, 0, 99]);
        let (all, gateway) = ([0xff; 6], evil.gateway);
        let forged = [
            ("arpgateway", frame(all, evil.mac, 0x0806, &arp_reply(evil.mac, gateway), "arpgateway")),
            ("arpvictim", frame(all, evil.mac, 0x0806, &arp_reply(other, evil.address), "arpvictim")),
            ("arpmac", frame(all, other, 0x0806, &arp_reply(evil.mac, evil.address), "arpmac")),
            ("ip", frame(all, evil.mac, 0x0800, &datagram(gateway, 53, 5353, "ip"), "ip")),
            ("mac", frame(all, other, 0x0800, &datagram(evil.address, 53, 5353, "mac"), "mac")),
            ("dhcp", frame(all, evil.mac, 0x0800, &datagram(evil.address, 67, 68, "dhcp"), "dhcp")),
            (
                "dhcpclient",
                frame(all, evil.mac, 0x0800, &datagram(Ipv4Addr::UNSPECIFIED, 68, 67, "dhcpclient"), "dhcpclient"),
            ),
            ("ipv6", frame([0x33, 0x33, 0, 0, 0, 1], evil.mac, 0x86dd, &[0x60, 0, 0, 0, 0, 32, 58, 255], "ipv6")),
            ("vlan", frame(all, evil.mac, 0x8100, &[0, 1, 8, 0], "vlan")),
            ("qinq", frame(all, evil.mac, 0x88a8, &[0, 1, 0x81, 0, 0, 1, 8, 0], "qinq")),
            ("stp", frame([1, 0x80, 0xc2, 0, 0, 0], evil.mac, 0x0026, &[0x42, 0x42, 3], "stp")),
        ];
        for round in 0..2 {
            for (_, bytes) in &forged {
                send(&evil.namespace, bytes);
            }
            // The control: what it may say does arrive, and comes last.
            let last = format!("honest{round}");
            send(&evil.namespace, &frame(all, evil.mac, 0x0800, &datagram(evil.address, 53, 5353, &last), &last));
            assert_eq!(receive(&socket, &last), std::slice::from_ref(&last));
            if round == 0 {
                let start = Instant::now();
                shell("nft flush ruleset");
                let deadline = Instant::now() + PATIENCE;
                while !shell("nft list tables").contains("bridge nuee") {
                    assert!(Instant::now() < deadline);
                }
                eprintln!(
                    "healed {:?} after the start of the flush (processes of this test included)",
                    start.elapsed()
                );
            }
        }
    });
}

/// An IPv6 packet with ICMPv6 inside. The checksum is wrong: what arrives is looked at before anybody checks it.
fn icmp6(source: Ipv6Addr, kind: u8, target: Ipv6Addr, name: &str) -> Vec<u8> {
    let length = u16::try_from(24 + MARK.len() + name.len() + 1).unwrap();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255], &source.octets(), &all_nodes.octets()];
    [&header.concat()[..], &[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()].concat()
}

#[test]
fn forged_ipv6_reaches_nobody() {
    lab::run(|lab| async move {
        let ipv6 = Some(Ipv6Config { subnet: Some("fd00:1::/64".parse().unwrap()), ..Ipv6Config::default() });
        let config = NetworkConfig { id: "six".into(), ipv6, ..NetworkConfig::default() };
        lab.fabric.ensure_network(config).await.unwrap();
        let victim = lab.workload("victim", "six").await;
        let socket = packet_socket(&victim.namespace);
        let evil = lab.workload("evil", "six").await;
        let place = evil.ipv6.unwrap();
        let (own, gateway, other) = (place.address, place.gateway, Mac([2, 0x42, 10, 88, 0, 99]));
        let link_local: Ipv6Addr = inside(Some(&evil.namespace), || {
            shell("ip -6 -o addr show dev eth0 scope link | awk '{print $4}' | cut -d/ -f1")
        })
        .trim()
        .parse()
        .unwrap();
        // Types of ICMPv6 (RFC 4861): 134 router advertisement, 135 and 136 neighbour solicitation and advertisement,
        // 137 redirect.
        let forged = [
            ("router", evil.mac, link_local, 134, own),
            ("redirect", evil.mac, link_local, 137, own),
            ("neighbour", evil.mac, own, 136, gateway),
            ("neighbourlocal", evil.mac, link_local, 136, victim.ipv6.unwrap().address),
            ("source", evil.mac, gateway, 135, own),
            ("sourcelocal", evil.mac, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 135, own),
            ("mac", other, own, 135, own),
            ("unspecified", evil.mac, Ipv6Addr::UNSPECIFIED, 136, own),
        ];
        let all = [0x33, 0x33, 0, 0, 0, 1];
        for (name, mac, source, kind, target) in forged {
            send(&evil.namespace, &frame(all, mac, 0x86dd, &icmp6(source, kind, target, name), name));
        }
        // The control: what it may say does arrive.
        let honest =
            [("solicits", own, 135, gateway), ("advertises", own, 136, own), ("last", link_local, 136, link_local)];
        for (name, source, kind, target) in honest {
            send(&evil.namespace, &frame(all, evil.mac, 0x86dd, &icmp6(source, kind, target, name), name));
        }
        assert_eq!(receive(&socket, "last"), ["solicits", "advertises", "last"]);
    });
}

#[test]
fn no_workload_speaks_to_what_joins_machines() {
    lab::run(|lab| async move {
        let workload = lab.workload("w", DEFAULT_NETWORK).await;
        // VXLAN's port (RFC 7348), and its neighbour as the control.
        for port in [4788, 4789] {
            serve_udp(None, port, "machine");
        }
        let socket = udp_socket(Some(&workload.namespace));
        assert!(ask_udp(&socket, workload.gateway, 4788, PATIENCE).is_ok());
        assert!(ask_udp(&socket, workload.gateway, 4789, IMPATIENCE).is_err());
    });
}
