//! `nuee vm backup` and `nuee vm backup verify`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use api::snapshot::BackupDisk;
use api::virtual_machine::MachineBoot;
use api::{Backup, BackupSpec, BackupStatus, DiskImage, KeyPair, VirtualMachine, VirtualMachineSpec};
use hypervisor::backup_file::{self, Header, Part, Role, Since};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde::{Deserialize, Serialize};

use super::image::Place;
use crate::instance::Instance;

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Flags of `nuee vm backup`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Subcommand>,
    /// The machine
    #[arg(required = true)]
    name: Option<String>,
    /// File to write; it must not be there yet
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,
    /// Write only what changed since this earlier backup, which is then needed to restore
    #[arg(long, value_name = "FILE")]
    incremental_from: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Check every byte of a backup without restoring it
    #[command(after_help = "Examples:\n  nuee vm backup verify /srv/backup/web-monday.vm")]
    Verify {
        /// The backup
        file: PathBuf,
    },
}

/// What a file says of its machine, beside its disks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// What the machine is.
    pub spec: VirtualMachineSpec,
    /// How its image boots.
    pub boot: MachineBoot,
    /// Command line of its kernel.
    pub command_line: String,
    /// Keys that may log in: name and public key.
    pub key_pairs: Vec<(String, String)>,
}

/// Takes a backup, or checks one.
pub async fn run(arguments: Arguments) -> Result<()> {
    if let Some(Subcommand::Verify { file }) = &arguments.command {
        let backup = open(file, true)?;
        println!("{} is whole.", file.display());
        return tell(&backup.header);
    }
    let name = arguments.name.context("name the machine")?;
    let target = arguments.output.context("name the file to write")?;
    ensure!(!target.exists(), "{} is there already; a backup is never overwritten", target.display());
    let base = arguments.incremental_from.as_deref().map(|path| open(path, false)).transpose()?;
    if let Some(base) = &base {
        ensure!(base.header.machine == name, "the earlier backup is of {}, not of {name}", base.header.machine);
    }
    let since = base.as_ref().map(|base| base.header.mark.clone()).unwrap_or_default();
    let place = &arguments.place;
    let backups: Api<Backup> = place.api()?;
    let object = Backup {
        metadata: ObjectMeta { generate_name: Some(format!("{name}-")), ..ObjectMeta::default() },
        spec: BackupSpec { virtual_machine: name.clone(), since, node_name: None },
        status: None,
    };
    let made = backups.create(&PostParams::default(), &object).await.context("the backup cannot be made")?;
    let own = made.metadata.name.clone().unwrap_or_default();
    let written = tokio::select! {
        written = take(place, &backups, &own, &target, base.as_ref()) => written,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("it was interrupted")),
    };
    // What was copied goes with the object.
    let deleted = backups.delete(&own, &DeleteParams::default()).await.context("the copies cannot be deleted");
    let (header, disks) = written?;
    deleted?;
    println!("{} is written.", target.display());
    for disk in disks.iter().filter(|disk| !disk.reason.is_empty()) {
        println!("  {} is whole: {}.", disk.name, disk.reason);
    }
    tell(&header)
}

/// Opens a backup, and checks all of it when it is wanted.
pub fn open(path: &Path, whole: bool) -> Result<backup_file::Backup> {
    let say = || format!("{} is refused", path.display());
    let backup = backup_file::Backup::open(path).with_context(say)?;
    if whole {
        let length = std::fs::metadata(path).with_context(say)?.len();
        let bar = bar(2 * length, "Checking");
        backup.verify(&mut |bytes| bar.inc(bytes)).with_context(say)?;
        bar.finish_and_clear();
    }
    Ok(backup)
}

/// A bar of work in bytes.
pub fn bar(total: u64, message: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(message);
    bar
}

fn tell(header: &Header) -> Result<()> {
    println!("  virtual machine {}, as it was on {}", header.machine, header.taken_at);
    if let Some(since) = &header.since {
        println!("  goes on from the backup whose digest is {}", since.sha256);
    }
    for part in &header.parts {
        let (what, how) = match part.role {
            Role::Disk => (format!("disk {}", part.name), if part.incremental { "changes" } else { "whole" }),
            Role::Kernel => ("kernel".to_owned(), ""),
            Role::Initrd => ("initrd".to_owned(), ""),
        };
        println!("  {what:<28} {:>14} bytes  {how:<8} sha256 {}", part.bytes, part.sha256);
    }
    Ok(())
}

