//! Turns logical lines into instructions. Pure.
//! Source: the Dockerfile reference; BuildKit's frontend/dockerfile/instructions.

use crate::build::flags::{self, Dialect, MountSpec};
use crate::build::lines::{HereDocument, Line, Lines, error_at, words};
use crate::config::Healthcheck;
use crate::error::{Error, Result};

/// What RUN, CMD, ENTRYPOINT and SHELL are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A JSON array.
    Exec(Vec<String>),
    /// A text for the shell.
    Shell(String),
}

/// COPY and ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopySpec {
    /// Whether it is ADD.
    pub add: bool,
    /// Sources, not yet expanded.
    pub sources: Vec<String>,
    /// Files given as here-documents: name and content.
    pub documents: Vec<HereDocument>,
    /// Destination, not yet expanded.
    pub destination: String,
    /// Stage or image to copy from.
    pub from: Option<String>,
    /// `user[:group]`.
    pub chown: Option<String>,
    /// Octal mode.
    pub chmod: Option<String>,
    /// Whether the directories above a source are made too.
    pub parents: bool,
    /// Patterns of what is left out.
    pub excludes: Vec<String>,
    /// Digest that the file of a URL must have.
    pub checksum: Option<String>,
    /// Whether the history of a git repository is wanted too.
    pub keep_git_dir: bool,
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// The command.
    pub command: Command,
    /// `--mount`, not yet expanded.
    pub mounts: Vec<MountSpec>,
    /// `--network`.
    pub network: Option<String>,
    /// Whether `--security=insecure` was said.
    pub insecure: bool,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Instruction {
    /// FROM image [AS name]
    From {
        /// The base image, not yet expanded.
        image: String,
        /// The name of the stage.
        name: Option<String>,
        /// `--platform`, not yet expanded.
        platform: Option<String>,
    },
    /// RUN
    Run(RunSpec),
    /// COPY and ADD
    Copy(CopySpec),
    /// ENV, values with their quotes
    Env(Vec<(String, String)>),
    /// LABEL, values with their quotes
    Label(Vec<(String, String)>),
    /// ARG, values with their quotes
    Arg(Vec<(String, Option<String>)>),
    /// WORKDIR
    WorkingDirectory(String),
    /// CMD
    Cmd(Command),
    /// ENTRYPOINT
    Entrypoint(Command),
    /// EXPOSE
    Expose(Vec<String>),
    /// USER
    User(String),
    /// VOLUME
    Volume(Vec<String>),
    /// STOPSIGNAL
    StopSignal(String),
    /// HEALTHCHECK; `None` is NONE. The command's shell form is told by `Command`.
    Healthcheck(Option<(Healthcheck, Command)>),
    /// SHELL
    Shell(Vec<String>),
    /// ONBUILD
    OnBuild(String),
    /// MAINTAINER
    Maintainer(String),
}

/// An instruction with where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// Line of the Dockerfile, from 1.
    pub line: usize,
    /// Its last line.
    pub last: usize,
    /// The comments above it.
    pub comment: Vec<String>,
    /// As Docker prints it.
    pub original: String,
    /// What it says.
    pub instruction: Instruction,
}

/// Parses all instructions. Errors name the line, in Docker's form.
pub fn parse(lines: &Lines, dialect: Dialect) -> Result<Vec<Parsed>> {
    lines.lines.iter().map(|line| parse_line(line, lines.escape, dialect)).collect()
}

/// Parses one instruction.
pub fn parse_line(line: &Line, escape: char, dialect: Dialect) -> Result<Parsed> {
    let at = |error: Error| match error {
        Error::Invalid(why) => error_at(line.number, why),
        other => other,
    };
    let (name, rest) = split_name(&line.text);
    let name = name.to_ascii_uppercase();
    let instruction = instruction(&name, rest, line, escape, dialect).map_err(at)?;
    let original = if rest.is_empty() { name } else { format!("{name} {rest}") };
    Ok(Parsed { line: line.number, last: line.last, comment: line.comment.clone(), original, instruction })
}

fn split_name(text: &str) -> (&str, &str) {
    match text.find(char::is_whitespace) {
        Some(end) => (&text[..end], text[end..].trim()),
        None => (text, ""),
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(why.into()))
}

