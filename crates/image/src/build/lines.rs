//! Cuts a Dockerfile into logical lines: directives, comments, continuations, here-documents. Pure.
//! Source: the Dockerfile reference; BuildKit's frontend/dockerfile/parser.

use crate::error::{Error, Result};

/// Longest Dockerfile. Real ones stay under 100 KiB.
pub const MAX_DOCKERFILE: usize = 4 << 20;
/// Most instructions of a Dockerfile, each of which is an image.
pub const MAX_INSTRUCTIONS: usize = 5_000;

/// One instruction as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of its first line, from 1.
    pub number: usize,
    /// Number of its last line; that of its here-documents, if it has any.
    pub last: usize,
    /// The comments between the instruction before and it, without the `#`.
    pub comment: Vec<String>,
    /// Its text, with continuations joined.
    pub text: String,
    /// Its here-documents.
    pub documents: Vec<HereDocument>,
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HereDocument {
    /// The word that ends it.
    pub name: String,
    /// Its lines, each with its line feed.
    pub content: String,
    /// Whether variables in it are replaced (the word was not quoted).
    pub expand: bool,
}

/// All instructions, and the escape character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The instructions.
    pub lines: Vec<Line>,
    /// `\` unless a directive says `` ` ``.
    pub escape: char,
}

/// An error at a line, in Docker's form.
pub fn error_at(number: usize, why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("dockerfile parse error on line {number}: {why}"))
}

/// The line that an error names.
pub fn line_of(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("dockerfile parse error on line ")?;
    rest.split_once(':')?.0.parse().ok()
}

/// Cuts a Dockerfile into logical lines.
pub fn cut(text: &str) -> Result<Lines> {
    if text.len() > MAX_DOCKERFILE {
        return Err(Error::Invalid(format!("the Dockerfile is larger than {MAX_DOCKERFILE} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let escape = directives(&raw)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut comment: Vec<String> = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let number = at + 1;
        let first = raw[at].trim_start();
        at += 1;
        if first.is_empty() {
            continue;
        }
        if let Some(text) = first.strip_prefix('#') {
            comment.push(text.trim().to_owned());
            continue;
        }
        let (mut text, mut goes_on) = continuation(first, escape);
        while goes_on && at < raw.len() {
            let next = raw[at];
            at += 1;
            if next.trim_start().starts_with('#') || next.trim().is_empty() {
                continue;
            }
            let (piece, more) = continuation(next, escape);
            text.push_str(&piece);
            goes_on = more;
        }
        let mut documents = Vec::new();
        for (name, expand, strip_tabs) in here_words(&text) {
            let (content, next) = here_document(&raw, at, &name, strip_tabs)
                .ok_or_else(|| error_at(number, format!("unterminated heredoc {name:?}")))?;
            documents.push(HereDocument { name, content, expand });
            at = next;
        }
        let comment = std::mem::take(&mut comment);
        lines.push(Line { number, last: at, comment, text: text.trim_end().to_owned(), documents });
        if lines.len() > MAX_INSTRUCTIONS {
            return Err(error_at(number, format!("more than {MAX_INSTRUCTIONS} instructions")));
        }
    }
    Ok(Lines { lines, escape })
}

/// Directives stand before everything else; the first line that is none ends them.
fn directives(raw: &[&str]) -> Result<char> {
    let mut escape = None;
    for (i, line) in raw.iter().enumerate() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let key = key.trim().to_ascii_lowercase();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
            break;
        }
        if key == "escape" {
            if escape.is_some() {
                return Err(error_at(i + 1, "only one escape parser directive can be used"));
            }
            escape = Some(match value.trim() {
                "\\" => '\\',
                "`" => '`',
                other => return Err(error_at(i + 1, format!("invalid escape token '{other}' does not match ` or \\"))),
            });
        }
    }
    Ok(escape.unwrap_or('\\'))
}

/// The line without its continuation, and whether it had one.
fn continuation(line: &str, escape: char) -> (String, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(piece) => (piece.to_owned(), true),
        None => (line.to_owned(), false),
    }
}

/// The words of a RUN, COPY or ADD that start here-documents: name, whether it expands, whether tabs are stripped.
fn here_words(text: &str) -> Vec<(String, bool, bool)> {
    let mut words = text.split_whitespace();
    let instruction = words.next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(instruction.as_str(), "RUN" | "COPY" | "ADD") {
        return Vec::new();
    }
    let parse = |word: &str| -> Option<(String, bool, bool)> {
        let rest = word.strip_prefix("<<")?;
        let (rest, strip_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
        let quoted = ['"', '\''].iter().find_map(|q| rest.strip_prefix(*q)?.strip_suffix(*q));
        let name = quoted.unwrap_or(rest);
        let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        good.then(|| (name.to_owned(), quoted.is_none(), strip_tabs))
    };
    words.filter_map(parse).collect()
}

fn here_document(raw: &[&str], start: usize, name: &str, strip_tabs: bool) -> Option<(String, usize)> {
    let mut content = String::new();
    for (i, line) in raw.iter().enumerate().skip(start) {
        let line = if strip_tabs { line.trim_start_matches('\t') } else { line };
        if line == name {
            return Some((content, i + 1));
        }
        content.push_str(line);
        content.push('\n');
    }
    None
}

/// Splits at blanks, outside quotes and after no escape; quotes stay.
pub fn words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape
            && quote != Some('\'')
            && let Some(next) = chars.next()
        {
            word.push(next);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Vec<(usize, String)> {
        cut(text).unwrap().lines.into_iter().map(|line| (line.number, line.text)).collect()
    }

    #[test]
    fn continuations_comments_and_blank_lines_are_joined_away() {
        let text = "# comment\n\nFROM a\n  RUN x \\\n# inside\n\n  y \\  \n z\nCMD b\n";
        let wanted = [(3, "FROM a"), (4, "RUN x   y  z"), (9, "CMD b")].map(|(n, t)| (n, t.to_owned()));
        assert_eq!(texts(text), wanted);
        assert_eq!(texts("FROM a\r\nRUN b \\\r\n c\r\n").len(), 2);
    }

    #[test]
    fn the_escape_directive_counts_at_the_top_only() {
        assert_eq!(cut("# escape=`\nFROM a\nRUN x `\n y").unwrap().lines[1].text, "RUN x  y");
        assert_eq!(cut("FROM a\n# escape=`\nRUN x `\n").unwrap().escape, '\\');
        assert!(cut("# escape=x\nFROM a").unwrap_err().to_string().contains("invalid escape token 'x'"));
    }

    #[test]
    fn here_documents_belong_to_their_instruction() {
        let lines =
            cut("FROM a\nRUN <<EOF\none\n  two\nEOF\nCOPY <<-'x' <<y /d/\n\t$a\nx\nb\ny\nCMD z\n").unwrap().lines;
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].documents[0].content, "one\n  two\n");
        assert_eq!((lines[2].documents[0].content.as_str(), lines[2].documents[0].expand), ("$a\n", false));
        assert_eq!((lines[2].documents[1].content.as_str(), lines[2].documents[1].expand), ("b\n", true));
        assert!(cut("FROM a\nRUN <<EOF\nx").is_err());
    }

    #[test]
    fn words_keep_quotes_and_escapes() {
        assert_eq!(words(r#"a="b c" d=e\ f 'g h'"#, '\\'), [r#"a="b c""#, r"d=e\ f", "'g h'"]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(\\PC|\n|\\\\){0,200}") {
            let _ = cut(&text);
            let _ = words(&text, '\\');
        }
    }
}
