//! `nuee up`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::daemon;
use crate::instance::{Instance, State};

/// How long `--detach` waits for the daemon. A start takes well under a second; a start with much to adopt may take longer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a daemon that was killed may take to end before it counts as running: the kernel first frees its memory.
const DYING: Duration = Duration::from_millis(500);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);
/// Lines of the log that are shown when the start fails.
const LOG_LINES: usize = 15;

/// Flags of `nuee up`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    /// Return when it is ready, and leave it running in the background
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Address and port of the Kubernetes API, instead of the one in config.yaml
    #[arg(long, value_name = "ADDRESS:PORT")]
    kubernetes_listen: Option<SocketAddr>,
    /// Address and port of the image registry, instead of the one in config.yaml
    #[arg(long, value_name = "ADDRESS:PORT")]
    registry_listen: Option<SocketAddr>,
    /// Network of pods, instead of the one in config.yaml
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<String>,
    /// Addresses of Services, instead of those in config.yaml
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<String>,
    /// Name of this machine in the pool, instead of the one in config.yaml
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
}

/// Starts it.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("Nuée runs containers and so must be started by root; try `sudo nuee up`");
    }
    let instance = Instance::new(&arguments.data.path)?;
    instance.create()?;
    if let Some(pid) = daemon_that_stays(&instance) {
        bail!("Nuée is already running on {} (pid {pid}); see `nuee status`", instance.directory().display());
    }
    let config = configure(&instance, arguments)?;
    if !arguments.detach {
        return daemon::run(&instance, config);
    }
    detach(&instance, std::env::args_os().skip(1).filter(|word| word != "--detach" && word != "-d"))
}

/// The running daemon, unless it is one that has just been killed and is about to be gone.
fn daemon_that_stays(instance: &Instance) -> Option<i32> {
    let begun = Instant::now();
    loop {
        let pid = instance.daemon_pid()?;
        if begun.elapsed() > DYING {
            return Some(pid);
        }
        std::thread::sleep(LOOK);
    }
}

fn configure(instance: &Instance, arguments: &Arguments) -> Result<Config> {
    let mut config = Config::load(&instance.path("config.yaml"))?;
    let Arguments { kubernetes_listen, registry_listen, pod_cidr, service_cidr, node_name, .. } = arguments;
    config.kubernetes_listen = kubernetes_listen.unwrap_or(config.kubernetes_listen);
    config.registry_listen = registry_listen.or(config.registry_listen);
    config.pod_cidr = pod_cidr.clone().unwrap_or(config.pod_cidr);
    config.service_cidr = service_cidr.clone().unwrap_or(config.service_cidr);
    config.node_name = node_name.clone().unwrap_or(config.node_name);
    Ok(config)
}

/// Starts the daemon by these arguments as a process of its own, and waits until that says that it is ready.
pub(super) fn detach(instance: &Instance, arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let started = Instant::now();
    let log_path = instance.path("nuee.log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("cannot open {}", log_path.display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the daemon")?;
    let state = wait_until_ready(instance, &mut child, started)?;
    greet(instance, &state, started.elapsed());
    Ok(())
}

fn wait_until_ready(instance: &Instance, child: &mut Child, started: Instant) -> Result<State> {
    loop {
        if let Some(state) = instance.read_state()
            && state.pid == child.id()
            && state.ready
        {
            return Ok(state);
        }
        if let Some(status) = child.try_wait()? {
            bail!(
                "the daemon ended ({status}); the end of {}:\n{}",
                instance.path("nuee.log").display(),
                log_end(instance)
            );
        }
        if started.elapsed() > READY_TIMEOUT {
            bail!(
                "not ready after {} s; it goes on trying, see `nuee status` and {}",
                READY_TIMEOUT.as_secs(),
                instance.path("nuee.log").display()
            );
        }
        std::thread::sleep(LOOK);
    }
}

fn log_end(instance: &Instance) -> String {
    let text = std::fs::read_to_string(instance.path("nuee.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

fn greet(instance: &Instance, state: &State, took: Duration) {
    let bold =
        |text: &str| if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let directory =
        if instance.is_default() { String::new() } else { format!(" --data-dir {}", instance.directory().display()) };
    println!("{} is ready after {} ms (pid {}).", bold("Nuée"), took.as_millis(), state.pid);
    if state.endpoints.docker.is_empty() {
        println!("  pool      {}", state.endpoints.kubernetes);
        println!("  stop      nuee down{directory}    leave    nuee leave{directory}");
        return;
    }
    println!("  docker    export DOCKER_HOST={}", state.endpoints.docker);
    println!("  kubectl   export KUBECONFIG={}", state.endpoints.kubeconfig);
    println!("  stop      nuee down{directory}");
}
