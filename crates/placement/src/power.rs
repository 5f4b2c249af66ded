//! What a machine draws at each load: a curve of measured points, straight lines between them.

/// More than any machine draws. Units: watts.
pub const WATTS_MAX: f64 = 1e9;

/// Power over load.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerCurve {
    watts: Vec<f64>,
}

impl PowerCurve {
    /// A curve from points at equal distances of load, the first at none and the last at full load. Units: watts.
    ///
    /// `Errors:` fewer than two points, or a point that is negative, above [`WATTS_MAX`] or no number.
    pub fn new(watts: Vec<f64>) -> Result<PowerCurve, PowerError> {
        if watts.len() < 2 {
            return Err(PowerError::TooFew(watts.len()));
        }
        match watts.iter().position(|point| !(0.0..=WATTS_MAX).contains(point)) {
            Some(index) => Err(PowerError::BadPoint(index)),
            None => Ok(PowerCurve { watts }),
        }
    }

    /// A straight line from idle to full load. Units: watts.
    pub fn linear(idle: f64, full: f64) -> Result<PowerCurve, PowerError> {
        PowerCurve::new(vec![idle, full])
    }

    /// Power at a load between 0 and 1; beyond, that of the nearer end. Units: watts.
    pub fn at(&self, load: f64) -> f64 {
        let last = self.watts.len() - 1;
        let place = load.clamp(0.0, 1.0) * count(last);
        let below = floor_index(place).min(last);
        let above = (below + 1).min(last);
        self.watts[below] + (self.watts[above] - self.watts[below]) * (place - count(below))
    }

    /// Power at full load. Units: watts.
    pub fn full(&self) -> f64 {
        self.watts[self.watts.len() - 1]
    }

    /// Power of a machine that is on and idle. Units: watts.
    pub fn idle(&self) -> f64 {
        self.watts[0]
    }

    /// The points, as (load, watts).
    pub fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let last = count(self.watts.len() - 1);
        self.watts.iter().enumerate().map(move |(index, watts)| (count(index) / last, *watts))
    }
}

/// Why points are no power curve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerError {
    /// So many points are not enough.
    TooFew(usize),
    /// The point of this index is negative, too large or no number.
    BadPoint(usize),
}

impl std::fmt::Display for PowerError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PowerError::TooFew(count) => write!(out, "a power curve needs at least two points, not {count}"),
            PowerError::BadPoint(index) => {
                write!(out, "point {index} of the power curve is negative, too large or no number")
            }
        }
    }
}

impl std::error::Error for PowerError {}

#[expect(clippy::cast_precision_loss, reason = "a curve has a handful of points")]
fn count(points: usize) -> f64 {
    points as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the place is between 0 and the last index"
)]
fn floor_index(place: f64) -> usize {
    place as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_join_the_points() {
        let curve = PowerCurve::new(vec![100.0, 120.0, 200.0]).expect("three good points");
        let at = [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0].map(|load| curve.at(load));
        assert_eq!(at, [100.0, 100.0, 110.0, 120.0, 160.0, 200.0, 200.0]);
    }

    #[test]
    fn bad_points_are_refused() {
        assert_eq!(PowerCurve::new(vec![1.0]), Err(PowerError::TooFew(1)));
        assert_eq!(PowerCurve::new(vec![1.0, f64::NAN]), Err(PowerError::BadPoint(1)));
        assert_eq!(PowerCurve::new(vec![-1.0, 2.0]), Err(PowerError::BadPoint(0)));
    }
}
