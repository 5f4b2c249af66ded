//! Who gives a place to a newcomer when all are taken. Pure.
//!
//! A holder with more than its share gives one to who has less than that; else the one that was silent longest goes, if that is long
//! enough. Who has its share already gets but what is free, or its own: so nobody can have all places by taking those of others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The part of all places that one holder has for sure to itself: a fourth, so that it takes several to have all.
const SHARES: usize = 4;

/// Whose a place is: a network of which one machine has all addresses to choose from, or an address where many machines share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder(Ipv6Addr);

impl Holder {
    pub fn of(client: IpAddr) -> Self {
        /// The part of an address that says which network it is on. Source: RFC 4291, 2.5.4.
        const NETWORK: u128 = !(u64::MAX as u128);
        match client {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped()),
            IpAddr::V6(address) if address.is_unicast_link_local() || address.to_bits() >> 64 == 0 => Self(address),
            IpAddr::V6(address) => Self(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
        }
    }
}

/// A place that is taken: by whom, and when something last went through it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub holder: Holder,
    pub heard: Instant,
}

/// What one holder has.
struct Part {
    count: usize,
    /// The place that was silent longest, and since when.
    quietest: (Instant, usize),
}

/// What follows from who holds all the places there are.
pub(super) struct Room {
    parts: HashMap<Holder, Part>,
    share: usize,
    /// What was silent since then is silent for long enough.
    before: Option<Instant>,
    /// The place that goes to one with less than its share.
    for_few: Option<usize>,
}

impl Room {
    /// Of all places, which are taken; of which one goes that was silent for so long.
    pub fn of(all: impl ExactSizeIterator<Item = Held>, patience: Duration, now: Instant) -> Self {
        let share = (all.len() / SHARES).max(1);
        let mut parts: HashMap<Holder, Part> = HashMap::new();
        for (place, one) in all.enumerate() {
            let quietest = (one.heard, place);
            let part = parts.entry(one.holder).or_insert(Part { count: 0, quietest });
            part.count += 1;
            part.quietest = part.quietest.min(quietest);
        }
        let before = now.checked_sub(patience);
        let largest = parts.values().max_by_key(|part| part.count).filter(|part| part.count > share);
        let quietest = parts.values().map(|part| part.quietest).min();
        let for_few = match largest {
            Some(largest) => Some(largest.quietest.1),
            None => quietest.filter(|(heard, _)| before.is_some_and(|before| *heard <= before)).map(|(_, place)| place),
        };
        Self { parts, share, before, for_few }
    }

    /// The place that goes to a newcomer of this holder. `None`: it waits, or goes.
    pub fn place_for(&self, newcomer: Holder) -> Option<usize> {
        match self.parts.get(&newcomer).filter(|part| part.count >= self.share) {
            None => self.for_few,
            Some(Part { quietest: (heard, place), .. }) => self.before.is_some_and(|at| *heard <= at).then_some(*place),
        }
    }
}

/// Who goes of too many that wait: the last of the holder that has most of them.
pub(super) fn last_of_most(waiting: impl Iterator<Item = Holder>) -> Option<usize> {
    let mut parts: HashMap<Holder, (usize, usize)> = HashMap::new();
    for (place, holder) in waiting.enumerate() {
        let part = parts.entry(holder).or_default();
        *part = (part.0 + 1, place);
    }
    parts.into_values().max().map(|(_, last)| last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn holder(number: u16) -> Holder {
        Holder::of(Ipv6Addr::new(0x2001, 0xdb8, 0, number, 1, 2, 3, 4).into())
    }

    /// Places of these holders, each silent for so many seconds.
    fn places(all: &[(u16, u64)], now: Instant) -> Vec<Held> {
        let held = |&(number, silent): &(u16, u64)| Held {
            holder: holder(number),
            heard: now.checked_sub(Duration::from_secs(silent)).unwrap(),
        };
        all.iter().map(held).collect()
    }

    /// The place that goes to a newcomer of a holder.
    fn decide(all: &[(u16, u64)], newcomer: u16) -> Option<usize> {
        // Long enough after the machine's start for all that is subtracted.
        let now = Instant::now() + Duration::from_secs(3_600);
        Room::of(places(all, now).into_iter(), PATIENCE, now).place_for(holder(newcomer))
    }

    #[test]
    fn a_network_is_one_holder_and_neighbours_on_a_link_are_several() {
        let same = |one: &str, other: &str| Holder::of(one.parse().unwrap()) == Holder::of(other.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1:2:3"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(!same("fe80::1", "fe80::2"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn the_largest_gives_to_the_small_then_the_quietest_and_who_has_its_share_gets_its_own() {
        // One has all: the one that was silent longest of them goes, however short that is.
        assert_eq!(decide(&[(1, 3), (1, 5), (1, 2), (1, 0)], 2), Some(1));
        // It replaces but what is silent of its own.
        assert_eq!(decide(&[(1, 3), (1, 5), (1, 2), (1, 0)], 1), None);
        assert_eq!(decide(&[(1, 3), (1, 65), (1, 2), (2, 90)], 1), Some(1));
        // Nobody has too much: only what is silent goes.
        assert_eq!(decide(&[(1, 59), (2, 5), (3, 2), (4, 0)], 5), None);
        assert_eq!(decide(&[(1, 61), (2, 5), (3, 62), (4, 0)], 5), Some(2));
        assert_eq!(decide(&[(1, 61), (2, 5), (3, 62), (4, 0)], 2), None);
    }

    #[test]
    fn of_too_many_who_wait_the_last_of_the_most_goes() {
        let goes = |all: &[u16]| last_of_most(all.iter().map(|number| holder(*number)));
        assert_eq!(goes(&[1, 2, 1, 3]), Some(2));
        assert_eq!(goes(&[1, 2, 3]), Some(2));
        assert_eq!(goes(&[]), None);
    }

    proptest! {
        #[test]
        fn nobody_loses_what_it_uses_within_its_share_and_nobody_gets_more_than_that_of_others(
            all in proptest::collection::vec((0..6_u16, 0..120_u64), 1..40), newcomer in 0..8_u16,
        ) {
            let share = (all.len() / SHARES).max(1);
            let count = |number| all.iter().filter(|(other, _)| *other == number).count();
            let silent = |seconds: u64| Duration::from_secs(seconds) >= PATIENCE;
            match decide(&all, newcomer) {
                Some(place) => {
                    let (loser, seconds) = all[place];
                    prop_assert!(silent(seconds) || (count(loser) > share && count(newcomer) < share));
                    prop_assert!(loser == newcomer || count(newcomer) < share);
                    // Of what is its loser's, it is the one that was silent longest.
                    prop_assert!(all.iter().all(|(other, more)| *other != loser || *more <= seconds));
                }
                // Nobody can keep out one with less than its share but by using all places, each within its own share.
                None if count(newcomer) < share => {
                    prop_assert!(all.iter().all(|(other, seconds)| count(*other) <= share && !silent(*seconds)));
                }
                None => prop_assert!(all.iter().all(|(other, seconds)| *other != newcomer || !silent(*seconds))),
            }
        }
    }
}
