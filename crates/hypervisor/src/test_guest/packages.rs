//! Debian packages: fetched by apt-get, unpacked without being installed.

use std::fs;
use std::path::{Path, PathBuf};

use super::run;
use crate::error::{Error, Result};

/// Depends on the newest cloud kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the guest is made of beside its kernel.
const PACKAGES: &[&str] = &[
    "busybox",
    "dropbear-bin",
    "qemu-guest-agent",
    "systemd-boot-efi",
    "util-linux",
    "e2fsprogs",
    "libblkid1",
    "libc6",
    "libcom-err2",
    "libcrypt1",
    "libext2fs2",
    "libglib2.0-0",
    "libgmp10",
    "libmount1",
    "libnuma1",
    "libpcre2-8-0",
    "libselinux1",
    "libsmartcols1",
    "libtomcrypt1",
    "libtommath1",
    "libudev1",
    "liburing2",
    "libuuid1",
    "zlib1g",
];

/// Fetches and unpacks all of them into one tree.
pub(super) fn fetch(work: &Path) -> Result<PathBuf> {
    let depends = run("apt-cache", &["depends", "--important", KERNEL], work)?;
    let kernel = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .ok_or_else(|| Error::NotFound(format!("package {KERNEL}; run apt-get update; it")))?;
    let kernel = format!("linux-image-{}", kernel.trim());
    // Downloads drop their rights to a user of apt's own where the directory lets them.
    let mut arguments = vec!["-qq", "-o", "APT::Sandbox::User=root", "download", kernel.as_str()];
    arguments.extend(PACKAGES);
    run("apt-get", &arguments, work)?;
    let tree = work.join("tree");
    fs::create_dir_all(&tree).map_err(Error::io("create", &tree))?;
    for entry in fs::read_dir(work).map_err(Error::io("list", work))? {
        let path = entry.map_err(Error::io("list", work))?.path();
        if path.extension().is_some_and(|kind| kind == "deb") {
            run("dpkg-deb", &["-x", &path.to_string_lossy(), &tree.to_string_lossy()], work)?;
        }
    }
    Ok(tree)
}

/// The release of the kernel in the tree.
pub(super) fn kernel_release(tree: &Path) -> Result<String> {
    let modules = tree.join("lib/modules");
    let found = fs::read_dir(&modules).map_err(Error::io("list", &modules))?.flatten().next();
    found.and_then(|entry| entry.file_name().into_string().ok()).ok_or_else(|| Error::NotFound("a kernel".into()))
}
