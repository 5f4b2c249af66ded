//! The plan under construction: who is where if all steps so far are done, and what each machine still takes.

use super::snapshot::{Amounts, CPU, DIMENSIONS, MEMORY, MachineState, Snapshot};
use super::{Policy, total};

/// Slack for rounding, as a share of a machine.
const ROUNDING: f64 = 1e-9;

/// A machine in the draft.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Held: processor time as used now, the rest in full.
    pub uses: Amounts,
    /// Held at the worst moment, while moves overlap: those that leave still count.
    pub held: Amounts,
    /// Expected processor time.
    pub mean: f64,
    /// Its variance.
    pub variance: f64,
    /// Workloads on it.
    pub members: Vec<u32>,
    /// Whether it runs once the plan is done.
    pub is_on: bool,
    /// Whether it may take anybody in.
    pub is_open: bool,
    /// Arrivals so far.
    pub arrivals: u32,
}

/// The draft.
pub struct Draft<'a> {
    /// What it starts from.
    pub snapshot: &'a Snapshot,
    /// What it keeps to.
    pub policy: &'a Policy,
    /// Machines, by index.
    pub machines: Vec<Load>,
    /// Where each workload is.
    pub place: Vec<Option<u32>>,
    /// Memory that each workload holds.
    pub memory: Vec<f64>,
    /// Moves made, in order, as (workload, from, to).
    pub moves: Vec<(u32, u32, u32)>,
}

