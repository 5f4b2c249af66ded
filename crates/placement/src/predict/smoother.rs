//! Exponential smoothing of mean and variance, with a start that neither trusts the first sample nor waits for the tenth.

use crate::plan::Forecast;

/// What is expected of a workload of which nothing is known: this share of its size…
const PRIOR_SHARE: f64 = 0.04;
/// … and this part of what it wants at first, as high first samples fall and low ones rise.
const PRIOR_PERSISTENCE: f64 = 0.75;
/// Its deviation: this share of its size…
const PRIOR_DEVIATION_SHARE: f64 = 0.06;
/// … and this part of what it wants.
const PRIOR_DEVIATION: f64 = 0.12;
/// Samples that the prior counts for.
const PRIOR_SAMPLES: f64 = 1.0;

/// Mean and variance of one workload's demand. The mean follows the level; the variance is that of the error of the mean as a
/// forecast of the next sample, so it holds level shifts too.
#[derive(Clone, Copy, Debug)]
pub struct Smoother {
    size: f64,
    mean_weight: f64,
    variance_weight: f64,
    mean: f64,
    variance: f64,
    samples: f64,
}

impl Smoother {
    /// For a workload of a size, in the unit of its samples. Weights are those of a new sample in the long run, between 0 and 1.
    pub fn new(size: f64, mean_weight: f64, variance_weight: f64) -> Smoother {
        Smoother { size, mean_weight, variance_weight, mean: 0.0, variance: 0.0, samples: 0.0 }
    }

    /// Takes a sample in and says what to expect.
    pub fn observe(&mut self, sample: f64) -> Forecast {
        self.samples += 1.0;
        if self.samples == 1.0 {
            self.mean = PRIOR_SHARE * self.size + PRIOR_PERSISTENCE * sample;
            self.variance = (PRIOR_DEVIATION_SHARE * self.size + PRIOR_DEVIATION * sample).powi(2);
        } else {
            let error = sample - self.mean;
            // Equal weights for all samples until the long-run weight is the larger.
            let equal = 1.0 / (self.samples + PRIOR_SAMPLES);
            self.mean += self.mean_weight.max(equal) * error;
            let weight = self.variance_weight.max(equal);
            self.variance = (1.0 - weight) * self.variance + weight * error * error;
        }
        self.forecast()
    }

    /// What to expect.
    pub fn forecast(&self) -> Forecast {
        Forecast { mean: self.mean, deviation: self.variance.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_workload_becomes_certain_and_a_jumping_one_does_not() {
        let (mut steady, mut jumping) = (Smoother::new(100.0, 0.2, 0.07), Smoother::new(100.0, 0.2, 0.07));
        for step in 0..200 {
            steady.observe(50.0);
            jumping.observe(if step % 2 == 0 { 30.0 } else { 70.0 });
        }
        let (calm, wild) = (steady.forecast(), jumping.forecast());
        assert!((calm.mean - 50.0).abs() < 0.1 && calm.deviation < 1.0, "{calm:?}");
        assert!((wild.mean - 50.0).abs() < 5.0 && (18.0..25.0).contains(&wild.deviation), "{wild:?}");
    }
}
