//! The runtime, and its defaults for specifications.

use std::path::Path;

pub use runtime::Runtime;

use crate::error::{Error, Result};
use crate::launch::{Identity, Seccomp};

/// A user looked up in a root file system.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Numbers.
    pub identity: Identity,
    /// Home directory.
    pub home: String,
}

/// Finds `user[:group]`, by names of the root file system or by numbers; empty means root.
pub fn find_user(rootfs: &Path, user: &str) -> Result<Found> {
    let found = runtime::spec::users::find(rootfs, user)?;
    let oci = found.to_oci();
    let groups = oci.additional_gids().clone().unwrap_or_default();
    Ok(Found { identity: Identity { uid: oci.uid(), gid: oci.gid(), groups }, home: found.home })
}

/// Reads a wish: empty or `default`, `unconfined`, or a profile in OCI form.
pub fn seccomp(text: &str) -> Result<Seccomp> {
    match text {
        "" | "default" | "builtin" | "runtime/default" => Ok(Seccomp::Standard),
        "unconfined" => Ok(Seccomp::Unconfined),
        profile => serde_json::from_str(profile)
            .map(|p| Seccomp::Profile(Box::new(p)))
            .map_err(|error| Error::Invalid(format!("Decoding seccomp profile failed: {error}"))),
    }
}

/// Refuses working directories that lead out of the container. Source: CVE-2024-21626.
pub fn check_working_directory(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    Ok(runtime::spec::check_working_directory(path)?)
}
