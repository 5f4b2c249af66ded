//! End to end: a whole Nuée, driven by the real docker, kubectl and curl.

mod command_line;
mod docker;
mod errors;
mod in_cluster;
mod kubernetes;
mod pods;
mod recovery;
mod scheduling;
mod services;
mod workloads;

use anyhow::Result;
use testkit::Nuee;

/// A Nuée with the tests' images in it.
fn with_images() -> Result<Nuee> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.build_images()?;
    Ok(nuee)
}