fn instruction(name: &str, rest: &str, line: &Line, escape: char, dialect: Dialect) -> Result<Instruction> {
    let needs = |count: &str| Error::Invalid(format!("{name} requires {count}"));
    let (flags, body) = flags::split(rest);
    let takes_flags = matches!(name, "FROM" | "RUN" | "COPY" | "ADD" | "HEALTHCHECK");
    let body = if takes_flags { body } else { rest };
    if body.is_empty() && known(name) && name != "CMD" && name != "ENTRYPOINT" {
        return Err(needs(if matches!(name, "COPY" | "ADD") {
            "at least two arguments"
        } else {
            "at least one argument"
        }));
    }
    match name {
        "FROM" => from(&flags, body, dialect),
        "RUN" => run(&flags, body, line, dialect),
        "COPY" | "ADD" => copy(name, &flags, body, line, escape, dialect),
        "ENV" => pairs(name, body, escape).map(Instruction::Env),
        "LABEL" => pairs(name, body, escape).map(Instruction::Label),
        "ARG" => arg(body, escape),
        "WORKDIR" => Ok(Instruction::WorkingDirectory(body.to_owned())),
        "CMD" => Ok(Instruction::Cmd(command(body))),
        "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(body))),
        "EXPOSE" => Ok(Instruction::Expose(words(body, escape))),
        "USER" => one(name, body).map(Instruction::User),
        "VOLUME" => match json_strings(body) {
            Some(paths) if paths.iter().any(|path| path.trim().is_empty()) => {
                invalid("VOLUME specified can not be an empty string")
            }
            Some(paths) => Ok(Instruction::Volume(paths)),
            None => Ok(Instruction::Volume(words(body, escape))),
        },
        "STOPSIGNAL" => one(name, body).map(Instruction::StopSignal),
        "HEALTHCHECK" => healthcheck(&flags, body, dialect),
        "SHELL" => match json_strings(body) {
            Some(shell) if !shell.is_empty() => Ok(Instruction::Shell(shell)),
            _ => invalid("SHELL requires the arguments to be in JSON form"),
        },
        "ONBUILD" => {
            let trigger = split_name(body).0.to_ascii_uppercase();
            match trigger.as_str() {
                "ONBUILD" => invalid("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
                "MAINTAINER" | "FROM" => invalid(format!("{trigger} isn't allowed as an ONBUILD trigger")),
                _ => Ok(Instruction::OnBuild(body.to_owned())),
            }
        }
        "MAINTAINER" => Ok(Instruction::Maintainer(body.to_owned())),
        _ => invalid(format!("unknown instruction: {name}")),
    }
}

fn known(name: &str) -> bool {
    matches!(
        name,
        "FROM"
            | "RUN"
            | "COPY"
            | "ADD"
            | "ENV"
            | "LABEL"
            | "ARG"
            | "WORKDIR"
            | "EXPOSE"
            | "USER"
            | "VOLUME"
            | "STOPSIGNAL"
            | "HEALTHCHECK"
            | "SHELL"
            | "ONBUILD"
            | "MAINTAINER"
    )
}

fn one(name: &str, body: &str) -> Result<String> {
    if body.split_whitespace().count() != 1 {
        return invalid(format!("{name} requires exactly one argument"));
    }
    Ok(body.to_owned())
}

fn from(flags: &[(&str, &str)], body: &str, dialect: Dialect) -> Result<Instruction> {
    if let Some((name, _)) = flags.iter().find(|(name, _)| *name != "platform") {
        return flags::unknown(name, dialect);
    }
    let platform = flags.last().map(|(_, value)| (*value).to_owned());
    let words: Vec<&str> = body.split_whitespace().collect();
    match words.as_slice() {
        [image] => Ok(Instruction::From { image: (*image).to_owned(), name: None, platform }),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("AS") => {
            let name = name.to_ascii_lowercase();
            let good = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
            if !good || name == "scratch" {
                return invalid(format!(
                    "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
                ));
            }
            Ok(Instruction::From { image: (*image).to_owned(), name: Some(name), platform })
        }
        _ => invalid("FROM requires either one or three arguments"),
    }
}

fn run(flags: &[(&str, &str)], body: &str, line: &Line, dialect: Dialect) -> Result<Instruction> {
    let mut spec = RunSpec { command: command(body), mounts: Vec::new(), network: None, insecure: false };
    for (flag, value) in flags {
        match *flag {
            _ if dialect == Dialect::Classic => return flags::unknown(flag, dialect),
            "mount" => flags::push_mount(&mut spec.mounts, value)?,
            "network" if matches!(*value, "default" | "none" | "host") => spec.network = Some((*value).to_owned()),
            "network" => return invalid(format!("unsupported network mode {value:?}")),
            "security" if matches!(*value, "sandbox" | "insecure") => spec.insecure = *value == "insecure",
            "security" => return invalid(format!("security {value:?} is not valid")),
            other => return flags::unknown(other, dialect),
        }
    }
    if let Some(document) = line.documents.first() {
        // A lone here-document is the script; otherwise the shell itself reads the documents.
        let alone = line.documents.len() == 1 && body.starts_with("<<") && body.split_whitespace().count() == 1;
        let mut script = if alone { document.content.clone() } else { format!("{body}\n") };
        for document in line.documents.iter().filter(|_| !alone) {
            script.push_str(&document.content);
            script.push_str(&document.name);
            script.push('\n');
        }
        spec.command = Command::Shell(script);
    }
    Ok(Instruction::Run(spec))
}

fn copy(
    name: &str,
    flags: &[(&str, &str)],
    body: &str,
    line: &Line,
    escape: char,
    dialect: Dialect,
) -> Result<Instruction> {
    let modern = dialect == Dialect::BuildKit;
    let mut spec = CopySpec { add: name == "ADD", documents: line.documents.clone(), ..CopySpec::default() };
    for (flag, value) in flags {
        match *flag {
            "from" if !spec.add => spec.from = Some((*value).to_owned()),
            "chown" => spec.chown = Some((*value).to_owned()),
            "chmod" => spec.chmod = Some((*value).to_owned()),
            // Only tells how to store the layer, and ours are stored that way anyhow.
            "link" => drop(flags::boolean(flag, value)?),
            "keep-git-dir" if spec.add => spec.keep_git_dir = flags::boolean(flag, value)?,
            "parents" if modern && !spec.add => spec.parents = flags::boolean(flag, value)?,
            "exclude" if modern => spec.excludes.push((*value).to_owned()),
            "checksum" if modern && spec.add => spec.checksum = Some((*value).to_owned()),
            other => return flags::unknown(other, dialect),
        }
    }
    let mut words = json_strings(body).unwrap_or_else(|| words(body, escape));
    words.retain(|word| line.documents.is_empty() || !word.starts_with("<<"));
    spec.destination = words.pop().unwrap_or_default();
    if spec.destination.is_empty() || (words.is_empty() && line.documents.is_empty()) {
        return invalid(format!("{name} requires at least two arguments, but only one was provided"));
    }
    spec.sources = words;
    Ok(Instruction::Copy(spec))
}

/// `k=v k2="v 2"`, or the old `k v with blanks`. Values keep their quotes until they are expanded.
fn pairs(name: &str, body: &str, escape: char) -> Result<Vec<(String, String)>> {
    let words = words(body, escape);
    let first = words.first().map(String::as_str).unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = split_name(body);
        if value.is_empty() {
            return invalid(format!("{name} must have two arguments"));
        }
        return Ok(vec![(key.to_owned(), value.to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) => invalid(format!("{name} names can not be blank")),
            None => invalid(format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value")),
        })
        .collect()
}

fn arg(body: &str, escape: char) -> Result<Instruction> {
    let parse = |word: &String| match word.split_once('=') {
        Some(("", _)) => invalid("ARG names can not be blank"),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word.clone(), None)),
    };
    words(body, escape).iter().map(parse).collect::<Result<_>>().map(Instruction::Arg)
}

