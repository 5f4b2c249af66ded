//! Changes of what a machine has, and the wait until its guest has it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::virtual_machine::MachinePhase;
use api::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::image::Place;

/// How often the machine's state is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a guest may take to let go of something, or something to become free, before this gives up waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts to write against the newest version of the machine.
const ATTEMPTS: usize = 5;

/// Writes into the machine's specification what `edit` makes of it. Gives the version of the wishes.
pub async fn change(place: &Place, name: &str, edit: impl Fn(VirtualMachineSpec) -> Result<Value>) -> Result<i64> {
    let machines: Api<VirtualMachine> = place.api()?;
    let say = || format!("cannot change virtual machine {name}");
    for _ in 0..ATTEMPTS {
        let machine = machines.get(name).await.with_context(say)?;
        let spec = edit(machine.spec)?;
        // Against the version that was read: another's change of the list is not undone.
        let metadata = json!({"uid": machine.metadata.uid, "resourceVersion": machine.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": spec}));
        match machines.patch(name, &PatchParams::default(), &patch).await {
            Ok(changed) => return Ok(changed.metadata.generation.unwrap_or_default()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(say),
        }
    }
    bail!("virtual machine {name} is changed by others all the time")
}

/// Waits until the status of the machine says so, or the machine does not run. `condition` says why not yet.
pub async fn settled(
    place: &Place,
    name: &str,
    condition: &str,
    is_so: impl Fn(&VirtualMachineStatus) -> bool,
) -> Result<()> {
    let machines: Api<VirtualMachine> = place.api()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let machine = machines.get(name).await.context("cannot look at the machine")?;
        let status = machine.status.unwrap_or_default();
        let runs = matches!(status.phase, MachinePhase::Running | MachinePhase::Paused);
        if is_so(&status) || !runs {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = status.conditions.into_iter().find(|one| one.type_ == condition && one.status != "True");
            bail!("not yet: {}", why.map_or_else(|| "the guest is slow".to_owned(), |one| one.message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
