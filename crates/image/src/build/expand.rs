//! Replaces variables and takes quotes away, as the Dockerfile reference says. Pure.
//! Source: BuildKit's frontend/dockerfile/shell/lex.go.

use crate::error::{Error, Result};

/// Longest result of one replacement: nesting of variables could grow without bound.
const MAX_RESULT: usize = 1 << 20;
/// Deepest nesting of `${a:-${b:-…}}`.
const MAX_NESTING: usize = 32;

/// Replaces `$name`, `${name}`, `${name:-word}`, `${name:+word}`, `${name:?word}` and the same without colon, and takes
/// quotes and escapes away. `lookup` gives a variable's value.
///
/// Errors: `Invalid` for what is malformed, and for `:?`.
pub fn expand(text: &str, escape: char, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, escape, lookup, depth: 0, strip: true };
    lexer.until(None)
}

/// Replaces variables but leaves quotes as they are (here-documents).
pub fn expand_only(text: &str, escape: char, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, escape, lookup, depth: 0, strip: false };
    lexer.until(None)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
    strip: bool,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    /// Reads to the end, or to a character that is not quoted.
    fn until(&mut self, stop: Option<char>) -> Result<String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return match stop {
                    None => Ok(out),
                    Some(stop) => {
                        Err(Error::Invalid(format!("unexpected end of statement while looking for {stop:?}")))
                    }
                };
            };
            self.at += 1;
            if Some(c) == stop {
                return Ok(out);
            }
            match c {
                '\'' if self.strip => out.push_str(&self.single_quoted()?),
                '"' if self.strip => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.dollar()?),
                c if c == self.escape => match self.peek() {
                    Some(next) if self.strip || next == '$' => {
                        self.at += 1;
                        out.push(next);
                    }
                    // At the end of a word it stands for itself.
                    _ => out.push(c),
                },
                c => out.push(c),
            }
            if out.len() > MAX_RESULT {
                return Err(Error::Invalid("the result of a substitution is too long".to_owned()));
            }
        }
    }

    fn single_quoted(&mut self) -> Result<String> {
        let rest = &self.chars[self.at..];
        let Some(length) = rest.iter().position(|c| *c == '\'') else {
            return Err(Error::Invalid(
                "unexpected end of statement while looking for matching single-quote".to_owned(),
            ));
        };
        self.at += length + 1;
        Ok(rest[..length].iter().collect())
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<()> {
        loop {
            let Some(c) = self.peek() else {
                let why = "unexpected end of statement while looking for matching double-quote";
                return Err(Error::Invalid(why.to_owned()));
            };
            self.at += 1;
            match c {
                '"' => return Ok(()),
                '$' => out.push_str(&self.dollar()?),
                c if c == self.escape => match self.peek() {
                    // Only these are escaped within double quotes.
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        self.at += 1;
                        out.push(next);
                    }
                    _ => out.push(c),
                },
                c => out.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            // Positional and special parameters are one character.
            Some(c) if c.is_ascii_digit() => self.at += 1,
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.at += 1;
                }
            }
            _ => {}
        }
        self.chars[start..self.at].iter().collect()
    }

    fn dollar(&mut self) -> Result<String> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok((self.lookup)(&name).unwrap_or_default());
        }
        self.at += 1;
        let name = self.name();
        let bad = || Error::Invalid("syntax error: bad substitution".to_owned());
        if name.is_empty() {
            return Err(bad());
        }
        let value = (self.lookup)(&name);
        let mut next = self.peek().ok_or_else(bad)?;
        self.at += 1;
        if next == '}' {
            return Ok(value.unwrap_or_default());
        }
        // With a colon an empty value counts as none.
        let colon = next == ':';
        if colon {
            next = self.peek().ok_or_else(bad)?;
            self.at += 1;
        }
        if !matches!(next, '-' | '+' | '?') {
            return Err(Error::Invalid(format!("unsupported modifier ({next}) in substitution")));
        }
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(Error::Invalid("substitutions are nested too deep".to_owned()));
        }
        let word = self.until(Some('}'))?;
        self.depth -= 1;
        let set = value.filter(|value| !(colon && value.is_empty()));
        match (next, set) {
            ('-', set) => Ok(set.unwrap_or(word)),
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            (_, None) if word.is_empty() => Err(Error::Invalid(format!("{name}: is not allowed to be unset"))),
            (_, None) => Err(Error::Invalid(format!("{name}: {word}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, wanted: Option<&str>) {
        let lookup = |name: &str| match name {
            "A" => Some("hello".to_owned()),
            "E" => Some(String::new()),
            "Q" => Some("'\"$A\\".to_owned()),
            _ => None,
        };
        assert_eq!(expand(text, '\\', &lookup).ok().as_deref(), wanted, "{text}");
    }

    #[test]
    fn variables_quotes_and_escapes_follow_the_reference() {
        for (text, wanted) in [
            ("$A", "hello"),
            ("${A}x$A.y", "hellox" /* name ends at the dot */),
            ("$Ax", ""),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A b\"", "hello b"),
            ("\"\\$A\\n\"", "$A\\n"),
            ("a\\ b", "a b"),
            ("${E:-d}", "d"),
            ("${E-d}", ""),
            ("${U:-d}", "d"),
            ("${U-d}", "d"),
            ("${A:+y}", "y"),
            ("${U:+y}", ""),
            ("${E+y}", "y"),
            ("${U:-${A:-z}}", "hello"),
            ("${U:-a\\}b}", "a}b"),
            ("$", "$"),
            ("$ A", "$ A"),
            ("${A:?no}", "hello"),
            ("$Q", "'\"$A\\"),
            ("a'b\"c'd", "ab\"cd"),
        ] {
            let wanted = if text == "${A}x$A.y" { "helloxhello.y" } else { wanted };
            check(text, Some(wanted));
        }
        for text in ["${", "${A", "${}", "${A:x}", "'a", "\"a", "${U:?no}", "${U?}", "${U:-a"] {
            check(text, None);
        }
        let deep = "${U:-".repeat(100) + &"}".repeat(100);
        check(&deep, None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "([${}:+'\"\\\\?-]|[a-zA-Z]|\\PC){0,80}") {
            let _ = expand(&text, '\\', &|_| Some("v".to_owned()));
        }
        #[test]
        fn text_without_specials_stays(text in "[a-z0-9 /.:=-]{0,60}") {
            prop_assert_eq!(expand(&text, '\\', &|_| None).unwrap(), text);
        }
    }
}
