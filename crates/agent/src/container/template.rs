//! Templates in the content of Swarm's secrets and configs: placeholders and the functions `env`, `secret` and `config`. Pure.
//! What else Go's templates have (conditions, loops, pipelines) is an error: the task says so.
//! Source: Docker, "Use templated configs"; Go, package `text/template`.

/// Pieces of a template, each of which costs more than its bytes.
const PIECES_MAX: usize = 10_000;
/// How much is told of an action that is not understood. Units: characters.
const TOLD_MAX: usize = 120;

/// One piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Stands as it is.
    Text(String),
    /// `{{ .Service.Name }}`, with its dot.
    Field(&'a str),
    /// `{{ env "NAME" }}`: a variable of the task.
    Environment(String),
    /// `{{ secret "target" }}`: a secret of the task, by the name of its file.
    Secret(String),
    /// `{{ config "target" }}`: the same of a config.
    Config(String),
}

/// Takes a template apart.
///
/// Errors: what is not understood, in words for the user.
pub fn parse(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    loop {
        let (before, action) = match rest.split_once("{{") {
            Some((before, action)) => (before, Some(action)),
            None => (rest, None),
        };
        let before = if trim { before.trim_start() } else { before };
        let Some(action) = action else {
            return Ok(with_text(pieces, before));
        };
        // A minus sign beside white space takes the white space of the text away.
        let (action, before) = match action.strip_prefix('-') {
            Some(inner) if inner.starts_with(char::is_whitespace) => (inner, before.trim_end()),
            _ => (action, before),
        };
        pieces = with_text(pieces, before);
        let (inside, behind) = split_action(action)?;
        let cut = inside.strip_suffix('-').filter(|inner| inner.ends_with(char::is_whitespace));
        trim = cut.is_some();
        let inside = cut.unwrap_or(inside).trim();
        let comment = inside.strip_prefix("/*").and_then(|text| text.split_once("*/"));
        if comment.is_none_or(|(_, more)| !more.is_empty()) {
            pieces.push(piece(inside)?);
        }
        if pieces.len() > PIECES_MAX {
            return Err(format!("it has more than {PIECES_MAX} pieces"));
        }
        rest = behind;
    }
}

fn with_text<'a>(mut pieces: Vec<Piece<'a>>, text: &str) -> Vec<Piece<'a>> {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    pieces
}

/// Splits at the end of the action, which is not inside quotes or a comment.
fn split_action(text: &str) -> Result<(&str, &str), String> {
    let (mut quote, mut escaped) = (None, false);
    let code = match text.trim_start().strip_prefix("/*") {
        Some(comment) => comment.split_once("*/").ok_or("unclosed comment")?.1,
        None => text,
    };
    let before = text.len() - code.len();
    for (at, letter) in code.char_indices() {
        let at = before + at;
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if letter == '\\' => escaped = true,
            Some(open) if open == letter => quote = None,
            Some(_) => {}
            None if matches!(letter, '"' | '`') => quote = Some(letter),
            None if text[at..].starts_with("}}") => return Ok((&text[..at], &text[at + 2..])),
            None => {}
        }
    }
    Err("unclosed action".to_owned())
}

fn piece(inside: &str) -> Result<Piece<'_>, String> {
    let unknown = || {
        let told = shortened(inside);
        format!("{{{{{told}}}}} is not understood: placeholders, env, secret and config are")
    };
    let named = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
    if inside.starts_with('.') && inside.chars().all(named) {
        return Ok(Piece::Field(inside));
    }
    if inside.starts_with(['"', '`']) {
        return unquote(inside).map(Piece::Text).ok_or_else(unknown);
    }
    let (function, argument) = inside.split_once(char::is_whitespace).ok_or_else(unknown)?;
    let argument = unquote(argument.trim()).ok_or_else(unknown)?;
    match function {
        "env" => Ok(Piece::Environment(argument)),
        "secret" => Ok(Piece::Secret(argument)),
        "config" => Ok(Piece::Config(argument)),
        _ => Err(unknown()),
    }
}

/// As much of a text as is told.
pub fn shortened(text: &str) -> String {
    let mut letters = text.chars();
    let mut told: String = letters.by_ref().take(TOLD_MAX).collect();
    if letters.next().is_some() {
        told.push('…');
    }
    told
}

/// One string of Go, and nothing behind it.
fn unquote(text: &str) -> Option<String> {
    if let Some(raw) = text.strip_prefix('`').and_then(|text| text.strip_suffix('`')) {
        return (!raw.contains('`')).then(|| raw.to_owned());
    }
    let mut letters = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut out = String::new();
    while let Some(letter) = letters.next() {
        out.push(match letter {
            '"' => return None,
            '\\' => match letters.next()? {
                'n' => '\n',
                't' => '\t',
                same @ ('"' | '\\') => same,
                _ => return None,
            },
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Piece<'static> {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn placeholders_functions_comments_and_trimming_are_understood() {
        assert_eq!(parse("plain }} text").unwrap(), [text("plain }} text")]);
        assert_eq!(
            parse("a {{.Task.Slot}}{{ env \"X\" }} b\n{{- secret `k}}` -}}\n c{{/* no */}}{{ config \"p\\\"q\" }}")
                .unwrap(),
            [
                text("a "),
                Piece::Field(".Task.Slot"),
                Piece::Environment("X".into()),
                text(" b"),
                Piece::Secret("k}}".into()),
                text("c"),
                Piece::Config("p\"q".into()),
            ]
        );
        assert_eq!(parse("{{ \"{{\" }}x").unwrap(), [text("{{"), text("x")]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wrong in
            ["{{", "{{ if .X }}", "{{ .X | y }}", "{{ env X }}", "{{ env \"a\" \"b\" }}", "{{ printf \"x\" }}", "{{ }}"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let told = parse(&format!("{{{{ if {} }}}}", "x".repeat(10_000))).unwrap_err();
        assert!(told.chars().count() < 2 * TOLD_MAX, "{told}");
        assert!(parse(&"{{.A}}".repeat(PIECES_MAX)).is_ok() && parse(&"{{.A}}".repeat(PIECES_MAX + 1)).is_err());
    }

    #[test]
    fn a_comment_may_hold_what_would_be_code_elsewhere() {
        assert_eq!(parse("a{{/* it's \" and }} and ` */}}b").unwrap(), [text("a"), text("b")]);
        assert_eq!(parse("a {{- /* \" */ -}} b").unwrap(), [text("a"), text("b")]);
        for wrong in ["{{/* }}", "{{/*/}}", "{{/* a */", "{{/* a */ b /* c */}}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(text in "[ -~{}\"`\n-]{0,80}") {
            let _ = parse(&text);
        }
    }
}
