//! What leaves an overloaded host.

use super::packer::Packer;
use super::statistics::correlation;
use crate::world::HISTORY;

/// A rule of selection.
#[derive(Clone, Debug)]
pub enum Selection {
    /// MMT: the least memory first.
    MinimumMigrationTime,
    /// MC: that whose history goes most with that of the others.
    MaximumCorrelation,
    /// MU: the least use first.
    MinimumUse,
    /// RS: any; the number is the state of the generator.
    Random(u64),
}

impl Selection {
    /// The one of these that leaves first.
    pub fn choose(&mut self, packer: &Packer<'_, '_>, host: usize) -> Option<u32> {
        let vms = &packer.hosts[host].vms;
        let of = |vm: u32| &packer.world.vms[vm as usize];
        match self {
            Selection::MinimumMigrationTime => first_least(vms, |vm| of(vm).memory_mb),
            Selection::MinimumUse => first_least(vms, |vm| of(vm).demand),
            Selection::MaximumCorrelation => first_least(vms, |vm| -with_others(packer, host, vm)),
            Selection::Random(state) => pick(vms, state),
        }
    }
}

fn first_least(vms: &[u32], cost: impl Fn(u32) -> f64) -> Option<u32> {
    vms.iter().copied().min_by(|one, other| cost(*one).total_cmp(&cost(*other)))
}

fn pick(vms: &[u32], state: &mut u64) -> Option<u32> {
    // Constants of Knuth's MMIX generator.
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let count = u64::try_from(vms.len()).ok().filter(|count| *count > 0)?;
    vms.get(usize::try_from((*state >> 33) % count).ok()?).copied()
}

/// How a machine's history goes with the sum of the others'.
fn with_others(packer: &Packer<'_, '_>, host: usize, vm: u32) -> f64 {
    let own = &packer.world.vms[vm as usize];
    let scale = own.mips / packer.world.kind(host).mips;
    let length = own.history.len().min(HISTORY);
    let own: Vec<f64> = own.history[..length].iter().map(|share| share * scale).collect();
    let others: Vec<f64> = packer.hosts[host].history.iter().zip(&own).map(|(sum, part)| sum - part).collect();
    correlation(&own, &others)
}
