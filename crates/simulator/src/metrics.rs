//! What the literature measures: energy, SLA violation time of active hosts (SLATAH), degradation by migration (PDM). Kept as
//! running sums, so that a day needs no more memory than an hour.

/// The state of a host from one update to the next. Units: MIPS.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostState {
    /// What it gives.
    pub allocated: f64,
    /// What is wanted of it.
    pub requested: f64,
}

/// The state of a virtual machine from one update to the next. Units: MIPS.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmState {
    /// What it gets.
    pub allocated: f64,
    /// What it wants.
    pub requested: f64,
    /// Whether it is on the move.
    pub moving: bool,
}

/// A state with the time since when it holds; a second state at the same time takes the place of the first.
#[derive(Clone, Copy, Debug)]
pub struct Since<S> {
    /// Units: seconds.
    pub seconds: f64,
    /// The state.
    pub state: S,
}

/// Puts a new state into effect; returns the old one and how long it held, if any time passed.
pub fn follow<S: Copy>(slot: &mut Option<Since<S>>, seconds: f64, state: S) -> Option<(S, f64)> {
    let before = slot.replace(Since { seconds, state });
    before.filter(|old| old.seconds < seconds).map(|old| (old.state, seconds - old.seconds))
}

/// Sums over all hosts and virtual machines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Units: joules.
    pub energy: f64,
    /// Units: joules.
    pub bound: f64,
    /// Migrations started.
    pub migrations: u64,
    /// Units: host-seconds.
    pub active: f64,
    /// Part of it with less given than wanted.
    pub violated: f64,
    /// Units: MIPS-seconds.
    pub requested: f64,
    /// Units: MIPS-seconds.
    pub allocated: f64,
    /// Units: MIPS-seconds.
    pub lost_in_moves: f64,
    /// Hosts that were woken.
    pub wakes: u64,
}

impl Sums {
    /// Counts a host's past state.
    pub fn host(&mut self, past: Option<(HostState, f64)>) {
        let Some((state, seconds)) = past.filter(|(state, _)| state.allocated > 0.0) else { return };
        self.active += seconds;
        if state.allocated < state.requested {
            self.violated += seconds;
        }
    }

    /// Counts a virtual machine's past state.
    pub fn vm(&mut self, past: Option<(VmState, f64)>) {
        let Some((state, seconds)) = past else { return };
        self.requested += state.requested * seconds;
        self.allocated += state.allocated * seconds;
        if state.moving && state.allocated < state.requested {
            self.lost_in_moves += (state.requested - state.allocated) * seconds;
        }
    }
}

/// The result of a day.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Units: kWh.
    pub energy_kwh: f64,
    /// Migrations started.
    pub migrations: u64,
    /// Share of active time in which a host gives less than is wanted.
    pub slatah: f64,
    /// Share of demand lost while moving.
    pub pdm: f64,
    /// Mean number of hosts at work.
    pub mean_active_hosts: f64,
    /// Share of demand not served at all.
    pub unserved_share: f64,
    /// Least energy with which any packing could have served the demand of every step. Units: kWh.
    pub bound_kwh: f64,
    /// Hosts that were woken.
    pub wakes: u64,
}

/// Joules in a kilowatt-hour.
const JOULES_PER_KWH: f64 = 3_600_000.0;
/// Units: seconds.
const DAY_SECONDS: f64 = 86_400.0;

impl Outcome {
    /// The result from the sums.
    pub fn new(sums: &Sums) -> Outcome {
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Outcome {
            energy_kwh: sums.energy / JOULES_PER_KWH,
            migrations: sums.migrations,
            slatah: share(sums.violated, sums.active),
            pdm: share(sums.lost_in_moves, sums.requested),
            mean_active_hosts: sums.active / DAY_SECONDS,
            unserved_share: share(sums.requested - sums.allocated, sums.requested),
            bound_kwh: sums.bound / JOULES_PER_KWH,
            wakes: sums.wakes,
        }
    }

    /// SLA violation: the two shares multiplied.
    pub fn slav(&self) -> f64 {
        self.slatah * self.pdm
    }

    /// Energy times SLA violation.
    pub fn esv(&self) -> f64 {
        self.energy_kwh * self.slav()
    }
}
