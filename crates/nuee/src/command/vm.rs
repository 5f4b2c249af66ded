//! `nuee vm`: virtual machines, for what kubectl has no word for.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};
use api::virtual_machine::DiskImageSource;
use api::{DiskImage, DiskImageSpec, Snapshot, SnapshotSpec, VirtualMachine};
use clap::Subcommand;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::image::{Place, wait_until_ready};

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
    /// Connect to the serial console (leave with Ctrl-]), or show what it said so far
    ///
    /// One session has it at a time; a new one ends the one before. It takes the right to create virtualmachines/console, for the log that
    /// to get virtualmachines/log.
    #[command(
        after_help = "Examples:\n  nuee vm console web\n  nuee vm console web --log\n  nuee vm console web --namespace shop --kubeconfig tenant.yaml"
    )]
    Console(super::vm_console::Arguments),
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
    #[command(
        after_help = "Examples:\n  nuee vm migrate web\n  nuee vm migrate web --to server-2 --bandwidth 50Mi\n  nuee vm migrate web --post-copy"
    )]
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
    /// Give the machine a network interface, also while it runs
    #[command(
        after_help = "Examples:\n  nuee vm attach-interface web --network backend\n  nuee vm attach-interface web --network backend --security-group db --mac 52:54:00:12:34:56\n  nuee vm attach-interface web --port front"
    )]
    AttachInterface {
        #[command(flatten)]
        interface: super::vm_interfaces::Arguments,
        /// Security group that guards it; may be said several times
        #[arg(long = "security-group", value_name = "GROUP", conflicts_with = "port")]
        groups: Vec<String>,
    },
    /// Take a network interface from the machine, also while it runs; the default route leads through its first one
    #[command(
        after_help = "Examples:\n  nuee vm detach-interface web --network backend\n  nuee vm detach-interface web --port front"
    )]
    DetachInterface(super::vm_interfaces::Arguments),
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
        /// Memory; more than at its start comes at once up to its `memoryMaximum`, and else with a stop and a start
        #[arg(long, value_name = "AMOUNT")]
        memory: Option<String>,
        /// The most memory that it may be given while it runs, from its next start on
        #[arg(long, value_name = "AMOUNT")]
        memory_maximum: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Give the machine a new disk from its image or another; what was on the disk is lost, address, name and volumes stay
    #[command(after_help = "Examples:\n  nuee vm rebuild web\n  nuee vm rebuild web --image debian-13")]
    Rebuild {
        #[command(flatten)]
        target: Target,
        /// Disk image, if not the one that it was made from
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Take the machine's disks back to a snapshot; what was written since is lost. It is switched off first, and started again
    ///
    /// Disks of which the snapshot knows nothing stay as they are.
    #[command(after_help = "Examples:\n  nuee vm snapshot web monday\n  nuee vm revert web monday")]
    Revert {
        #[command(flatten)]
        target: Target,
        /// A snapshot of the machine, or of one of its volumes
        snapshot: String,
    },
    /// Boot the machine from a rescue image, with its own disk as the second one
    #[command(
        after_help = "Examples:\n  nuee vm rescue web --image tiny && nuee vm ssh web -- 'mount /dev/vdb1 /mnt'\n  nuee vm unrescue web"
    )]
    Rescue {
        #[command(flatten)]
        target: Target,
        /// Disk image to boot from, if not the one that the machine was made from
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Boot the machine from its own disk again
    Unrescue(Target),
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
            Action::Console(arguments) => super::vm_console::run(arguments).await,
            Action::Ssh { name, login, place, rest } => ssh(&name, &login, &place, &rest).await,
            Action::Migrate(arguments) => super::vm_migrate::run(arguments).await,
            Action::Attach { disk, read_only } => super::vm_disks::attach(&disk, read_only).await,
            Action::Detach(disk) => super::vm_disks::detach(&disk).await,
            Action::AttachInterface { interface, groups } => super::vm_interfaces::attach(&interface, &groups).await,
            Action::DetachInterface(interface) => super::vm_interfaces::detach(&interface).await,
            Action::Snapshot { name, snapshot, place } => {
                let spec = SnapshotSpec { virtual_machine: name, ..SnapshotSpec::default() };
                super::snapshot::create(&snapshot, spec, &place).await
            }
            Action::Backup(arguments) => super::vm_backup::run(arguments).await,
            Action::Restore(arguments) => super::vm_restore::run(arguments).await,
            Action::Save { name, image, place } => save(&name, &image, &place).await,
            Action::Resize { name, cpus, memory_target, memory, memory_maximum, place } => {
                let mut spec = json!({});
                for (field, value) in [
                    ("cpus", cpus.map(Value::from)),
                    ("memoryTarget", memory_target.map(Value::from)),
                    ("memory", memory.map(Value::from)),
                    ("memoryMaximum", memory_maximum.map(Value::from)),
                ] {
                    if let Some(value) = value {
                        spec[field] = value;
                    }
                }
                change(&Target { name, place }, spec).await
            }
            Action::Rebuild { target, image } => {
                let spec = get(&target.place.api()?, &target.name).await?.spec;
                let image = image.unwrap_or(spec.image);
                let (rebuild, restart) = (spec.rebuild_request + 1, spec.restart_request + 1);
                change(&target, json!({"image": image, "rebuildRequest": rebuild, "restartRequest": restart})).await
            }
            Action::Revert { target, snapshot } => {
                let found = target.place.api::<Snapshot>()?.get_opt(&snapshot).await.context("cannot look")?;
                found.with_context(|| format!("snapshot {snapshot} not found"))?;
                let machine = get(&target.place.api()?, &target.name).await?;
                // A machine that was made anew by `kubectl replace` counts from nothing, where its disk does not.
                let done = machine.status.as_ref().map_or(0, |status| status.observed_revert);
                let revert = machine.spec.revert_request.max(done) + 1;
                let restart = machine.spec.restart_request + 1;
                let patch = json!({"revertSnapshot": snapshot, "revertRequest": revert, "restartRequest": restart});
                change(&target, patch).await
            }
            Action::Rescue { target, image } => {
                let spec = get(&target.place.api()?, &target.name).await?.spec;
                if !spec.rescue_image.is_empty() {
                    bail!("virtual machine {} is being rescued with disk image {}", target.name, spec.rescue_image);
                }
                let image = image.unwrap_or(spec.image);
                change(&target, json!({"rescueImage": image, "restartRequest": spec.restart_request + 1})).await
            }
            Action::Unrescue(target) => {
                let spec = get(&target.place.api()?, &target.name).await?.spec;
                if spec.rescue_image.is_empty() {
                    bail!("virtual machine {} is not being rescued", target.name);
                }
                change(&target, json!({"rescueImage": null, "restartRequest": spec.restart_request + 1})).await
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
