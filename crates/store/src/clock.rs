//! The clock that leases run by. Monotonic only: wall-clock jumps must not end or lengthen a lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Tells the time since some fixed moment; never goes back.
pub trait Clock: Send + Sync + 'static {
    /// Time since the clock's own beginning.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// A clock that begins now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that stands still until it is moved; for tests.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    /// A clock at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}
