//! `nuee vm attach` and `nuee vm detach`.

use anyhow::{Result, bail};
use api::VirtualMachineStatus;
use api::virtual_machine::MachineDisk;
use serde_json::json;

use super::image::Place;
use super::vm_change;

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
    let changed = vm_change::change(&arguments.place, &arguments.name, |mut spec| {
        edit(&mut spec.disks)?;
        Ok(json!({"disks": spec.disks}))
    });
    changed.await.map(drop)
}

/// Waits until the guest has the disk, or has it no more. A machine that does not run gets it when it starts.
async fn settled(arguments: &Arguments, wanted: bool) -> Result<()> {
    if arguments.no_wait {
        return Ok(());
    }
    let is_so =
        |status: &VirtualMachineStatus| status.disks.iter().any(|disk| disk.volume == arguments.volume) == wanted;
    vm_change::settled(&arguments.place, &arguments.name, "DisksAttached", is_so).await
}
