//! `nuee down`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::Config;
use crate::daemon::{self, Membership};
use crate::instance::Instance;

/// How long the daemon may take to end before it is killed; nothing is lost by that.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether it ended.
const LOOK: Duration = Duration::from_millis(10);

/// Flags of `nuee down`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    /// Stop all workloads too, and remove every process, mount, bridge, namespace, nft table and cgroup; data stays
    #[arg(long)]
    all: bool,
}

/// Stops it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let instance = Instance::new(&arguments.data.path)?;
    if !instance.directory().exists() {
        bail!("there is no Nuée in {}", instance.directory().display());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can stop Nuée; try `sudo nuee down`");
    }
    let stopped = stop_daemon(&instance)?;
    if arguments.all {
        let config = Config::load(&instance.path("config.yaml"))?;
        let config = Membership::read(&instance)?.map_or(config.clone(), |membership| membership.configure(&config));
        daemon::destroy_workloads(&instance, &config)?;
        println!("Nuée and all its workloads are stopped; data stays in {}.", instance.directory().display());
    } else if stopped {
        println!("Nuée is stopped; workloads keep running (`nuee down --all` stops them too).");
    } else {
        println!("Nuée was not running.");
    }
    Ok(())
}

pub(super) fn stop_daemon(instance: &Instance) -> Result<bool> {
    let Some(pid) = instance.daemon_pid() else { return Ok(false) };
    let process = Pid::from_raw(pid);
    kill(process, Signal::SIGTERM).with_context(|| format!("cannot signal process {pid}"))?;
    let asked = Instant::now();
    let mut killed = false;
    while instance.daemon_pid() == Some(pid) {
        if asked.elapsed() > PATIENCE && !killed {
            kill(process, Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))?;
            killed = true;
        }
        if asked.elapsed() > 2 * PATIENCE {
            bail!("process {pid} does not end");
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}
