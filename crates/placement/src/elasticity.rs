//! Elasticity: how many copies of a workload there should be, and how large one should be.
//!
//! `Source:` Kubernetes documentation, "Horizontal Pod Autoscaling", algorithm details and configurable scaling behavior; K.
//! Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys 2020 (decaying histograms).

use std::collections::VecDeque;

/// Relative distance from the target within which nothing changes. `Source:` Kubernetes' default tolerance.
pub const TOLERANCE: f64 = 0.1;
/// Recommendations that are remembered: more than any window holds.
const REMEMBERED_MAX: usize = 1024;

/// How far and how fast copies may change in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The best recommendation of this long decides: the highest when shrinking, the lowest when growing. Units: seconds.
    pub window_seconds: u64,
    /// Most copies more or fewer in a period…
    pub copies_max: u32,
    /// … or this share of them, whichever allows more.
    pub share_max: f64,
}

/// The limits of one workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Fewest copies.
    pub least: u32,
    /// Most copies.
    pub most: u32,
    /// Growing.
    pub up: Rule,
    /// Shrinking.
    pub down: Rule,
}

/// Decides the number of copies. Keeps the recommendations of the stabilisation windows and nothing else.
#[derive(Clone, Debug, Default)]
pub struct Scaler {
    recommended: VecDeque<(u64, u32)>,
}

impl Scaler {
    /// The number of copies that there should be now. `ratios` are current value over target, one for each metric; the metric
    /// that wants most decides. A ratio that is no number does not count; with none, nothing changes. Units: seconds.
    pub fn decide(&mut self, now: u64, copies: u32, ratios: &[f64], limits: &Limits) -> u32 {
        let wanted = ratios
            .iter()
            .filter(|ratio| ratio.is_finite() && **ratio >= 0.0)
            .map(|ratio| desired(copies, *ratio))
            .max();
        let Some(wanted) = wanted else { return copies.clamp(limits.least, limits.most) };
        self.recommended.push_back((now, wanted));
        let longest = limits.up.window_seconds.max(limits.down.window_seconds);
        while self.recommended.len() > REMEMBERED_MAX
            || self.recommended.front().is_some_and(|(time, _)| time.saturating_add(longest) < now)
        {
            self.recommended.pop_front();
        }
        let steady = self.stabilised(now, copies, limits);
        within_rate(copies, steady, limits).clamp(limits.least, limits.most)
    }

    fn stabilised(&self, now: u64, copies: u32, limits: &Limits) -> u32 {
        let within = |window: u64| {
            self.recommended
                .iter()
                .filter(move |(time, _)| time.saturating_add(window) >= now)
                .map(|(_, wanted)| *wanted)
        };
        let highest = within(limits.down.window_seconds).max().unwrap_or(copies);
        let lowest = within(limits.up.window_seconds).min().unwrap_or(copies);
        // Between the two nothing has wanted a change for long enough.
        copies.max(lowest).min(highest.max(lowest))
    }
}

/// `ceil(copies * ratio)`, or no change within the tolerance.
fn desired(copies: u32, ratio: f64) -> u32 {
    if (ratio - 1.0).abs() <= TOLERANCE { copies } else { whole((f64::from(copies) * ratio).ceil()) }
}

fn within_rate(copies: u32, wanted: u32, limits: &Limits) -> u32 {
    let reach = |rule: &Rule| rule.copies_max.max(whole((f64::from(copies) * rule.share_max).ceil()));
    wanted.clamp(copies.saturating_sub(reach(&limits.down)), copies.saturating_add(reach(&limits.up)))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
fn whole(value: f64) -> u32 {
    value.clamp(0.0, f64::from(u32::MAX)) as u32
}

/// Buckets of a histogram: each is wider than the one before by [`GROWTH`].
const BUCKETS: usize = 176;
/// See [`BUCKETS`].
const GROWTH: f64 = 1.05;
/// Width of the first bucket, as a share of the largest value.
const FIRST: f64 = 1e-5;

/// What a workload used, old samples counting less.
#[derive(Clone, Debug)]
pub struct Histogram {
    weights: Vec<f64>,
    top: f64,
    half_life_seconds: f64,
}

impl Histogram {
    /// For values up to `top` (those above count as `top`); a sample of one half-life ago counts half.
    pub fn new(top: f64, half_life_seconds: f64) -> Histogram {
        Histogram { weights: vec![0.0; BUCKETS], top, half_life_seconds }
    }

    /// Counts a sample. Samples that are negative or no number are left out. Units: seconds.
    pub fn add(&mut self, value: f64, passed_seconds: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        let fade = 0.5_f64.powf(passed_seconds.max(0.0) / self.half_life_seconds.max(1.0));
        self.weights.iter_mut().for_each(|weight| *weight *= fade);
        let bucket = (0..BUCKETS - 1).find(|bucket| value <= self.end(*bucket)).unwrap_or(BUCKETS - 1);
        self.weights[bucket] += 1.0;
    }

    /// A value that this share of the samples does not exceed; `None` while there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total: f64 = self.weights.iter().sum();
        let mut left = share.clamp(0.0, 1.0) * total;
        let filled = (0..BUCKETS).filter(|bucket| self.weights[*bucket] > 0.0);
        let mut last = None;
        for bucket in filled {
            last = Some(self.end(bucket));
            left -= self.weights[bucket];
            if left <= 1e-12 * total {
                break;
            }
        }
        last
    }

    fn end(&self, bucket: usize) -> f64 {
        let steps = i32::try_from(bucket).unwrap_or(i32::MAX) + 1;
        let scale = FIRST / (GROWTH - 1.0);
        (self.top * scale * (GROWTH.powi(steps) - 1.0)).min(self.top)
    }
}

