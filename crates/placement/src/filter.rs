//! Whether a machine can take a workload at all. The first reason found is the one reported, in the order in which
//! Kubernetes' scheduler runs its filters.

use crate::pool::{Machine, TaintEffect, Workload};

/// Checks one machine.
///
/// `Errors:` the reason, in the words that Kubernetes users know.
pub fn check(machine: &Machine, workload: &Workload) -> Result<(), String> {
    if machine.unschedulable {
        return Err("node(s) were unschedulable".into());
    }
    let untolerated = machine.taints.iter().find(|taint| {
        taint.effect != TaintEffect::PreferNoSchedule && !workload.tolerations.iter().any(|leave| leave.covers(taint))
    });
    if let Some(taint) = untolerated {
        return Err(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
    let selected = workload.selector.iter().all(|(key, value)| machine.labels.get(key) == Some(value));
    let affine = workload.affinity.is_empty()
        || workload.affinity.iter().any(|term| term.iter().all(|condition| condition.met_by(&machine.labels)));
    if !selected || !affine {
        return Err("node(s) didn't match Pod's node affinity/selector".into());
    }
    if workload.host_ports.iter().any(|port| machine.host_ports.contains_key(port)) {
        return Err("node(s) didn't have free ports for the requested pod ports".into());
    }
    fits(machine, workload)
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
