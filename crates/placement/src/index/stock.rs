//! What is left of processor time and memory on each machine, as scores see it: laid out so that a share of the whole is found
//! without a division, and with bounds for each run of slots, so that most runs need no look.

/// Highest share.
pub(crate) const WHOLE: u64 = 100;
/// Totals below two to this power take the short way.
const SHORT_BITS: u32 = 57;

/// One resource of one machine, as scoring sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stock {
    /// What is left.
    left: u64,
    /// All there is; at least 1.
    total: u64,
    /// [`WHOLE`] / total, times two to the power of [`SHORT_BITS`], rounded down; 0 for totals that are too large for it.
    inverse: u64,
    /// The share that is left, not rounded to a whole number.
    share: f64,
    /// The share that one unit is.
    unit: f64,
}

impl Stock {
    pub fn new(total: u64, used: u64) -> Stock {
        let (left, total) = (total.saturating_sub(used), total.max(1));
        let inverse = if total >> SHORT_BITS == 0 { (WHOLE << SHORT_BITS) / total } else { 0 };
        let unit = 100.0 / total as f64;
        Stock { left, total, inverse, share: left as f64 * unit, unit }
    }

    pub fn set_used(&mut self, total: u64, used: u64) {
        if self.total == total {
            self.left = total.saturating_sub(used);
            self.share = self.left as f64 * self.unit;
        } else {
            *self = Stock::new(total, used);
        }
    }

    /// The share of the whole that stays when so much is taken, 0 to [`WHOLE`], rounded down.
    #[inline]
    pub fn share_without(&self, asked: u64) -> u32 {
        let left = self.left.saturating_sub(asked);
        if self.inverse == 0 {
            return long_share(left, self.total);
        }
        // The product falls short of the true quotient by less than left / 2^57 < 1, so that it is right or one too low.
        let product = (u128::from(left) * u128::from(self.inverse)) >> SHORT_BITS;
        let low = u64::try_from(product).unwrap_or(WHOLE);
        let rest = left * WHOLE - low * self.total;
        u32::try_from(low + u64::from(rest >= self.total)).unwrap_or(0)
    }
}

/// More than all rounding of a bound together.
const ROUNDING: f64 = 1e-6;

/// Slots of one run. Small, as one machine that is full of room and closed makes the bounds of its run worthless.
pub(crate) const RUN: usize = 8;

/// What no machine of a run exceeds, or none falls short of.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    cpu: f64,
    memory: f64,
    /// The smaller of the two shares of a machine for the upper bounds, the larger one for the lower bounds.
    both: f64,
    /// The share that one unit is.
    cpu_unit: f64,
    memory_unit: f64,
}

/// A run of slots.
#[derive(Clone, Copy, Debug)]
struct Run {
    most: Bounds,
    least: Bounds,
    /// The least order of its machines.
    first: u64,
}

/// Processor time and memory of all machines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stocks {
    pairs: Vec<(Stock, Stock)>,
    /// Greater for the machine that is later in name order.
    order: Vec<u64>,
    runs: Vec<Run>,
}

