//! From a draft to steps that can be done one after the other: each move fits when its turn comes, machines are woken before
//! anything comes to them and sleep after the last has left. When moves wait for each other in a ring, one of them parks on a
//! third machine.

use super::draft::Draft;
use super::snapshot::{Amounts, CPU, DIMENSIONS, MEMORY, MachineState};
use super::{Reason, Step};

/// Slack for rounding, as a share of a machine.
const ROUNDING: f64 = 1e-9;

/// Who is where while the steps are done.
struct Stage<'a, 'b> {
    draft: &'b Draft<'a>,
    uses: Vec<Amounts>,
    place: Vec<Option<usize>>,
    awake: Vec<bool>,
    steps: Vec<Step>,
}

/// The steps of a draft, and the workloads whose moves had to be given up.
pub fn steps(draft: &Draft<'_>) -> (Vec<Step>, usize) {
    let mut stage = Stage::new(draft);
    stage.shrink();
    let mut waiting = net_moves(draft);
    let mut given_up = 0;
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|(workload, to, reason)| !stage.try_move(*workload, *to, *reason));
        if waiting.len() == before {
            // All wait for each other: one steps aside, or is given up.
            let (workload, to, reason) = waiting.remove(0);
            if stage.park(workload) { waiting.push((workload, to, reason)) } else { given_up += 1 }
        }
        if stage.steps.len() > 4 * draft.moves.len() + draft.machines.len() + draft.memory.len() {
            given_up += waiting.len();
            break;
        }
    }
    stage.wake_idle();
    stage.sleep();
    (stage.steps, given_up)
}

/// Where each workload goes in the end.
fn net_moves(draft: &Draft<'_>) -> Vec<(usize, usize, Reason)> {
    let mut seen = vec![false; draft.place.len()];
    let mut moves = Vec::new();
    for (workload, _, _) in &draft.moves {
        let index = *workload as usize;
        let (from, to) = (draft.snapshot.workloads()[index].machine, draft.place[index].map(|place| place as usize));
        if let (Some(from), Some(to), false) = (from, to, seen[index])
            && from != to
        {
            let reason = if draft.machines[from].is_on { Reason::Relief } else { Reason::Consolidation };
            moves.push((index, to, reason));
        }
        seen[index] = true;
    }
    moves
}

impl<'a, 'b> Stage<'a, 'b> {
    fn new(draft: &'b Draft<'a>) -> Self {
        let machines = draft.snapshot.machines();
        let mut uses = vec![[0.0; DIMENSIONS]; machines.len()];
        for workload in draft.snapshot.workloads() {
            let Some(machine) = workload.machine else { continue };
            for (sum, part) in uses[machine].iter_mut().zip(workload.uses) {
                *sum += part;
            }
        }
        let awake = machines.iter().map(|machine| machine.state != MachineState::Asleep).collect();
        let place = draft.snapshot.workloads().iter().map(|workload| workload.machine).collect();
        Stage { draft, uses, place, awake, steps: Vec::new() }
    }

    /// Balloon changes come first: what they free is room for the moves.
    fn shrink(&mut self) {
        for (index, workload) in self.draft.snapshot.workloads().iter().enumerate() {
            let memory = self.draft.memory[index];
            if let Some(machine) = workload.machine.filter(|_| memory < workload.uses[MEMORY]) {
                self.uses[machine][MEMORY] -= workload.uses[MEMORY] - memory;
                self.steps.push(Step::Balloon { workload: index, memory });
            }
        }
    }

    fn needs(&self, workload: usize) -> Amounts {
        let mut needs = self.draft.snapshot.workloads()[workload].uses;
        needs[MEMORY] = self.draft.memory[workload];
        needs
    }

    fn fits(&self, workload: usize, to: usize) -> bool {
        let (shape, needs) = (&self.draft.snapshot.machines()[to], self.needs(workload));
        // Processor time is shared out anew from moment to moment: a peak there slows, it does not fail.
        let room = (0..DIMENSIONS).filter(|dimension| *dimension != CPU).all(|dimension| {
            self.uses[to][dimension] + needs[dimension] <= shape.capacity[dimension] * (1.0 + ROUNDING)
                || needs[dimension] == 0.0
        });
        let is_shy = !self.draft.snapshot.workloads()[workload].apart.is_empty();
        let here = || self.place.iter().enumerate().filter(|(_, place)| **place == Some(to));
        room && !(is_shy && here().any(|(other, _)| self.draft.conflict(workload, other)))
    }

    fn try_move(&mut self, workload: usize, to: usize, reason: Reason) -> bool {
        let Some(from) = self.place[workload] else { return true };
        if !self.fits(workload, to) {
            return false;
        }
        if !self.awake[to] {
            self.awake[to] = true;
            self.steps.push(Step::Wake { machine: to });
        }
        let needs = self.needs(workload);
        for (dimension, part) in needs.into_iter().enumerate() {
            self.uses[to][dimension] += part;
            self.uses[from][dimension] = (self.uses[from][dimension] - part).max(0.0);
        }
        self.place[workload] = Some(to);
        self.steps.push(Step::Move { workload, from, to, reason });
        true
    }

    /// Moves a workload out of the way, to a machine that runs.
    fn park(&mut self, workload: usize) -> bool {
        let spot = (0..self.awake.len()).find(|machine| {
            Some(*machine) != self.place[workload]
                && self.awake[*machine]
                && self.draft.machines[*machine].is_on
                && self.draft.snapshot.machines()[*machine].state == MachineState::On
                && self.draft.may_go(workload, *machine)
                && self.fits(workload, *machine)
        });
        spot.is_some_and(|machine| self.try_move(workload, machine, Reason::Parking))
    }

    /// Machines that are woken for load to come.
    fn wake_idle(&mut self) {
        for machine in 0..self.awake.len() {
            if self.draft.machines[machine].is_on && !self.awake[machine] {
                self.awake[machine] = true;
                self.steps.push(Step::Wake { machine });
            }
        }
    }

    fn sleep(&mut self) {
        let mut occupied = vec![false; self.awake.len()];
        self.place.iter().flatten().for_each(|machine| occupied[*machine] = true);
        for (machine, is_occupied) in occupied.into_iter().enumerate() {
            // A machine that is drained by hand is left to that hand.
            let was_on =
                matches!(self.draft.snapshot.machines()[machine].state, MachineState::On | MachineState::Asleep);
            if was_on && self.awake[machine] && !is_occupied && !self.draft.machines[machine].is_on {
                self.steps.push(Step::Sleep { machine });
            }
        }
    }
}
