//! Whether a machine can take a workload at all: for one machine, and for all machines of a pool at once, column by column. The
//! first reason found is the one reported, in the order in which Kubernetes' scheduler runs its filters.

use crate::explain::Unschedulable;
use crate::index::Bits;
use crate::pool::{LabelRequirement, Machine, Pool, Taint, TaintEffect, Workload};
use crate::relations;

const OTHER_NAME: &str = "node(s) didn't match the requested node name";
const UNSCHEDULABLE: &str = "node(s) were unschedulable";
const AFFINITY: &str = "node(s) didn't match Pod's node affinity/selector";
const PORTS: &str = "node(s) didn't have free ports for the requested pod ports";
const TOO_MANY: &str = "Too many pods";

fn untolerated<'a>(taints: &'a [Taint], workload: &Workload) -> Option<&'a Taint> {
    taints.iter().find(|taint| {
        taint.effect != TaintEffect::PreferNoSchedule && !workload.tolerations.iter().any(|leave| leave.covers(taint))
    })
}

fn taint_reason(taint: &Taint) -> String {
    format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value)
}

fn insufficient(name: &str) -> String {
    format!("Insufficient {name}")
}

/// Checks one machine, on its own: how the workload stands to others is left out.
///
/// `Errors:` the reason, in the words that Kubernetes users know.
pub fn check(machine: &Machine, workload: &Workload) -> Result<(), String> {
    if workload.machine.as_ref().is_some_and(|wanted| *wanted != machine.name) {
        return Err(OTHER_NAME.into());
    }
    if machine.unschedulable {
        return Err(UNSCHEDULABLE.into());
    }
    if let Some(taint) = untolerated(&machine.taints, workload) {
        return Err(taint_reason(taint));
    }
    if !is_eligible(machine, workload) {
        return Err(AFFINITY.into());
    }
    if workload.host_ports.iter().any(|port| machine.host_ports.contains_key(port)) {
        return Err(PORTS.into());
    }
    fits(machine, workload)
}

/// Whether the machine's labels are those that the workload asks for.
fn is_eligible(machine: &Machine, workload: &Workload) -> bool {
    workload.selector.iter().all(|(key, value)| machine.labels.get(key) == Some(value))
        && (workload.affinity.is_empty()
            || workload.affinity.iter().any(|term| term.iter().all(|condition| condition.met_by(&machine.labels))))
}

fn fits(machine: &Machine, workload: &Workload) -> Result<(), String> {
    if machine.workloads >= machine.workloads_max {
        return Err(TOO_MANY.into());
    }
    let (total, used, asked) = (&machine.allocatable, &machine.used, &workload.requests);
    let short = |total: u64, used: u64, asked: u64| asked > 0 && asked > total.saturating_sub(used);
    if short(total.cpu_millis, used.cpu_millis, asked.cpu_millis) {
        return Err(insufficient("cpu"));
    }
    if short(total.memory_bytes, used.memory_bytes, asked.memory_bytes) {
        return Err(insufficient("memory"));
    }
    if short(total.ephemeral_storage_bytes, used.ephemeral_storage_bytes, asked.ephemeral_storage_bytes) {
        return Err(insufficient("ephemeral-storage"));
    }
    for (name, amount) in &asked.extended {
        let total = total.extended.get(name).copied().unwrap_or(0);
        let used = used.extended.get(name).copied().unwrap_or(0);
        if short(total, used, *amount) {
            return Err(insufficient(name));
        }
    }
    Ok(())
}

/// The machines that are left after some filters, and how many each filter refused.
pub(crate) struct Sieve<'a> {
    pub pool: &'a Pool,
    pub workload: &'a Workload,
    /// Machines that nothing has refused yet.
    pub left: Bits,
    count: usize,
    refusals: Unschedulable,
}

