//! Why nothing could be placed, in the words of Kubernetes' `FailedScheduling` event.

use std::collections::BTreeMap;
use std::fmt;

/// No machine can take the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    machines: usize,
    reasons: BTreeMap<String, usize>,
}

impl Unschedulable {
    /// Nothing counted yet, for a pool of so many machines.
    pub fn new(machines: usize) -> Self {
        Self { machines, reasons: BTreeMap::new() }
    }

    /// Counts one machine that was refused for this reason.
    pub fn count(&mut self, reason: String) {
        self.count_many(reason, 1);
    }

    /// Counts several.
    pub fn count_many(&mut self, reason: String, machines: usize) {
        *self.reasons.entry(reason).or_default() += machines;
    }

    /// Machines refused, by reason.
    pub fn reasons(&self) -> &BTreeMap<String, usize> {
        &self.reasons
    }
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.machines == 0 {
            return out.write_str("no nodes available to schedule pods");
        }
        write!(out, "0/{} nodes are available:", self.machines)?;
        for (index, (reason, count)) in self.reasons.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(out, "{separator} {count} {reason}")?;
        }
        out.write_str(".")
    }
}

impl std::error::Error for Unschedulable {}
