//! A draft of who is where, and power-aware best fit on it.

use super::detect::{Detection, Seen};
use crate::world::{HISTORY, World};

/// Use to which medium fit brings a host.
const MEDIUM_LOAD: f64 = 0.6;

/// A rule of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The first suitable host.
    FirstFit,
    /// The suitable host whose power grows least.
    LeastPower,
    /// The suitable host whose use comes closest to [`MEDIUM_LOAD`].
    MediumFit,
}

/// A host in the draft.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Machines on it, in order of arrival.
    pub vms: Vec<u32>,
    /// Sum of the histories, newest first, as shares of its speed.
    pub history: [f64; HISTORY],
    /// Given away. Units: MIPS.
    pub given: f64,
    /// Wanted. Units: MIPS.
    pub wanted: f64,
    /// Memory in use. Units: MB.
    pub memory_mb: f64,
    /// Power at the last update. Units: watts.
    watts: f64,
}

/// The draft.
pub struct Packer<'w, 't> {
    /// The world that it starts from.
    pub world: &'w World<'t>,
    /// Hosts, by index.
    pub hosts: Vec<Draft>,
    /// Hosts that take nobody in.
    pub closed: Vec<bool>,
    detection: Option<Detection>,
    placement: Placement,
    starting: bool,
}

impl<'w, 't> Packer<'w, 't> {
    /// The state of now.
    pub fn new(world: &'w World<'t>, detection: Detection, placement: Placement) -> Self {
        let mut packer = Packer::empty(world, Some(detection), placement, false);
        for (host, state) in world.hosts.iter().enumerate() {
            state.vms.iter().for_each(|vm| packer.add(host, *vm));
        }
        packer
    }

    /// Nothing placed yet: sizes and memory count in full.
    pub fn at_start(world: &'w World<'t>, detection: Option<Detection>, placement: Placement) -> Self {
        Packer::empty(world, detection, placement, true)
    }

    fn empty(world: &'w World<'t>, detection: Option<Detection>, placement: Placement, starting: bool) -> Self {
        let draft = |host: usize| Draft {
            vms: Vec::new(),
            history: [0.0; HISTORY],
            given: 0.0,
            wanted: 0.0,
            memory_mb: 0.0,
            watts: world.kind(host).watts(world.load(host)),
        };
        let hosts: Vec<Draft> = (0..world.hosts.len()).map(draft).collect();
        let closed = vec![false; hosts.len()];
        Packer { world, hosts, closed, detection, placement, starting }
    }

    /// What a machine wants. Units: MIPS.
    fn demand(&self, vm: u32) -> f64 {
        let vm = &self.world.vms[vm as usize];
        if self.starting { vm.mips } else { vm.demand }
    }

    fn add(&mut self, host: usize, vm: u32) {
        self.hosts[host].vms.push(vm);
        self.add_up(host);
    }

    /// Takes a machine off a host.
    pub fn remove(&mut self, host: usize, vm: u32) {
        self.hosts[host].vms.retain(|other| *other != vm);
        self.add_up(host);
    }

    /// Adds up what a host holds, anew and in order of arrival: the reference compares sums that differ in their last bits, and
    /// those bits decide between hosts of equal merit.
    fn add_up(&mut self, host: usize) {
        let kind = self.world.kind(host);
        let (scale, core) = (kind.mips, kind.core_mips);
        let (world, starting) = (self.world, self.starting);
        let draft = &mut self.hosts[host];
        (draft.given, draft.wanted, draft.memory_mb, draft.history) = (0.0, 0.0, 0.0, [0.0; HISTORY]);
        for vm in &draft.vms {
            let vm = &world.vms[*vm as usize];
            draft.given += (if starting { vm.mips } else { vm.demand }).min(core);
            // While the first placement is made nobody asks for anything yet.
            draft.wanted += if starting { 0.0 } else { vm.demand };
            draft.memory_mb += vm.memory_mb;
            for (sum, share) in draft.history.iter_mut().zip(&vm.history) {
                *sum += share * vm.mips / scale;
            }
        }
    }

    /// Whether a host is overloaded, as things stand in the draft.
    pub fn is_overloaded(&self, host: usize) -> bool {
        self.overloaded_with(host, None)
    }

    fn overloaded_with(&self, host: usize, vm: Option<u32>) -> bool {
        let Some(detection) = self.detection else { return false };
        let (draft, mips) = (&self.hosts[host], self.world.kind(host).mips);
        let memory = |vm: &u32| self.world.vms[*vm as usize].memory_mb;
        let largest_mb = draft.vms.iter().chain(&vm).map(memory).fold(0.0, f64::max);
        let mut history = draft.history;
        let mut wanted = draft.wanted;
        if let Some(vm) = vm {
            wanted += self.demand(vm);
            let vm = &self.world.vms[vm as usize];
            for (sum, share) in history.iter_mut().zip(&vm.history) {
                *sum += share * vm.mips / mips;
            }
        }
        detection.is_overloaded(&Seen { wanted: wanted / mips, history: &history, largest_mb })
    }

    fn is_suitable(&self, host: usize, vm: u32) -> bool {
        let (kind, draft, demand) = (self.world.kind(host), &self.hosts[host], self.demand(vm));
        let memory_binds = self.starting || self.world.setting.memory_enforced;
        kind.core_mips >= demand
            && kind.mips - draft.given >= demand
            && (!memory_binds
                || draft.memory_mb + self.world.vms[vm as usize].memory_mb <= self.world.setting.host_memory_mb)
    }

    /// Puts a machine on the best host, if there is one.
    pub fn place(&mut self, vm: u32) -> Option<u32> {
        let host = self.best(vm)?;
        self.add(host, vm);
        u32::try_from(host).ok()
    }

    fn best(&self, vm: u32) -> Option<usize> {
        let mut best: Option<((f64, f64), usize)> = None;
        // Empty hosts of one kind are all alike: the first one stands for them.
        let mut empty_seen = [false; 2];
        for host in 0..self.hosts.len() {
            let empty = self.hosts[host].vms.is_empty() && self.world.hosts[host].vms.is_empty();
            if self.closed[host] || (empty && empty_seen[self.world.hosts[host].kind]) || !self.is_suitable(host, vm) {
                continue;
            }
            if empty {
                empty_seen[self.world.hosts[host].kind] = true;
            }
            let cost = self.cost(host, vm);
            let better = best.is_none_or(|(least, _)| cost < least);
            if better && (self.hosts[host].given == 0.0 || !self.overloaded_with(host, Some(vm))) {
                best = Some((cost, host));
                if self.placement == Placement::FirstFit {
                    break;
                }
            }
        }
        best.map(|(_, host)| host)
    }

    fn cost(&self, host: usize, vm: u32) -> (f64, f64) {
        let (kind, draft) = (self.world.kind(host), &self.hosts[host]);
        let load = (draft.given + self.demand(vm)) / kind.mips;
        match self.placement {
            Placement::FirstFit => (0.0, 0.0),
            Placement::LeastPower => (kind.watts(load) - draft.watts, 0.0),
            // Use as last measured: what this round has added does not count.
            Placement::MediumFit => ((self.world.load(host) - MEDIUM_LOAD).abs(), -kind.mips / kind.power.full()),
        }
    }
}
