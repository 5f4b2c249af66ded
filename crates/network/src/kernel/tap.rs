//! Tap devices that stay when nobody holds them, so that a guest and its network come and go apart.
//!
//! `Source:` Linux, Documentation/networking/tuntap.rst

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Makes a tap device, in the calling thread's network namespace; it is fine when it is there.
#[allow(unsafe_code)]
pub(crate) fn create(name: &str) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: the request is live and of the type that this call takes.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this call takes a plain number.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
