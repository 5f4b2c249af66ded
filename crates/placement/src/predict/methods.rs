//! Methods of forecasting from a history of samples, and the choice among them by back-testing: each forecasts the past, and
//! the one that erred least is asked about the future. Its upper bound is calibrated on those very errors: the quantile of what
//! it fell short, not that of an assumed distribution.
//!
//! `Source:` W. S. Cleveland, "Robust locally weighted regression and smoothing scatterplots", JASA 74, 1979 (LR, LRR); P. R.
//! Winters, "Forecasting sales by exponentially weighted moving averages", Management Science 6, 1960 (season).

/// Samples that local regression looks at.
const REGRESSION_SAMPLES: usize = 10;
/// Samples of the recent mean and of recent peaks.
const RECENT_SAMPLES: usize = 6;
/// Samples of which the peak quantile is taken.
const PEAK_SAMPLES: usize = 24;
/// Forecasts of the past on which methods are compared.
const BACK_TESTS: usize = 24;
/// Rounds of the robust regression.
const ROBUST_ROUNDS: usize = 2;
/// Weight of a new day in the daily profile.
const SEASON_WEIGHT: f64 = 0.4;

/// A way to forecast the next sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The last sample.
    Last,
    /// The mean of the last few.
    RecentMean,
    /// A line by locally weighted regression (LR).
    LocalRegression,
    /// The same, made robust against outliers (LRR).
    RobustRegression,
    /// Exponential smoothing around a daily profile.
    DailySeason,
}

/// All methods, the simplest first: among equals the simpler wins.
const METHODS: [Method; 5] =
    [Method::RecentMean, Method::Last, Method::LocalRegression, Method::RobustRegression, Method::DailySeason];

/// A forecast of the next sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The method that was chosen.
    pub method: Method,
    /// Expected value.
    pub mean: f64,
    /// Value that is not exceeded with the probability asked for, as far as the past tells.
    pub upper: f64,
}

/// One method's forecast of the sample after `history` (oldest first); `None` when there is too little of it. `season` is the
/// number of samples in a day. Forecasts are never negative.
pub fn predict(method: Method, history: &[f64], season: usize) -> Option<f64> {
    let value = match method {
        Method::Last => *history.last()?,
        Method::RecentMean => mean(tail(history, RECENT_SAMPLES)?),
        Method::LocalRegression => regression(tail(history, REGRESSION_SAMPLES)?, 0),
        Method::RobustRegression => regression(tail(history, REGRESSION_SAMPLES)?, ROBUST_ROUNDS),
        Method::DailySeason => seasonal(history, season)?,
    };
    Some(value.max(0.0))
}

/// Chooses the method that forecast the past best, and forecasts with it. `quantile` is the probability with which the upper
/// bound should hold, between 0 and 1.
///
/// `None` while there is no sample.
pub fn choose(history: &[f64], season: usize, quantile: f64) -> Option<Prediction> {
    let last = *history.last()?;
    let mut best: Option<(f64, Method, Vec<f64>)> = None;
    for method in METHODS {
        let Some(errors) = back_test(method, history, season) else { continue };
        let loss = mean_absolute(&errors);
        if best.as_ref().is_none_or(|(least, _, _)| loss < *least) {
            best = Some((loss, method, errors));
        }
    }
    let Some((_, method, mut errors)) = best else {
        return Some(Prediction { method: Method::Last, mean: last, upper: last.max(peak(history, quantile)) });
    };
    let mean = predict(method, history, season)?;
    errors.sort_by(f64::total_cmp);
    let upper = (mean + quantile_of(&errors, quantile)).max(mean).max(0.0);
    Some(Prediction { method, mean, upper })
}

/// Quantile of the most recent samples.
pub(crate) fn peak(history: &[f64], quantile: f64) -> f64 {
    let mut recent = history[history.len().saturating_sub(PEAK_SAMPLES)..].to_vec();
    recent.sort_by(f64::total_cmp);
    quantile_of(&recent, quantile)
}

/// What fell short in each of the last forecasts: sample less forecast.
fn back_test(method: Method, history: &[f64], season: usize) -> Option<Vec<f64>> {
    let tests = BACK_TESTS.min(history.len() / 2);
    let errors: Vec<f64> = (history.len() - tests..history.len())
        .filter_map(|at| Some(history[at] - predict(method, &history[..at], season)?))
        .collect();
    (!errors.is_empty() && errors.len() == tests).then_some(errors)
}

fn tail(history: &[f64], count: usize) -> Option<&[f64]> {
    history.len().checked_sub(count).map(|start| &history[start..])
}

