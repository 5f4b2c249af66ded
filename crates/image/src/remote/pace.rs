//! How slowly a registry may send, or take what is sent. One that does so byte by byte now and then is never idle, and would
//! keep a pull or push, and whatever waits for it, for ever. Pure.

use std::time::Duration;

/// How long is looked at as one.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Least that must pass in it. The slowest links that people use bring fifty times as much. Units: bytes.
pub const LEAST: u64 = 16 << 10;

/// What passed in the current window. Instants are durations since the beginning of the body.
#[derive(Debug, Default)]
pub struct Pace {
    began: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes what passed at `now`; whether the registry is fast enough.
    pub fn passed(&mut self, bytes: usize, now: Duration) -> bool {
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
        let given_up = (1..1_000).find(|second| !drip.passed(1, Duration::from_secs(*second)));
        assert_eq!(given_up, Some(WINDOW.as_secs()));
        let mut slow = Pace::default();
        assert!((1..10_000).all(|second| slow.passed(400, Duration::from_secs(second))));
        // A short answer is over before anybody asks.
        assert!(Pace::default().passed(10, Duration::from_secs(59)));
    }
}
