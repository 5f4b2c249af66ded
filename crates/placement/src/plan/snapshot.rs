//! What a plan is made from: machines and workloads as they are and as they are expected to be. Checked when it comes in, so
//! that nothing behind it has to doubt a number.

use std::collections::BTreeMap;

use crate::power::PowerCurve;

/// Kinds of resource that a plan counts.
pub const DIMENSIONS: usize = 4;
/// Index of processor time among the [`Amounts`]. Units: any, the same throughout a snapshot.
pub const CPU: usize = 0;
/// Index of memory.
pub const MEMORY: usize = 1;
/// Index of disk.
pub const DISK: usize = 2;
/// Index of network.
pub const NETWORK: usize = 3;
/// Names of the dimensions, for people.
pub const NAMES: [&str; DIMENSIONS] = ["cpu", "memory", "disk", "network"];
/// Greatest amount of anything: far above any machine, far below where sums lose their small parts.
pub const AMOUNT_MAX: f64 = 1e15;
/// Least capacity of a machine in a dimension that every machine has: less is none, and would make shares of it boundless.
pub const CAPACITY_MIN: f64 = 1e-9;
/// Most machines, and most workloads, of a snapshot.
pub const COUNT_MAX: usize = 1_000_000;

/// One amount for each dimension.
pub type Amounts = [f64; DIMENSIONS];

/// What a machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MachineState {
    /// Works.
    #[default]
    On,
    /// Works, and is to be emptied.
    Draining,
    /// Sleeps; can be woken.
    Asleep,
    /// Does not answer; what it carries cannot be moved.
    Failed,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What it has.
    pub capacity: Amounts,
    /// Most processor time that one workload can use: a core for those that have but one.
    pub core_cpu: f64,
    /// What it draws.
    pub power: PowerCurve,
    /// What it draws asleep. Units: watts.
    pub sleep_watts: f64,
    /// Time from the order to wake until it works, at full power. Units: seconds.
    pub wake_seconds: f64,
    /// What it is doing.
    pub state: MachineState,
    /// Labels to select by.
    pub labels: BTreeMap<String, String>,
    /// Must stay on and keep what it has: a protected group.
    pub is_protected: bool,
}

/// Demand that is expected over the life of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Expected value.
    pub mean: f64,
    /// Standard deviation around it.
    pub deviation: f64,
}

/// A workload.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Its identity.
    pub id: String,
    /// Index of its machine; `None` waits for a place and is left to `place`.
    pub machine: Option<usize>,
    /// What it holds: memory, disk and network in full, processor time as it is used now.
    pub uses: Amounts,
    /// Processor time to come.
    pub forecast: Forecast,
    /// Memory that a balloon must leave it; as much as it uses where there is none.
    pub memory_min: f64,
    /// Whether it can be moved while it runs.
    pub is_movable: bool,
    /// Time that a move takes. Units: seconds.
    pub move_seconds: f64,
    /// Labels that its machine must have.
    pub selector: BTreeMap<String, String>,
    /// Groups of which no two members may share a machine.
    pub apart: Vec<u32>,
}

/// Machines and workloads, by index.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    machines: Vec<Machine>,
    workloads: Vec<Workload>,
}