impl<'a> Sieve<'a> {
    pub fn new(pool: &'a Pool, workload: &'a Workload) -> Sieve<'a> {
        let count = pool.index.len();
        Sieve { pool, workload, left: pool.index.present.clone(), count, refusals: Unschedulable::new(count) }
    }

    /// Runs all filters: how many machines are feasible; they are what is left.
    ///
    /// `Errors:` none is.
    pub fn run(mut self, eligible: Option<&Bits>) -> Result<(usize, Bits), Unschedulable> {
        self.by_machine(eligible);
        self.by_amount();
        if self.count > 0 {
            relations::refuse(&mut self, eligible);
        }
        if self.count > 0 { Ok((self.count, self.left)) } else { Err(self.refusals) }
    }

    /// Narrows what is left, and counts those that it refuses.
    pub fn refuse(&mut self, reason: impl FnOnce() -> String, narrow: impl FnOnce(&mut Bits)) {
        if self.count == 0 {
            return;
        }
        narrow(&mut self.left);
        let count = self.left.count();
        if count < self.count {
            self.refusals.count_many(reason(), self.count - count);
            self.count = count;
        }
    }

    /// By what the machines are.
    fn by_machine(&mut self, eligible: Option<&Bits>) {
        let (index, workload) = (&self.pool.index, self.workload);
        if let Some(wanted) = &workload.machine {
            let only = index.slot(wanted);
            self.refuse(
                || OTHER_NAME.into(),
                |left| {
                    *left = Bits::default();
                    only.into_iter().for_each(|slot| left.insert(slot));
                },
            );
        }
        self.refuse(|| UNSCHEDULABLE.into(), |left| left.subtract(&index.unschedulable));
        for (taints, machines) in &index.taints {
            if let Some(taint) = untolerated(taints, workload) {
                self.refuse(|| taint_reason(taint), |left| machines.subtract_from(left));
            }
        }
        if let Some(eligible) = eligible {
            self.refuse(|| AFFINITY.into(), |left| left.keep(eligible));
        }
        for holders in workload.host_ports.iter().filter_map(|port| index.ports.get(port)) {
            self.refuse(|| PORTS.into(), |left| holders.subtract_from(left));
        }
    }

    /// By what the machines have left.
    fn by_amount(&mut self) {
        let (index, asked) = (&self.pool.index, &self.workload.requests);
        self.refuse(|| TOO_MANY.into(), |left| left.subtract(&index.full));
        for (name, asked, free) in [
            ("cpu", asked.cpu_millis, &index.cpu_free),
            ("memory", asked.memory_bytes, &index.memory_free),
            ("ephemeral-storage", asked.ephemeral_storage_bytes, &index.storage_free),
        ] {
            if asked > 0 {
                self.refuse(|| insufficient(name), |left| free.keep_at_least(left, asked));
            }
        }
        for (name, amount) in asked.extended.iter().filter(|(_, amount)| **amount > 0) {
            let machines = index.extended_free.get(name).into_iter().flatten();
            let enough = machines.filter(|(_, free)| **free >= *amount).map(|(slot, _)| *slot);
            self.refuse(|| insufficient(name), |left| left.keep_only(enough));
        }
    }
}

/// The machines whose labels are those that the workload asks for; `None` when it asks for none.
pub(crate) fn eligible(pool: &Pool, workload: &Workload) -> Option<Bits> {
    if workload.selector.is_empty() && workload.affinity.is_empty() {
        return None;
    }
    let mut machines = pool.index.present.clone();
    for (key, value) in &workload.selector {
        pool.index.labels.keep_label(&mut machines, key, value);
    }
    if workload.affinity.is_empty() {
        return Some(machines);
    }
    let mut any = Bits::default();
    workload.affinity.iter().for_each(|term| any.unite(&meeting(pool, &machines, term)));
    Some(any)
}

/// Those of some machines whose labels meet all conditions.
pub(crate) fn meeting(pool: &Pool, machines: &Bits, conditions: &[LabelRequirement]) -> Bits {
    let mut machines = machines.clone();
    conditions.iter().for_each(|condition| pool.index.labels.keep(&mut machines, condition));
    machines
}
