//! Relief: takes off overloaded machines what it takes, in the fewest and cheapest moves.

use super::Budget;
use super::draft::Draft;
use super::snapshot::CPU;

/// Relieves every machine whose workloads want more than it has.
pub fn relieve(draft: &mut Draft<'_>, budget: &mut Budget<'_>) {
    let mut hot: Vec<(f64, usize)> =
        (0..draft.machines.len()).filter_map(|machine| Some((excess(draft, machine)?, machine))).collect();
    hot.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
    for (_, machine) in hot {
        relieve_one(draft, machine, budget);
    }
}

/// What a machine must lose, relative to its capacity; `None` when it is well.
fn excess(draft: &Draft<'_>, machine: usize) -> Option<f64> {
    let (load, shape) = (&draft.machines[machine], &draft.snapshot.machines()[machine]);
    let capacity = shape.capacity[CPU];
    let share = load.uses[CPU] / capacity;
    (load.is_on && share > draft.policy.relief_above).then_some(share - draft.policy.relief_to)
}

/// Machines that still have more to do than they can.
pub fn overloaded(draft: &Draft<'_>) -> Vec<usize> {
    (0..draft.machines.len()).filter(|machine| excess(draft, *machine).is_some()).collect()
}

fn relieve_one(draft: &mut Draft<'_>, machine: usize, budget: &mut Budget<'_>) {
    // What has no place elsewhere is not tried twice.
    let mut stuck: Vec<u32> = Vec::new();
    while let Some(excess) = excess(draft, machine) {
        if !budget.allows() {
            return;
        }
        let excess = excess * draft.snapshot.machines()[machine].capacity[CPU];
        let Some(workload) = mover(draft, machine, excess, &stuck) else { return };
        match draft.best_target(workload, machine) {
            Some(target) if draft.moves.len() < draft.policy.moves_max => draft.shift(workload, target),
            _ => stuck.push(workload),
        }
    }
}

/// The cheapest workload that is enough; if none is enough, the largest.
fn mover(draft: &Draft<'_>, machine: usize, excess: f64, stuck: &[u32]) -> Option<u32> {
    let items = draft.snapshot.workloads();
    let of = |workload: u32| &items[workload as usize];
    let core = draft.snapshot.machines()[machine].core_cpu;
    let demand = |workload: u32| of(workload).uses[CPU].min(core);
    let free = draft.machines[machine]
        .members
        .iter()
        .copied()
        .filter(|workload| of(*workload).is_movable && !stuck.contains(workload));
    let fixed = draft.policy.move_cost * draft.snapshot.machines()[machine].capacity[CPU];
    // What it takes off, for what it costs: time on the way and demand that suffers meanwhile.
    let worth = |workload: u32| {
        let demand = demand(workload);
        demand.min(excess) / (of(workload).move_seconds.powf(draft.policy.time_exponent) * (demand + fixed))
    };
    free.filter(|workload| demand(*workload) > 0.0).max_by(|one, other| worth(*one).total_cmp(&worth(*other)))
}

impl Draft<'_> {
    /// Where a workload goes best: to the running machine with the most room, to one that takes others in already if that has
    /// enough, or to one that must be woken.
    pub fn best_target(&self, workload: u32, from: usize) -> Option<usize> {
        let others = || (0..self.machines.len()).filter(|machine| *machine != from);
        let mut best: Option<(f64, usize)> = None;
        for machine in others().filter(|machine| self.machines[*machine].is_on) {
            let Some(margin) = self.margin_with(workload, machine, self.policy.arrival_deviations) else { continue };
            let busy = if self.machines[machine].arrivals > 0 { self.policy.sharing_bonus } else { 0.0 };
            let merit = self.merit(workload, machine, margin) + busy;
            if best.is_none_or(|(most, _)| merit > most) {
                best = Some((merit, machine));
            }
        }
        best.map(|(_, machine)| machine).or_else(|| self.machine_to_wake(workload))
    }

    /// The sleeping machine that does the most for its power.
    fn machine_to_wake(&self, workload: u32) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for machine in 0..self.machines.len() {
            if self.machines[machine].is_on || !self.machines[machine].is_open {
                continue;
            }
            let cost = self.watts_per_cpu(machine);
            if best.is_none_or(|(least, _)| cost < least)
                && self.margin_with(workload, machine, self.policy.arrival_deviations).is_some()
            {
                best = Some((cost, machine));
            }
        }
        best.map(|(_, machine)| machine)
    }
}
