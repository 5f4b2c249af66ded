//! Plans: which moves, balloon changes and power actions make the pool cheaper without hurting anyone.

pub mod bound;
pub mod document;
mod draft;
mod drain;
pub mod explain;
mod order;
mod relieve;
pub mod snapshot;

use draft::Draft;
pub use snapshot::{Amounts, Forecast, Machine, MachineState, Snapshot, SnapshotError, Workload};

/// What a plan aims at and keeps to.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A machine is relieved when its workloads use more than this share of its processor time.
    pub relief_above: f64,
    /// Relief goes on down to this share.
    pub relief_to: f64,
    /// Use after an arrival stays below this share.
    pub arrival_limit: f64,
    /// Margin that an arrival must leave, in standard deviations of the forecast.
    pub arrival_deviations: f64,
    /// The same when a machine is emptied.
    pub drain_arrival_deviations: f64,
    /// Margin that all machines together must keep before one is emptied.
    pub drain_deviations: f64,
    /// Margin of each machine when many are emptied at once.
    pub gather_deviations: f64,
    /// What it costs a target that its demand is of another kind, for each e-fold of the ratio of variance to mean.
    pub class_weight: f64,
    /// How much the time of a move weighs against its demand when a mover is chosen: an exponent.
    pub time_exponent: f64,
    /// Share of a machine's processor time that is kept free beside the margin.
    pub reserve: f64,
    /// Merit of a target that takes others in already, as a share of its capacity.
    pub sharing_bonus: f64,
    /// Fixed cost of a move beside its workload's demand, as a share of its machine's processor time.
    pub move_cost: f64,
    /// Machines that are tried in vain before giving up.
    pub drain_attempts_max: usize,
    /// With so many spare machines or fewer, the one that is cheapest to empty goes first; with more, the least efficient.
    pub steady_spares_max: usize,
    /// Most moves.
    pub moves_max: usize,
    /// Most machines that are sent to sleep at once.
    pub sleeps_max: usize,
    /// Let balloons take memory when memory, not processor time, is what keeps machines on.
    pub use_balloon: bool,
    /// Wake machines before the forecast needs them.
    pub wake_ahead: bool,
    /// Moves overlap: what leaves a machine still takes its memory until all moves of the plan are done.
    pub moves_overlap: bool,
    /// When machines may be emptied.
    pub when: When,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            relief_above: 1.0,
            relief_to: 0.985,
            arrival_limit: 0.945,
            arrival_deviations: -0.25,
            drain_arrival_deviations: 1.0,
            drain_deviations: 1.2,
            reserve: 0.0,
            gather_deviations: 1.3,
            class_weight: 0.11,
            time_exponent: 1.0,
            sharing_bonus: 0.12,
            move_cost: 0.09,
            drain_attempts_max: 8,
            steady_spares_max: 3,
            moves_max: usize::MAX,
            sleeps_max: usize::MAX,
            use_balloon: false,
            wake_ahead: false,
            moves_overlap: true,
            when: When::OnTheFly,
        }
    }
}

/// When machines may be emptied; relief is given at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Whenever it pays.
    OnTheFly,
    /// From one minute of the day to before another; past midnight when the second is the smaller.
    PlannedHours {
        /// The first minute.
        from: u16,
        /// The minute after the last.
        to: u16,
    },
    /// Never.
    Never,
}

impl When {
    /// Whether it is time. Units: minutes since midnight.
    pub fn allows(self, minute: u16) -> bool {
        match self {
            When::OnTheFly => true,
            When::Never => false,
            When::PlannedHours { from, to } if from <= to => (from..to).contains(&minute),
            When::PlannedHours { from, to } => minute >= from || minute < to,
        }
    }
}

/// Why a workload moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its machine has more to do than it can.
    Relief,
    /// Its machine is being emptied.
    Consolidation,
    /// It steps aside, so that others that wait for each other can move.
    Parking,
}

/// One step. Machines and workloads are indices of the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Let the balloon take memory, down to this much.
    Balloon {
        /// Of which workload.
        workload: usize,
        /// What it keeps.
        memory: f64,
    },
    /// Wake a machine.
    Wake {
        /// Which one.
        machine: usize,
    },
    /// Move a workload.
    Move {
        /// Which one.
        workload: usize,
        /// From this machine.
        from: usize,
        /// To this one.
        to: usize,
        /// Why.
        reason: Reason,
    },
    /// Send an empty machine to sleep.
    Sleep {
        /// Which one.
        machine: usize,
    },
}

/// A plan.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// Power before. Units: watts.
    pub watts_before: f64,
    /// Power after, at the use of now. Units: watts.
    pub watts_after: f64,
    /// No placement whatever can draw less. Units: watts.
    pub watts_bound: f64,
    /// Machines that have more to do than they can and could not be relieved.
    pub overloaded: Vec<usize>,
    /// Moves that were wanted and had no order in which they fit.
    pub given_up: usize,
    /// Whether it was made to its end.
    pub is_complete: bool,
}

/// Makes a plan for a minute of the day. The same snapshot always gives the same plan.
pub fn plan(snapshot: &Snapshot, policy: &Policy, minute: u16) -> Plan {
    plan_while(snapshot, policy, minute, &mut || true)
}

/// The same for those who cannot wait: `goes_on` is asked before each search for one move and before each attempt to empty one
/// machine, and once it says no, the plan is what has been found so far. Relief comes first, then the machines that save the
/// most. Such a plan can be done as it is; it leaves no machine half emptied. More time than a whole plan takes makes it no better.
pub fn plan_while(snapshot: &Snapshot, policy: &Policy, minute: u16, goes_on: &mut dyn FnMut() -> bool) -> Plan {
    let mut budget = Budget { goes_on, is_spent: false };
    let mut draft = Draft::new(snapshot, policy);
    let watts_before = draft.total_watts();
    relieve::relieve(&mut draft, &mut budget);
    if policy.when.allows(minute) {
        drain::drain(&mut draft, &mut budget);
    }
    if policy.wake_ahead {
        drain::wake_ahead(&mut draft);
    }
    let (steps, given_up) = order::steps(&draft);
    Plan {
        steps,
        watts_before,
        watts_after: draft.total_watts(),
        watts_bound: bound::of(snapshot),
        overloaded: relieve::overloaded(&draft),
        given_up,
        is_complete: !budget.is_spent,
    }
}

/// A sum; of nothing it is 0, where [`Iterator::sum`] has minus 0.
fn total(parts: impl Iterator<Item = f64>) -> f64 {
    parts.fold(0.0, |sum, part| sum + part)
}

/// How long to go on.
struct Budget<'a> {
    goes_on: &'a mut dyn FnMut() -> bool,
    is_spent: bool,
}

impl Budget<'_> {
    /// Whether there is time for one more search.
    fn allows(&mut self) -> bool {
        self.is_spent = self.is_spent || !(self.goes_on)();
        !self.is_spent
    }
}
