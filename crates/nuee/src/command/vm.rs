//! `nuee vm`: virtual machines, for what kubectl has no word for.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use api::virtual_machine::DiskImageSource;
use api::{DiskImage, DiskImageSpec, SnapshotSpec, VirtualMachine};
use clap::Subcommand;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use super::image::{Place, wait_until_ready};
use crate::instance::Instance;

/// Ends a console: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// What of the console's past is shown. Units: bytes.
const PAST_BYTES: usize = 16 << 10;

/// Flags of `nuee vm`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List virtual machines
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Show what the serial console said, or connect to it (leave with Ctrl-])
    Console {
        /// The machine
        name: String,
        /// Only print what it said so far
        #[arg(long)]
        log: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Run ssh into the machine
    Ssh {
        /// The machine
        name: String,
        /// User to log in as
        #[arg(short, long, default_value = "root")]
        login: String,
        #[command(flatten)]
        place: Place,
        /// Further arguments of ssh
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Move the machine to another host while it runs
    #[command(after_help = "Examples:\n  nuee vm migrate web\n  nuee vm migrate web --to server-2 --bandwidth 50Mi")]
    Migrate(super::vm_migrate::Arguments),
    /// Give the machine a disk, also while it runs; the guest finds it by its name as serial number
    #[command(after_help = "Examples:\n  nuee vm attach web data\n  nuee vm attach web archive --read-only")]
    Attach {
        #[command(flatten)]
        disk: super::vm_disks::Arguments,
        /// The guest may not write to it
        #[arg(long)]
        read_only: bool,
    },
    /// Take a disk from the machine, also while it runs; unmount it in the guest first
    #[command(after_help = "Examples:\n  nuee vm ssh web -- umount /srv\n  nuee vm detach web data")]
    Detach(super::vm_disks::Arguments),
    /// Keep all disks of the machine as they are now, while it runs
    #[command(
        after_help = "Examples:\n  nuee vm snapshot web monday\n  nuee volume create old-root --from-snapshot monday --disk root"
    )]
    Snapshot {
        /// The machine
        name: String,
        /// Name of the snapshot
        snapshot: String,
        #[command(flatten)]
        place: Place,
    },
    /// Copy all disks of the machine at one instant into one file, while it runs
    #[command(
        after_help = "Examples:\n  nuee vm backup web -o web-monday.vm\n  nuee vm backup web -o web-tuesday.vm --incremental-from web-monday.vm\n  nuee vm backup verify web-monday.vm"
    )]
    Backup(super::vm_backup::Arguments),
    /// Make a machine with all its disks out of a backup
    #[command(
        after_help = "Examples:\n  nuee vm restore web-monday.vm\n  nuee vm restore web-tuesday.vm --base web-monday.vm --name web-again"
    )]
    Restore(super::vm_restore::Arguments),
    /// Save the machine's disk as a disk image, sparse and compressed; running machines go on
    Save {
        /// The machine
        name: String,
        /// Name of the disk image
        image: String,
        #[command(flatten)]
        place: Place,
    },
    /// Give the machine more processors or other memory
    Resize {
        /// The machine
        name: String,
        /// Processors
        #[arg(long)]
        cpus: Option<u32>,
        /// Memory that the guest may use now, at most what it was started with
        #[arg(long, value_name = "AMOUNT")]
        memory_target: Option<String>,
        /// Memory; more than before needs a stop and a start
        #[arg(long, value_name = "AMOUNT")]
        memory: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Start it, or let it go on
    Start(Target),
    /// Ask it to switch itself off; kill it when it does not
    Stop(Target),
    /// Stop its processors
    Pause(Target),
    /// Write its memory to disk and end it; `start` resumes it
    Suspend(Target),
    /// Start it over
    Restart(Target),
}

