//! Answers of other resolvers, kept for as long as they allow, and never more than a fixed number of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Entries; with [`RECORDS_MAX`] small records each this stays under some ten megabytes.
const ENTRIES_MAX: usize = 4096;
/// Larger answers are rare, and not worth their room.
const RECORDS_MAX: usize = 32;
/// However long an answer says that it is good for. Units: seconds.
const TTL_SECONDS_MAX: u32 = 300;
/// For answers that there is nothing. Units: seconds.
const NEGATIVE_TTL_SECONDS_MAX: u32 = 30;

/// An answer of another resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
}

struct Entry {
    answer: Answer,
    stored: Instant,
    expires: Instant,
}

/// A bounded cache. The clock is an argument.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<(Name, RecordType), Entry>,
}

impl Cache {
    /// A live answer, its times to live reduced by its age.
    pub(super) fn get(&self, name: &Name, kind: RecordType, now: Instant) -> Option<Answer> {
        let entry = self.entries.get(&(name.to_lowercase(), kind)).filter(|e| e.expires > now)?;
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    /// Keeps an answer, when it may be kept.
    pub(super) fn put(&mut self, name: &Name, kind: RecordType, answer: &Answer, now: Instant) {
        let seconds = lifetime(answer);
        if seconds == 0 || answer.answers.len() + answer.authorities.len() > RECORDS_MAX {
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.entries.retain(|_, e| e.expires > now);
        }
        if self.entries.len() >= ENTRIES_MAX {
            // Everything is alive: make room for a while by dropping half, whichever.
            let mut keep = false;
            self.entries.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        let entry = Entry { answer: answer.clone(), stored: now, expires: now + Duration::from_secs(seconds.into()) };
        self.entries.insert((name.to_lowercase(), kind), entry);
    }
}

/// For how many seconds an answer may be kept.
fn lifetime(answer: &Answer) -> u32 {
    match answer.code {
        ResponseCode::NoError if !answer.answers.is_empty() => {
            answer.answers.iter().map(|r| r.ttl).min().unwrap_or(0).min(TTL_SECONDS_MAX)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer.authorities.iter().find_map(|r| match &r.data {
                RData::SOA(soa) => Some(soa.minimum.min(r.ttl)),
                _ => None,
            });
            soa.unwrap_or(0).min(NEGATIVE_TTL_SECONDS_MAX)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;

    use super::*;

    #[test]
    fn answers_age_expire_and_never_exceed_the_bound() {
        let start = Instant::now();
        let name = Name::from_ascii("example.org.").unwrap();
        let record = Record::from_rdata(name.clone(), 10, RData::A(A::new(192, 0, 2, 1)));
        let answer = Answer { code: ResponseCode::NoError, answers: vec![record], authorities: Vec::new() };
        let mut cache = Cache::default();
        cache.put(&name, RecordType::A, &answer, start);
        let later =
            cache.get(&Name::from_ascii("EXAMPLE.org.").unwrap(), RecordType::A, start + Duration::from_secs(4));
        assert_eq!(later.unwrap().answers[0].ttl, 6);
        assert_eq!(cache.get(&name, RecordType::A, start + Duration::from_secs(10)), None);
        assert_eq!(cache.get(&name, RecordType::AAAA, start), None);
        for number in 0..2 * ENTRIES_MAX {
            cache.put(&Name::from_ascii(format!("n{number}.org.")).unwrap(), RecordType::A, &answer, start);
        }
        assert!(cache.entries.len() <= ENTRIES_MAX);
    }
}