/// The line through the samples, at the next place; nearer samples weigh more (tricube), and in the robust rounds those far from
/// the line weigh less (bisquare).
fn regression(samples: &[f64], robust_rounds: usize) -> f64 {
    let count = number(samples.len());
    let near: Vec<f64> =
        (1..=samples.len()).map(|age| (1.0 - ((count - number(age)) / count).powi(3)).powi(3)).collect();
    let mut weights = near.clone();
    let mut next = 0.0;
    for _ in 0..=robust_rounds {
        let (intercept, slope) = line(samples, &weights);
        next = intercept + slope * (count + 1.0);
        let residuals: Vec<f64> = (1..).zip(samples).map(|(x, y)| (y - intercept - slope * number(x)).abs()).collect();
        let mut sorted = residuals.clone();
        sorted.sort_by(f64::total_cmp);
        let scale = 6.0 * sorted[sorted.len() / 2];
        if scale <= 0.0 {
            break;
        }
        for ((weight, near), residual) in weights.iter_mut().zip(&near).zip(residuals) {
            let part = (1.0 - (residual / scale).min(1.0).powi(2)).powi(2);
            *weight = near * part.max(1e-6);
        }
    }
    next
}

/// The line through samples at x = 1, 2, …, by weighted least squares: intercept and slope.
#[must_use]
pub fn line(samples: &[f64], weights: &[f64]) -> (f64, f64) {
    let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ((x, y), weight) in (1..).map(number).zip(samples).zip(weights) {
        w += weight;
        wx += weight * x;
        wy += weight * y;
        wxx += weight * x * x;
        wxy += weight * x * y;
    }
    let slope = (w * wxy - wx * wy) / (w * wxx - wx * wx);
    ((wy - slope * wx) / w, slope)
}

/// A daily profile from whole days, and the level of today against it.
fn seasonal(history: &[f64], season: usize) -> Option<f64> {
    if season == 0 || history.len() < season + RECENT_SAMPLES {
        return None;
    }
    let profile = |at: usize| {
        let mut days = (1..).map_while(|day| at.checked_sub(day * season)).filter(|place| *place < history.len());
        let mut value = history[days.next()?];
        let mut weight = SEASON_WEIGHT;
        for place in days {
            value += weight * (history[place] - value);
            weight *= SEASON_WEIGHT;
        }
        Some(value)
    };
    let next = history.len();
    let recent = (next - RECENT_SAMPLES..next).filter_map(|at| Some(history[at] - profile(at)?));
    let differences: Vec<f64> = recent.collect();
    let level = if differences.is_empty() { 0.0 } else { mean(&differences) };
    Some(profile(next)? + level)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / number(values.len().max(1))
}

fn mean_absolute(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).sum::<f64>() / number(values.len().max(1))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place between 0 and the last index")]
fn quantile_of(sorted: &[f64], quantile: f64) -> f64 {
    // The n-th of n errors covers n / (n + 1) of the future, not all of it.
    let place = (quantile.clamp(0.0, 1.0) * number(sorted.len() + 1)).ceil() as usize;
    sorted.get(place.clamp(1, sorted.len()) - 1).copied().unwrap_or(0.0)
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_points_that_lie_on_one() {
        let (intercept, slope) = line(&[3.0, 5.0, 7.0], &[1.0; 3]);
        assert!((intercept - 1.0).abs() < 1e-12 && (slope - 2.0).abs() < 1e-12);
    }

    #[test]
    fn each_method_knows_its_own_kind() {
        let rising: Vec<f64> = (0..40).map(|x| f64::from(x) * 2.0).collect();
        let found = choose(&rising, 0, 0.9).map(|p| (p.method, p.mean.round()));
        assert_eq!(found, Some((Method::LocalRegression, 80.0)));
        let noisy: Vec<f64> = (0..60).map(|x| 50.0 + f64::from((x * 37) % 11)).collect();
        assert_eq!(choose(&noisy, 0, 0.9).map(|p| p.method), Some(Method::RecentMean));
        let daily: Vec<f64> = (0..100).map(|x| if x % 24 < 8 { 5.0 } else { f64::from(x % 24) * 4.0 }).collect();
        assert_eq!(choose(&daily, 24, 0.9).map(|p| p.method), Some(Method::DailySeason));
    }

    #[test]
    fn an_outlier_bends_the_robust_line_less() {
        let mut samples = [10.0; 10];
        samples[8] = 100.0;
        assert!(regression(&samples, ROBUST_ROUNDS) < 15.0 && regression(&samples, 0) > 25.0);
    }

    #[test]
    fn the_upper_bound_holds_as_often_as_it_says() {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f64::from(u32::try_from(state >> 40).unwrap_or(0)) / f64::from(1 << 24)
        };
        let samples: Vec<f64> = (0..1000).map(|_| 20.0 + 10.0 * random() * random()).collect();
        let covered = (100..1000).filter(|at| choose(&samples[..*at], 0, 0.9).is_some_and(|p| samples[*at] <= p.upper));
        let share = number(covered.count()) / 900.0;
        assert!((0.85..0.96).contains(&share), "{share}");
    }

    #[test]
    fn little_history_gives_the_last_sample_and_none_gives_nothing() {
        assert_eq!(choose(&[], 0, 0.9), None);
        assert_eq!(choose(&[3.0], 0, 0.9), Some(Prediction { method: Method::Last, mean: 3.0, upper: 3.0 }));
    }
}
