//! What it costs to leave everything where it is: placements that are made anew every so many samples, with all demand known and
//! all moves free.

use placement::power::PowerCurve;
use simulator::setting::{HostKind, TYPES};
use simulator::trace::{INTERVAL_SECONDS, SAMPLES, Trace};

/// When the simulator takes its samples: this much after the trace's. Units: seconds.
const SAMPLED_AFTER_SECONDS: f64 = 0.1;
/// Joules in a kilowatt-hour.
const JOULES_PER_KWH: f64 = 3_600_000.0;

/// Energy when every placement holds for so many samples and no sample of it is too much for any host. Units: kWh.
pub fn energy_kwh(trace: &Trace, samples_held: usize) -> f64 {
    let [_, best] = HostKind::both();
    let demand = demand(trace, best.core_mips);
    let firsts = (1..SAMPLES).step_by(samples_held);
    let joules = firsts.map(|first| {
        let samples = first..(first + samples_held).min(SAMPLES);
        let parts: Vec<&[f64]> = demand.iter().map(|all| &all[samples.clone()]).collect();
        watts(parts, best.mips, &best.power) * INTERVAL_SECONDS
    });
    joules.sum::<f64>() / JOULES_PER_KWH
}

/// What each virtual machine wants at each sample, until it vanishes. Units: MIPS.
fn demand(trace: &Trace, core_mips: f64) -> Vec<Vec<f64>> {
    let quarter = trace.len().div_ceil(TYPES.len());
    let of = |machine: usize| {
        let mut seconds = SAMPLED_AFTER_SECONDS;
        let mut demand = vec![0.0];
        for _ in 1..SAMPLES {
            seconds += INTERVAL_SECONDS;
            let share = trace.share(machine, seconds);
            if share == 0.0 {
                break;
            }
            demand.push((share * TYPES[machine / quarter].0).min(core_mips));
        }
        demand.resize(SAMPLES, 0.0);
        demand
    };
    (0..trace.len()).map(of).collect()
}

/// Power of hosts that are filled one at a time with what is most like the room that is left, summed over the samples.
fn watts(mut parts: Vec<&[f64]>, mips: f64, power: &PowerCurve) -> f64 {
    parts.retain(|part| part.iter().any(|mips| *mips > 0.0));
    let mut watts = 0.0;
    while let Some(samples) = parts.first().map(|part| part.len()) {
        let mut room = vec![mips; samples];
        while let Some(index) = best_of(&parts, &room) {
            for (left, part) in room.iter_mut().zip(parts.swap_remove(index)) {
                *left -= part;
            }
        }
        watts += room.iter().filter(|left| **left < mips).map(|left| power.at(1.0 - left / mips)).sum::<f64>();
    }
    watts
}

fn best_of(parts: &[&[f64]], room: &[f64]) -> Option<usize> {
    let likeness = |part: &[f64]| part.iter().zip(room).map(|(part, left)| part * left).sum::<f64>();
    let fits = |part: &[f64]| part.iter().zip(room).all(|(part, left)| part <= left);
    let fitting = parts.iter().enumerate().filter(|(_, part)| fits(part));
    fitting
        .map(|(index, part)| (likeness(part), index))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|best| best.1)
}
