//! Measures decisions, changes, plans and forecasts, in processor time of one core: `cargo run --release -p placement --example bench-placement`.
//! A name after `--` (`place`, `memory`, `events`, `plan`, `predict`) runs that part alone.

// A command-line program: its output is its purpose.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::Duration;

use placement::plan::{Forecast, MachineState, Snapshot, plan, plan_while};
use placement::pool::LabelRequirement;
use placement::power::PowerCurve;
use placement::{Machine, Policy, Pool, Relation, Resources, Spread, Taint, TaintEffect, Workload, place_by, predict};

const MACHINES: usize = 5_000;
/// On the machines before the clock starts.
const PLACED: usize = 40_000;
const DECISIONS: usize = 10_000;
/// Workloads of one application: as many as share labels and wishes.
const REPLICAS: usize = 100;

fn main() {
    let part = std::env::args().nth(1).unwrap_or_default();
    let parts: [(&str, fn()); 5] =
        [("memory", memory), ("place", decisions), ("events", events), ("plan", plans), ("predict", forecasts)];
    parts.iter().filter(|(name, _)| part.is_empty() || part == *name).for_each(|(_, run)| run());
}

/// Numbers that look random and are the same every time. `Source:` Steele, Lea, Flood: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn map<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Three sizes in three zones; each reports a slightly different amount of memory, as real ones do.
fn machine(number: usize) -> Machine {
    let size = [16, 32, 64][number % 7 % 3];
    let reserve = (number as u64 * 7_919 % 4_096) << 12;
    let name = format!("machine-{number:05}");
    Machine {
        labels: map([
            ("kubernetes.io/hostname", name.clone()),
            ("topology.kubernetes.io/zone", format!("zone-{}", number % 3)),
            ("kubernetes.io/os", "linux".into()),
            ("kubernetes.io/arch", if number.is_multiple_of(5) { "arm64" } else { "amd64" }.into()),
            ("node.kubernetes.io/instance-type", format!("size-{size}")),
        ]),
        taints: if number.is_multiple_of(50) {
            vec![Taint { key: "gpu".into(), value: "yes".into(), effect: TaintEffect::NoSchedule }]
        } else {
            Vec::new()
        },
        allocatable: Resources {
            cpu_millis: size * 1000 - 100,
            memory_bytes: (size << 32) - reserve,
            ephemeral_storage_bytes: 400 << 30,
            ..Resources::default()
        },
        images: (0..20)
            .map(|image| (format!("registry.example/base-{}:1", (number + image * 13) % 200), 80 << 20))
            .collect(),
        workloads_max: 110,
        ready: true,
        name,
        ..Machine::default()
    }
}

fn pool(machines: usize) -> Pool {
    let mut pool = Pool::default();
    (0..machines).for_each(|number| pool.set_machine(machine(number)));
    pool
}

fn plain(number: usize, requests: (u64, u64)) -> Workload {
    let app = number / REPLICAS;
    Workload {
        id: format!("pod/namespace-{}/app-{app}-7d9c6b5f4-{number:06}", app % 20),
        namespace: format!("namespace-{}", app % 20),
        labels: map([("app", format!("app-{app}")), ("pod-template-hash", "7d9c6b5f4".into())]),
        requests: Resources { cpu_millis: requests.0, memory_bytes: requests.1, ..Resources::default() },
        ..Workload::default()
    }
}

/// Eight shapes, as applications have them: many ties.
fn common(number: usize, random: &mut Random) -> Workload {
    let _ = random;
    let (cpu, memory) =
        [(100, 128), (250, 256), (500, 1024), (1000, 2048), (2000, 4096), (500, 4096), (4000, 2048), (0, 0)]
            [number % 8];
    plain(number, (cpu, memory << 20))
}

/// No two alike.
fn mixed(number: usize, random: &mut Random) -> Workload {
    plain(number, (random.below(4_000) + 1, (random.below(8_192) << 20) + random.below(1 << 20)))
}

/// What a real pod carries: an image, a selector, a toleration of nothing here, wishes for machines.
fn choosy(number: usize, random: &mut Random) -> Workload {
    let arm = vec![LabelRequirement::In("kubernetes.io/arch".into(), vec!["arm64".into()])];
    Workload {
        images: vec![format!("registry.example/base-{}:1", number % 200)],
        selector: map([("kubernetes.io/os", "linux".into())]),
        affinity: vec![vec![LabelRequirement::NotIn(
            "node.kubernetes.io/instance-type".into(),
            vec!["size-16".into()],
        )]],
        preferences: vec![(50, arm)],
        ..mixed(number, random)
    }
}

fn own(number: usize, key: &str) -> Relation {
    let app = format!("app-{}", number / REPLICAS);
    Relation {
        selector: vec![LabelRequirement::In("app".into(), vec![app])],
        topology_key: key.into(),
        ..Relation::default()
    }
}

