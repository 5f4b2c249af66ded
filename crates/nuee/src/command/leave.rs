//! `nuee leave`.

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::daemon::{self, Membership};
use crate::instance::Instance;

/// Flags of `nuee leave`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    /// Leave though the pool does not answer; its administrator then deletes the node
    #[arg(long)]
    force: bool,
}

/// Leaves.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can take this machine out of its pool; try `sudo nuee leave`");
    }
    let instance = Instance::new(&arguments.data.path)?;
    let membership = Membership::read(&instance)?.context("this machine has not joined a pool")?;
    super::down::stop_daemon(&instance)?;
    let config = Config::load(&instance.path("config.yaml"))?;
    daemon::destroy_workloads(&instance, &membership.configure(&config))?;
    // What the pool says decides: as long as it counts on this machine, the machine can come back.
    let pool = membership.client(&instance)?;
    match super::block_on(async move { pool.leave().await }) {
        Err(error) if arguments.force => eprintln!("nuee: the pool was not told: {error:#}"),
        told => told.context("the pool was not told; --force leaves all the same")?,
    }
    let directory = daemon::machine_directory(&instance);
    std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    println!(
        "{} has left the pool of {}; data stays in {}.",
        membership.name,
        membership.server,
        instance.directory().display()
    );
    Ok(())
}
