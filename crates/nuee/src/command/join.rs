//! `nuee join`.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::daemon::{Membership, join_pool};
use crate::instance::Instance;

/// Flags of `nuee join`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    /// What `nuee token create` printed
    #[arg(long, value_name = "TOKEN", env = "NUEE_TOKEN", hide_env_values = true)]
    token: String,
    /// Host and port of the pool's API, as the pool's first machine is reached from this one
    #[arg(value_name = "HOST:PORT")]
    server: String,
    /// Return when it is ready, and leave it running in the background
    #[arg(short, long)]
    detach: bool,
    /// Name of this machine in the pool; its host name if not given
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
}

/// Joins, and starts the daemon.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("Nuée runs containers and so must be started by root; try `sudo nuee join`");
    }
    let instance = Instance::new(&arguments.data.path)?;
    instance.create()?;
    if instance.daemon_pid().is_some() {
        bail!("Nuée is running on {}; stop it first (`nuee down`)", instance.directory().display());
    }
    if std::fs::read_dir(instance.path("store"))?.next().is_some() {
        bail!(
            "{} holds a Nuée of its own; a machine that joins another one needs an empty --data-dir",
            instance.directory().display()
        );
    }
    let mut config = Config::load(&instance.path("config.yaml"))?;
    if let Some(name) = &arguments.node_name {
        config.node_name = name.to_ascii_lowercase();
    }
    match Membership::read(&instance)? {
        Some(present) if present.server == arguments.server => {
            println!("This machine is in the pool of {} already.", present.server);
        }
        Some(present) => bail!("this machine is in the pool of {}; `nuee leave` takes it out", present.server),
        None => {
            let name = config.node_name()?;
            let joined = join_pool(&instance, &arguments.server, &arguments.token, &name);
            let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let joined = threads.block_on(joined).with_context(|| format!("cannot join {}", arguments.server))?;
            println!("This machine is {} in the pool of {}.", joined.name, joined.server);
        }
    }
    let start = ["up".into(), "--data-dir".into(), instance.directory().as_os_str().to_owned()];
    if arguments.detach {
        return super::up::detach(&instance, start.into_iter());
    }
    // The token stays out of the daemon's command line.
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Err(std::process::Command::new(program).args(start).exec()).context("cannot start the daemon")
}