/// What a workload should ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recommendation {
    /// Request: enough for nine tenths of the time, with a margin.
    pub request: f64,
    /// Limit: enough for its peaks.
    pub limit: f64,
}

/// Margin on top of what was used. `Source:` Kubernetes' vertical autoscaler, recommendation margin fraction.
const MARGIN: f64 = 1.15;

/// Request and limit from what was used; `None` while nothing is known.
pub fn recommend(used: &Histogram) -> Option<Recommendation> {
    let (request, limit) = (used.quantile(0.9)? * MARGIN, used.quantile(0.99)? * MARGIN);
    Some(Recommendation { request, limit: limit.max(request) })
}

/// How a running workload gets another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// It has the size already.
    Nothing,
    /// The balloon gives memory back to it, or takes some.
    Balloon,
    /// Processors or memory are added while it runs.
    HotPlug,
    /// It must start anew.
    Restart,
}

/// The gentlest way to a size. `size` is what it has now, `booted` what it was started with, `plug_most` up to where it can be
/// extended while it runs (its booted size where it cannot), `balloon_least` what a balloon must leave (its booted size where
/// there is none).
pub fn resize(size: f64, wanted: f64, booted: f64, plug_most: f64, balloon_least: f64) -> Resize {
    if wanted == size {
        Resize::Nothing
    } else if (balloon_least..=booted).contains(&wanted) {
        Resize::Balloon
    } else if wanted > size && wanted <= plug_most {
        Resize::HotPlug
    } else {
        Resize::Restart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let up = Rule { window_seconds: 0, copies_max: 4, share_max: 1.0 };
        Limits { least: 1, most: 20, up, down: Rule { window_seconds: 300, copies_max: u32::MAX, share_max: 1.0 } }
    }

    #[test]
    fn copies_follow_the_ratio_and_small_differences_do_not_count() {
        let decide = |copies, ratios: &[f64]| Scaler::default().decide(0, copies, ratios, &limits());
        assert_eq!([decide(4, &[2.0]), decide(4, &[1.09]), decide(4, &[0.5]), decide(4, &[0.5, 1.5])], [8, 4, 2, 6]);
        assert_eq!([decide(4, &[f64::NAN]), decide(4, &[]), decide(15, &[3.0])], [4, 4, 20]);
        assert_eq!(decide(2, &[9.0]), 6, "at most four more, or twice as many");
    }

    #[test]
    fn shrinking_waits_for_the_window() {
        let mut scaler = Scaler::default();
        assert_eq!(scaler.decide(0, 4, &[2.0], &limits()), 8);
        assert_eq!(scaler.decide(60, 8, &[0.25], &limits()), 8);
        assert_eq!(scaler.decide(361, 8, &[0.25], &limits()), 2);
    }

    #[test]
    fn recommendations_come_from_what_was_used() {
        let mut used = Histogram::new(100.0, 86_400.0);
        assert_eq!(recommend(&used), None);
        (0..100).for_each(|step| used.add(if step % 20 == 0 { 50.0 } else { 10.0 }, 300.0));
        used.add(f64::NAN, 0.0);
        let found = recommend(&used).expect("there are samples");
        assert!((11.0..13.0).contains(&found.request) && (55.0..62.0).contains(&found.limit), "{found:?}");
    }

    #[test]
    fn the_gentlest_way_is_taken() {
        let way = |wanted| resize(4.0, wanted, 8.0, 16.0, 2.0);
        assert_eq!(
            [way(4.0), way(3.0), way(6.0), way(12.0), way(1.0), way(32.0)],
            [Resize::Nothing, Resize::Balloon, Resize::Balloon, Resize::HotPlug, Resize::Restart, Resize::Restart]
        );
    }
}
