//! When a CronJob runs: the five-field form of cron, its names and its `@` words. Pure.
//!
//! `Source:` crontab(5); robfig/cron v3, which Kubernetes uses and whose rules about daylight saving hold here too: a time that
//! is skipped does not run, a time that comes twice runs twice.

use std::str::FromStr;

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan, civil};

/// How far ahead a schedule is searched; one that matches nothing in that time (February 30th) never runs. Units: days.
const HORIZON_DAYS: usize = 5 * 366;
/// Shortest period of `@every`.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not five fields.
    #[error("expected exactly 5 fields, found {0}")]
    Fields(usize),
    /// A field that says nothing understandable.
    #[error("failed to parse {text:?} as {field}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// An `@` word that does not exist.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At certain minutes.
    Calendar(Calendar),
    /// At a fixed distance from the last time.
    Every(SignedDuration),
}

/// The sets of minutes, hours and days, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// The day of the month, or of the week, is `*`: then only the other one counts; else either will do.
    any_day: bool,
    any_weekday: bool,
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if let Some(word) = text.strip_prefix('@') {
            return descriptor(word);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else { return Err(Error::Fields(fields.len())) };
        let is_any = |field: &str| field.split(',').any(|part| matches!(part.split('/').next(), Some("*" | "?")));
        Ok(Self::Calendar(Calendar {
            minutes: bits("minute", minutes, 0, 59, &[])?,
            hours: bits("hour", hours, 0, 23, &[])?,
            days: bits("day of month", days, 1, 31, &[])?,
            months: bits("month", months, 1, 12, &MONTHS)?,
            weekdays: bits("day of week", weekdays, 0, 6, &DAYS)?,
            any_day: is_any(days),
            any_weekday: is_any(weekdays),
        }))
    }
}

fn descriptor(word: &str) -> Result<Schedule, Error> {
    let unknown = || Error::Descriptor(format!("@{word}"));
    if let Some(period) = word.strip_prefix("every ") {
        let period: SignedDuration = period.trim().parse().map_err(|_| unknown())?;
        let whole = SignedDuration::from_secs(period.as_secs());
        return Ok(Schedule::Every(whole.max(SHORTEST)));
    }
    match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => return Err(unknown()),
    }
    .parse()
}

/// Reads a list of numbers, names, ranges and steps.
fn bits(field: &'static str, text: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, Error> {
    let wrong = || Error::Field { field, text: text.to_owned() };
    let number = |part: &str| {
        let name = names.iter().position(|name| part.eq_ignore_ascii_case(name));
        let number = match name {
            Some(place) => low.checked_add(u32::try_from(place).ok()?),
            None if part.bytes().all(|byte| byte.is_ascii_digit()) => part.parse().ok(),
            None => None,
        };
        number.filter(|number| (low..=high).contains(number))
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse().ok().filter(|step| *step > 0).ok_or_else(wrong)?)),
            None => (part, None),
        };
        let (first, last) = match range {
            "*" | "?" => (low, high),
            _ => match range.split_once('-') {
                Some((first, last)) => (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?),
                None => {
                    let first = number(range).ok_or_else(wrong)?;
                    (first, if step.is_some() { high } else { first })
                }
            },
        };
        if first > last {
            return Err(wrong());
        }
        set |= (first..=last).step_by(step.unwrap_or(1)).fold(0, |set, number| set | 1 << number);
    }
    Ok(set)
}

impl Schedule {
    /// The first time after `after`; `None` when there is none in five years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*period).ok(),
            Self::Calendar(calendar) => {
                let first = zone.to_datetime(after).date();
                let mut days = first.series(1.day()).take(HORIZON_DAYS).filter(|day| calendar.includes(*day));
                days.find_map(|day| calendar.first_of_day(day, after, zone))
            }
        }
    }
}

impl Calendar {
    fn includes(&self, date: civil::Date) -> bool {
        let has = |set: u64, number: i8| u32::try_from(number).is_ok_and(|number| set >> number & 1 == 1);
        let (day, weekday) = (has(self.days, date.day()), has(self.weekdays, date.weekday().to_sunday_zero_offset()));
        let day_fits = if self.any_day || self.any_weekday { day && weekday } else { day || weekday };
        has(self.months, date.month()) && day_fits
    }

    fn first_of_day(&self, date: civil::Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let numbers = |set: u64, count: i8| (0..count).filter(move |number| set >> *number & 1 == 1);
        let times =
            numbers(self.hours, 24).flat_map(|hour| numbers(self.minutes, 60).map(move |minute| (hour, minute)));
        let instants = times.flat_map(|(hour, minute)| {
            let time = date.at(hour, minute, 0, 0);
            match zone.to_ambiguous_timestamp(time).offset() {
                AmbiguousOffset::Unambiguous { offset } => [offset.to_timestamp(time).ok(), None],
                AmbiguousOffset::Gap { .. } => [None, None],
                AmbiguousOffset::Fold { before, after } => {
                    [before.to_timestamp(time).ok(), after.to_timestamp(time).ok()]
                }
            }
        });
        instants.flatten().filter(|instant| *instant > after).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, zone: &str, after: &str, expected: &[&str]) {
        let schedule: Schedule = schedule.parse().unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for next in expected {
            at = schedule.next(at, &zone).unwrap();
            assert_eq!(at.to_string(), *next);
        }
    }

    #[test]
    fn steps_ranges_lists_and_names() {
        check(
            "*/20 * * * *",
            "UTC",
            "2026-01-01T00:05:00Z",
            &["2026-01-01T00:20:00Z", "2026-01-01T00:40:00Z", "2026-01-01T01:00:00Z"],
        );
        check("0 9-17/4 * * mon-fri", "UTC", "2026-01-02T14:00:00Z", &["2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"]);
        check("0 0 1,15 * *", "UTC", "2026-01-02T00:00:00Z", &["2026-01-15T00:00:00Z", "2026-02-01T00:00:00Z"]);
        check("@hourly", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01T01:00:00Z"]);
        check("@every 90s", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01T00:01:30Z"]);
        check("0 0 29 feb *", "UTC", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
    }

    #[test]
    fn a_day_of_the_month_or_of_the_week_will_do_when_both_are_named() {
        check(
            "0 0 13 * fri",
            "UTC",
            "2026-01-03T00:00:00Z",
            &["2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"],
        );
    }

    #[test]
    fn a_skipped_hour_does_not_run_and_a_doubled_one_runs_twice() {
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T02:00:00Z", &["2026-03-30T00:30:00Z"]);
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T01:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"],
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * * 7",
            "5-1 * * * *",
            "*/0 * * * *",
            "a * * * *",
            "@nightly",
            "+1 * * * *",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
        let never: Schedule = "0 0 30 2 *".parse().unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }
}
