//! A day of CPU use: one line for each virtual machine, one sample every five minutes.

/// Samples in a day.
pub const SAMPLES: usize = 288;
/// Time between samples. Units: seconds.
pub const INTERVAL_SECONDS: f64 = 300.0;

/// A day.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    use_shares: Vec<Vec<f64>>,
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    line: usize,
    problem: String,
}

impl std::fmt::Display for TraceError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Reads CSV: a name, then the samples in percent.
    ///
    /// `Errors:` a line with another number of samples, or a sample that is no whole number from 0 to 100.
    pub fn parse(text: &str) -> Result<Trace, TraceError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parsed =
            lines.map(|(index, line)| samples(line).map_err(|problem| TraceError { line: index + 1, problem }));
        let use_shares = parsed.collect::<Result<Vec<_>, _>>()?;
        if use_shares.is_empty() {
            return Err(TraceError { line: 1, problem: "the trace is empty".into() });
        }
        Ok(Trace { use_shares })
    }

    /// Number of virtual machines.
    pub fn len(&self) -> usize {
        self.use_shares.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.use_shares.is_empty()
    }

    /// Use of a machine at a time, as a share of its size; straight lines between samples. Units: seconds.
    pub fn share(&self, machine: usize, seconds: f64) -> f64 {
        let samples = &self.use_shares[machine];
        let below = floor(seconds / INTERVAL_SECONDS).min(SAMPLES);
        let above = if seconds % INTERVAL_SECONDS == 0.0 { below } else { (below + 1).min(SAMPLES) };
        let (from, to) = (samples[below], samples[above]);
        if above == below {
            return from;
        }
        let slope = (to - from) / INTERVAL_SECONDS;
        from + slope * (seconds - start(below))
    }
}

fn samples(line: &str) -> Result<Vec<f64>, String> {
    let mut values = Vec::with_capacity(SAMPLES + 1);
    for field in line.split(',').skip(1) {
        let percent: u8 = field.trim().parse().map_err(|_| format!("`{field}` is no percentage"))?;
        if percent > 100 {
            return Err(format!("{percent} is above 100 percent"));
        }
        values.push(f64::from(percent) / 100.0);
    }
    if values.len() != SAMPLES {
        return Err(format!("{} samples instead of {SAMPLES}", values.len()));
    }
    // The day ends as it was at its last sample.
    values.push(values[SAMPLES - 1]);
    Ok(values)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the number of samples")]
fn floor(place: f64) -> usize {
    place.max(0.0) as usize
}

#[expect(clippy::cast_precision_loss, reason = "bounded by the number of samples")]
fn start(sample: usize) -> f64 {
    sample as f64 * INTERVAL_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_joined_by_lines() {
        let mut line = "vm".to_owned();
        (0..SAMPLES).for_each(|index| line.push_str(if index == 1 { ",50" } else { ",10" }));
        let trace = Trace::parse(&line).expect("a good trace");
        assert_eq!(trace.share(0, 0.0), 0.1);
        assert!((trace.share(0, 150.0) - 0.3).abs() < 1e-12);
        assert_eq!(trace.share(0, 300.0), 0.5);
        assert_eq!(trace.share(0, 86_399.0), 0.1);
    }

    #[test]
    fn bad_lines_are_named() {
        let error = Trace::parse("vm,1,2").map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(error, Err("line 1: 2 samples instead of 288".into()));
        let error = Trace::parse("vm,-3").map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(error, Err("line 1: `-3` is no percentage".into()));
    }
}
