//! `nuee vm attach` and `nuee vm detach`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::VirtualMachine;
use api::virtual_machine::{MachineDisk, MachinePhase};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::image::Place;

/// How often the machine's state is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a guest may take to let go of a disk, or a disk to become free, before this gives up waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts to write against the newest version of the machine.
const ATTEMPTS: usize = 5;

/// Flags of both.
#[derive(clap::Args)]
pub struct Arguments {
    /// The machine
    name: String,
    /// The disk
    volume: String,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    place: Place,
}

/// Gives the machine a disk.
pub async fn attach(arguments: &Arguments, read_only: bool) -> Result<()> {
    let wish = MachineDisk { volume: arguments.volume.clone(), read_only };
    change(arguments, |disks| {
        if disks.iter().any(|disk| disk.volume == wish.volume) {
            bail!("virtual machine {} has volume {} already", arguments.name, wish.volume);
        }
        disks.push(wish.clone());
        Ok(())
    })
    .await?;
    settled(arguments, true).await
}

/// Takes a disk from the machine.
pub async fn detach(arguments: &Arguments) -> Result<()> {
    change(arguments, |disks| {
        let before = disks.len();
        disks.retain(|disk| disk.volume != arguments.volume);
        if disks.len() == before {
            bail!("virtual machine {} does not have volume {}", arguments.name, arguments.volume);
        }
        Ok(())
    })
    .await?;
    settled(arguments, false).await
}

async fn change(arguments: &Arguments, edit: impl Fn(&mut Vec<MachineDisk>) -> Result<()>) -> Result<()> {
    let machines: Api<VirtualMachine> = arguments.place.api()?;
    let say = || format!("cannot change virtual machine {}", arguments.name);
    for _ in 0..ATTEMPTS {
        let mut machine = machines.get(&arguments.name).await.with_context(say)?;
        edit(&mut machine.spec.disks)?;
        // Against the version that was read: another's change of the list is not undone.
        let metadata = json!({"uid": machine.metadata.uid, "resourceVersion": machine.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"disks": machine.spec.disks}}));
        match machines.patch(&arguments.name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(say),
        }
    }
    bail!("virtual machine {} is changed by others all the time", arguments.name)
}

/// Waits until the guest has the disk, or has it no more. A machine that does not run gets it when it starts.
async fn settled(arguments: &Arguments, wanted: bool) -> Result<()> {
    if arguments.no_wait {
        return Ok(());
    }
    let machines: Api<VirtualMachine> = arguments.place.api()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let machine = machines.get(&arguments.name).await.context("cannot look at the machine")?;
        let status = machine.status.unwrap_or_default();
        let has = status.disks.iter().any(|disk| disk.volume == arguments.volume);
        let runs = matches!(status.phase, MachinePhase::Running | MachinePhase::Paused);
        if has == wanted || !runs {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = status.conditions.into_iter().find(|one| one.type_ == "DisksAttached" && one.status != "True");
            bail!("not yet: {}", why.map_or_else(|| "the guest is slow".to_owned(), |one| one.message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
