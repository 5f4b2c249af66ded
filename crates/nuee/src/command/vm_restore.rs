//! `nuee vm restore`: a machine with all its disks out of a backup, here or on another Nuée. Everything is checked before anything is made,
//! and what was made goes again when it cannot be finished.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use api::virtual_machine::DiskImageSource;
use api::volume::{VolumeMode, VolumeSource};
use api::{DiskImage, DiskImageSpec, KeyPair, KeyPairSpec, VirtualMachine, Volume, VolumeSpec};
use hypervisor::backup_file::{Backup, Part, Role};
use hypervisor::disk::tool;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, PostParams};

use super::image::{Place, random_name, wait_until};
use super::vm_backup::{Description, bar, open};
use crate::instance::Instance;

/// Name of the boot disk.
const ROOT: &str = "root";
/// Backups that one may go on from, one after another.
const CHAIN_MAX: usize = 64;

/// Flags of `nuee vm restore`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The backup
    file: PathBuf,
    /// The earlier backups that it goes on from, in any order
    #[arg(long, value_name = "FILE")]
    base: Vec<PathBuf>,
    /// Name of the machine; that which it had if not given. Its volumes are called NAME-VOLUME then
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// What is to be made.
struct Plan {
    machine: String,
    image: String,
    /// Disks beside the root disk: name in the backup, name of the volume.
    volumes: Vec<(String, String)>,
    description: Description,
}

/// Restores.
pub async fn run(arguments: Arguments) -> Result<()> {
    ensure!(arguments.base.len() < CHAIN_MAX, "at most {CHAIN_MAX} backups can go on from each other");
    let chain = chain(&arguments.file, &arguments.base)?;
    let plan = plan(&chain[0], arguments.name.as_deref())?;
    let place = &arguments.place;
    absent::<VirtualMachine>(place, "virtual machine", &plan.machine).await?;
    absent::<DiskImage>(place, "disk image", &plan.image).await?;
    for (_, volume) in &plan.volumes {
        absent::<Volume>(place, "volume", volume).await?;
    }
    let mut made = Made::default();
    let done = make(place, &chain, &plan, &mut made).await;
    for directory in &made.uploads {
        if directory.exists() {
            std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
    }
    if done.is_err() {
        made.undo(place).await?;
    }
    done?;
    println!("{}", plan.machine);
    Ok(())
}

/// The backup and all that it goes on from, the newest first, each whole.
fn chain(file: &Path, bases: &[PathBuf]) -> Result<Vec<Backup>> {
    let mut rest: Vec<Backup> = bases.iter().map(|path| open(path, true)).collect::<Result<_>>()?;
    let mut chain = vec![open(file, true)?];
    while let Some(since) = chain[chain.len() - 1].header.since.clone() {
        let found = rest.iter().position(|one| one.sha256 == since.sha256 && one.header.mark == since.mark);
        let Some(found) = found else {
            bail!("the backup whose digest is {} is needed too: name it with --base", since.sha256);
        };
        chain.push(rest.swap_remove(found));
    }
    ensure!(rest.is_empty(), "a --base is none that the backup goes on from");
    Ok(chain)
}

fn plan(newest: &Backup, name: Option<&str>) -> Result<Plan> {
    let header = &newest.header;
    let description: Description = serde_json::from_value(header.description.clone())
        .context("what the backup says of its machine cannot be read")?;
    let machine = name.unwrap_or(&header.machine).to_owned();
    let disks = header.parts.iter().filter(|part| part.role == Role::Disk && part.name != ROOT);
    let volumes = disks.map(|part| {
        let volume = if name.is_some() { format!("{machine}-{}", part.name) } else { part.name.clone() };
        (part.name.clone(), volume)
    });
    Ok(Plan { image: format!("{machine}-{ROOT}"), volumes: volumes.collect(), machine, description })
}

async fn absent<K>(place: &Place, kind: &str, name: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let found = place.api::<K>()?.get_opt(name).await.with_context(|| format!("cannot look for {kind} {name}"))?;
    ensure!(found.is_none(), "there is a {kind} {name} already; choose another name with --name");
    Ok(())
}

/// What was made so far.
#[derive(Default)]
struct Made {
    uploads: Vec<PathBuf>,
    image: Option<String>,
    volumes: Vec<String>,
}

impl Made {
    async fn undo(&self, place: &Place) -> Result<()> {
        let parameters = DeleteParams::default();
        for name in &self.volumes {
            place.api::<Volume>()?.delete(name, &parameters).await.context("cannot delete a half made volume")?;
        }
        if let Some(name) = &self.image {
            place.api::<DiskImage>()?.delete(name, &parameters).await.context("cannot delete a half made image")?;
        }
        Ok(())
    }
}

async fn make(place: &Place, chain: &[Backup], plan: &Plan, made: &mut Made) -> Result<()> {
    let create = PostParams::default();
    let images = place.api::<DiskImage>()?;
    let volumes = place.api::<Volume>()?;
    let upload = unpack(place, chain, ROOT, made).await?;
    let spec = DiskImageSpec {
        source: DiskImageSource { upload, ..DiskImageSource::default() },
        boot: plan.description.boot,
        command_line: plan.description.command_line.clone(),
        node_name: None,
    };
    images.create(&create, &DiskImage::new(&plan.image, spec)).await.context("cannot make the disk image")?;
    made.image = Some(plan.image.clone());
    wait_until(&images, &plan.image, |_| ()).await?;
    for (disk, name) in &plan.volumes {
        let upload = unpack(place, chain, disk, made).await?;
        let size = disk_part(&chain[0], disk)?.virtual_bytes;
        let spec = VolumeSpec {
            mode: VolumeMode::Block,
            size: Some(Quantity(size.to_string())),
            source: Some(VolumeSource { upload, ..VolumeSource::default() }),
            ..VolumeSpec::default()
        };
        volumes
            .create(&create, &Volume::new(name, spec))
            .await
            .with_context(|| format!("cannot make volume {name}"))?;
        made.volumes.push(name.clone());
        super::volume::wait_until(&volumes, name, Some(size)).await?;
    }
    let pairs = place.api::<KeyPair>()?;
    for (name, key) in &plan.description.key_pairs {
        if pairs.get_opt(name).await.context("cannot look for a key pair")?.is_none() {
            let pair = KeyPair::new(name, KeyPairSpec { public_key: key.clone() });
            pairs.create(&create, &pair).await.with_context(|| format!("cannot make key pair {name}"))?;
        }
    }
    let mut spec = plan.description.spec.clone();
    spec.image.clone_from(&plan.image);
    spec.node_name = None;
    for disk in &mut spec.disks {
        if let Some((_, volume)) = plan.volumes.iter().find(|(name, _)| *name == disk.volume) {
            disk.volume.clone_from(volume);
        }
    }
    // One that it was to have and did not have yet is not in the backup.
    spec.disks.retain(|disk| plan.volumes.iter().any(|(_, volume)| *volume == disk.volume));
    let machine = VirtualMachine::new(&plan.machine, spec);
    place.api::<VirtualMachine>()?.create(&create, &machine).await.context("cannot make the virtual machine")?;
    Ok(())
}

fn disk_part<'a>(backup: &'a Backup, name: &str) -> Result<&'a Part> {
    backup.find(Role::Disk, name).with_context(|| format!("disk {name} is not in an earlier backup"))
}

