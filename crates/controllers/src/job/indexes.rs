//! Sets of indexes as an indexed Job's status writes them: `1,3-5,7`. Pure.

use std::collections::BTreeSet;

/// Reads them; what is no number is left out.
pub fn parse(text: &str) -> BTreeSet<i32> {
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
        None => part.parse().ok().map(|only| only..=only),
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Writes them.
pub fn text(set: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let part = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    ranges.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(set in proptest::collection::btree_set(0i32..50, 0..40)) {
            proptest::prop_assert_eq!(parse(&text(&set)), set);
        }
    }

    #[test]
    fn ranges_are_written_as_kubernetes_writes_them() {
        assert_eq!(text(&BTreeSet::from([0, 1, 3, 4, 5, 7])), "0,1,3-5,7");
        assert_eq!(parse(""), BTreeSet::new());
    }
}
