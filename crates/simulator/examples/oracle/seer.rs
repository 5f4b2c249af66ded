//! A planner that knows what is to come, to learn what that is worth. Its rules are like ours, but a machine takes a workload
//! only where none of the next samples will be too much for it.

use simulator::nuee::{Nuee, Outlook, Smoothing};
use simulator::run::{Decision, Move, Optimiser};
use simulator::setting::MOVE_MB_PER_SECOND;
use simulator::trace::{INTERVAL_SECONDS, SAMPLES};
use simulator::world::World;

/// Machines that are tried in vain before giving up.
const ATTEMPTS_MAX: usize = 12;

/// What the planner is given, and what it keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Samples that it sees beyond the present one.
    pub samples: usize,
    /// What is left of the error of our forecast in what it sees: 0 is the truth, 1 is our forecast.
    pub error: f64,
    /// A machine is emptied when what leaves fits elsewhere for so many samples, the present one among them.
    pub hold: usize,
    /// The least number of them for which the target of a relief must last.
    pub least: usize,
    /// A machine is relieved so many samples ahead.
    pub ahead: usize,
    /// Margin of an arrival in deviations of our forecast, for what comes after: for relief, and when a machine is emptied.
    pub deviations: [f64; 2],
    /// How much the time that a move lasts counts against its cost: an exponent.
    pub lasting: f64,
    /// Fixed cost of a move beside its workload's demand, as a share of a machine.
    pub move_cost: f64,
    /// Merit of a target that takes others in already, as a share of that of lasting to the end.
    pub sharing_bonus: f64,
    /// Demerit of room that is left.
    pub room_cost: f64,
}

/// The planner.
pub struct Seer {
    sight: Sight,
    forecasts: Smoothing,
}

impl Seer {
    /// With so much sight; `weights` are those of our forecast.
    pub fn new(sight: Sight, weights: [f64; 2]) -> Seer {
        Seer { sight, forecasts: Smoothing::new(weights[0], weights[1]) }
    }

    fn look(&mut self, world: &World<'_>) -> Pool {
        let hosts = world.hosts.len();
        let samples = self.sight.samples + 1;
        let mut pool = Pool {
            sight: self.sight,
            vms: Vec::with_capacity(world.vms.len()),
            hosts: (0..hosts)
                .map(|host| Host::new(world.kind(host).mips, world.kind(host).core_mips, samples))
                .collect(),
            largest: world.kinds[1].mips,
        };
        for index in 0..world.vms.len() {
            let vm = self.foresee(world, index);
            pool.vms.push(vm);
            if let Some(host) = world.vms[index].host {
                pool.hosts[host as usize].add(index, &pool.vms[index]);
            }
        }
        pool
    }

    fn foresee(&mut self, world: &World<'_>, index: usize) -> Vm {
        let forecast = self.forecasts.observe(world, index);
        let vm = &world.vms[index];
        let cap = |mips: f64| mips.min(world.kinds[1].core_mips);
        let (mut seconds, mut is_there, mut demand) = (world.now, true, vec![cap(vm.demand)]);
        for _ in 0..self.sight.samples {
            seconds = (seconds + INTERVAL_SECONDS).min(DAY_SECONDS);
            let share = world.trace.share(index, seconds);
            is_there = is_there && share > 0.0;
            let truth = if is_there { cap(share * vm.mips) } else { 0.0 };
            demand.push(truth + self.sight.error * (forecast.mean - truth));
        }
        Vm {
            place: vm.host.map(|host| host as usize),
            variance: forecast.deviation.powi(2),
            seconds: vm.memory_mb / MOVE_MB_PER_SECOND,
            demand,
        }
    }
}

/// The last time at which the trace says anything. Units: seconds.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
const DAY_SECONDS: f64 = (SAMPLES - 1) as f64 * INTERVAL_SECONDS;

impl Optimiser for Seer {
    fn start(&mut self, world: &World<'_>) -> Vec<Option<u32>> {
        Nuee::default().start(world)
    }

