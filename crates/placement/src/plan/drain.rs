//! Consolidation: empties machines that the rest can do without, when what that saves is worth the moves.

use super::Budget;
use super::draft::Draft;
use super::snapshot::{Amounts, CPU, DIMENSIONS, MEMORY, MachineState};

/// Fixed cost of a move beside its workload's demand, as a share of its machine's processor time, where memory is scarce.
const MOVE_COST: f64 = 0.02;

/// So many times more attempts are made where memory is scarce: whether what is left over fits is known only by trying.
const MEMORY_PATIENCE: usize = 8;

/// What keeps machines on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scarce {
    Cpu,
    /// Or another resource of which workloads hold a fixed amount.
    Memory,
}

/// Empties what can be emptied.
pub fn drain(draft: &mut Draft<'_>, budget: &mut Budget<'_>) {
    for machine in 0..draft.machines.len() {
        if draft.snapshot.machines()[machine].state == MachineState::Draining && budget.allows() {
            empty(draft, machine, Scarce::Cpu);
        }
    }
    let ranked = ranked(draft);
    let enough_cpu = keep_count(draft, &ranked, 1);
    if draft.policy.use_balloon && keep_count(draft, &ranked, DIMENSIONS) > enough_cpu {
        draft.squeeze();
    }
    let keep = keep_count(draft, &ranked, DIMENSIONS);
    let scarce = if keep > enough_cpu { Scarce::Memory } else { Scarce::Cpu };
    // Machines beyond those that are needed take nobody in: what goes there would soon have to move again.
    let machines = draft.snapshot.machines();
    let spare: Vec<usize> = ranked[keep..].iter().copied().filter(|machine| !machines[*machine].is_protected).collect();
    if spare.is_empty() {
        return;
    }
    let before: Vec<bool> = draft.machines.iter().map(|load| load.is_open).collect();
    let asleep = (0..draft.machines.len()).filter(|machine| !draft.machines[*machine].is_on).collect::<Vec<_>>();
    asleep.iter().for_each(|machine| draft.machines[*machine].is_open = false);
    let mark = draft.moves.len();
    if spare.len() > draft.policy.steady_spares_max && scarce == Scarce::Cpu {
        gather(draft, &ranked[..keep], &spare, budget);
    }
    let mut emptied = spare.iter().filter(|machine| !draft.machines[**machine].is_on).count();
    let mut failures = 0;
    let failures_max = match scarce {
        Scarce::Cpu => draft.policy.drain_attempts_max,
        Scarce::Memory => draft.policy.drain_attempts_max.saturating_mul(MEMORY_PATIENCE),
    };
    for machine in cheapest_first(draft, &ranked, spare.len(), scarce) {
        if !draft.machines[machine].is_on {
            continue;
        }
        if emptied >= spare.len().min(draft.policy.sleeps_max) || failures >= failures_max {
            break;
        }
        if !budget.allows() {
            break;
        }
        if empty(draft, machine, scarce) {
            emptied += 1;
        } else {
            failures += 1;
        }
    }
    if budget.is_spent {
        take_back(draft, mark);
    }
    for (machine, was) in before.into_iter().enumerate() {
        draft.machines[machine].is_open = was && (draft.machines[machine].is_on || asleep.contains(&machine));
    }
}

/// Wakes machines that the forecast will need.
pub fn wake_ahead(draft: &mut Draft<'_>) {
    loop {
        let ranked = ranked(draft);
        let mut short = 0.0;
        for machine in &ranked {
            let load = &draft.machines[*machine];
            let limit = draft.snapshot.machines()[*machine].capacity[CPU] * (1.0 - draft.policy.reserve);
            short += load.mean + draft.policy.drain_deviations * load.variance.sqrt() - limit;
        }
        let asleep = (0..draft.machines.len())
            .filter(|machine| !draft.machines[*machine].is_on && draft.machines[*machine].is_open);
        let best = asleep.min_by(|one, other| draft.watts_per_cpu(*one).total_cmp(&draft.watts_per_cpu(*other)));
        match best {
            Some(machine) if short > 0.0 => draft.machines[machine].is_on = true,
            _ => return,
        }
    }
}

/// Running machines, best first: by what they do for their power, then the fuller.
fn ranked(draft: &Draft<'_>) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..draft.machines.len()).filter(|machine| draft.machines[*machine].is_on).collect();
    let fullness = |machine: usize| draft.machines[machine].mean;
    ranked.sort_by(|one, other| {
        let rate = draft.watts_per_cpu(*one).total_cmp(&draft.watts_per_cpu(*other));
        rate.then(fullness(*other).total_cmp(&fullness(*one))).then(one.cmp(other))
    });
    ranked
}

/// How many of them suffice, if work could be cut at will and each keeps its margin.
fn keep_count(draft: &Draft<'_>, ranked: &[usize], dimensions: usize) -> usize {
    let mut need: Amounts = [0.0; DIMENSIONS];
    let (mut variance, mut deviations) = (0.0, 0.0);
    let total = f64::from(u32::try_from(ranked.len()).unwrap_or(u32::MAX));
    for load in ranked.iter().map(|machine| &draft.machines[*machine]) {
        need[CPU] += load.mean;
        variance += load.variance;
        deviations += load.variance.sqrt();
        for (sum, part) in need.iter_mut().zip(load.uses).skip(1) {
            *sum += part;
        }
    }
    let mut have: Amounts = [0.0; DIMENSIONS];
    for (count, machine) in ranked.iter().enumerate() {
        // So many machines that share the uncertainty evenly each need this much on top.
        let machines = f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
        let even = (variance * machines).sqrt();
        let as_now = deviations * machines / total;
        let margins = draft.policy.drain_deviations * even.min(as_now);
        let enough = have[CPU] >= need[CPU] + margins
            && have.iter().zip(need).take(dimensions).skip(1).all(|(have, need)| *have >= need);
        if enough {
            return count;
        }
        for (sum, part) in have.iter_mut().zip(draft.snapshot.machines()[*machine].capacity) {
            *sum += part;
        }
        have[CPU] -= draft.policy.reserve * draft.snapshot.machines()[*machine].capacity[CPU];
    }
    ranked.len()
}

