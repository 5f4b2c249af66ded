//! Times as Docker writes and reads them: RFC 3339 with nanoseconds, Unix seconds with a fraction, Go durations, and the
//! words of `docker ps` ("Up 5 minutes").

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use crate::error::{Error, Result};

/// Go's zero time, which Docker writes for "never".
pub(crate) const ZERO: &str = "0001-01-01T00:00:00Z";
/// Nanoseconds in a second.
const SECOND_NS: i64 = 1_000_000_000;

/// Now, in nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    nanoseconds(Timestamp::now())
}

/// A timestamp in nanoseconds since the Unix epoch; what does not fit (the years before 1677 or after 2262) is clamped.
pub(crate) fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(if at.as_second() < 0 { i64::MIN } else { i64::MAX })
}

/// RFC 3339 with nine digits of fraction at most, as Go prints it.
pub(crate) fn rfc3339(at_ns: i64) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns)).map_or_else(|_| ZERO.into(), |at| at.to_string())
}

/// RFC 3339 with exactly nine digits of fraction, as log lines have it.
pub(crate) fn rfc3339_fixed(at_ns: i64) -> String {
    match Timestamp::from_nanosecond(i128::from(at_ns)) {
        Ok(at) => format!("{at:.9}"),
        Err(_) => ZERO.into(),
    }
}

/// A time as objects hold it: to the second, or to the microsecond.
pub(crate) trait Moment {
    /// The instant.
    fn instant(&self) -> Timestamp;
}

impl Moment for Time {
    fn instant(&self) -> Timestamp {
        self.0
    }
}

impl Moment for MicroTime {
    fn instant(&self) -> Timestamp {
        self.0
    }
}

/// An optional time of an object, or Go's zero.
pub(crate) fn of_object(at: Option<&impl Moment>) -> String {
    at.map_or_else(|| ZERO.into(), |at| at.instant().to_string())
}

/// An optional time of an object in nanoseconds; 0 when unset.
pub(crate) fn of_object_ns(at: Option<&impl Moment>) -> i64 {
    at.map_or(0, |at| nanoseconds(at.instant()))
}

/// Reads a point in time of a query: Unix seconds with optional fraction, RFC 3339, a date, or a Go duration before now.
///
/// Errors: [`Error::Invalid`] when it is none of these.
pub(crate) fn parse_point(text: &str, now_ns: i64) -> Result<i64> {
    let text = text.trim();
    if let Some(ns) = parse_unix(text) {
        return Ok(ns);
    }
    if let Some(ns) = parse_go_duration(text) {
        return Ok(now_ns.saturating_sub(ns));
    }
    let with_zone = text.ends_with('Z') || text.len() > 10 && text[10..].contains(['+', '-']);
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 if !with_zone => format!("{text}:00Z"),
        _ if !with_zone => format!("{text}Z"),
        _ => text.to_owned(),
    };
    full.parse::<Timestamp>()
        .map(nanoseconds)
        .map_err(|_| Error::Invalid(format!("failed to parse value as time or duration: {}", crate::text::quote(text))))
}

/// `1700000000`, `1700000000.5`.
fn parse_unix(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if seconds.is_empty() || !all_digits(seconds) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(SECOND_NS)?.checked_add(fraction)?.checked_mul(sign)
}

/// A Go duration such as `1h30m`, `500ms`, `1.5s`; in nanoseconds.
pub(crate) fn parse_go_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: f64 = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "durations far below the range")]
    (total.abs() < 9e18).then_some(total as i64)
}

/// A span of time in the words of `docker ps`.
pub(crate) fn human_duration(span_ns: i64) -> String {
    let seconds = (span_ns / SECOND_NS).max(0);
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        s if s < 60 => format!("{s} seconds"),
        s if s < 120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_come_in_dockers_forms() {
        let now = 1_700_000_000 * SECOND_NS;
        assert_eq!(parse_point("1700000000", now).unwrap(), now);
        assert_eq!(parse_point("1700000000.000000001", now).unwrap(), now + 1);
        assert_eq!(parse_point("10m", now).unwrap(), now - 600 * SECOND_NS);
        assert_eq!(parse_point("2023-11-14T22:13:20Z", 0).unwrap(), now);
        assert_eq!(parse_point("2023-11-14T22:13:20", 0).unwrap(), now);
        assert_eq!(parse_point("2023-11-14T23:13:20+01:00", 0).unwrap(), now);
        assert!(parse_point("2023-11-14", 0).is_ok());
        assert!(parse_point("yesterday", 0).is_err());
        assert!(parse_point("99999999999999999999", 0).is_err());
    }

    #[test]
    fn durations_read_as_docker_ps_prints_them() {
        let cases = [(0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute")];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds * SECOND_NS), text);
        }
        assert_eq!(human_duration(5 * 60 * SECOND_NS), "5 minutes");
        assert_eq!(human_duration(3600 * SECOND_NS), "About an hour");
        assert_eq!(human_duration(3 * 3600 * SECOND_NS), "3 hours");
        assert_eq!(human_duration(72 * 3600 * SECOND_NS), "3 days");
    }

    #[test]
    fn log_timestamps_have_nine_digits() {
        assert_eq!(rfc3339_fixed(1_700_000_000 * SECOND_NS), "2023-11-14T22:13:20.000000000Z");
    }
}
