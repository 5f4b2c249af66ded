//! How slowly a registry may send. One that drips a byte now and then is never idle, and would keep a pull, and whatever
//! waits for it, for ever. Pure.

use std::time::Duration;

/// How long is looked at as one.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Least that must come in it. The slowest links that people pull over bring fifty times as much. Units: bytes.
pub const LEAST: u64 = 16 << 10;

/// What came in the current window. Instants are durations since the beginning of the body.
#[derive(Debug, Default)]
pub struct Pace {
    began: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes what came at `now`; whether the sender is fast enough.
    pub fn received(&mut self, bytes: usize, now: Duration) -> bool {
        self.bytes += bytes as u64;
        if now.saturating_sub(self.began) < WINDOW {
            return true;
        }
        let enough = self.bytes >= LEAST;
        *self = Self { began: now, bytes: 0 };
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_given_up_after_one_window_and_a_slow_link_never() {
        let mut drip = Pace::default();
        let given_up = (1..1_000).find(|second| !drip.received(1, Duration::from_secs(*second)));
        assert_eq!(given_up, Some(WINDOW.as_secs()));
        let mut slow = Pace::default();
        assert!((1..10_000).all(|second| slow.received(400, Duration::from_secs(second))));
        // A short answer is over before anybody asks.
        assert!(Pace::default().received(10, Duration::from_secs(59)));
    }
}