#[derive(clap::Args)]
struct Target {
    /// The machine
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Does what the command says.
pub fn run(arguments: Arguments) -> Result<()> {
    super::block_on(async {
        match arguments.action {
            Action::List { place } => list(&place).await,
            Action::Console { name, log, place } => console(&name, log, &place).await,
            Action::Ssh { name, login, place, rest } => ssh(&name, &login, &place, &rest).await,
            Action::Migrate(arguments) => super::vm_migrate::run(arguments).await,
            Action::Attach { disk, read_only } => super::vm_disks::attach(&disk, read_only).await,
            Action::Detach(disk) => super::vm_disks::detach(&disk).await,
            Action::Snapshot { name, snapshot, place } => {
                let spec = SnapshotSpec { virtual_machine: name, ..SnapshotSpec::default() };
                super::snapshot::create(&snapshot, spec, &place).await
            }
            Action::Backup(arguments) => super::vm_backup::run(arguments).await,
            Action::Restore(arguments) => super::vm_restore::run(arguments).await,
            Action::Save { name, image, place } => save(&name, &image, &place).await,
            Action::Resize { name, cpus, memory_target, memory, place } => {
                let mut spec = json!({});
                for (field, value) in [
                    ("cpus", cpus.map(Value::from)),
                    ("memoryTarget", memory_target.map(Value::from)),
                    ("memory", memory.map(Value::from)),
                ] {
                    if let Some(value) = value {
                        spec[field] = value;
                    }
                }
                change(&Target { name, place }, spec).await
            }
            Action::Start(target) => change(&target, json!({"desired": "Running"})).await,
            Action::Stop(target) => change(&target, json!({"desired": "Stopped"})).await,
            Action::Pause(target) => change(&target, json!({"desired": "Paused"})).await,
            Action::Suspend(target) => change(&target, json!({"desired": "Suspended"})).await,
            Action::Restart(target) => {
                let machine = get(&target.place.api()?, &target.name).await?;
                change(&target, json!({"desired": "Running", "restartRequest": machine.spec.restart_request + 1})).await
            }
        }
    })
}

async fn get(machines: &Api<VirtualMachine>, name: &str) -> Result<VirtualMachine> {
    machines.get(name).await.with_context(|| format!("cannot read virtual machine {name}"))
}

async fn change(target: &Target, spec: Value) -> Result<()> {
    let machines = target.place.api::<VirtualMachine>()?;
    let patch = Patch::Merge(json!({ "spec": spec }));
    let changed = machines.patch(&target.name, &PatchParams::default(), &patch).await;
    changed.map(drop).with_context(|| format!("cannot change virtual machine {}", target.name))
}

async fn list(place: &Place) -> Result<()> {
    let machines = place.api::<VirtualMachine>()?.list(&ListParams::default()).await.context("cannot list")?;
    println!("{:<24} {:<10} {:<16} {:>4} {:>8}  IMAGE", "NAME", "PHASE", "IP", "CPUS", "MEMORY");
    for machine in machines {
        let status = machine.status.unwrap_or_default();
        let address = status.addresses.first().map(|address| address.ip.clone()).unwrap_or_default();
        let memory = machine.spec.memory.map(|memory| memory.0).unwrap_or_default();
        println!(
            "{:<24} {:<10} {:<16} {:>4} {:>8}  {}",
            machine.metadata.name.unwrap_or_default(),
            format!("{:?}", status.phase),
            address,
            machine.spec.cpus.max(1),
            memory,
            machine.spec.image
        );
    }
    Ok(())
}

async fn ssh(name: &str, login: &str, place: &Place, rest: &[String]) -> Result<()> {
    let machine = get(&place.api()?, name).await?;
    let address = machine.status.and_then(|status| status.addresses.into_iter().next());
    let address = address.with_context(|| format!("virtual machine {name} has no address"))?;
    let error = std::process::Command::new("ssh").arg(format!("{login}@{}", address.ip)).args(rest).exec();
    Err(error).context("cannot run ssh")
}

async fn save(name: &str, image: &str, place: &Place) -> Result<()> {
    let machine = get(&place.api()?, name).await?;
    let images = place.api::<DiskImage>()?;
    let from = images.get_opt(&machine.spec.image).await.context("cannot read the machine's image")?;
    let from = from.map(|from| from.spec).unwrap_or_default();
    let source = DiskImageSource { virtual_machine: name.to_owned(), ..DiskImageSource::default() };
    let spec = DiskImageSpec { source, node_name: machine.spec.node_name, ..from };
    images.create(&PostParams::default(), &DiskImage::new(image, spec)).await.context("cannot make the disk image")?;
    wait_until_ready(&images, image).await
}

async fn console(name: &str, log: bool, place: &Place) -> Result<()> {
    let machine = get(&place.api()?, name).await?;
    let uid = machine.metadata.uid.context("the machine has no uid")?;
    let instance = Instance::new(&place.data.path)?;
    let path = instance.path("guests").join(&uid).join("console.log");
    let said = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut stdout = std::io::stdout();
    let past = if log { &said[..] } else { &said[said.len().saturating_sub(PAST_BYTES)..] };
    stdout.write_all(past)?;
    stdout.flush()?;
    if log {
        return Ok(());
    }
    talk(&instance.path("run/guests").join(&uid))
}

/// Carries the terminal to the console and back until either ends.
fn talk(run_dir: &Path) -> Result<()> {
    let directory = std::fs::File::open(run_dir).context("the machine does not run")?;
    // However long the path of the data directory is.
    let socket = format!("/proc/self/fd/{}/console.sock", directory.as_raw_fd());
    let mut stream = UnixStream::connect(socket).context("cannot reach the console")?;
    let mut output = stream.try_clone()?;
    let terminal = Raw::enter()?;
    let reader = std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::stdout().lock()));
    let mut buffer = [0u8; 1024];
    loop {
        let count = std::io::stdin().read(&mut buffer)?;
        let typed = &buffer[..count];
        let end = typed.iter().position(|byte| *byte == ESCAPE && terminal.is_some());
        stream.write_all(&typed[..end.unwrap_or(count)]).context("the console is gone")?;
        if count == 0 || end.is_some() {
            break;
        }
    }
    if terminal.is_none() {
        // Fed by a pipe: what the guest answers is shown until it is quiet or gone.
        stream.shutdown(std::net::Shutdown::Write)?;
        if reader.join().is_err() {
            bail!("the console could not be read");
        }
    }
    Ok(())
}

/// A terminal that passes every key on, and is itself again when this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