/// A JSON array of strings, or a text for the shell.
pub fn command(body: &str) -> Command {
    json_strings(body).map_or_else(|| Command::Shell(body.to_owned()), Command::Exec)
}

fn json_strings(body: &str) -> Option<Vec<String>> {
    body.starts_with('[').then(|| serde_json::from_str(body).ok()).flatten()
}

fn healthcheck(flags: &[(&str, &str)], body: &str, dialect: Dialect) -> Result<Instruction> {
    let (kind, rest) = split_name(body);
    if kind.eq_ignore_ascii_case("NONE") {
        if !rest.is_empty() {
            return invalid("HEALTHCHECK NONE takes no arguments");
        }
        return Ok(Instruction::Healthcheck(None));
    }
    if !kind.eq_ignore_ascii_case("CMD") {
        return invalid(format!("unknown type {kind:?} in HEALTHCHECK (try CMD)"));
    }
    if rest.is_empty() {
        return invalid("missing command after HEALTHCHECK CMD");
    }
    let mut check = Healthcheck::default();
    for (flag, value) in flags {
        match *flag {
            "interval" => check.interval = duration(value)?,
            "timeout" => check.timeout = duration(value)?,
            "start-period" => check.start_period = duration(value)?,
            "start-interval" => check.start_interval = duration(value)?,
            "retries" => match value.parse::<i64>() {
                Ok(count) if count >= 1 => check.retries = count,
                _ => return invalid(format!("--retries must be at least 1 (not {value})")),
            },
            other => return flags::unknown(other, dialect),
        }
    }
    Ok(Instruction::Healthcheck(Some((check, command(rest)))))
}