impl<'a> Draft<'a> {
    /// Things as they are.
    pub fn new(snapshot: &'a Snapshot, policy: &'a Policy) -> Draft<'a> {
        let machines = snapshot.machines().iter().map(|machine| {
            let is_on = matches!(machine.state, MachineState::On | MachineState::Draining);
            Load { is_on, is_open: matches!(machine.state, MachineState::On | MachineState::Asleep), ..Load::default() }
        });
        let mut draft = Draft {
            snapshot,
            policy,
            machines: machines.collect(),
            place: vec![None; snapshot.workloads().len()],
            memory: snapshot.workloads().iter().map(|workload| workload.uses[MEMORY]).collect(),
            moves: Vec::new(),
        };
        for (index, workload) in (0..).zip(snapshot.workloads()) {
            if let Some(machine) = workload.machine {
                draft.put(index, machine);
                for dimension in 0..DIMENSIONS {
                    draft.machines[machine].held[dimension] = draft.machines[machine].uses[dimension];
                }
            }
        }
        draft
    }

    /// What a workload holds on a machine.
    pub fn uses(&self, workload: u32, machine: usize) -> Amounts {
        let mut uses = self.snapshot.workloads()[workload as usize].uses;
        uses[CPU] = uses[CPU].min(self.snapshot.machines()[machine].core_cpu);
        uses[MEMORY] = self.memory[workload as usize];
        uses
    }

    fn put(&mut self, workload: u32, machine: usize) {
        let uses = self.uses(workload, machine);
        let forecast = self.snapshot.workloads()[workload as usize].forecast;
        let load = &mut self.machines[machine];
        for (sum, part) in load.uses.iter_mut().zip(uses) {
            *sum += part;
        }
        load.mean += forecast.mean;
        load.variance += forecast.deviation * forecast.deviation;
        load.members.push(workload);
        self.place[workload as usize] = u32::try_from(machine).ok();
    }

    fn take(&mut self, workload: u32, machine: usize) {
        let uses = self.uses(workload, machine);
        let forecast = self.snapshot.workloads()[workload as usize].forecast;
        let load = &mut self.machines[machine];
        for (sum, part) in load.uses.iter_mut().zip(uses) {
            *sum = (*sum - part).max(0.0);
        }
        load.mean = (load.mean - forecast.mean).max(0.0);
        load.variance = (load.variance - forecast.deviation * forecast.deviation).max(0.0);
        load.members.retain(|other| *other != workload);
        self.place[workload as usize] = None;
    }

    /// Moves a workload.
    pub fn shift(&mut self, workload: u32, to: usize) {
        let Some(from) = self.place[workload as usize] else { return };
        self.take(workload, from as usize);
        let uses = self.uses(workload, to);
        self.put(workload, to);
        let load = &mut self.machines[to];
        for (sum, part) in load.held.iter_mut().zip(uses) {
            *sum += part;
        }
        load.arrivals += 1;
        load.is_on = true;
        self.moves.push((workload, from, u32::try_from(to).unwrap_or(u32::MAX)));
    }

    /// Takes the last moves back, down to so many.
    pub fn undo_to(&mut self, count: usize) {
        while self.moves.len() > count {
            let Some((workload, from, to)) = self.moves.pop() else { return };
            let (from, to) = (from as usize, to as usize);
            let uses = self.uses(workload, to);
            self.take(workload, to);
            let load = &mut self.machines[to];
            for (sum, part) in load.held.iter_mut().zip(uses) {
                *sum = (*sum - part).max(0.0);
            }
            load.arrivals -= 1;
            self.put(workload, from);
        }
    }

    /// Processor time that a machine would have left, at so many deviations of its forecast, if a workload came; `None` when
    /// it must not come.
    pub fn margin_with(&self, workload: u32, machine: usize, deviations: f64) -> Option<f64> {
        let (load, shape) = (&self.machines[machine], &self.snapshot.machines()[machine]);
        let item = &self.snapshot.workloads()[workload as usize];
        if !load.is_open || item.uses[CPU] > shape.core_cpu {
            return None;
        }
        let uses = self.uses(workload, machine);
        for (dimension, need) in uses.into_iter().enumerate() {
            let (held, limit) = (load.held[dimension], shape.capacity[dimension]);
            // Processor time is shared out anew at once; the rest is held on both sides until a move ends.
            let overlaps = dimension != CPU && self.policy.moves_overlap;
            let before = if overlaps { held.max(load.uses[dimension]) } else { load.uses[dimension] };
            let limit = if dimension == CPU { limit * self.policy.arrival_limit } else { limit };
            if need > 0.0 && before + need > limit * (1.0 + ROUNDING) {
                return None;
            }
        }
        if !self.may_share(workload, machine) {
            return None;
        }
        let variance = load.variance + item.forecast.deviation * item.forecast.deviation;
        let margin = shape.capacity[CPU] * (1.0 - self.policy.reserve)
            - (load.mean + item.forecast.mean)
            - deviations * variance.sqrt();
        (margin >= 0.0).then_some(margin)
    }

    /// How good a target is: the more it has left the better, and the more its kind of demand is like the workload's. Margins
    /// add up as square roots of variances, so that it takes less in all when the unsteady share machines with the unsteady.
    pub fn merit(&self, workload: u32, machine: usize, margin: f64) -> f64 {
        let load = &self.machines[machine];
        let forecast = self.snapshot.workloads()[workload as usize].forecast;
        let capacity = self.snapshot.machines()[machine].capacity[CPU];
        let ratio = |mean: f64, variance: f64| (variance / mean.max(capacity * 1e-4)).max(capacity * 1e-4);
        let own = ratio(forecast.mean, forecast.deviation * forecast.deviation);
        let theirs = ratio(load.mean, load.variance);
        let unlike = if load.members.is_empty() { 0.0 } else { (own / theirs).ln().abs() };
        margin / capacity - self.policy.class_weight * unlike
    }

    /// Whether a workload may be on a machine at all.
    pub fn may_go(&self, workload: usize, machine: usize) -> bool {
        let (item, shape) = (&self.snapshot.workloads()[workload], &self.snapshot.machines()[machine]);
        item.selector.iter().all(|(key, value)| shape.labels.get(key) == Some(value))
    }

    fn may_share(&self, workload: u32, machine: usize) -> bool {
        let others = || self.machines[machine].members.iter();
        self.may_go(workload as usize, machine)
            && !others().any(|other| self.conflict(workload as usize, *other as usize))
    }

    /// Whether two workloads must be apart.
    pub fn conflict(&self, one: usize, other: usize) -> bool {
        let groups = |workload: usize| &self.snapshot.workloads()[workload].apart;
        one != other && groups(one).iter().any(|group| groups(other).contains(group))
    }

    /// Power of all machines. Units: watts.
    pub fn total_watts(&self) -> f64 {
        total((0..self.machines.len()).map(|machine| self.watts(machine)))
    }

    /// Lets the balloon take what it may from all that run.
    pub fn squeeze(&mut self) {
        for (index, workload) in self.snapshot.workloads().iter().enumerate() {
            let Some(machine) = workload.machine.filter(|_| workload.memory_min < self.memory[index]) else { continue };
            // Whoever is on the move already has been given room for all it has.
            if self.place[index] == u32::try_from(machine).ok() {
                let freed = self.memory[index] - workload.memory_min;
                self.machines[machine].uses[MEMORY] -= freed;
                self.machines[machine].held[MEMORY] -= freed;
                self.memory[index] = workload.memory_min;
            }
        }
    }

    /// Power at full load for each unit of processor time. Units: watts.
    pub fn watts_per_cpu(&self, machine: usize) -> f64 {
        let shape = &self.snapshot.machines()[machine];
        shape.power.full() / shape.capacity[CPU]
    }

    /// Power of a machine at the load that is expected of it. Units: watts.
    pub fn watts(&self, machine: usize) -> f64 {
        let (load, shape) = (&self.machines[machine], &self.snapshot.machines()[machine]);
        if load.is_on { shape.power.at(load.uses[CPU] / shape.capacity[CPU]) } else { shape.sleep_watts }
    }
}
