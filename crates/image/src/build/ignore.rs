//! `.dockerignore`: which files of a context do not count. Pure.
//! Source: the Dockerfile reference; moby/patternmatcher.

use crate::error::{Error, Result};

/// Most patterns of one file.
const MAX_PATTERNS: usize = 10_000;

/// The patterns of a `.dockerignore`.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    tokens: Vec<Token>,
    negated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Star,
    /// `**` at the end: anything
    Everything,
    /// `**/`: any directories, or none
    Directories,
    Class(bool, Vec<(char, char)>),
}

impl Ignore {
    /// Parses the file.
    pub fn parse(text: &str) -> Result<Ignore> {
        let mut patterns = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (negated, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let clean = clean(line);
            if clean.is_empty() {
                if negated && line.is_empty() {
                    return Err(Error::Invalid("illegal exclusion pattern: \"!\"".to_owned()));
                }
                continue;
            }
            patterns.push(Pattern { tokens: tokens(&clean)?, negated });
            if patterns.len() > MAX_PATTERNS {
                return Err(Error::Invalid(format!(".dockerignore has more than {MAX_PATTERNS} patterns")));
            }
        }
        Ok(Ignore { patterns })
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a file below an ignored directory may count nevertheless.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated)
    }

    /// Whether the path (relative, with `/`) is ignored. The last pattern that fits it or a directory above it decides.
    pub fn ignores(&self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(i, _)| i).chain([path.len()]).collect();
        let mut ignored = false;
        for pattern in &self.patterns {
            if pattern.negated == ignored && ends.iter().any(|end| fits(&pattern.tokens, &path[..*end])) {
                ignored = !pattern.negated;
            }
        }
        ignored
    }
}

/// Takes `.`, `..`, doubled and outer slashes away.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn tokens(pattern: &str) -> Result<Vec<Token>> {
    let bad = || Error::Invalid(format!("syntax error in pattern {pattern:?} of .dockerignore"));
    let chars: Vec<char> = pattern.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        match c {
            '*' if chars.get(at) == Some(&'*') => {
                while chars.get(at) == Some(&'*') {
                    at += 1;
                }
                if chars.get(at) == Some(&'/') {
                    at += 1;
                    tokens.push(Token::Directories);
                } else {
                    tokens.push(Token::Everything);
                }
            }
            '*' => tokens.push(Token::Star),
            '?' => tokens.push(Token::One),
            '\\' => {
                tokens.push(Token::Char(*chars.get(at).ok_or_else(bad)?));
                at += 1;
            }
            '[' => {
                let negated = matches!(chars.get(at), Some('^'));
                at += usize::from(negated);
                let mut ranges = Vec::new();
                loop {
                    let low = *chars.get(at).ok_or_else(bad)?;
                    at += 1;
                    if low == ']' && !ranges.is_empty() {
                        break;
                    }
                    let mut high = low;
                    if chars.get(at) == Some(&'-') {
                        high = *chars.get(at + 1).ok_or_else(bad)?;
                        at += 2;
                    }
                    ranges.push((low, high));
                }
                tokens.push(Token::Class(negated, ranges));
            }
            c => tokens.push(Token::Char(c)),
        }
    }
    Ok(tokens)
}

/// Steps through pattern and path together; the time is the product of the lengths.
fn fits(tokens: &[Token], path: &str) -> bool {
    let path: Vec<char> = path.chars().collect();
    // reached[i]: the tokens so far fit the first i characters.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        let mut open = false;
        for i in 0..=path.len() {
            match token {
                Token::Star => {
                    open = (open && (i == 0 || path[i - 1] != '/')) || reached[i];
                    next[i] = open;
                }
                Token::Everything => {
                    open |= reached[i];
                    next[i] = open;
                }
                Token::Directories => {
                    next[i] = reached[i] || (open && i > 0 && path[i - 1] == '/');
                    open |= reached[i];
                }
                _ if i == 0 => {}
                Token::Char(c) => next[i] = reached[i - 1] && path[i - 1] == *c,
                Token::One => next[i] = reached[i - 1] && path[i - 1] != '/',
                Token::Class(negated, ranges) => {
                    let c = path[i - 1];
                    let hit = ranges.iter().any(|(low, high)| *low <= c && c <= *high);
                    next[i] = reached[i - 1] && c != '/' && hit != *negated;
                }
            }
        }
        reached = next;
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, path: &str, ignored: bool) {
        assert_eq!(Ignore::parse(text).unwrap().ignores(path), ignored, "{text:?} {path}");
    }

    #[test]
    fn patterns_fit_as_in_docker() {
        for (text, path, ignored) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("/a/", "a/b", true),
            ("*/a", "b/a", true),
            ("*/a", "b/c/a", false),
            ("**/a", "a", true),
            ("**/a", "b/c/a", true),
            ("**/*.go", "x/y/z.go", true),
            ("**/*.go", "z.go", true),
            ("a/**", "a/b", true),
            ("a/**", "a", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("**", "anything/at/all", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README.md", "x.md", true),
            ("*\n!src", "src/main.rs", false),
            ("*\n!src\nsrc/*.o", "src/main.o", true),
            ("!src\n*", "src", true),
            ("# comment\n\n  a  ", "a", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            (".", "a", false),
            ("../a", "a", true),
            ("foo/../bar", "bar", true),
        ] {
            check(text, path, ignored);
        }
        assert!(Ignore::parse("!").is_err() && Ignore::parse("[a").is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_slow(text in "([*?!/\\\\\\[\\]^a-c.-]|\n|\\PC){0,60}", path in "[a-c/]{0,40}") {
            if let Ok(ignore) = Ignore::parse(&text) {
                let _ = ignore.ignores(&path);
            }
        }
        #[test]
        fn what_a_negation_names_counts(path in "[a-c]{1,5}(/[a-c]{1,5}){0,3}") {
            let ignore = Ignore::parse(&format!("**\n!{path}")).unwrap();
            prop_assert!(!ignore.ignores(&path));
        }
    }
}
