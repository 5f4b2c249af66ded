//! End to end: a whole Nuée, driven by the real docker, kubectl and curl.

mod backup;
mod balloon;
mod buildkit;
mod buildx;
mod command_line;
mod compose;
mod consolidation;
mod container_details;
mod dead_file_system;
mod dialect;
mod disk;
mod docker;
mod docker_compared;
mod docker_tenants;
mod errors;
mod etcd;
mod git_builds;
mod guest_console;
mod guest_faults;
mod guest_life;
mod guest_neighbours;
mod guest_revert;
mod hostile;
mod image_import;
mod in_cluster;
mod join;
mod journal;
mod kubernetes;
mod machine_volumes;
mod members;
mod migration;
mod migration_disks;
mod migration_faults;
mod migration_postcopy;
mod migration_uefi;
mod network_options;
mod pods;
mod ports;
mod published;
mod readme;
mod recovery;
mod registry;
mod scheduling;
mod services;
mod spanning;
mod spanning_users;
mod storm;
mod subnets;
mod swarm;
mod swarm_pool;
mod virtual_machine;
mod vm_faults;
mod vm_interfaces;
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
