//! `nuee volume`: disks for virtual machines.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::volume::{VolumeLimits, VolumeMode, VolumeSource};
use api::{Volume, VolumeSpec};
use clap::Subcommand;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::image::Place;
use super::{Format, Output};

/// How often a volume's state is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Flags of `nuee volume`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the disks, and who has them
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  nuee volume ls\n  nuee volume ls -o json | jq '.[].status'"
    )]
    Ls {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        place: Place,
    },
    /// Make a disk, empty or of a snapshot or another disk, and wait until it is ready
    #[command(
        after_help = "Examples:\n  nuee volume create data --size 10Gi\n  nuee volume create data --size 10Gi --iops 500 --bytes-per-second 50Mi\n  nuee volume create copy --from-volume data\n  nuee volume create yesterday --from-snapshot monday --disk root"
    )]
    Create(Create),
    /// Make a disk larger, also while a machine uses it; it never shrinks
    #[command(after_help = "Examples:\n  nuee volume grow data 20Gi")]
    Grow {
        /// The disk
        name: String,
        /// Its new size
        size: String,
        #[command(flatten)]
        place: Place,
    },
    /// Delete disks; one that a machine has goes when it is detached
    #[command(visible_alias = "remove", after_help = "Examples:\n  nuee volume rm data")]
    Rm {
        /// The disks
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(clap::Args)]
struct Create {
    /// Its name
    name: String,
    /// Its size, such as 10Gi; absent takes that of what it is made from
    #[arg(long, value_name = "AMOUNT", required_unless_present_any = ["from_snapshot", "from_volume"])]
    size: Option<String>,
    /// Make it of this snapshot
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "from_volume")]
    from_snapshot: Option<String>,
    /// Which disk of the snapshot, when it has several: root, or a volume's name
    #[arg(long, value_name = "DISK", requires = "from_snapshot")]
    disk: Option<String>,
    /// Make it of this disk as it is now, which may be in use
    #[arg(long, value_name = "VOLUME")]
    from_volume: Option<String>,
    /// Most reads and writes per second
    #[arg(long, value_name = "NUMBER")]
    iops: Option<i64>,
    /// Most bytes read and written per second, such as 50Mi
    #[arg(long, value_name = "AMOUNT")]
    bytes_per_second: Option<String>,
    /// The machine of the pool that holds it
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    place: Place,
}

/// Does what the command says.
pub fn run(arguments: Arguments) -> Result<()> {
    super::block_on(async {
        match arguments.action {
            Action::Ls { output, place } => list(&output, &place).await,
            Action::Create(wanted) => create(wanted).await,
            Action::Grow { name, size, place } => {
                let patch = Patch::Merge(json!({"spec": {"size": size}}));
                let volumes = place.api::<Volume>()?;
                let grown = volumes.patch(&name, &PatchParams::default(), &patch).await;
                let grown = grown.with_context(|| format!("cannot grow volume {name}"))?;
                wait(&volumes, &name, grown.wanted_bytes()).await
            }
            Action::Rm { names, place } => remove(&place.api::<Volume>()?, "volume", &names).await,
        }
    })
}

/// Deletes objects, and prints their names.
pub async fn remove<K>(objects: &Api<K>, kind: &str, names: &[String]) -> Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    for name in names {
        let deleted = objects.delete(name, &DeleteParams::default()).await;
        deleted.with_context(|| format!("cannot delete {kind} {name}"))?;
        println!("{name}");
    }
    Ok(())
}

async fn list(output: &Output, place: &Place) -> Result<()> {
    let mut volumes = place.api::<Volume>()?.list(&ListParams::default()).await.context("cannot list")?.items;
    volumes.retain(Volume::is_block);
    if output.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&volumes)?);
        return Ok(());
    }
    println!("{:<24} {:>10} {:<8} {:<20} {:<16}  MESSAGE", "NAME", "SIZE", "PHASE", "ATTACHED", "NODE");
    for volume in volumes {
        let status = volume.status.clone().unwrap_or_default();
        let size = volume.spec.size.as_ref().map(|size| size.0.clone());
        let size = size.or(status.size_bytes.map(|bytes| bytes.to_string())).unwrap_or_default();
        println!(
            "{:<24} {:>10} {:<8} {:<20} {:<16}  {}",
            volume.name_any(),
            size,
            status.phase,
            status.attached_to.map(|attached| attached.virtual_machine).unwrap_or_default(),
            volume.spec.node_name.unwrap_or_default(),
            status.message
        );
    }
    Ok(())
}

async fn create(wanted: Create) -> Result<()> {
    let volumes = wanted.place.api::<Volume>()?;
    let source = VolumeSource {
        snapshot: wanted.from_snapshot.unwrap_or_default(),
        disk: wanted.disk.unwrap_or_default(),
        volume: wanted.from_volume.unwrap_or_default(),
        ..VolumeSource::default()
    };
    let limits = VolumeLimits { iops: wanted.iops, bytes_per_second: wanted.bytes_per_second.map(Quantity) };
    let spec = VolumeSpec {
        mode: VolumeMode::Block,
        size: wanted.size.map(Quantity),
        source: (source != VolumeSource::default()).then_some(source),
        limits: (limits != VolumeLimits::default()).then_some(limits),
        node_name: wanted.node,
        ..VolumeSpec::default()
    };
    let made = volumes.create(&PostParams::default(), &Volume::new(&wanted.name, spec)).await;
    made.with_context(|| format!("cannot make volume {}", wanted.name))?;
    if wanted.no_wait {
        println!("{}", wanted.name);
        return Ok(());
    }
    wait(&volumes, &wanted.name, None).await
}

/// Waits for a disk, and prints its name.
async fn wait(volumes: &Api<Volume>, name: &str, bytes: Option<u64>) -> Result<()> {
    wait_until(volumes, name, bytes).await?;
    println!("{name}");
    Ok(())
}

/// Waits until a disk is ready and has at least this size.
pub async fn wait_until(volumes: &Api<Volume>, name: &str, bytes: Option<u64>) -> Result<()> {
    loop {
        let found = volumes.get_opt(name).await.context("cannot look at the volume")?;
        let status = found.context("somebody deleted the volume")?.status.unwrap_or_default();
        let large = bytes.is_none_or(|bytes| status.size_bytes.and_then(|now| u64::try_from(now).ok()) >= Some(bytes));
        match status.phase.as_str() {
            "Ready" if large => break,
            "Failed" => bail!("volume {name}: {}", status.message),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    Ok(())
}
