//! The tiny guest of the tests: Debian's cloud kernel, busybox, dropbear, lsblk and mke2fs. Boots from BIOS, by UEFI and straight into
//! its kernel; takes host name, keys and user data from a metadata service or a configuration drive. Built from Debian
//! packages, once per machine and version.
//!
//! | module | owns |
//! |---|---|
//! | [`packages`] | fetching and unpacking |
//! | [`root`] | what is in the root file system and the RAM disk |
//! | [`boot_disk`] | a disk that boots, from a directory and a kernel |
//! | [`workload`] | the same kernel under the files of a container's image |

pub mod boot_disk;
mod packages;
mod root;
pub mod workload;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// Counts changes of what is built, so that an old one in the cache is not taken for it.
const RECIPE: u32 = 12;

/// What UEFI starts, in Debian's package systemd-boot-efi.
const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Files of a built guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestGuest {
    /// Its disk, qcow2, compressed.
    pub disk: PathBuf,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its RAM disk.
    pub initrd: PathBuf,
}

/// Kernel command line for a direct boot. A translated guest on a machine under load may miss the first ticks of its timer, and the
/// self-tests of the kernel's ciphers take it a tenth of its boot.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=1 no_timer_check cryptomgr.notests";

/// Builds the guest, or takes it from the cache. Blocking: a minute the first time.
///
/// Errors: a package or a program is missing; the text says which.
pub fn build(cache: &Path) -> Result<TestGuest> {
    fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    // One builds, others wait and find it done.
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
    let _held =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| Error::io("lock", &lock_path)(error.into()))?;
    let done = cache.join(format!("test-guest-{RECIPE}"));
    let guest = |directory: &Path| TestGuest {
        disk: directory.join("disk.qcow2"),
        kernel: directory.join("kernel"),
        initrd: directory.join("initrd"),
    };
    if done.is_dir() {
        return Ok(guest(&done));
    }
    let work = cache.join("work");
    remove(&work)?;
    fs::create_dir_all(&work).map_err(Error::io("create", &work))?;
    let tree = packages::fetch(&work)?;
    let release = packages::kernel_release(&tree)?;
    let out = work.join("out");
    fs::create_dir_all(&out).map_err(Error::io("create", &out))?;
    let made = guest(&out);
    let kernel = tree.join("boot").join(format!("vmlinuz-{release}"));
    fs::copy(&kernel, &made.kernel).map_err(Error::io("copy", &kernel))?;
    let directory = root::make(&work, &tree, &release)?;
    root::make_initrd(&tree, &release, &made.initrd)?;
    let loader = tree.join(LOADER);
    fs::copy(&loader, out.join(boot_disk::LOADER)).map_err(Error::io("copy", &loader))?;
    root::make_workload_initrd(&tree, &release, &out.join(workload::INITRD))?;
    let parts = boot_disk::Parts {
        root: &directory,
        kernel: &made.kernel,
        initrd: &made.initrd,
        loader: &out.join(boot_disk::LOADER),
        command_line: COMMAND_LINE,
        root_bytes: root::ROOT_BYTES,
    };
    boot_disk::make(&parts, &work, &made.disk)?;
    fs::rename(&out, &done).map_err(Error::io("name", &done))?;
    remove(&work)?;
    Ok(guest(&done))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str], directory: &Path) -> Result<String> {
    let mut command = std::process::Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).current_dir(directory).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    let output = command.output().map_err(Error::io("run", program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Refused {
        command: format!("{program} {}", arguments.join(" ")),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