    fn optimise(&mut self, world: &World<'_>) -> Decision {
        let mut pool = self.look(world);
        pool.relieve();
        pool.empty();
        let mut decision = Decision::default();
        for (index, vm) in (0..).zip(&pool.vms) {
            let before = world.vms[index as usize].host;
            let after = vm.place.and_then(|host| u32::try_from(host).ok());
            decision.moves.extend(after.filter(|_| after != before).map(|to| Move { vm: index, to }));
        }
        decision
    }
}

struct Vm {
    place: Option<usize>,
    /// Now and at the samples to come. Units: MIPS.
    demand: Vec<f64>,
    variance: f64,
    /// Units: seconds.
    seconds: f64,
}

struct Host {
    mips: f64,
    core_mips: f64,
    /// Sums of its virtual machines' demand.
    demand: Vec<f64>,
    variance: f64,
    vms: Vec<usize>,
    arrivals: usize,
}

impl Host {
    fn new(mips: f64, core_mips: f64, samples: usize) -> Host {
        Host { mips, core_mips, demand: vec![0.0; samples], variance: 0.0, vms: Vec::new(), arrivals: 0 }
    }

    fn add(&mut self, index: usize, vm: &Vm) {
        self.demand.iter_mut().zip(&vm.demand).for_each(|(sum, part)| *sum += part);
        self.variance += vm.variance;
        self.vms.push(index);
    }

    fn remove(&mut self, index: usize, vm: &Vm) {
        self.demand.iter_mut().zip(&vm.demand).for_each(|(sum, part)| *sum -= part);
        self.variance = (self.variance - vm.variance).max(0.0);
        self.vms.retain(|other| *other != index);
    }

    /// Samples until it has too much to do, with a workload that comes (1) or goes (-1).
    fn lasts(&self, vm: &Vm, sign: f64, deviations: f64) -> usize {
        let margin = deviations * (self.variance + sign * vm.variance).max(0.0).sqrt();
        let wants = self.demand.iter().zip(&vm.demand).map(|(sum, part)| sum + sign * part);
        let mut samples = wants.enumerate();
        let over = samples.find(|(sample, wants)| wants + if *sample > 0 { margin } else { 0.0 } > self.mips);
        over.map_or(self.demand.len(), |(sample, _)| sample)
    }

    /// The sample, of the next few, at which it has the most to do, and how much that is too much.
    fn peak(&self, ahead: usize) -> (usize, f64) {
        let wants = self.demand.iter().copied().enumerate().take(ahead + 1);
        let most = wants.max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or_default();
        (most.0, most.1 - self.mips)
    }
}

struct Pool {
    sight: Sight,
    vms: Vec<Vm>,
    hosts: Vec<Host>,
    largest: f64,
}

#[expect(clippy::cast_precision_loss, reason = "some samples of a day")]
fn share(samples: usize, of: usize) -> f64 {
    samples as f64 / of as f64
}

impl Pool {
    fn shift(&mut self, index: usize, to: usize) {
        let Some(from) = self.vms[index].place else { return };
        self.hosts[from].remove(index, &self.vms[index]);
        self.hosts[to].add(index, &self.vms[index]);
        self.hosts[to].arrivals += 1;
        self.vms[index].place = Some(to);
    }

    fn cost(&self, vm: &Vm) -> f64 {
        vm.seconds * (vm.demand[0] + self.sight.move_cost * self.largest)
    }

    /// How good a target is that lasts so many samples.
    fn merit(&self, vm: &Vm, to: usize, lasts: usize) -> f64 {
        let host = &self.hosts[to];
        let samples = host.demand.len();
        let room: f64 = host.demand.iter().zip(&vm.demand).map(|(sum, part)| host.mips - sum - part).sum();
        let bonus = if host.arrivals > 0 { self.sight.sharing_bonus } else { 0.0 };
        let lasting = share(lasts, samples).powf(self.sight.lasting);
        lasting + bonus - self.sight.room_cost * room / self.largest / share(samples, 1)
    }

