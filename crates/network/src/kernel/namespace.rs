//! Network namespaces: made by a short-lived thread, pinned by bind mounts in a directory whose mount is private, so that
//! no other mount namespace (a container with a shared `/`) keeps copies of the pins.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::error::{Error, IoContext, Result};
use crate::kernel::{link, netlink::Channel, sysctl};

/// Path of the calling thread's network namespace. `self` would be the main thread's.
const THREAD_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// These threads only do a few system calls.
const STACK_BYTES: usize = 256 * 1024;

/// The namespace of the calling thread.
pub(crate) fn current() -> Result<File> {
    File::open(THREAD_NAMESPACE).at("open", THREAD_NAMESPACE)
}

/// Runs `job` on a thread of its own, which may change its namespace and then ends.
fn on_own_thread<T: Send>(job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, job)
            .at("start a thread for", "a network namespace")?
            .join()
            .unwrap_or(Err(Error::WorkerLost("a network namespace")))
    })
}

/// Runs `job` inside the namespace at `path`.
pub(crate) fn run_inside<T: Send>(path: &Path, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(path).at("open network namespace", path)?;
    on_own_thread(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).at("enter network namespace", path)?;
        job()
    })
}

/// Whether a namespace is pinned at `path`.
pub(crate) fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Makes sure that `directory` is a mount point of its own, and private.
pub(crate) fn prepare_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).at("create", directory)?;
    if !is_mount_point(directory)? {
        mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .at("bind-mount", directory)?;
    }
    mount(None::<&str>, directory, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).at("make private", directory)
}

/// Undoes [`prepare_directory`].
pub(crate) fn abandon_directory(directory: &Path) -> Result<()> {
    // Each crash between look and mount may have stacked one more; the bound only guards against a loop without end.
    const MOUNTS_MAX: usize = 16;
    for _ in 0..MOUNTS_MAX {
        if !directory.exists() || !is_mount_point(directory)? {
            break;
        }
        umount2(directory, MntFlags::MNT_DETACH).at("unmount", directory)?;
    }
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", directory),
        _ => Ok(()),
    }
}

fn is_mount_point(directory: &Path) -> Result<bool> {
    let directory = fs::canonicalize(directory).at("resolve", directory)?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo").at("read", "/proc/thread-self/mountinfo")?;
    let wanted = directory.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| point == wanted))
}

/// Makes a namespace with loopback up and without IPv6 on what is added later, and pins it at `path`.
pub(crate) fn create(path: &Path) -> Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path).at("create", path)?;
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).at("make a network namespace for", path)?;
        let mut channel = Channel::route().at("open netlink in", path)?;
        link::set_up(&mut channel, link::LOOPBACK_INDEX).at("bring up loopback in", path)?;
        harden();
        mount(Some(THREAD_NAMESPACE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .at("pin network namespace", path)
    })
}

/// Lets go of a pinned namespace; whatever runs in it keeps it until it ends.
pub(crate) fn remove(path: &Path) -> Result<()> {
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH).at("unpin network namespace", path)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// Lets an interface of a workload speak IPv6, with the addresses that it is given and the link-local one of its MAC.
pub(crate) fn allow_ipv6(interface: &str) {
    let setting = |name: &str| format!("net/ipv6/conf/{interface}/{name}");
    // Its port on the bridge lets through the link-local address that follows from the MAC, so it must be that one.
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "0"), ("disable_ipv6", "0")] {
        if let Err(error) = sysctl::write(&setting(name), value) {
            tracing::debug!(interface, name, %error, "kernel setting left alone");
        }
    }
}

/// Settings inside a workload's namespace: no IPv6 on interfaces to come (loopback keeps `::1`), no router
/// advertisements, and ports under 1024 for everybody, as Docker and containerd set it.
pub(crate) fn harden() {
    for (path, value) in [
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/autoconf", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
    ] {
        // A kernel without IPv6 has none of them, and needs none.
        if let Err(error) = sysctl::write(path, value) {
            tracing::debug!(path, %error, "kernel setting left alone");
        }
    }
}
