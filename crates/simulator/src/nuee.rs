//! Our own policy: hands the state of the simulated pool to `placement::plan`, and its plan back.

use std::collections::BTreeMap;

use placement::plan::{Forecast, Machine, MachineState, Policy, Snapshot, Step, Workload, plan};

use placement::predict::Smoother;

use crate::run::{Decision, Move, Optimiser};
use crate::setting::MOVE_MB_PER_SECOND;
use crate::world::{Vm, World};

/// Memory of a host whose memory does not bind. Units: MB.
const UNBOUND_MB: f64 = 1e12;

/// Says what to expect of virtual machines.
pub trait Outlook {
    /// Takes the sample of one of them in; called once for each at every sample. Units: MIPS.
    fn observe(&mut self, world: &World<'_>, vm: usize) -> Forecast;
}

/// What comes of the samples so far, and of nothing else.
pub struct Smoothing {
    mean_weight: f64,
    variance_weight: f64,
    smoothers: Vec<Smoother>,
}

impl Smoothing {
    /// Weights are those of a new sample in the long run.
    pub fn new(mean_weight: f64, variance_weight: f64) -> Smoothing {
        Smoothing { mean_weight, variance_weight, smoothers: Vec::new() }
    }
}

impl Outlook for Smoothing {
    fn observe(&mut self, world: &World<'_>, vm: usize) -> Forecast {
        if self.smoothers.is_empty() {
            let smoother = |vm: &Vm| Smoother::new(vm.mips, self.mean_weight, self.variance_weight);
            self.smoothers = world.vms.iter().map(smoother).collect();
        }
        self.smoothers[vm].observe(world.vms[vm].demand)
    }
}

/// Our policy.
pub struct Nuee {
    policy: Policy,
    outlook: Box<dyn Outlook>,
    snapshot: Snapshot,
}

/// Weight of a new sample in the mean, once there are enough of them.
const MEAN_WEIGHT: f64 = 0.19;
/// The same in the variance.
const VARIANCE_WEIGHT: f64 = 0.073;

impl Default for Nuee {
    fn default() -> Self {
        Nuee::new(Policy::default(), MEAN_WEIGHT, VARIANCE_WEIGHT)
    }
}

impl Nuee {
    /// With settings of its own.
    pub fn new(policy: Policy, mean_weight: f64, variance_weight: f64) -> Nuee {
        Nuee::with_outlook(policy, Box::new(Smoothing::new(mean_weight, variance_weight)))
    }

    /// With forecasts from elsewhere: for experiments, as what they know is not checked.
    pub fn with_outlook(policy: Policy, outlook: Box<dyn Outlook>) -> Nuee {
        Nuee { policy, outlook, snapshot: Snapshot::default() }
    }

    fn describe(&mut self, world: &World<'_>) {
        for host in 0..world.hosts.len() {
            let kind = world.kind(host);
            let memory = if world.setting.memory_enforced { world.setting.host_memory_mb } else { UNBOUND_MB };
            let machine = Machine {
                name: format!("host-{host}"),
                capacity: [kind.mips, memory, 0.0, 0.0],
                core_cpu: kind.core_mips,
                power: kind.power.clone(),
                sleep_watts: world.setting.wake.sleep_watts,
                wake_seconds: world.setting.wake.seconds,
                state: MachineState::On,
                labels: BTreeMap::new(),
                is_protected: false,
            };
            let added = self.snapshot.add_machine(machine);
            debug_assert!(added.is_ok(), "{added:?}");
        }
        for (index, vm) in world.vms.iter().enumerate() {
            let workload = Workload {
                id: format!("vm-{index}"),
                uses: [0.0, vm.memory_mb, 0.0, 0.0],
                memory_min: vm.full_memory_mb * (1.0 - world.setting.balloon_share),
                is_movable: true,
                ..Workload::default()
            };
            let added = self.snapshot.add_workload(workload);
            debug_assert!(added.is_ok(), "{added:?}");
        }
    }

    fn observe(&mut self, world: &World<'_>) {
        for (index, vm) in world.vms.iter().enumerate() {
            let forecast = self.outlook.observe(world, index);
            let seconds = vm.memory_mb / MOVE_MB_PER_SECOND;
            let changed = self.snapshot.change_workload(index, |workload| {
                workload.uses = [vm.demand, vm.memory_mb, 0.0, 0.0];
                workload.forecast = forecast;
                workload.memory_min = workload.memory_min.min(vm.memory_mb);
                workload.move_seconds = seconds;
                workload.machine = vm.host.map(|host| host as usize);
            });
            debug_assert!(changed.is_ok(), "{changed:?}");
        }
        for (index, host) in world.hosts.iter().enumerate() {
            let is_on = host.used_mips > 0.0 || !host.vms.is_empty();
            self.snapshot.set_state(index, if is_on { MachineState::On } else { MachineState::Asleep });
        }
    }
}

impl Optimiser for Nuee {
    fn start(&mut self, world: &World<'_>) -> Vec<Option<u32>> {
        self.describe(world);
        first_fit(world)
    }

    fn optimise(&mut self, world: &World<'_>) -> Decision {
        self.observe(world);
        self.policy.use_balloon = world.setting.balloon_share > 0.0;
        let plan = plan(&self.snapshot, &self.policy, 0);
        let mut decision = Decision::default();
        for step in plan.steps {
            match step {
                Step::Move { workload, to, .. } => {
                    decision.moves.extend(
                        u32::try_from(workload).ok().zip(u32::try_from(to).ok()).map(|(vm, to)| Move { vm, to }),
                    );
                }
                Step::Balloon { workload, memory } => {
                    decision.balloons.extend(u32::try_from(workload).ok().map(|vm| (vm, memory)));
                }
                // Simulated hosts wake and sleep by themselves.
                Step::Wake { .. } | Step::Sleep { .. } => {}
            }
        }
        decision
    }
}

/// The first placement: nominal sizes and full memory, hosts that are in use already before others, and of those the ones that
/// do most for their power: at full load, or when memory is what fills them, at none.
fn first_fit(world: &World<'_>) -> Vec<Option<u32>> {
    let mut free: Vec<(f64, f64)> =
        (0..world.hosts.len()).map(|host| (world.kind(host).mips, world.setting.host_memory_mb)).collect();
    let cost = |host: usize| {
        let kind = world.kind(host);
        if world.setting.memory_enforced { kind.power.idle() } else { kind.power.full() / kind.mips }
    };
    let mut order: Vec<usize> = (0..free.len()).collect();
    order.sort_by(|one, other| cost(*one).total_cmp(&cost(*other)).then(one.cmp(other)));
    let mut is_used = vec![false; free.len()];
    let mut place = |vm: &Vm| {
        let fits = |host: &usize| {
            let (mips, memory) = free[*host];
            world.kind(*host).core_mips >= vm.mips && mips >= vm.mips && memory >= vm.full_memory_mb
        };
        let hosts = || order.iter().copied().filter(fits);
        let host = hosts().find(|host| is_used[*host]).or_else(|| hosts().next())?;
        is_used[host] = true;
        free[host].0 -= vm.mips;
        free[host].1 -= vm.full_memory_mb;
        u32::try_from(host).ok()
    };
    world.vms.iter().map(&mut place).collect()
}
