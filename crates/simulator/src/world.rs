//! The hosts and the virtual machines, and what one update does to them: the reference's rules of sharing, in its order of
//! operations, because its sums are compared exactly.

use crate::metrics::{HostState, Since, Sums, VmState, follow};
use crate::setting::{HOSTS, HostKind, MOVE_MB_PER_SECOND, Setting, TYPES};
use crate::trace::{INTERVAL_SECONDS, Trace};

/// Samples that a virtual machine remembers.
pub const HISTORY: usize = 30;
/// When the first placement is made. Units: seconds.
pub const START_SECONDS: f64 = 0.1;
/// What a virtual machine gets of its demand while it leaves.
const LEAVING_SHARE: f64 = 0.9;
/// What it is given on the target meanwhile.
const ARRIVING_SHARE: f64 = 0.1;

/// A virtual machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its size. Units: MIPS.
    pub mips: f64,
    /// Its full memory. Units: MB.
    pub full_memory_mb: f64,
    /// Memory that it holds now: less when the balloon has some. Units: MB.
    pub memory_mb: f64,
    /// Where it runs; `None` when it has nowhere been placed or is gone.
    pub host: Option<u32>,
    /// On the move.
    pub moving: bool,
    /// Gone for good.
    pub gone: bool,
    /// Demand at the last update. Units: MIPS.
    pub demand: f64,
    /// Last samples, newest first, as shares of its size.
    pub history: Vec<f64>,
    state: Option<Since<VmState>>,
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Index of its kind.
    pub kind: usize,
    /// Virtual machines, those that are moving in among them, in order of arrival.
    pub vms: Vec<u32>,
    /// Those that are moving in.
    pub arriving: Vec<u32>,
    /// Use at the last update. Units: MIPS.
    pub used_mips: f64,
    state: Option<Since<HostState>>,
}

/// Everything.
pub struct World<'a> {
    /// Demand.
    pub trace: &'a Trace,
    /// What varies.
    pub setting: Setting,
    /// Kinds of host.
    pub kinds: [HostKind; 2],
    /// Hosts, by index.
    pub hosts: Vec<Host>,
    /// Virtual machines, by index.
    pub vms: Vec<Vm>,
    /// Time of the last update. Units: seconds.
    pub now: f64,
    /// What was measured.
    pub sums: Sums,
}