/// Why something is not taken into a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotError {
    /// A number that is negative, not finite or beyond all reason.
    BadNumber {
        /// Of which machine or workload.
        owner: String,
        /// Which number.
        field: &'static str,
        /// What it is.
        value: f64,
    },
    /// A machine with no capacity in a dimension that every machine has.
    NoCapacity {
        /// Of which machine.
        owner: String,
        /// Which dimension.
        field: &'static str,
    },
    /// A workload on a machine that does not exist.
    NoSuchMachine {
        /// Of which workload.
        owner: String,
        /// The index.
        index: usize,
    },
    /// Too many of them.
    TooMany(usize),
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotError::BadNumber { owner, field, value } => {
                write!(out, "{owner}: {field} is {value}; it must be a number from 0 to {AMOUNT_MAX:e}")
            }
            SnapshotError::NoCapacity { owner, field } => write!(out, "{owner}: it has no {field} at all"),
            SnapshotError::NoSuchMachine { owner, index } => write!(out, "{owner}: there is no machine {index}"),
            SnapshotError::TooMany(count) => write!(out, "{count} are more than {COUNT_MAX}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

impl Snapshot {
    /// The machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The workloads.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Adds a machine; returns its index.
    ///
    /// `Errors:` a number is bad; nothing has changed.
    pub fn add_machine(&mut self, machine: Machine) -> Result<usize, SnapshotError> {
        check_machine(&machine)?;
        room(self.machines.len())?;
        self.machines.push(machine);
        Ok(self.machines.len() - 1)
    }

    /// Adds a workload; returns its index.
    ///
    /// `Errors:` a number is bad, or its machine is not there; nothing has changed.
    pub fn add_workload(&mut self, workload: Workload) -> Result<usize, SnapshotError> {
        self.check_workload(&workload)?;
        room(self.workloads.len())?;
        self.workloads.push(workload);
        Ok(self.workloads.len() - 1)
    }

    /// Changes a workload in place. Costs nothing but the check.
    ///
    /// `Errors:` as [`Snapshot::add_workload`]; the workload is as it was.
    pub fn change_workload(&mut self, index: usize, change: impl FnOnce(&mut Workload)) -> Result<(), SnapshotError> {
        let mut changed = self.workloads[index].clone();
        change(&mut changed);
        self.check_workload(&changed)?;
        self.workloads[index] = changed;
        Ok(())
    }

    /// Sets what a workload does now and what is expected of it: the change that comes with every sample.
    ///
    /// `Errors:` as [`Snapshot::add_workload`]; the workload is as it was.
    pub fn observe(&mut self, index: usize, uses: Amounts, forecast: Forecast) -> Result<(), SnapshotError> {
        let workload = &mut self.workloads[index];
        check_amounts(&workload.id, &uses)?;
        check(&workload.id, "forecast mean", forecast.mean)?;
        check(&workload.id, "forecast deviation", forecast.deviation)?;
        (workload.uses, workload.forecast) = (uses, forecast);
        workload.memory_min = workload.memory_min.min(uses[MEMORY]);
        Ok(())
    }

    /// Notes where a workload is.
    ///
    /// `Errors:` the machine is not there.
    pub fn locate(&mut self, workload: usize, machine: Option<usize>) -> Result<(), SnapshotError> {
        if let Some(index) = machine.filter(|index| *index >= self.machines.len()) {
            return Err(SnapshotError::NoSuchMachine { owner: self.workloads[workload].id.clone(), index });
        }
        self.workloads[workload].machine = machine;
        Ok(())
    }

    /// Notes what a machine is doing.
    pub fn set_state(&mut self, index: usize, state: MachineState) {
        self.machines[index].state = state;
    }

    fn check_workload(&self, workload: &Workload) -> Result<(), SnapshotError> {
        let owner = &workload.id;
        check_amounts(owner, &workload.uses)?;
        check(owner, "forecast mean", workload.forecast.mean)?;
        check(owner, "forecast deviation", workload.forecast.deviation)?;
        check(owner, "least memory", workload.memory_min)?;
        check(owner, "move time", workload.move_seconds)?;
        match workload.machine {
            Some(index) if index >= self.machines.len() => {
                Err(SnapshotError::NoSuchMachine { owner: owner.clone(), index })
            }
            _ => Ok(()),
        }
    }
}

fn check_machine(machine: &Machine) -> Result<(), SnapshotError> {
    check_amounts(&machine.name, &machine.capacity)?;
    check(&machine.name, "core speed", machine.core_cpu)?;
    check(&machine.name, "sleep power", machine.sleep_watts)?;
    check(&machine.name, "wake time", machine.wake_seconds)?;
    let needed = [
        (NAMES[CPU], machine.capacity[CPU]),
        (NAMES[MEMORY], machine.capacity[MEMORY]),
        ("core speed", machine.core_cpu),
    ];
    match needed.into_iter().find(|(_, amount)| *amount < CAPACITY_MIN) {
        Some((field, _)) => Err(SnapshotError::NoCapacity { owner: machine.name.clone(), field }),
        None => Ok(()),
    }
}

fn check_amounts(owner: &str, amounts: &Amounts) -> Result<(), SnapshotError> {
    NAMES.iter().zip(amounts).try_for_each(|(field, value)| check(owner, field, *value))
}

fn check(owner: &str, field: &'static str, value: f64) -> Result<(), SnapshotError> {
    if (0.0..=AMOUNT_MAX).contains(&value) {
        Ok(())
    } else {
        Err(SnapshotError::BadNumber { owner: owner.to_owned(), field, value })
    }
}

fn room(count: usize) -> Result<(), SnapshotError> {
    if count < COUNT_MAX { Ok(()) } else { Err(SnapshotError::TooMany(count + 1)) }
}
