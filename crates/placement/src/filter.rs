//! Whether a machine can take a workload at all. The first reason found is the one reported, in the order in which
//! Kubernetes' scheduler runs its filters.

use crate::pool::{Machine, TaintEffect, Workload};

/// Checks one machine.
///
/// `Errors:` the reason, in the words that Kubernetes users know.
pub fn check(machine: &Machine, workload: &Workload) -> Result<(), String> {
    if workload.machine.as_ref().is_some_and(|wanted| *wanted != machine.name) {
        return Err("node(s) didn't match the requested node name".into());
    }
    if machine.unschedulable {
        return Err("node(s) were unschedulable".into());
    }
    let untolerated = machine.taints.iter().find(|taint| {
        taint.effect != TaintEffect::PreferNoSchedule && !workload.tolerations.iter().any(|leave| leave.covers(taint))
    });
    if let Some(taint) = untolerated {
        return Err(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
    if !is_eligible(machine, workload) {
        return Err("node(s) didn't match Pod's node affinity/selector".into());
    }
    if workload.host_ports.iter().any(|port| machine.host_ports.contains_key(port)) {
        return Err("node(s) didn't have free ports for the requested pod ports".into());
    }
    fits(machine, workload)
}

/// Whether the machine's labels are those that the workload asks for.
pub(crate) fn is_eligible(machine: &Machine, workload: &Workload) -> bool {
    workload.selector.iter().all(|(key, value)| machine.labels.get(key) == Some(value))
        && (workload.affinity.is_empty()
            || workload.affinity.iter().any(|term| term.iter().all(|condition| condition.met_by(&machine.labels))))
}

fn fits(machine: &Machine, workload: &Workload) -> Result<(), String> {
    if machine.workloads >= machine.workloads_max {
        return Err("Too many pods".into());
    }
    let (total, used, asked) = (&machine.allocatable, &machine.used, &workload.requests);
    let short = |total: u64, used: u64, asked: u64| asked > 0 && asked > total.saturating_sub(used);
    if short(total.cpu_millis, used.cpu_millis, asked.cpu_millis) {
        return Err("Insufficient cpu".into());
    }
    if short(total.memory_bytes, used.memory_bytes, asked.memory_bytes) {
        return Err("Insufficient memory".into());
    }
    if short(total.ephemeral_storage_bytes, used.ephemeral_storage_bytes, asked.ephemeral_storage_bytes) {
        return Err("Insufficient ephemeral-storage".into());
    }
    for (name, amount) in &asked.extended {
        let total = total.extended.get(name).copied().unwrap_or(0);
        let used = used.extended.get(name).copied().unwrap_or(0);
        if short(total, used, *amount) {
            return Err(format!("Insufficient {name}"));
        }
    }
    Ok(())
}