/// A duration in Go's form (`1m30s`, `0.5s`). Units: nanoseconds.
pub fn duration(text: &str) -> Result<i64> {
    let bad = || Error::Invalid(format!("time: invalid duration {text:?}"));
    let mut total = 0_f64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let value: f64 = rest[..end].parse().map_err(|_| bad())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(bad()),
        };
        total += value * unit;
        rest = &rest[end..];
    }
    // Go's longest duration is 292 years.
    #[allow(clippy::cast_possible_truncation)] // checked against the range
    if total <= 9.2e18 { Ok(total as i64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::build::lines::cut;

    fn one_line(text: &str) -> Result<Instruction> {
        Ok(parse(&cut(text)?, Dialect::Classic)?.remove(0).instruction)
    }

    #[test]
    fn instructions_are_read_in_all_their_forms() {
        let exec = |words: &[&str]| Command::Exec(words.iter().map(|w| (*w).to_owned()).collect());
        let run = |text: &str| match one_line(text).unwrap() {
            Instruction::Run(spec) => spec.command,
            other => panic!("{other:?}"),
        };
        assert_eq!(run("RUN [\"a\", \"b c\"]"), exec(&["a", "b c"]));
        assert_eq!(run("run [a]"), Command::Shell("[a]".to_owned()));
        assert_eq!(one_line("ENV a b  c").unwrap(), Instruction::Env(vec![("a".into(), "b  c".into())]));
        let pairs = vec![("a".into(), "\"b c\"".into()), ("d".into(), "e".into())];
        assert_eq!(one_line("ENV a=\"b c\" d=e").unwrap(), Instruction::Env(pairs));
        let Instruction::Copy(spec) = one_line("COPY --from=0 --chown=1:2 [\"a b\", \"c\", \"/d/\"]").unwrap() else {
            panic!("no copy")
        };
        assert_eq!((spec.from.as_deref(), spec.sources.len(), spec.destination.as_str()), (Some("0"), 2, "/d/"));
        let platform = Some("linux/amd64".into());
        let from = Instruction::From { image: "x:1".into(), name: Some("build".into()), platform };
        assert_eq!(one_line("FROM --platform=linux/amd64 x:1 as Build").unwrap(), from);
        let Instruction::Healthcheck(Some((check, _))) =
            one_line("HEALTHCHECK --interval=1m30s --retries=2 CMD x").unwrap()
        else {
            panic!("no check")
        };
        assert_eq!((check.interval, check.retries), (90_000_000_000, 2));
    }

    #[test]
    fn errors_name_the_line() {
        for (text, message) in [
            ("FROM a\nFOO x", "dockerfile parse error on line 2: unknown instruction: FOO"),
            ("FROM a\n\nCOPY x", "dockerfile parse error on line 3: COPY requires at least two arguments"),
            ("FROM a b", "FROM requires either one or three arguments"),
            ("FROM a AS 1x", "invalid name for build stage"),
            ("RUN --mount=type=cache x", "the --mount option requires BuildKit"),
            ("ENV a", "ENV must have two arguments"),
            ("ENV a=b c", "can't find = in \"c\""),
            ("SHELL /bin/sh", "SHELL requires the arguments to be in JSON form"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("HEALTHCHECK --retries=0 CMD x", "--retries must be at least 1"),
            ("COPY --what=1 a b", "unknown flag: --what"),
            ("WORKDIR", "WORKDIR requires at least one argument"),
        ] {
            let error = parse(&cut(text).unwrap(), Dialect::Classic).unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
        assert!(duration("5").is_err() && duration("").is_err() && duration("9999999999h").is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            name in "(FROM|RUN|COPY|ADD|ENV|LABEL|ARG|VOLUME|HEALTHCHECK|ONBUILD|USER|SHELL|X)",
            rest in "([ =\"'\\[\\]<-]|[a-zA-Z]|\\PC|\n){0,80}",
        ) {
            if let Ok(lines) = cut(&format!("{name} {rest}")) {
                let _ = parse(&lines, Dialect::Classic);
                let _ = parse(&lines, Dialect::BuildKit);
            }
        }
    }
}
