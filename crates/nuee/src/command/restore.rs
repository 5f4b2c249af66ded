//! `nuee restore`.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::backup::Passphrase;
use crate::backup;
use crate::instance::Instance;

/// Flags of `nuee restore`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The backup
    file: PathBuf,
}

/// Makes a new data directory of a backup.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can restore Nuée; try `sudo nuee restore`");
    }
    let instance = Instance::new(&arguments.data.path)?;
    let directory = instance.directory();
    let restored = backup::restore(&arguments.file, directory, arguments.passphrase.read()?.as_deref())?;
    println!("{} holds what was there on {}.", directory.display(), restored.manifest.created_at);
    if let Some(revision) = restored.revision {
        println!("  Revision {} goes on at {revision}: clients that watched list again.", restored.manifest.revision);
    }
    if let Some(snapshot) = restored.etcd_snapshot {
        println!("  The objects are in {}; restore them with `etcdctl snapshot restore`,", snapshot.display());
        println!("  with --bump-revision and --mark-compacted where your etcd has them.");
    }
    println!("  Tokens of service accounts are no longer valid and are given out anew.");
    if restored.manifest.encryption.is_none() {
        println!("  The backup held no keys: certificates and the kubeconfig will be new.");
    }
    println!("  Start it with `nuee up`.");
    Ok(())
}
