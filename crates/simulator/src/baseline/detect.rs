//! When a host is overloaded.

use placement::predict::line;

use super::statistics::{iqr, mad};
use crate::setting::MOVE_MB_PER_SECOND;
use crate::trace::INTERVAL_SECONDS;
use crate::world::HISTORY;

/// Samples that the adaptive thresholds need.
const THRESHOLD_SAMPLES: usize = 12;
/// Samples that the regression goes through.
const REGRESSION_SAMPLES: usize = 10;
/// Threshold while there are too few samples.
const FALLBACK_THRESHOLD: f64 = 0.7;

/// A rule of detection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Detection {
    /// THR: wanted above a share of the speed.
    Threshold(f64),
    /// MAD: a threshold that falls with the median absolute deviation, times this.
    MedianDeviation(f64),
    /// IQR: the same with the interquartile range.
    InterquartileRange(f64),
    /// LR: a line through the last samples, extended past the longest migration.
    LocalRegression {
        /// The prediction is multiplied by it.
        safety: f64,
        /// With the tricube weights that the reference means to have.
        weighted: bool,
    },
}

/// What a rule looks at.
pub struct Seen<'a> {
    /// Wanted, as a share of the host's speed.
    pub wanted: f64,
    /// The sum of the histories of the machines on it, newest first, as shares of the host's speed.
    pub history: &'a [f64; HISTORY],
    /// The largest memory on it. Units: MB.
    pub largest_mb: f64,
}

impl Detection {
    /// Whether the host is overloaded.
    pub fn is_overloaded(self, seen: &Seen<'_>) -> bool {
        let length = seen.history.iter().rposition(|share| *share != 0.0).map_or(0, |last| last + 1);
        let history = &seen.history[..length];
        let above = |threshold: f64| seen.wanted > threshold;
        match self {
            Detection::Threshold(threshold) => above(threshold),
            Detection::MedianDeviation(_) | Detection::InterquartileRange(_) if length < THRESHOLD_SAMPLES => {
                above(FALLBACK_THRESHOLD)
            }
            Detection::MedianDeviation(safety) => above(1.0 - safety * mad(history)),
            Detection::InterquartileRange(safety) => above(1.0 - safety * iqr(history)),
            Detection::LocalRegression { .. } if length < REGRESSION_SAMPLES => above(FALLBACK_THRESHOLD),
            Detection::LocalRegression { safety, weighted } => {
                let ahead = (seen.largest_mb / MOVE_MB_PER_SECOND / INTERVAL_SECONDS).ceil();
                safety * extended(history, weighted, ahead) >= 1.0
            }
        }
    }
}

/// The line through the last samples, so many steps ahead.
fn extended(history: &[f64], weighted: bool, ahead: f64) -> f64 {
    let mut oldest_first = [0.0; REGRESSION_SAMPLES];
    for (slot, share) in oldest_first.iter_mut().rev().zip(history) {
        *slot = *share;
    }
    let weights = if weighted { tricube() } else { [1.0; REGRESSION_SAMPLES] };
    let (intercept, slope) = line(&oldest_first, &weights);
    intercept + slope * (10.0 + ahead)
}

/// Tricube weights: the newest sample counts in full, the oldest not at all.
fn tricube() -> [f64; REGRESSION_SAMPLES] {
    let mut weights = [0.0; REGRESSION_SAMPLES];
    let (mut distance, spread) = (0.0_f64, 9.0_f64);
    for weight in weights.iter_mut().rev() {
        *weight = (1.0 - (distance / spread).powi(3)).powi(3);
        distance += 1.0;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(detection: Detection, wanted: f64, rising: bool) -> bool {
        let mut history = [0.5; HISTORY];
        if rising {
            let mut share = 0.9;
            history.iter_mut().take(10).for_each(|slot| {
                *slot = share;
                share -= 0.05;
            });
        }
        detection.is_overloaded(&Seen { wanted, history: &history, largest_mb: 870.0 })
    }

    #[test]
    fn thresholds_and_trends_are_seen() {
        assert!(!check(Detection::Threshold(0.8), 0.8, false) && check(Detection::Threshold(0.8), 0.81, false));
        assert!(!check(Detection::MedianDeviation(2.5), 0.99, false));
        for weighted in [false, true] {
            let regression = Detection::LocalRegression { safety: 1.2, weighted };
            assert!(!check(regression, 0.9, false) && check(regression, 0.9, true));
        }
    }
}
