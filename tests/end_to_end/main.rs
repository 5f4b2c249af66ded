//! End to end: a whole Nuée, driven by the real docker, kubectl and curl.

mod backup;
mod balloon;
mod buildkit;
mod command_line;
mod compose;
mod consolidation;
mod dialect;
mod disk;
mod docker;
mod docker_compared;
mod docker_tenants;
mod errors;
mod etcd;
mod hostile;
mod in_cluster;
mod join;
mod kubernetes;
mod machine_volumes;
mod members;
mod migration;
mod pods;
mod readme;
mod recovery;
mod registry;
mod scheduling;
mod services;
mod spanning;
mod storm;
mod swarm;
mod virtual_machine;
mod vm_networks;
mod workloads;

use anyhow::Result;
use testkit::Nuee;

/// A Nuée with the tests' images in it.
fn with_images() -> Result<Nuee> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.build_images()?;
    Ok(nuee)
}
