//! What the store says of who runs a guest that moves, how its source gives it away, and how it takes it back. The rules are those of [`api::migration`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::VirtualMachine;
use api::migration::{Act, Seen, at_source};
use api::virtual_machine::{MachineDesired, MachinePhase};
use hypervisor::{Guest, RunState};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};

/// Attempts to make void what was asked for while others write.
const WITHDRAWALS_MAX: usize = 16;
/// Time before a failed question to the API is put again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the API may take over one question before it is put again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a hypervisor that lives may not answer, or not obey, before it is ended: nobody could ever use its guest again.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// What the API answers, within the bound. A write that was not answered may still be made.
pub(super) async fn answered<T>(
    asked: impl Future<Output = kube::Result<T>>,
    action: &'static str,
) -> Result<kube::Result<T>> {
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| Error::Timeout(action))
}

/// The machine, if it is bound here; one that is bound elsewhere is not shown to this host.
pub(super) async fn look(context: &Context, key: &Key) -> Result<Option<VirtualMachine>> {
    let machines: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = match answered(machines.get_opt(&key.name), "reading the machine").await? {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.code == 403 => None,
        Err(error) => return Err(Error::api("read the machine")(error)),
    };
    Ok(found.filter(|machine| machine.spec.node_name.as_deref() == Some(context.node_name.as_str())))
}

/// Names the version that was read: a write that changes another one is refused.
fn version_of(machine: &VirtualMachine) -> Value {
    json!({"uid": machine.metadata.uid, "resourceVersion": machine.metadata.resource_version})
}

/// What came of a write against a version; `None` when it was another one by now.
fn written(answer: kube::Result<VirtualMachine>, action: &'static str) -> Result<Option<VirtualMachine>> {
    match answer {
        Ok(machine) => Ok(Some(machine)),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(None),
        Err(error) => Err(Error::api(action)(error)),
    }
}

