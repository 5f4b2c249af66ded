//! `nuee snapshot`: disks as they were at one instant.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::{Snapshot, SnapshotSpec};
use clap::Subcommand;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};

use super::image::Place;
use super::{Format, Output};

/// How often a snapshot's state is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Flags of `nuee snapshot`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the snapshots
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  nuee snapshot ls\n  nuee snapshot ls -o json | jq '.[].status.disks'"
    )]
    Ls {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        place: Place,
    },
    /// Keep a disk, or all disks of a machine, as they are now; guests run on
    ///
    /// What the guest has not written out yet is not in it, as after a power cut.
    #[command(
        after_help = "Examples:\n  nuee snapshot create monday --volume data\n  nuee snapshot create monday --vm web\n  nuee volume create data-again --from-snapshot monday"
    )]
    Create {
        /// Its name
        name: String,
        /// The disk
        #[arg(long, value_name = "VOLUME", conflicts_with = "vm", required_unless_present = "vm")]
        volume: Option<String>,
        /// The machine
        #[arg(long, value_name = "MACHINE")]
        vm: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Delete snapshots; disks that were made from them stay
    #[command(visible_alias = "remove", after_help = "Examples:\n  nuee snapshot rm monday tuesday")]
    Rm {
        /// The snapshots
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Does what the command says.
pub fn run(arguments: Arguments) -> Result<()> {
    super::block_on(async {
        match arguments.action {
            Action::Ls { output, place } => list(&output, &place).await,
            Action::Create { name, volume, vm, place } => {
                let (volume, virtual_machine) = (volume.unwrap_or_default(), vm.unwrap_or_default());
                create(&name, SnapshotSpec { volume, virtual_machine, node_name: None }, &place).await
            }
            Action::Rm { names, place } => super::volume::remove(&place.api::<Snapshot>()?, "snapshot", &names).await,
        }
    })
}

async fn list(output: &Output, place: &Place) -> Result<()> {
    let snapshots = place.api::<Snapshot>()?.list(&ListParams::default()).await.context("cannot list")?.items;
    if output.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&snapshots)?);
        return Ok(());
    }
    println!("{:<24} {:<24} {:<8} {:>16}  {:<24} MESSAGE", "NAME", "OF", "PHASE", "BYTES", "DISKS");
    for snapshot in snapshots {
        let status = snapshot.status.clone().unwrap_or_default();
        let of = match snapshot.spec.volume.as_str() {
            "" => format!("vm/{}", snapshot.spec.virtual_machine),
            volume => format!("volume/{volume}"),
        };
        let disks: Vec<&str> = status.disks.iter().map(|disk| disk.name.as_str()).collect();
        println!(
            "{:<24} {:<24} {:<8} {:>16}  {:<24} {}",
            snapshot.name_any(),
            of,
            status.phase,
            status.size_bytes,
            disks.join(","),
            status.message
        );
    }
    Ok(())
}

/// Takes a snapshot, waits until it is there, and prints its name.
pub async fn create(name: &str, spec: SnapshotSpec, place: &Place) -> Result<()> {
    let snapshots = place.api::<Snapshot>()?;
    let made = snapshots.create(&PostParams::default(), &Snapshot::new(name, spec)).await;
    made.with_context(|| format!("cannot take snapshot {name}"))?;
    loop {
        let found = snapshots.get_opt(name).await.context("cannot look at the snapshot")?;
        let status = found.context("somebody deleted the snapshot")?.status.unwrap_or_default();
        match status.phase.as_str() {
            "Ready" => break,
            "Failed" => bail!("snapshot {name}: {}", status.message),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    println!("{name}");
    Ok(())
}
