//! Mount namespaces and mounts: what a child takes off before it executes its program, and the attributes of mounts.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives this process a mount namespace of its own.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: a plain number.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Says whether mounts follow their peers (`MS_REC`, `MS_SLAVE`, `MS_PRIVATE`).
pub(super) fn change_propagation(mount: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let null = std::ptr::null();
    // SAFETY: a valid C string, and null pointers where mount(2) allows them.
    let result = unsafe { libc::mount(null, mount.as_ptr(), null, flags, null.cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a mount off in this child's mount namespace alone: what it is mounted on goes no further.
pub(super) fn hide_mount(parent: &CStr, mount: &CStr) -> io::Result<()> {
    change_propagation(parent, libc::MS_PRIVATE)?;
    // SAFETY: a valid C string.
    if unsafe { libc::umount2(mount.as_ptr(), libc::MNT_DETACH) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a mount off with all that lies on it but for the tree at `kept`. In a mount namespace whose mounts are nobody's peers.
/// A crowd that is no mount stays as it is.
pub(super) fn put_apart(crowd: &CStr, kept: Option<&CStr>) -> io::Result<()> {
    let none = c"".as_ptr();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE.cast_unsigned();
    let failed = || Err(io::Error::last_os_error());
    // SAFETY: valid C strings, which live for the calls, and plain numbers; the descriptor is used here only, and closed when the
    // child executes its program.
    unsafe {
        let tree = kept.map(|kept| libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, kept.as_ptr(), flags));
        if tree.is_some_and(|tree| tree < 0) {
            return failed();
        }
        if libc::umount2(crowd.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) != 0 {
            // Nothing is mounted there, or there is nothing.
            let error = io::Error::last_os_error();
            return if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) { Ok(()) } else { Err(error) };
        }
        let (Some(tree), Some(kept)) = (tree, kept) else { return Ok(()) };
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        if libc::syscall(libc::SYS_move_mount, tree, none, libc::AT_FDCWD, kept.as_ptr(), flags) != 0 {
            return failed();
        }
    }
    Ok(())
}

/// `struct mount_attr`. `Source:` mount_setattr(2)
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Lets nobody write through this mount, and gives no program on it another's identity.
pub(crate) fn make_mount_read_only(mount: BorrowedFd) -> io::Result<()> {
    change_mount(mount, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0)
}

/// Lets nobody write through what is mounted below a mount, which stays as it is itself.
pub(crate) fn make_mounts_below_read_only(mount: BorrowedFd) -> io::Result<()> {
    // In a user's namespace, one that came so cannot be made writable again.
    let came_so = rustix::fs::fstatvfs(mount)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    change_mounts(mount, libc::MOUNT_ATTR_RDONLY, 0, libc::AT_RECURSIVE)?;
    if came_so { Ok(()) } else { change_mount(mount, 0, libc::MOUNT_ATTR_RDONLY) }
}

/// Sets some attributes of a mount (`MOUNT_ATTR_*`) and clears others.
pub(crate) fn change_mount(mount: BorrowedFd, set: u64, clear: u64) -> io::Result<()> {
    change_mounts(mount, set, clear, 0)
}

fn change_mounts(mount: BorrowedFd, set: u64, clear: u64, flags: libc::c_int) -> io::Result<()> {
    let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
    // SAFETY: an empty path with the flag that allows it, and attributes that live for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel has mount_setattr(2), by which a mount is changed with all below it (5.12 and later).
pub(crate) fn can_change_mounts() -> bool {
    // SAFETY: no attributes are read: their size is none, and the kernel that knows the call says that they are too few.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<MountAttributes>(), 0_usize)
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
