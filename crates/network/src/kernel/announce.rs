//! Tells everybody on a bridge which hardware address an address has now (gratuitous ARP, RFC 5227, section 3).

use std::io;
use std::net::Ipv4Addr;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::os::fd::AsRawFd;

use crate::types::Mac;

const ETHERTYPE_ARP: u16 = 0x0806;
const REPLY: u16 = 2;

/// The packet: a reply that nobody asked for. `Source:` RFC 826.
fn packet(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend([0, 1, 8, 0, 6, 4]);
    bytes.extend(REPLY.to_be_bytes());
    bytes.extend(mac.0);
    bytes.extend(address.octets());
    bytes.extend([0xff; 6]);
    bytes.extend(address.octets());
    bytes
}

/// Sends it on an interface.
#[allow(unsafe_code)]
pub(crate) fn send(index: u32, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
    let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
    // SAFETY: all zeros are a valid `sockaddr_ll`.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_protocol = ETHERTYPE_ARP.to_be();
    to.sll_ifindex = i32::try_from(index).unwrap_or_default();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&[0xff; 6]);
    let bytes = packet(address, mac);
    let size = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: both pointers are to live values of the sizes given with them.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const to).cast(), size)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_says_who_has_the_address() {
        let bytes = packet(Ipv4Addr::new(10, 88, 0, 7), Mac([2, 0x42, 10, 88, 0, 1]));
        assert_eq!(bytes.len(), 28);
        assert_eq!(&bytes[6..8], &[0, 2]);
        assert_eq!((&bytes[8..14], &bytes[14..18]), (&[2, 0x42, 10, 88, 0, 1][..], &[10, 88, 0, 7][..]));
    }
}