    /// Takes off what is too much.
    fn relieve(&mut self) {
        let hot: Vec<usize> =
            (0..self.hosts.len()).filter(|host| self.hosts[*host].peak(self.sight.ahead).1 > 0.0).collect();
        for host in hot {
            let mut moved = Vec::new();
            while self.hosts[host].peak(self.sight.ahead).1 > 0.0 {
                let Some((index, to)) = self.relief(host, &moved) else { break };
                moved.push(index);
                self.shift(index, to);
            }
        }
    }

    /// The best move off a host: a target that lasts, or the first host that sleeps.
    fn relief(&self, from: usize, moved: &[usize]) -> Option<(usize, usize)> {
        let (peak, excess) = self.hosts[from].peak(self.sight.ahead);
        let deviations = self.sight.deviations[0];
        let mut best: Option<(f64, usize, usize)> = None;
        let mut worthiest: Option<(f64, usize)> = None;
        for &index in self.hosts[from].vms.iter().filter(|index| !moved.contains(index)) {
            let vm = &self.vms[index];
            let worth = vm.demand[peak].min(excess) / self.cost(vm);
            if worth <= 0.0 {
                continue;
            }
            let own = self.hosts[from].lasts(vm, -1.0, deviations);
            if worthiest.is_none_or(|(most, _)| worth > most) {
                worthiest = Some((worth, index));
            }
            for (to, host) in self.running().filter(|(to, _)| *to != from) {
                let lasts = host.lasts(vm, 1.0, deviations);
                if lasts < self.sight.least || vm.demand[0] > host.core_mips {
                    continue;
                }
                // When it is enough, what stays must last too.
                let lasts = if own > self.sight.ahead { lasts.min(own) } else { lasts };
                let merit = worth * self.merit(vm, to, lasts).max(0.0);
                if best.is_none_or(|(most, ..)| merit > most) {
                    best = Some((merit, index, to));
                }
            }
        }
        let asleep = || self.hosts.iter().position(|host| host.mips == self.largest && host.vms.is_empty());
        best.map(|(_, index, to)| (index, to)).or_else(|| worthiest.map(|(_, index)| index).zip(asleep()))
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Host)> {
        self.hosts.iter().enumerate().filter(|(_, host)| !host.vms.is_empty())
    }

    /// Empties what can be emptied for long enough: the lesser kind of host first, then the cheapest.
    fn empty(&mut self) {
        let cost = |host: &Host| host.vms.iter().map(|index| self.cost(&self.vms[*index])).sum::<f64>();
        let untouched = self.running().filter(|(_, host)| host.arrivals == 0);
        let mut order: Vec<(f64, f64, usize)> = untouched.map(|(index, host)| (host.mips, cost(host), index)).collect();
        order.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1)));
        let mut failures = 0;
        for (_, _, host) in order {
            if failures <= ATTEMPTS_MAX && self.hosts[host].arrivals == 0 && !self.empty_one(host) {
                failures += 1;
            }
        }
    }

    fn empty_one(&mut self, from: usize) -> bool {
        let mut movers = self.hosts[from].vms.clone();
        let size = |index: &usize| self.vms[*index].demand.iter().sum::<f64>();
        movers.sort_by(|one, other| size(other).total_cmp(&size(one)));
        for (count, index) in movers.iter().enumerate() {
            let vm = &self.vms[*index];
            let mut best: Option<(f64, usize)> = None;
            for (to, host) in self.running().filter(|(to, host)| *to != from && host.mips == self.largest) {
                let lasts = host.lasts(vm, 1.0, self.sight.deviations[1]);
                let merit = self.merit(vm, to, lasts);
                if lasts >= self.sight.hold && best.is_none_or(|(most, _)| merit > most) {
                    best = Some((merit, to));
                }
            }
            let Some((_, to)) = best else {
                movers[..count].iter().for_each(|index| self.bring_back(*index, from));
                return false;
            };
            self.shift(*index, to);
        }
        true
    }

    fn bring_back(&mut self, index: usize, from: usize) {
        let Some(to) = self.vms[index].place else { return };
        self.hosts[to].arrivals -= 1;
        self.shift(index, from);
        self.hosts[from].arrivals -= 1;
    }
}