/// Never two of an application on a machine, never uneven over zones, each near to the application before it.
fn related(number: usize, random: &mut Random) -> Workload {
    let Relation { selector, .. } = own(number, "");
    let zone = "topology.kubernetes.io/zone";
    let before = number.checked_sub(REPLICAS).map(|number| own(number, zone));
    Workload {
        apart: vec![own(number, "kubernetes.io/hostname")],
        spread: vec![Spread { selector, topology_key: zone.into(), max_skew: 1, required: true }],
        near: before.into_iter().map(|near| Relation { all_namespaces: true, ..near }).collect(),
        ..mixed(number, random)
    }
}

/// The same as wishes only.
fn wishful(number: usize, random: &mut Random) -> Workload {
    let Relation { selector, .. } = own(number, "");
    let even =
        |key: &str| Spread { selector: selector.clone(), topology_key: key.into(), max_skew: 1, required: false };
    Workload {
        near_preferences: vec![(-100, own(number, "kubernetes.io/hostname"))],
        spread: vec![even("topology.kubernetes.io/zone"), even("kubernetes.io/hostname")],
        ..mixed(number, random)
    }
}

/// One application with all workloads in it, kept apart by machine and even over zones.
fn one_app(number: usize, random: &mut Random) -> Workload {
    let wide = |_: usize| 0;
    let related = related(wide(number), random);
    let Workload { id, .. } = plain(number, (0, 0));
    let mut spread = related.spread;
    spread.push(Spread { topology_key: "kubernetes.io/hostname".into(), max_skew: 50, ..spread[0].clone() });
    Workload { id, apart: Vec::new(), near: Vec::new(), spread, ..related }
}

fn impossible(number: usize, random: &mut Random) -> Workload {
    let _ = random;
    plain(number, (65_000, 1 << 30))
}

/// Makes the workload of a number.
type Maker = fn(usize, &mut Random) -> Workload;

fn decisions() {
    println!("{MACHINES} machines, {PLACED} workloads placed before, {DECISIONS} more decided and assigned:");
    let settings: [(&str, Maker); 7] = [
        ("plain, 8 shapes", common),
        ("plain, no two alike", mixed),
        ("images, selector, affinity, wishes for machines", choosy),
        ("apart by machine, even over zones, near to others", related),
        ("the same as wishes", wishful),
        ("one application of all, even over zones and machines", one_app),
        ("refused by all", impossible),
    ];
    for (name, make) in settings {
        for policy in [Policy::Spread, Policy::Pack] {
            let (mut pool, mut random) = (pool(MACHINES), Random(7));
            let is_refused = name == "refused by all";
            let fill = if is_refused { mixed } else { make };
            // Where all are one application they lie evenly from the start: to decide for each would take a minute.
            let is_even = name.starts_with("one application");
            let place = |pool: &mut Pool, number: usize, workload: Workload| {
                if is_even {
                    pool.assign(&format!("machine-{:05}", number % MACHINES), workload);
                    return Some(());
                }
                decide(pool, workload, policy)
            };
            let before = (0..PLACED).filter_map(|number| place(&mut pool, number, fill(number, &mut random))).count();
            let arrivals: Vec<Workload> =
                (PLACED..PLACED + DECISIONS).map(|number| make(number, &mut random)).collect();
            let start = processor_time();
            let placed = arrivals.into_iter().filter_map(|workload| decide(&mut pool, workload, policy)).count();
            let rate = per_second(DECISIONS, processor_time() - start);
            println!("  {rate:>8} /s  {policy:?}: {name} ({before} + {placed} placed)");
        }
    }
}

fn decide(pool: &mut Pool, workload: Workload, policy: Policy) -> Option<()> {
    let choice = place_by(pool, &workload, policy).ok()?;
    pool.assign(&choice.machine, workload);
    Some(())
}

/// Processor time of this process, which has one thread: others on the machine do not count. `Source:` proc(5), schedstat.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn per_second(count: usize, took: Duration) -> u64 {
    (count as u128 * 1_000_000_000 / took.as_nanos().max(1)).try_into().unwrap_or(u64::MAX)
}

fn memory() {
    // Kept, and measured before all else: what has been given back would be used again and not be seen.
    let mut pools = Vec::new();
    for (name, make) in [("plain", mixed as Maker), ("apart, even and near", related)] {
        let (mut pool, mut random) = (pool(MACHINES), Random(7));
        let count = 100_000;
        let before = resident_bytes();
        for number in 0..count {
            let machine = format!("machine-{:05}", random.below(MACHINES as u64));
            pool.assign(&machine, make(number, &mut random));
        }
        let each = resident_bytes().saturating_sub(before) / count as u64;
        println!("{each} bytes for each of {count} workloads, {name}");
        pools.push(pool);
    }
}