/// Has the disks copied, and writes the file.
async fn take(
    place: &Place,
    backups: &Api<Backup>,
    own: &str,
    target: &Path,
    base: Option<&backup_file::Backup>,
) -> Result<(Header, Vec<BackupDisk>)> {
    let object = copied(backups, own).await?;
    let status = object.status.unwrap_or_default();
    let uid = object.metadata.uid.context("the backup has no uid")?;
    let instance = Instance::new(&place.data.path)?;
    let exported = instance.path("exports").join(uid);
    if !exported.exists() {
        let node = object.spec.node_name.unwrap_or_default();
        bail!("the machine is on {node}: its copies are there, and this is another host");
    }
    let machine = place.api::<VirtualMachine>()?.get(&object.spec.virtual_machine).await;
    let machine = machine.context("cannot read the machine")?;
    let image = place.api::<DiskImage>()?.get_opt(&machine.spec.image).await.context("cannot read its image")?;
    let mut sources = parts(&status, &exported);
    let incremental = status.disks.iter().any(|disk| disk.incremental);
    let since = base.filter(|_| incremental);
    // What the machine boots never changes: the earlier backup has it.
    let image_uid = image.as_ref().filter(|_| since.is_none()).and_then(|image| image.metadata.uid.as_ref());
    if let Some(image_uid) = image_uid {
        let directory = instance.path("disks/images").join(image_uid);
        for (role, file) in [(Role::Kernel, "kernel"), (Role::Initrd, "initrd")] {
            let path = directory.join(file);
            if path.exists() {
                sources.push((part(role, "", 0, false), path));
            }
        }
    }
    let header = Header {
        program: env!("CARGO_PKG_VERSION").into(),
        taken_at: status.taken_at.map(|at| at.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default(),
        machine: object.spec.virtual_machine,
        description: serde_json::to_value(describe(place, machine.spec, image).await?)?,
        mark: status.mark,
        since: since.map(|base| Since { mark: base.header.mark.clone(), sha256: base.sha256.clone() }),
        ..Header::default()
    };
    let mut total = 0;
    for (_, path) in &sources {
        total += std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len();
    }
    let (target, bar) = (target.to_owned(), bar(2 * total, "Writing"));
    let written = tokio::task::spawn_blocking(move || {
        let written = backup_file::write(&target, header, &sources, &mut |bytes| bar.inc(bytes));
        bar.finish_and_clear();
        written
    });
    Ok((written.await?.context("cannot write the backup")?, status.disks))
}

/// Waits until the disks are copied, and shows how far they are.
async fn copied(backups: &Api<Backup>, own: &str) -> Result<Backup> {
    let bar = bar(0, "Copying");
    loop {
        let found = backups.get_opt(own).await.context("cannot look at the backup")?;
        let found = found.context("somebody deleted the backup")?;
        let status: BackupStatus = found.status.clone().unwrap_or_default();
        bar.set_length(u64::try_from(status.total_bytes).unwrap_or(0));
        bar.set_position(u64::try_from(status.copied_bytes).unwrap_or(0));
        match status.phase.as_str() {
            "Ready" => {
                bar.finish_and_clear();
                return Ok(found);
            }
            "Failed" => {
                bar.finish_and_clear();
                bail!("the disks cannot be copied: {}", status.message);
            }
            "Pending" if status.message.ends_with("not found") => bail!("{}", status.message),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

fn part(role: Role, name: &str, virtual_bytes: u64, incremental: bool) -> Part {
    Part { role, name: name.to_owned(), virtual_bytes, incremental, bytes: 0, sha256: String::new() }
}

fn parts(status: &BackupStatus, exported: &Path) -> Vec<(Part, PathBuf)> {
    let disks = status.disks.iter().enumerate().map(|(index, disk)| {
        let bytes = u64::try_from(disk.size_bytes).unwrap_or(0);
        (part(Role::Disk, &disk.name, bytes, disk.incremental), exported.join(format!("{index}.qcow2")))
    });
    disks.collect()
}

async fn describe(place: &Place, mut spec: VirtualMachineSpec, image: Option<DiskImage>) -> Result<Description> {
    // Where it was is no part of what it is.
    spec.node_name = None;
    spec.restart_request = 0;
    spec.rebuild_request = 0;
    spec.revert_request = 0;
    spec.revert_snapshot.clear();
    spec.rescue_image.clear();
    let pairs = place.api::<KeyPair>()?;
    let mut key_pairs = Vec::new();
    for name in &spec.key_pairs {
        if let Some(pair) = pairs.get_opt(name).await.context("cannot read a key pair")? {
            key_pairs.push((name.clone(), pair.spec.public_key));
        }
    }
    let image = image.map(|image| image.spec).unwrap_or_default();
    Ok(Description { spec, boot: image.boot, command_line: image.command_line, key_pairs })
}
