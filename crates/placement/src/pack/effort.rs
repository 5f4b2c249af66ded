//! How much work may go into a packing, counted in steps, so that the same budget gives the same packing on every machine. And the
//! stream of pseudo-random numbers that searches draw from.

/// Work that may still be done.
pub struct Effort<'a> {
    steps_left: u64,
    stop: &'a mut dyn FnMut() -> bool,
    since_asked: u64,
    stopped: bool,
}

/// Steps between two questions to the caller whether to stop; some three hundred microseconds.
const STEPS_BETWEEN: u64 = 20_000;

impl<'a> Effort<'a> {
    /// So many steps, of some fifteen nanoseconds each, unless `stop` says true before.
    pub fn new(steps: u64, stop: &'a mut dyn FnMut() -> bool) -> Self {
        Self { steps_left: steps, stop, since_asked: 0, stopped: false }
    }

    /// Counts work that was done.
    pub fn spend(&mut self, steps: u64) {
        self.steps_left = self.steps_left.saturating_sub(steps);
        self.since_asked += steps;
        if self.since_asked >= STEPS_BETWEEN {
            self.since_asked = 0;
            self.stopped = self.stopped || (self.stop)();
        }
    }

    /// Does something with one part in `parts` of what is left.
    pub fn part<R>(&mut self, parts: u64, work: impl FnOnce(&mut Self) -> R) -> R {
        let kept = self.steps_left - self.steps_left / parts;
        self.steps_left -= kept;
        let result = work(self);
        self.steps_left += kept;
        result
    }

    /// What is left.
    pub fn steps_left(&self) -> u64 {
        if self.stopped { 0 } else { self.steps_left }
    }

    /// Whether it is over.
    pub fn is_spent(&self) -> bool {
        self.steps_left() == 0
    }
}

/// A stream of numbers that look random. Source: S. Vigna, `SplitMix64` (public domain, 2015).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0 when that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let product = u128::from(self.bits()) * end as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}
