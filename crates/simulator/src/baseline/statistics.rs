//! Small statistics, as the reference computes them.

/// Median; 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Median absolute deviation.
pub fn mad(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    let centre = median(&mut sorted);
    let mut deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    median(&mut deviations)
}

/// Interquartile range: the quartiles are the sorted samples number round(0.25 (n + 1)) and round(0.75 (n + 1)).
pub fn iqr(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Rounds to nearest: a quarter of (n + 1) plus a half, in whole numbers.
    let number = |quarters: usize| (quarters * (sorted.len() + 1) + 2) / 4;
    sorted[number(3) - 1] - sorted[number(1) - 1]
}

/// Pearson's correlation; 0 where one of them is constant.
pub fn correlation(one: &[f64], other: &[f64]) -> f64 {
    let pairs = || one.iter().zip(other);
    let (mut n, mut sx, mut sy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs() {
        (n, sx, sy) = (n + 1.0, sx + x, sy + y);
    }
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs() {
        let (dx, dy) = (x - sx / n, y - sy / n);
        (xx, yy, xy) = (xx + dx * dx, yy + dy * dy, xy + dx * dy);
    }
    if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn textbook_values() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0, 10.0]), 2.5);
        assert_eq!(mad(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]), 1.0);
        assert_eq!(iqr(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), 4.0);
        assert!((correlation(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]) - 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }
}
