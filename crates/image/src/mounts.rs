//! Taking off what is mounted, so that it goes nowhere else.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

/// Takes off all that is mounted at a place, with what is mounted below; nothing there is no error. It stays wherever else it is
/// mounted: what came along with a bind mount would be taken off its original too, as long as each follows the other.
/// `Source:` mount_namespaces(7), "Shared subtrees".
pub fn detach(point: &Path) -> io::Result<()> {
    loop {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match make_private(point).and_then(|()| umount2(point, flags)) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lets a mount, and those below it, follow no others, nor others them. A link is not followed.
fn make_private(point: &Path) -> nix::Result<()> {
    let place = open(point, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount(None::<&str>, path.as_str(), None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}
