//! A day: an update every five minutes and whenever moves end, an optimisation every five minutes.

use placement::plan::bound::{self, Class};

use crate::metrics::Outcome;
use crate::setting::{HOSTS_OF_A_KIND, HostKind, Setting};
use crate::trace::{INTERVAL_SECONDS, SAMPLES, Trace};
use crate::world::{START_SECONDS, World};

/// A move that an optimisation wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The virtual machine.
    pub vm: u32,
    /// Its new host.
    pub to: u32,
}

/// What an optimisation wants.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Balloon changes, made at once: virtual machine and the memory that it keeps. Units: MB.
    pub balloons: Vec<(u32, f64)>,
    /// Moves, begun at once.
    pub moves: Vec<Move>,
}

/// Something that decides where virtual machines go.
pub trait Optimiser {
    /// Where each virtual machine starts, in index order; `None` where none fits.
    fn start(&mut self, world: &World<'_>) -> Vec<Option<u32>>;
    /// What to change now.
    fn optimise(&mut self, world: &World<'_>) -> Decision;
}

/// The state of affairs after one step, for those who watch.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Number of the step, from 1.
    pub step: usize,
    /// Hosts at work.
    pub active_hosts: usize,
    /// Sums so far.
    pub sums: crate::metrics::Sums,
}

/// Runs a day. `watch` is called after every step.
pub fn run(trace: &Trace, setting: &Setting, optimiser: &mut dyn Optimiser, mut watch: impl FnMut(Glance)) -> Outcome {
    let mut world = World::new(trace, setting.clone());
    for (vm, host) in (0..).zip(optimiser.start(&world)) {
        if let Some(host) = host {
            world.create(vm, host);
        }
    }
    let mut time = START_SECONDS;
    for step in 1..SAMPLES {
        time += INTERVAL_SECONDS;
        world.update(time, true);
        bound(&mut world);
        let decision = optimiser.optimise(&world);
        let active_hosts = world.hosts.iter().filter(|host| host.used_mips > 0.0).count();
        carry_out(&mut world, time, &decision, step + 1 == SAMPLES);
        watch(Glance { step, active_hosts, sums: world.sums });
    }
    Outcome::new(&world.sums)
}

/// The day of a pool where nothing is ever switched off or slowed down: every host at full power (NPA).
pub fn always_on(trace: &Trace, setting: &Setting) -> Outcome {
    let mut idle = run(trace, setting, &mut crate::baseline::Baseline::dvfs(), |_| ());
    let watts: f64 = HostKind::both().iter().map(|kind| HOSTS_OF_A_KIND * kind.power.full()).sum();
    // Watts over a day of 24 hours.
    idle.energy_kwh = watts * 24.0 / 1000.0;
    idle
}

fn carry_out(world: &mut World<'_>, time: f64, decision: &Decision, last: bool) {
    for &(vm, memory_mb) in &decision.balloons {
        world.vms[vm as usize].memory_mb = memory_mb;
    }
    for wanted in &decision.moves {
        world.begin_move(wanted.vm, wanted.to);
    }
    if !decision.moves.is_empty() {
        world.share_all_out();
    }
    let mut ends: Vec<(f64, Move)> =
        decision.moves.iter().map(|wanted| (time + world.move_seconds(wanted.vm), *wanted)).collect();
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    for group in ends.chunk_by(|one, other| one.0 == other.0) {
        world.update(group[0].0, false);
        group.iter().for_each(|(_, wanted)| world.end_move(wanted.vm, wanted.to));
        world.update(group[0].0, false);
    }
    // What comes after the last sample is not accounted for.
    debug_assert!(last || world.vms.iter().all(|vm| !vm.moving));
}

/// Adds the least energy for the next five minutes at the demand of now.
fn bound(world: &mut World<'_>) {
    let setting = &world.setting;
    let live = || world.vms.iter().filter(|vm| vm.host.is_some());
    let wanted = live().map(|vm| vm.demand.min(world.kinds[1].core_mips)).sum();
    let least = |vm: &crate::world::Vm| vm.full_memory_mb * (1.0 - setting.balloon_share);
    let memory = if setting.memory_enforced { live().map(least).sum() } else { 0.0 };
    let class = |kind: &HostKind| Class {
        count: HOSTS_OF_A_KIND,
        cpu: kind.mips,
        memory: setting.host_memory_mb,
        power: kind.power.clone(),
        sleep_watts: setting.wake.sleep_watts,
    };
    let classes = [class(&world.kinds[0]), class(&world.kinds[1])];
    world.sums.bound += bound::watts(&classes, wanted, memory) * INTERVAL_SECONDS;
}