/// `Source:` proc(5), statm.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn events() {
    const COUNT: usize = 10_000;
    let (mut pool, mut random) = (pool(COUNT), Random(7));
    println!("changes of a pool of {COUNT} machines with {} workloads:", COUNT * 8);
    for number in 0..COUNT * 8 {
        let machine = format!("machine-{:05}", random.below(COUNT as u64));
        pool.assign(&machine, related(number, &mut random));
    }
    let mut measure = |name: &str, inputs: Vec<(Machine, Workload)>, change: fn(&mut Pool, Machine, Workload)| {
        let count = inputs.len();
        let start = processor_time();
        inputs.into_iter().for_each(|(machine, workload)| change(&mut pool, machine, workload));
        let each = (processor_time() - start) / u32::try_from(count).unwrap_or(1);
        println!("  {:>6.2} us  {name}", each.as_secs_f64() * 1e6);
    };
    let inputs = |first: usize, edit: fn(&mut Machine)| -> Vec<(Machine, Workload)> {
        let machines = (0..COUNT).map(|number| machine(number * 7_919 % COUNT));
        let mut random = Random(9);
        machines
            .zip(first..)
            .map(|(mut machine, number)| {
                edit(&mut machine);
                (machine, related(number, &mut random))
            })
            .collect()
    };
    let same = |_: &mut Machine| {};
    let new = COUNT * 8;
    measure("a machine gives a sign of life", inputs(new, same), |pool, machine, _| pool.set_machine(machine));
    let moved =
        |machine: &mut Machine| drop(machine.labels.insert("topology.kubernetes.io/zone".into(), "zone-9".into()));
    measure("a machine changes its zone", inputs(new, moved), |pool, machine, _| pool.set_machine(machine));
    let tainted = |machine: &mut Machine| {
        machine.taints.push(Taint { key: "ill".into(), value: String::new(), effect: TaintEffect::NoExecute });
    };
    measure("a machine is tainted", inputs(new, tainted), |pool, machine, _| pool.set_machine(machine));
    measure("a machine goes", inputs(new, same), |pool, machine, _| pool.remove_machine(&machine.name));
    measure("a machine comes back", inputs(new, same), |pool, machine, _| pool.set_machine(machine));
    measure("a workload comes", inputs(new, same), |pool, machine, workload| pool.assign(&machine.name, workload));
    measure("a workload moves", inputs(new + 1, same), |pool, machine, workload| pool.assign(&machine.name, workload));
    measure("a workload goes", inputs(new, same), |pool, _, workload| pool.remove(&workload.id));
}

/// Machines of two kinds at 10 to 40 % of their processor time, as found in the wild.
fn plans() {
    let (mut snapshot, mut random) = (Snapshot::default(), Random(7));
    for number in 0..1_000_u32 {
        let cpu = if number % 2 == 0 { 32.0 } else { 64.0 };
        let machine = placement::plan::Machine {
            name: format!("machine-{number}"),
            capacity: [cpu, cpu * 4.0, 0.0, 0.0],
            core_cpu: 8.0,
            power: PowerCurve::linear(80.0 + cpu, 120.0 + 4.0 * cpu).expect("a curve"),
            sleep_watts: 5.0,
            wake_seconds: 60.0,
            state: MachineState::On,
            labels: BTreeMap::new(),
            is_protected: false,
        };
        snapshot.add_machine(machine).expect("good numbers");
    }
    let share = |random: &mut Random, low: u32, wide: u64| {
        f64::from(low + u32::try_from(random.below(wide)).unwrap_or(0)) / 1000.0
    };
    for number in 0..10_000 {
        let cpu = 6.0 * share(&mut random, 10, 350);
        let memory = 8.0 * share(&mut random, 200, 800);
        let workload = placement::plan::Workload {
            id: format!("guest-{number}"),
            machine: Some(number % 1_000),
            uses: [cpu, memory, 0.0, 0.0],
            forecast: Forecast { mean: cpu, deviation: cpu * share(&mut random, 20, 400) },
            memory_min: memory,
            is_movable: true,
            move_seconds: memory,
            ..Default::default()
        };
        snapshot.add_workload(workload).expect("good numbers");
    }
    let policy = placement::plan::Policy::default();
    for searches in [100, 1_000, 10_000] {
        let mut left = searches;
        let start = processor_time();
        let made = plan_while(&snapshot, &policy, 0, &mut || {
            left -= 1;
            left > 0
        });
        println!(
            "a plan cut short after {searches} searches: {:?}; {} steps, {:.0} W after",
            processor_time() - start,
            made.steps.len(),
            made.watts_after
        );
    }
    let start = processor_time();
    let made = plan(&snapshot, &policy, 0);
    println!(
        "a plan for 1,000 machines with 10,000 guests: {:?}; {} steps, {:.0} W now, {:.0} W after, bound {:.0} W",
        (processor_time() - start),
        made.steps.len(),
        made.watts_before,
        made.watts_after,
        made.watts_bound
    );
}

/// Three days of samples every five minutes.
fn forecasts() {
    const SERIES: usize = 100_000;
    let season = 288;
    let mut random = Random(7);
    let histories: Vec<Vec<f64>> = (0..100)
        .map(|_| (0..season * 3).map(|_| f64::from(u32::try_from(random.below(1_000)).unwrap_or(0))).collect())
        .collect();
    let start = processor_time();
    let sum: f64 = (0..SERIES)
        .filter_map(|number| predict::choose(&histories[number % histories.len()], season, 0.95))
        .map(|prediction| prediction.upper)
        .sum();
    println!("{SERIES} forecasts from {} samples each: {:?} (sum {sum:.0})", season * 3, (processor_time() - start));
}