impl Stocks {
    pub fn push(&mut self) {
        self.pairs.push((Stock::new(0, 0), Stock::new(0, 0)));
        self.order.push(0);
        self.summarise(self.pairs.len() - 1);
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Processor time and memory of one machine.
    #[inline]
    pub fn pair(&self, slot: u32) -> &(Stock, Stock) {
        &self.pairs[slot as usize]
    }

    /// Greater for the machine that is later in name order.
    pub fn order(&self, slot: u32) -> u64 {
        self.order[slot as usize]
    }

    /// Sets a machine's place in name order.
    pub fn set_order(&mut self, slot: u32, order: u64) {
        self.order[slot as usize] = order;
        self.summarise(slot as usize);
    }

    /// Sets the totals of a machine and what is used of them.
    pub fn set(&mut self, slot: u32, cpu: (u64, u64), memory: (u64, u64)) {
        let pair = &mut self.pairs[slot as usize];
        pair.0.set_used(cpu.0, cpu.1);
        pair.1.set_used(memory.0, memory.1);
        self.summarise(slot as usize);
    }

    fn summarise(&mut self, slot: usize) {
        let run = slot / RUN;
        let range = run * RUN..self.pairs.len().min((run + 1) * RUN);
        let alike = |share, unit| Bounds { cpu: share, memory: share, both: share, cpu_unit: unit, memory_unit: unit };
        let mut summary = Run { most: alike(0.0, 100.0), least: alike(100.0, 0.0), first: u64::MAX };
        for ((cpu, memory), order) in self.pairs[range.clone()].iter().zip(&self.order[range]) {
            let Run { most, least, first } = &mut summary;
            most.cpu = most.cpu.max(cpu.share);
            most.memory = most.memory.max(memory.share);
            most.both = most.both.max(cpu.share.min(memory.share));
            most.cpu_unit = most.cpu_unit.min(cpu.unit);
            most.memory_unit = most.memory_unit.min(memory.unit);
            least.cpu = least.cpu.min(cpu.share);
            least.memory = least.memory.min(memory.share);
            least.both = least.both.min(cpu.share.max(memory.share));
            least.cpu_unit = least.cpu_unit.max(cpu.unit);
            least.memory_unit = least.memory_unit.max(memory.unit);
            *first = (*first).min(*order);
        }
        if run < self.runs.len() {
            self.runs[run] = summary;
        } else {
            self.runs.push(summary);
        }
    }

    /// The least order of a run's machines.
    pub fn first(&self, run: usize) -> u64 {
        self.runs[run].first
    }

    /// Of no machine of a run, after so much is taken, are both shares above this.
    #[inline]
    pub fn smaller_share_most(&self, run: usize, cpu: f64, memory: f64) -> u32 {
        let most = &self.runs[run].most;
        let (cpu, memory) = (cpu * most.cpu_unit, memory * most.memory_unit);
        whole((most.cpu - cpu).min(most.memory - memory).min(most.both - cpu.min(memory)) + ROUNDING)
    }

    /// Of no machine of a run, after so much is taken, are both shares below this.
    #[inline]
    pub fn larger_share_least(&self, run: usize, cpu: f64, memory: f64) -> u32 {
        let least = &self.runs[run].least;
        let (cpu, memory) = (cpu * least.cpu_unit, memory * least.memory_unit);
        whole((least.cpu - cpu).max(least.memory - memory).max(least.both - cpu.max(memory)) - ROUNDING)
    }
}

/// A share rounded down to a whole number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 100")]
fn whole(share: f64) -> u32 {
    share.clamp(0.0, 100.0) as u32
}

#[cold]
fn long_share(left: u64, total: u64) -> u32 {
    u32::try_from(u128::from(left) * u128::from(WHOLE) / u128::from(total)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amounts() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64, 0u64..3).prop_map(|(number, shift, add)| (number >> shift).saturating_add(add))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_share_is_that_of_the_division(total in amounts(), used in amounts(), asked in amounts(), hundredth in 0u64..101) {
            let exact = |total: u64, used: u64, asked: u64| {
                let left = total.saturating_sub(used).saturating_sub(asked);
                u32::try_from(u128::from(left) * 100 / u128::from(total.max(1))).unwrap_or(0)
            };
            prop_assert_eq!(Stock::new(total, used).share_without(asked), exact(total, used, asked));
            // Where the quotient is a whole number, or just not.
            let edge = u64::try_from(u128::from(total) * u128::from(hundredth) / 100).unwrap_or(0);
            for used in [edge.saturating_sub(1), edge, edge.saturating_add(1)] {
                prop_assert_eq!(Stock::new(total, used).share_without(asked % 2), exact(total, used, asked % 2));
            }
        }
    }
}