/// In which order machines are tried: the wasteful kinds first, then those that cost the fewest moves for what they save.
fn cheapest_first(draft: &Draft<'_>, ranked: &[usize], spare: usize, scarce: Scarce) -> Vec<usize> {
    let items = draft.snapshot.workloads();
    let cost = |machine: usize| -> f64 {
        let fixed = MOVE_COST * draft.snapshot.machines()[machine].capacity[CPU];
        let members = draft.machines[machine].members.iter().map(|workload| &items[*workload as usize]);
        match scarce {
            Scarce::Cpu => members.map(|item| item.move_seconds).sum(),
            Scarce::Memory => members.map(|item| item.move_seconds * (item.uses[CPU] + fixed)).sum(),
        }
    };
    let mut order: Vec<usize> = ranked.iter().rev().copied().collect();
    if spare <= draft.policy.steady_spares_max || scarce == Scarce::Memory {
        let mut costs: Vec<(f64, usize)> = order.iter().map(|machine| (cost(*machine), *machine)).collect();
        costs.sort_by(|one, other| one.0.total_cmp(&other.0));
        order = costs.into_iter().map(|(_, machine)| machine).collect();
    }
    order.retain(|machine| {
        let shape = &draft.snapshot.machines()[*machine];
        !shape.is_protected && shape.state != MachineState::Failed
    });
    order
}

/// Moves everything off a machine, or nothing.
fn empty(draft: &mut Draft<'_>, machine: usize, scarce: Scarce) -> bool {
    let items = draft.snapshot.workloads();
    let mut members = draft.machines[machine].members.clone();
    if members.iter().any(|w| !items[*w as usize].is_movable) {
        return false;
    }
    members.sort_by(|one, other| {
        let size = |w: &u32| items[*w as usize].forecast.mean;
        size(other).total_cmp(&size(one)).then(one.cmp(other))
    });
    let mark = draft.moves.len();
    let was_open = std::mem::replace(&mut draft.machines[machine].is_open, false);
    for workload in members {
        let may_move = draft.moves.len() < draft.policy.moves_max;
        let target = if may_move { best_host(draft, workload, machine, scarce) } else { None };
        let Some(target) = target else {
            draft.undo_to(mark);
            draft.machines[machine].is_open = was_open;
            return false;
        };
        draft.shift(workload, target);
    }
    draft.machines[machine].is_on = false;
    true
}

/// Where something goes that leaves a machine which is emptied: where the largest margin remains; when memory is scarce, where
/// the least memory remains, so that what is left over stays in one piece (best fit).
fn best_host(draft: &Draft<'_>, workload: u32, from: usize, scarce: Scarce) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for machine in (0..draft.machines.len()).filter(|machine| *machine != from && draft.machines[*machine].is_on) {
        let Some(margin) = draft.margin_with(workload, machine, draft.policy.drain_arrival_deviations) else {
            continue;
        };
        let merit = match scarce {
            Scarce::Cpu => draft.merit(workload, machine, margin),
            Scarce::Memory => {
                draft.machines[machine].held[MEMORY] - draft.snapshot.machines()[machine].capacity[MEMORY]
            }
        };
        if best.is_none_or(|(most, _)| merit > most) {
            best = Some((merit, machine));
        }
    }
    best.map(|(_, machine)| machine)
}

/// Undoes the moves since `mark` off machines that others did not leave: they were for nothing.
fn take_back(draft: &mut Draft<'_>, mark: usize) {
    for index in mark..draft.moves.len() {
        let (workload, from, _) = draft.moves[index];
        if !draft.machines[from as usize].members.is_empty() {
            draft.shift(workload, from as usize);
        }
    }
}

/// Many machines at once: fills the best machines, one after the other, with what is on the spare ones, the least steady
/// first, so that like comes to like.
fn gather(draft: &mut Draft<'_>, kept: &[usize], spare: &[usize], budget: &mut Budget<'_>) {
    let items = draft.snapshot.workloads();
    let ratio = |w: &u32| {
        let forecast = items[*w as usize].forecast;
        forecast.deviation * forecast.deviation / forecast.mean.max(1e-9)
    };
    // What shares a machine with something that cannot move would move for nothing.
    let members = spare.iter().map(|machine| &draft.machines[*machine].members);
    let mut movers: Vec<u32> = members
        .filter(|members| members.iter().all(|workload| items[*workload as usize].is_movable))
        .flatten()
        .copied()
        .collect();
    movers.sort_by(|one, other| ratio(other).total_cmp(&ratio(one)).then(one.cmp(other)));
    let were_open: Vec<bool> =
        spare.iter().map(|machine| std::mem::replace(&mut draft.machines[*machine].is_open, false)).collect();
    for workload in movers {
        if draft.moves.len() >= draft.policy.moves_max || !budget.allows() {
            break;
        }
        let target = kept
            .iter()
            .copied()
            .find(|machine| draft.margin_with(workload, *machine, draft.policy.gather_deviations).is_some());
        if let Some(target) = target {
            draft.shift(workload, target);
        }
    }
    for (machine, was_open) in spare.iter().zip(were_open) {
        let load = &mut draft.machines[*machine];
        load.is_open = was_open && !load.members.is_empty();
        load.is_on = !load.members.is_empty();
    }
}
