//! What it would be worth to know the future: our planner with better forecasts, a planner that sees an hour ahead, and how much
//! energy it costs to leave everything where it is. `cargo run --release -p simulator --example oracle -- FILE.csv.gz…`
#![allow(clippy::print_stdout)] // Tables for people.

mod held;
mod seer;

use std::io::Read;

use placement::plan::{Forecast, Policy};
use seer::{Seer, Sight};
use simulator::metrics::Outcome;
use simulator::nuee::{Nuee, Outlook, Smoothing};
use simulator::policy::by_name;
use simulator::run::{Optimiser, run};
use simulator::setting::Setting;
use simulator::trace::{INTERVAL_SECONDS, Trace};
use simulator::world::World;

/// Our forecast with part of its error taken away: what it says of the next sample lies nearer to the truth.
struct Oracle {
    ours: Smoothing,
    /// What is left of the error.
    error: f64,
    /// What is left of the deviation.
    deviation: f64,
}

impl Outlook for Oracle {
    fn observe(&mut self, world: &World<'_>, vm: usize) -> Forecast {
        let ours = self.ours.observe(world, vm);
        let next = world.trace.share(vm, world.now + INTERVAL_SECONDS) * world.vms[vm].mips;
        let mean = next + self.error * (ours.mean - next);
        Forecast { mean, deviation: self.deviation * ours.deviation }
    }
}

type Failure = Box<dyn std::error::Error>;

/// A day, what MFPED makes of it, and its name.
struct Day {
    name: String,
    trace: Trace,
    mfped: Outcome,
}

fn main() -> Result<(), Failure> {
    let days = std::env::args().skip(1).map(|path| read(&path)).collect::<Result<Vec<Day>, Failure>>()?;
    println!("| planner | error left | energy above the floor % | ESV | moves | unserved |\n|---|---|---|---|---|---|");
    for (error, deviation, weights, policy) in planners() {
        let make = || -> Box<dyn Optimiser> {
            let ours = Smoothing::new(weights[0], weights[1]);
            Box::new(Nuee::with_outlook(policy.clone(), Box::new(Oracle { ours, error, deviation })))
        };
        println!("| ours, next sample | {error} {}", compare(&days, &make)?);
    }
    for sight in sights() {
        let make = || -> Box<dyn Optimiser> { Box::new(Seer::new(sight, [0.19, 0.073])) };
        println!("| seer, {} samples | {} {}", sight.samples, sight.error, compare(&days, &make)?);
    }
    println!("\n| day | samples held | energy above the floor % |\n|---|---|---|");
    for day in &days {
        for samples in [1, 2, 3, 6, 12, 24] {
            let above = held::energy_kwh(&day.trace, samples) / day.mfped.bound_kwh - 1.0;
            println!("| {} | {samples} | {:.1} |", day.name, 100.0 * above);
        }
    }
    Ok(())
}

fn read(path: &str) -> Result<Day, Failure> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut text)?;
    let trace = Trace::parse(&text)?;
    let mut mfped = by_name("mfped").ok_or("an unknown policy")?;
    let mfped = run(&trace, &Setting::default(), mfped.as_mut(), |_| ());
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".csv.gz").to_owned();
    Ok(Day { name, trace, mfped })
}

/// What is left of the error, and of the deviation; the weights of the forecast; the policy. Found by random searches on the
/// tuning days (20 to 300 runs, most of them cut short) for the least energy at a third of MFPED's ESV and moves.
fn planners() -> [(f64, f64, [f64; 2], Policy); 5] {
    let told = |limits: [f64; 2], deviations: [f64; 4], class_weight, move_cost, reserve| Policy {
        relief_to: limits[0],
        arrival_limit: limits[1],
        arrival_deviations: deviations[0],
        drain_arrival_deviations: deviations[1],
        drain_deviations: deviations[2],
        gather_deviations: deviations[3],
        class_weight,
        move_cost,
        reserve,
        ..Policy::default()
    };
    let exact = told([0.98, 0.951], [-0.28, 1.31, 1.6, 0.92], 0.117, 0.066, -0.0125);
    let half = told([0.991, 0.953], [-0.33, 1.02, 1.52, 1.29], 0.101, 0.09, -0.009);
    let ours = told([0.99, 0.935], [-0.44, 0.81, 1.09, 1.0], 0.124, 0.124, 0.0);
    [
        (1.0, 1.0, [0.18, 0.053], ours),
        (0.75, 0.82, [0.21, 0.091], half.clone()),
        (0.5, 0.82, [0.21, 0.091], half),
        (0.25, 0.85, [0.132, 0.075], exact.clone()),
        (0.0, 0.85, [0.132, 0.075], exact),
    ]
}

/// What the seer is given. Found in the same way, in 20 to 60 runs.
fn sights() -> [Sight; 6] {
    let sight = |samples, error, relief: [usize; 2], deviations, shape: [f64; 4]| Sight {
        samples,
        error,
        hold: samples + 1,
        least: relief[0],
        ahead: relief[1],
        deviations,
        lasting: shape[0],
        move_cost: shape[1],
        sharing_bonus: shape[2],
        room_cost: shape[3],
    };
    [
        sight(1, 0.0, [2, 1], [1.05, 1.98], [0.11, 0.417, 0.15, 0.789]),
        sight(3, 0.0, [2, 1], [0.155, 0.785], [1.593, 0.329, 0.284, 0.589]),
        sight(6, 0.0, [4, 1], [0.1, 0.2], [0.25, 0.286, 0.15, 0.36]),
        Sight { hold: 8, ..sight(12, 0.0, [4, 0], [-0.01, 0.0], [0.411, 0.339, 0.295, 0.627]) },
        sight(6, 0.5, [4, 0], [0.3, 0.6], [0.25, 0.286, 0.15, 0.438]),
        sight(6, 1.0, [4, 0], [0.704, 1.015], [0.25, 0.24, 0.15, 0.438]),
    ]
}

/// A planner on all days: the mean energy above the floor, and the largest of the other figures as parts of MFPED's.
fn compare(days: &[Day], make: &dyn Fn() -> Box<dyn Optimiser>) -> Result<String, Failure> {
    let (mut above, mut ratios) = (0.0, [0.0_f64; 3]);
    for day in days {
        let found = run(&day.trace, &Setting::default(), make().as_mut(), |_| ());
        let moves = |outcome: &Outcome| u32::try_from(outcome.migrations).map(f64::from);
        above += found.energy_kwh / found.bound_kwh - 1.0;
        let parts = [
            found.esv() / day.mfped.esv(),
            moves(&found)? / moves(&day.mfped)?,
            found.unserved_share / day.mfped.unserved_share,
        ];
        ratios.iter_mut().zip(parts).for_each(|(most, part)| *most = most.max(part));
    }
    let [esv, moves, unserved] = ratios;
    let above = 100.0 * above / f64::from(u32::try_from(days.len())?);
    Ok(format!("| {above:.1} | {esv:.2} | {moves:.2} | {unserved:.2} |"))
}
