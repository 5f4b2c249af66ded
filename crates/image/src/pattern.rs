//! Shell patterns as Go's `path.Match` knows them: `*`, `?`, `[a-z]`, `\`. `*` and `?` never match a slash.

/// Whether the whole name fits the pattern. A malformed pattern fits nothing.
pub fn path_matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    matches(&pattern, &name)
}

/// Whether a text has any character that is special in a pattern.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// Back-tracks to the last `*` only, so the time is bounded by the product of the lengths.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p == pattern.len() && n == name.len() {
            return true;
        }
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
            continue;
        }
        if p < pattern.len()
            && n < name.len()
            && let Some((fits, next)) = one(&pattern[p..], name[n])
            && fits
        {
            p += next;
            n += 1;
            continue;
        }
        match star {
            Some((at, from)) if from < name.len() && name[from] != '/' => {
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
            _ => return false,
        }
    }
}

/// Matches one character; says how long the piece of the pattern is. `None` when it is malformed.
fn one(pattern: &[char], c: char) -> Option<(bool, usize)> {
    match pattern[0] {
        '?' => Some((c != '/', 1)),
        '\\' => pattern.get(1).map(|escaped| (*escaped == c, 2)),
        '[' => {
            let negated = pattern.get(1) == Some(&'^');
            let mut at = 1 + usize::from(negated);
            let mut hit = false;
            let mut first = true;
            loop {
                if !first && pattern.get(at) == Some(&']') {
                    return Some((hit != negated && c != '/', at + 1));
                }
                first = false;
                let low = class_char(pattern, &mut at)?;
                let mut high = low;
                if pattern.get(at) == Some(&'-') {
                    at += 1;
                    high = class_char(pattern, &mut at)?;
                }
                hit |= low <= c && c <= high;
            }
        }
        literal => Some((literal == c, 1)),
    }
}

/// One character of a class, which a backslash may escape.
fn class_char(pattern: &[char], at: &mut usize) -> Option<char> {
    if *pattern.get(*at)? == '\\' {
        *at += 1;
    }
    *at += 1;
    pattern.get(*at - 1).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, fits) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("ab[c]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abe", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("[a-", "a", false),
            ("[", "a", false),
            ("*x", "xxx", true),
            ("a?b", "a/b", false),
            ("[]a]", "]", true),
            ("", "", true),
        ] {
            assert_eq!(path_matches(pattern, name), fits, "{pattern} {name}");
        }
        assert!(!path_matches(&"a*".repeat(2000), &"a".repeat(1000)), "no exponential time");
    }

    proptest! {
        #[test]
        fn a_name_without_specials_matches_itself_only(a in "[a-z./]{0,12}", b in "[a-z./]{0,12}") {
            prop_assert_eq!(path_matches(&a, &b), a == b);
        }
        #[test]
        fn nothing_makes_it_panic(pattern in "\\PC{0,20}", name in "\\PC{0,20}") {
            let _ = path_matches(&pattern, &name);
        }
    }
}
