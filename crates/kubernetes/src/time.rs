//! Time as people read it: Kubernetes' `duration.HumanDuration`, used by every AGE column. Pure.

use jiff::Timestamp;
use serde_json::Value;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A duration in the at most two units that `kubectl get` shows. `Source:` k8s.io/apimachinery `duration.HumanDuration`.
pub(crate) fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let two = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    let (minutes, hours, days, years) = (seconds / MINUTE, seconds / HOUR, seconds / DAY, seconds / YEAR);
    if seconds < 2 * MINUTE {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, 'm', seconds % MINUTE, 's')
    } else if minutes < 3 * 60 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, 'h', minutes % 60, 'm')
    } else if hours < 2 * 24 {
        format!("{hours}h")
    } else if hours < 8 * 24 {
        two(days, 'd', hours % 24, 'h')
    } else if hours < 2 * 24 * 365 {
        format!("{days}d")
    } else if hours < 8 * 24 * 365 {
        two(years, 'y', days % 365, 'd')
    } else {
        format!("{years}y")
    }
}

/// The time since an RFC 3339 instant; `<unknown>` when there is none.
pub(crate) fn age(instant: Option<&Value>, now: Timestamp) -> String {
    match instant.and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(instant) => human_duration(now.as_second() - instant.as_second()),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (600, "10m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 5 * MINUTE, "3h5m"),
            (9 * HOUR + 30 * MINUTE, "9h"),
            (2 * DAY + 3 * HOUR, "2d3h"),
            (30 * DAY, "30d"),
            (3 * YEAR + DAY, "3y1d"),
            (9 * YEAR, "9y"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