/// Decides that the machine is another host's, against the version that was read: the machine as it is then, or `None` when it was another
/// version by now. After an error it is not known.
pub(super) async fn give_away(context: &Context, machine: &VirtualMachine, to: &str) -> Result<Option<VirtualMachine>> {
    let machines: Api<VirtualMachine> =
        Api::namespaced(context.client.clone(), machine.metadata.namespace.as_deref().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": version_of(machine), "spec": {"nodeName": to}}));
    let (name, parameters) = (machine.name_any(), PatchParams::default());
    let answer = answered(machines.patch(&name, &parameters, &patch), "giving the machine away").await?;
    written(answer, "give the machine away")
}

/// Has a guest that was sent run on here, if the store still says that it is this machine's; whether it does. Asks until there is an
/// answer: until then nobody knows.
///
/// Errors: the hypervisor has ended, and the guest's life starts it anew.
pub async fn reclaim(context: &Context, key: &Key, guest: &Arc<dyn Guest>) -> Result<bool> {
    let mut withdrawn = false;
    let mut silent_since: Option<Instant> = None;
    loop {
        match reclaim_step(context, key, guest, &mut withdrawn).await {
            Ok(Next::Done(stays)) => return Ok(stays),
            Ok(Next::Gone) => return Err(hypervisor::Error::Gone.into()),
            Ok(Next::Again) => silent_since = None,
            // One that is only slow keeps its memory.
            Ok(Next::Silent(run_dir)) => {
                if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX {
                    tracing::warn!(vm = key.name, "ending a guest that cannot be taken back");
                    hypervisor::qemu::driver::kill(&run_dir).await?;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::warn!(vm = key.name, error = %chain(&error), "cannot settle whose the guest is; asking on");
                // Nobody has asked the hypervisor meanwhile.
                silent_since = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What came of an attempt to take a guest back.
enum Next {
    /// It runs here, or it is another host's: whether it stays.
    Done(bool),
    /// Its process has ended.
    Gone,
    /// Something was written; look again.
    Again,
    /// Its process lives, in this run directory, and does not answer or obey.
    Silent(PathBuf),
}

async fn reclaim_step(context: &Context, key: &Key, guest: &Arc<dyn Guest>, withdrawn: &mut bool) -> Result<Next> {
    // Whatever is here of a guest that is another host's, nobody runs it.
    let Some(machine) = look(context, key).await? else { return Ok(Next::Done(false)) };
    let run_dir = context.guests.run_dir(&machine.uid().unwrap_or_default());
    let silent = |error: hypervisor::Error| {
        tracing::warn!(vm = key.name, error = %chain(&error), "a guest is not taken back yet");
        Next::Silent(run_dir.clone())
    };
    let seen = match guest.state().await {
        Ok(RunState::Sent) => Seen::Sent,
        Ok(_) => Seen::Running,
        Err(error) if hypervisor::qemu::driver::is_running(&run_dir) => return Ok(silent(error)),
        Err(_) => Seen::Nothing,
    };
    let act = at_source(true, seen, false, *withdrawn);
    match act {
        Act::Run | Act::Wait => {
            let taken = async {
                if act == Act::Run {
                    guest.take_back().await?;
                }
                // A hypervisor that has sent a guest knows no other way back than to let it run.
                if *withdrawn && machine.spec.desired == MachineDesired::Paused {
                    guest.pause().await?;
                }
                Ok::<_, hypervisor::Error>(())
            };
            match taken.await {
                Ok(()) => Ok(Next::Done(true)),
                Err(error) if hypervisor::qemu::driver::is_running(&run_dir) => Ok(silent(error)),
                Err(_) => Ok(Next::Gone),
            }
        }
        // Its life starts it anew, now that nobody else can.
        Act::Boot => Ok(Next::Gone),
        Act::Withdraw => {
            match withdraw(context, &machine).await? {
                true => *withdrawn = true,
                // Others write as well.
                false => tokio::time::sleep(RETRY).await,
            }
            Ok(Next::Again)
        }
        Act::End => Ok(Next::Done(false)),
    }
}

/// Makes sure that a guest without a process may be started here, and its volumes given back: that its machine is this host's, and that
/// no write that gives it away is on its way to the store. The caller holds the locks of its disks, so that no migration
/// begins meanwhile.
///
/// Errors: [`Error::NotYet`] when it is another host's.
pub async fn may_start(context: &Context, key: &Key, uid: &str) -> Result<()> {
    let mut withdrawn = false;
    for _ in 0..WITHDRAWALS_MAX {
        let found = look(context, key).await?.filter(|machine| machine.metadata.uid.as_deref() == Some(uid));
        let Some(machine) = found else { break };
        // A machine that starts is not migrated, so whoever wrote that it does wrote after the last move.
        let starting = machine.status.as_ref().is_some_and(|status| status.phase == MachinePhase::Starting);
        match at_source(true, Seen::Nothing, false, withdrawn || starting) {
            Act::Boot => return Ok(()),
            Act::Withdraw => withdrawn |= withdraw(context, &machine).await?,
            _ => break,
        }
    }
    Err(Error::NotYet("the machine is another host's".into()))
}

/// Makes void what this host may have asked for, by a new version of the object: whatever names an older one comes too late.
pub(super) async fn withdraw(context: &Context, machine: &VirtualMachine) -> Result<bool> {
    let machines: Api<VirtualMachine> =
        Api::namespaced(context.client.clone(), machine.metadata.namespace.as_deref().unwrap_or_default());
    // A value that was never there: a write that changes nothing makes no version.
    let handover = format!("withdrawn:{}", Timestamp::now().as_nanosecond());
    let patch = Patch::Merge(json!({"metadata": version_of(machine), "status": {"handover": handover}}));
    let (name, parameters) = (machine.name_any(), PatchParams::default());
    let answer = answered(machines.patch_status(&name, &parameters, &patch), "writing the machine's handover").await?;
    Ok(written(answer, "write the machine's handover")?.is_some())
}
