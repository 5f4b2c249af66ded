//! The line format of container logs (CRI): `2026-01-02T03:04:05.123456789Z stdout F text`. Pure.

use node::OutputStream;

/// Bytes of a time stamp.
const TIMESTAMP_BYTES: usize = 30;
const DAY_S: i64 = 86_400;

/// Appends the time stamp of an instant.
pub(crate) fn write_timestamp(out: &mut Vec<u8>, timestamp_ns: i64) {
    use std::io::Write;
    let (seconds, nanoseconds) = (timestamp_ns.div_euclid(1_000_000_000), timestamp_ns.rem_euclid(1_000_000_000));
    let (year, month, day) = civil_from_days(seconds.div_euclid(DAY_S));
    let second = seconds.rem_euclid(DAY_S);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    // Writing to a vector cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z");
}

/// Appends what stands before the text of a line.
pub(crate) fn write_head(out: &mut Vec<u8>, timestamp_ns: i64, stream: OutputStream, complete: bool) {
    write_timestamp(out, timestamp_ns);
    out.extend_from_slice(match stream {
        OutputStream::Stdout => b" stdout ",
        OutputStream::Stderr => b" stderr ",
    });
    out.extend_from_slice(if complete { b"F " } else { b"P " });
}

/// One line, without its line feed: time, stream, whether it is complete, where its text begins. `None` when it is none.
pub(crate) fn parse(line: &[u8]) -> Option<(i64, OutputStream, bool, usize)> {
    let space = line.iter().take(TIMESTAMP_BYTES + 10).position(|byte| *byte == b' ')?;
    let timestamp_ns = parse_timestamp(line.get(..space)?)?;
    let rest = line.get(space + 1..)?;
    let stream = if rest.starts_with(b"stdout ") {
        OutputStream::Stdout
    } else if rest.starts_with(b"stderr ") {
        OutputStream::Stderr
    } else {
        return None;
    };
    let complete = match rest.get(7..9)? {
        b"F " => true,
        b"P " => false,
        _ => return None,
    };
    Some((timestamp_ns, stream, complete, space + 1 + 9))
}

/// An instant written as [`write_timestamp`] does, with any number of fractional digits.
pub(crate) fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        text.get(range)?
            .iter()
            .try_fold(0_i64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, byte)| text.get(*at) != Some(byte)) || text.last() != Some(&b'Z') {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let nanoseconds = match text.get(19)? {
        b'Z' => 0,
        b'.' => {
            let digits = text.len().checked_sub(21).filter(|digits| (1..=9).contains(digits))?;
            number(20..text.len() - 1)? * 10_i64.pow(9 - u32::try_from(digits).ok()?)
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days_from_civil(year, month, day) * DAY_S + hour * 3_600 + minute * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Year, month and day of a day counted from 1970-01-01. Source: Howard Hinnant, "chrono-compatible low-level date
/// algorithms".
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * month_index + 2) / 5 + 1)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_reads_as_in_the_cri_documents() {
        let mut line = Vec::new();
        write_head(&mut line, 1_767_323_045_123_456_789, OutputStream::Stdout, true);
        line.extend_from_slice(b"text");
        assert_eq!(line, b"2026-01-02T03:04:05.123456789Z stdout F text");
        let (time, stream, complete, text) = parse(&line).unwrap();
        assert_eq!((time, stream, complete), (1_767_323_045_123_456_789, OutputStream::Stdout, true));
        assert_eq!(&line[text..], b"text");
    }

    proptest! {
        #[test]
        fn timestamps_survive_the_way(time in 0_i64..7_000_000_000_000_000_000) {
            let mut text = Vec::new();
            write_timestamp(&mut text, time);
            prop_assert_eq!(parse_timestamp(&text), Some(time));
        }

        #[test]
        fn any_bytes_parse_without_panic(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }
    }
}