impl<'a> World<'a> {
    /// Before the first placement.
    pub fn new(trace: &'a Trace, setting: Setting) -> World<'a> {
        let quarter = trace.len().div_ceil(TYPES.len());
        let vm = |index: usize| {
            let (mips, memory_mb) = TYPES[index / quarter];
            let (full_memory_mb, history) = (memory_mb, Vec::with_capacity(HISTORY + 1));
            let (host, moving, gone, demand, state) = (None, false, false, 0.0, None);
            Vm { mips, full_memory_mb, memory_mb, host, moving, gone, demand, history, state }
        };
        let host = |index: usize| {
            let (kind, vms, arriving) = (index % 2, Vec::new(), Vec::new());
            Host { kind, vms, arriving, used_mips: 0.0, state: None }
        };
        let (hosts, vms) = ((0..HOSTS).map(host).collect(), (0..trace.len()).map(vm).collect());
        World { trace, setting, kinds: HostKind::both(), hosts, vms, now: 0.0, sums: Sums::default() }
    }

    /// The kind of a host.
    pub fn kind(&self, host: usize) -> &HostKind {
        &self.kinds[self.hosts[host].kind]
    }

    /// Use of a host at the last update, 0 to 1.
    pub fn load(&self, host: usize) -> f64 {
        (self.hosts[host].used_mips / self.kind(host).mips).min(1.0)
    }

    /// Time that a move takes. Units: seconds.
    pub fn move_seconds(&self, vm: u32) -> f64 {
        self.vms[vm as usize].memory_mb / MOVE_MB_PER_SECOND
    }

    /// Puts a virtual machine on a host, at the first placement.
    pub fn create(&mut self, vm: u32, host: u32) {
        self.vms[vm as usize].host = Some(host);
        self.hosts[host as usize].vms.push(vm);
    }

    /// Brings everything to a time, and accounts for what lies between. Units: seconds.
    pub fn update(&mut self, now: f64, sample: bool) {
        let passed = now - self.now;
        if passed > 0.0 {
            self.read_demand(now, sample);
        }
        self.now = now;
        for host in 0..self.hosts.len() {
            let before = self.load(host);
            self.share_out(host);
            if passed > 0.0 {
                self.sums.energy += self.energy(host, before, passed);
            }
        }
        if !self.setting.keep_zero_demand {
            self.drop_idle();
        }
    }

    fn read_demand(&mut self, now: f64, sample: bool) {
        for (index, vm) in self.vms.iter_mut().enumerate().filter(|(_, vm)| !vm.gone) {
            let share = self.trace.share(index, now);
            vm.demand = share * vm.mips;
            if sample {
                vm.history.insert(0, share);
                vm.history.truncate(HISTORY);
            }
        }
    }

    /// A step that starts at zero use costs nothing but the power of sleep.
    fn energy(&self, host: usize, before: f64, seconds: f64) -> f64 {
        if before == 0.0 {
            // Everybody sleeps until the first sample: the reference charges nothing for that time.
            return if self.now > START_SECONDS + INTERVAL_SECONDS {
                self.setting.wake.sleep_watts * seconds
            } else {
                0.0
            };
        }
        let power = &self.kind(host).power;
        let (from, to) = (power.at(before), power.at(self.load(host)));
        (from + (to - from) / 2.0) * seconds
    }

    /// Shares a host's speed out: all get what they want, or all are scaled down in proportion to whole MIPS.
    fn share_out(&mut self, host: usize) {
        let World { hosts, vms, kinds, sums, now, .. } = self;
        let host = &mut hosts[host];
        let kind = &kinds[host.kind];
        let arriving = |vm: u32| host.arriving.contains(&vm);
        let mut wanted = 0.0;
        for &index in &host.vms {
            let capped = vms[index as usize].demand.min(kind.core_mips);
            wanted += if arriving(index) { capped * ARRIVING_SHARE } else { capped };
        }
        let scale = if wanted > kind.mips { Some(kind.mips / wanted) } else { None };
        let (mut used, mut requested) = (0.0, 0.0);
        for &index in &host.vms {
            let vm = &mut vms[index as usize];
            let comes = arriving(index);
            let mut allocated = given(vm.demand.min(kind.core_mips), scale, vm.moving, comes);
            if !comes {
                let state = VmState { allocated, requested: vm.demand, moving: vm.moving };
                sums.vm(follow(&mut vm.state, *now, state));
                if vm.moving {
                    allocated /= LEAVING_SHARE;
                }
            }
            used += allocated;
            requested += vm.demand;
        }
        host.used_mips = used;
        sums.host(follow(&mut host.state, *now, HostState { allocated: used, requested }));
    }

    fn drop_idle(&mut self) {
        for index in 0..self.vms.len() {
            let vm = &mut self.vms[index];
            if let Some(host) = vm.host.filter(|_| !vm.moving && vm.demand == 0.0) {
                (vm.host, vm.gone) = (None, true);
                self.hosts[host as usize].vms.retain(|other| *other as usize != index);
            }
        }
    }

    /// Begins a move.
    pub fn begin_move(&mut self, vm: u32, to: u32) {
        self.sums.migrations += 1;
        self.vms[vm as usize].moving = true;
        let target = &mut self.hosts[to as usize];
        let asleep = target.used_mips == 0.0 && target.arriving.is_empty();
        target.vms.push(vm);
        target.arriving.push(vm);
        if asleep {
            self.sums.wakes += 1;
            self.sums.energy += self.setting.wake.seconds * self.kind(to as usize).power.full();
        }
    }

    /// Ends a move.
    pub fn end_move(&mut self, vm: u32, to: u32) {
        if let Some(from) = self.vms[vm as usize].host {
            self.hosts[from as usize].vms.retain(|other| *other != vm);
        }
        let target = &mut self.hosts[to as usize];
        target.arriving.retain(|other| *other != vm);
        target.vms.retain(|other| *other != vm);
        target.vms.push(vm);
        self.vms[vm as usize].host = Some(to);
        self.vms[vm as usize].moving = false;
    }

    /// Brings every host's share up to date after moves began. Units of time: none passes.
    pub fn share_all_out(&mut self) {
        (0..self.hosts.len()).for_each(|host| self.share_out(host));
    }
}

/// What a virtual machine gets of what it wants, in the reference's order of operations. Units: MIPS.
fn given(wanted: f64, scale: Option<f64>, moving: bool, arriving: bool) -> f64 {
    match (scale, arriving, moving) {
        (None, true, _) => wanted * ARRIVING_SHARE,
        (None, false, true) => wanted * LEAVING_SHARE,
        (None, false, false) => wanted,
        (Some(scale), true, _) => (wanted * ARRIVING_SHARE * scale).floor(),
        (Some(scale), false, true) => (wanted * scale * LEAVING_SHARE).floor(),
        (Some(scale), false, false) => (wanted * scale).floor(),
    }
}