/// Puts a disk where the agent takes it from; the name of the upload.
async fn unpack(place: &Place, chain: &[Backup], disk: &str, made: &mut Made) -> Result<String> {
    let upload = random_name(disk)?;
    let directory = Instance::new(&place.data.path)?.path("uploads").join(&upload);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    made.uploads.push(directory.clone());
    let mut layers = Vec::new();
    for backup in chain {
        let part = disk_part(backup, disk)?;
        layers.push((backup, part.bytes));
        if !part.incremental {
            break;
        }
    }
    let bar = bar(layers.iter().map(|(_, bytes)| bytes).sum(), "Unpacking");
    let mut tell = |bytes| bar.inc(bytes);
    let target = directory.join("disk");
    if let [(backup, _)] = layers.as_slice() {
        backup.extract(Role::Disk, disk, &target, &mut tell)?;
    } else {
        let mut files = Vec::new();
        for (index, (backup, _)) in layers.iter().enumerate() {
            let file = directory.join(format!("layer-{index}"));
            backup.extract(Role::Disk, disk, &file, &mut tell)?;
            files.push(file);
        }
        let size = disk_part(&chain[0], disk)?.virtual_bytes;
        tool::flatten(&files, size, &target).await.context("cannot put the backups together")?;
        for file in files {
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    if disk == ROOT {
        for (role, file) in [(Role::Kernel, "kernel"), (Role::Initrd, "initrd")] {
            if let Some(backup) = chain.iter().find(|backup| backup.find(role, "").is_some()) {
                backup.extract(role, "", &directory.join(file), &mut |_| ())?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(upload)
}
