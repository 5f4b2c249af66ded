//! What is told of a guest. Pure.

use api::virtual_machine::{MachineDesired, MachinePhase, MachineRestartPolicy};
use api::{VirtualMachine, VirtualMachineStatus};
use hypervisor::guest::MemoryStatistics;
use hypervisor::life::{Desired, Life, Phase, Policy, Root, Wish};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::time::Duration;

use super::disks::attach::Seen;

/// How long a guest may take to switch itself off when its object does not say. Units: seconds.
const STOP_TIMEOUT_DEFAULT: i64 = 30;

/// The parts of an object that decide, seen from what was done of them.
pub fn wish(object: &VirtualMachine, done: &VirtualMachineStatus) -> Wish {
    let spec = &object.spec;
    let seconds = spec.stop_timeout_seconds.unwrap_or(STOP_TIMEOUT_DEFAULT);
    Wish {
        desired: match spec.desired {
            MachineDesired::Running => Desired::Running,
            MachineDesired::Stopped => Desired::Stopped,
            MachineDesired::Paused => Desired::Paused,
            MachineDesired::Suspended => Desired::Suspended,
        },
        root: if spec.rebuild_request > done.observed_rebuild {
            Root::New
        } else if spec.revert_request > done.observed_revert || spec.rescue_image != done.rescue_image {
            Root::Other
        } else {
            Root::Same
        },
        restart_request: spec.restart_request,
        policy: match spec.restart_policy {
            MachineRestartPolicy::Always => Policy::Always,
            MachineRestartPolicy::OnFailure => Policy::OnFailure,
            MachineRestartPolicy::Never => Policy::Never,
        },
        stop_timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        deleted: object.metadata.deletion_timestamp.is_some(),
    }
}

/// Where a life is, in the words of the object.
pub fn phase(life: &Life, failed: bool) -> MachinePhase {
    match life.phase {
        Phase::Down if failed => MachinePhase::Failed,
        Phase::Down | Phase::Gone => MachinePhase::Stopped,
        Phase::Waiting(_) if failed => MachinePhase::Failed,
        Phase::Waiting(_) => MachinePhase::Crashed,
        Phase::Starting => MachinePhase::Starting,
        Phase::Running(_) => MachinePhase::Running,
        Phase::Paused => MachinePhase::Paused,
        Phase::Stopping(_) | Phase::Suspending => MachinePhase::Stopping,
        Phase::Suspended => MachinePhase::Suspended,
    }
}

/// The condition `DisksAttached`.
pub fn disks(old: &[Condition], seen: &Seen, running: bool, generation: Option<i64>) -> Condition {
    attached("DisksAttached", old, &seen.pending, running, generation)
}

/// The condition `InterfacesAttached`.
pub fn interfaces(old: &[Condition], pending: &str, running: bool, generation: Option<i64>) -> Condition {
    attached("InterfacesAttached", old, pending, running, generation)
}

fn attached(kind: &str, old: &[Condition], pending: &str, running: bool, generation: Option<i64>) -> Condition {
    let (fine, reason) = match (pending.is_empty(), running) {
        (false, _) => (false, "Waiting"),
        (true, true) => (true, "Attached"),
        (true, false) => (false, "NotRunning"),
    };
    condition(kind, old, fine, reason, pending, generation)
}

/// The condition `Ready`, keeping the time of the last change.
pub fn ready(old: &[Condition], ready: bool, reason: &str, message: &str, generation: Option<i64>) -> Condition {
    condition("Ready", old, ready, reason, message, generation)
}

fn condition(
    kind: &str,
    old: &[Condition],
    holds: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let before = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: before.map_or_else(|| Time(Timestamp::now()), |one| one.last_transition_time.clone()),
        observed_generation: generation,
    }
}

/// What a guest uses and could not do without; `None` when it does not say. `size` is what it was started with. Units: bytes.
///
/// Linux leaves what the balloon took in its total when the balloon may deflate on want of memory, as ours may, and else takes it out; of
/// an older or other kernel the larger figure is believed. `Source:` Virtio 1.2, section 5.5.6.3.
pub fn memory_used(told: &MemoryStatistics, size: u64) -> Option<u64> {
    let (total, available) = (told.total_bytes?, told.available_bytes?);
    let size = size.saturating_add(told.plugged_bytes);
    let taken = size.saturating_sub(told.actual_bytes);
    let counted = if total.saturating_add(taken) > size { taken } else { 0 };
    Some(total.saturating_sub(available).saturating_sub(counted))
}

/// Fills in what follows from the life.
pub fn complete(status: &mut VirtualMachineStatus, life: &Life, answered: bool, failed: bool, generation: Option<i64>) {
    status.phase = phase(life, failed);
    status.observed_restart = life.observed_restart;
    let running = matches!(life.phase, Phase::Running(_));
    if !running && life.phase != Phase::Paused {
        status.pid = 0;
        status.started_at = None;
    }
    let (is_ready, reason) = match (running, answered) {
        (true, true) => (true, "GuestRunning"),
        (true, false) => (false, "GuestBooting"),
        (false, _) => (false, "NotRunning"),
    };
    status.conditions = vec![ready(&status.conditions, is_ready, reason, &status.message, generation)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_balloon_took_is_not_used() {
        let told = |actual_bytes, total, available| MemoryStatistics {
            actual_bytes,
            total_bytes: Some(total),
            available_bytes: Some(available),
            ..MemoryStatistics::default()
        };
        // 320 started with, 20 of which its kernel keeps; 30 in use.
        assert_eq!(memory_used(&told(320, 300, 270), 320), Some(30));
        assert_eq!(memory_used(&told(200, 300, 150), 320), Some(30));
        // A kernel that takes it out of its total.
        assert_eq!(memory_used(&told(200, 180, 150), 320), Some(30));
        // 100 were plugged in, of which the balloon took none.
        let grown = MemoryStatistics { plugged_bytes: 100, ..told(420, 400, 370) };
        assert_eq!(memory_used(&grown, 320), Some(30));
        assert_eq!(memory_used(&MemoryStatistics::default(), 320), None);
    }
}
